"""The record pack of a push: its commits and snapshots in canonical form, one file in the object store.

Written while the push is read, sealed when it is complete. Bodies can be read back by position in between, so
that nothing but positions is kept in memory.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from actors.spool import Spool, SpoolDirectory
from storage.layout import record_pack_key
from storage.object_store import ObjectStore
from wire.pack import RECORD_HEADER_BYTES, pack_header, record_header


@dataclass(frozen=True, slots=True)
class Position:
    """Where a record's canonical bytes are in the spool."""

    offset: int
    size: int


class RecordPack:
    """Collect canonical records; :meth:`store` puts them into the object store as one pack."""

    def __init__(self, directory: SpoolDirectory) -> None:
        self._spool: Spool = directory.new()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def size(self) -> int:
        """Bytes of the records taken so far."""
        return self._spool.size

    def add(self, record_id: bytes, pieces: Iterable[bytes]) -> Position:
        """Append one record, whose first piece holds the head that says how long it is; blocking."""
        walk = iter(pieces)
        first = next(walk)
        head = first[: first.index(b"\0") + 1]
        size = len(head) + int(head[:-1].partition(b" ")[2])
        position = Position(self._spool.size + RECORD_HEADER_BYTES, size)
        self._spool.add(record_header(record_id, size) + first)
        for piece in walk:
            self._spool.add(piece)
        self._count += 1
        return position

    async def read(self, positions: list[Position]) -> list[bytes]:
        """Read records back."""
        if self._spool.in_memory:
            await trio.lowlevel.checkpoint()
            return [self._spool.read(p.offset, p.size) for p in positions]
        return await trio.to_thread.run_sync(lambda: [self._spool.read(p.offset, p.size) for p in positions])

    async def store(self, store: ObjectStore, beside: Sequence[tuple[str, bytes]] = ()) -> bytes | None:
        """Make the records durable, and small contents beside them; gives the pack's id, ``None`` without records."""
        if not self._count:
            if beside:
                await store.put_batch(beside)
            return None
        if self._spool.in_memory:
            content = pack_header(self._count) + self._spool.whole()
            content += hashlib.sha256(content).digest()
            pack_id = hashlib.sha256(content).digest()
            await store.put_batch([(record_pack_key(pack_id), content), *beside])
            return pack_id
        if beside:
            await store.put_batch(beside)
        path, pack_id = await trio.to_thread.run_sync(self._write_file)
        await store.put_file(record_pack_key(pack_id), path)
        return pack_id

    def _write_file(self) -> tuple[Path, bytes]:
        path = self._spool.directory.new_path()
        covered, whole = hashlib.sha256(), hashlib.sha256()
        with path.open("wb") as file:
            head = pack_header(self._count)
            for piece in itertools.chain([head], self._spool.pieces()):
                covered.update(piece)
                whole.update(piece)
                file.write(piece)
            footer = covered.digest()
            whole.update(footer)
            file.write(footer)
        return path, whole.digest()
