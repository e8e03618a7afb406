"""What is in the store, by one listing: loose objects sorted into local files, so that any number takes little memory.

A listing comes in any order. The index is read in order of id; so what is listed is written down by the first byte of
its id, 41 bytes each, and compared one 256th at a time.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from actors.fsck.problems import NAMED_BY, Found, FsckReport, Phase, Problem
from actors.repair.listing import listed
from actors.repair.reading import RepairServices
from actors.spool import SpoolDirectory
from storage.layout import fetch_pack_id, pack_key, parse_journal_key
from storage.object_store import ObjectStore, StoredObject
from wire.ids import DIGEST_BYTES, Scheme
from wire.limits import MIB

BUCKETS = 256
_LOOSE = re.compile(r"objects/(typed|plain)/([0-9a-f]{2})/([0-9a-f]{62})")
_PACK = re.compile(r"(packs|records)/([0-9a-f]{64})\.mpack")
_FLUSH_BYTES = 8 * MIB
_ENTRY_BYTES = 1 + DIGEST_BYTES + 8
_SCHEMES = list(Scheme)
PACKS_KEPT = 200_000
"""Sizes of packs in memory; of more the store is asked again."""


class Inventory:
    """What a listing has found."""

    def __init__(self, spools: SpoolDirectory) -> None:
        self._spools = spools
        self._directory: Path | None = None
        self._waiting = [bytearray() for _ in range(BUCKETS)]
        self._waiting_bytes = 0
        self.packs: dict[bytes, int] = {}
        """Pack → size, of the first :data:`PACKS_KEPT`."""

    async def pack_size(self, store: ObjectStore, pack_id: bytes) -> int:
        """Give a pack's size; raises ``ObjectMissing``."""
        size = self.packs.get(pack_id)
        return await store.size(pack_key(pack_id)) if size is None else size

    async def loose(self, bucket: int) -> dict[tuple[bytes, Scheme], int]:
        """Give the loose objects whose ids begin with a byte, with their sizes."""
        if self._directory is None:  # nothing has gone to the disk
            return self._read(bucket)
        return await trio.to_thread.run_sync(self._read, bucket)

    async def take(self, report: FsckReport, stored: StoredObject) -> None:
        """Sort one key."""
        loose = _LOOSE.fullmatch(stored.key)
        if loose is not None:
            object_id = bytes.fromhex(loose[2] + loose[3])
            entry = bytes([_SCHEMES.index(Scheme(loose[1]))]) + object_id + stored.size.to_bytes(8, "big")
            self._waiting[object_id[0]] += entry
            self._waiting_bytes += _ENTRY_BYTES
            if self._waiting_bytes >= _FLUSH_BYTES:
                await trio.to_thread.run_sync(self._flush)
            return
        pack = _PACK.fullmatch(stored.key)
        if pack is not None:
            report.checked["stored packs" if pack[1] == "packs" else "record packs"] += 1
            if pack[1] == "packs" and len(self.packs) < PACKS_KEPT:
                self.packs[bytes.fromhex(pack[2])] = stored.size
            return
        explained = _explained(stored.key)
        if explained is None:
            report.add(Found(Problem.UNKNOWN_KEY, "museworkd makes no such key", key=stored.key))
        else:
            report.explained[explained] += 1

    def _flush(self) -> None:
        if self._directory is None:
            self._directory = self._spools.new_path()
            self._directory.mkdir()
        for bucket, entries in enumerate(self._waiting):
            if entries:
                with (self._directory / f"{bucket:02x}").open("ab") as file:
                    file.write(entries)
                self._waiting[bucket] = bytearray()
        self._waiting_bytes = 0

    def _read(self, bucket: int) -> dict[tuple[bytes, Scheme], int]:
        path = None if self._directory is None else self._directory / f"{bucket:02x}"
        content = path.read_bytes() if path is not None and path.exists() else b""
        content += self._waiting[bucket]
        found = {}
        for at in range(0, len(content), _ENTRY_BYTES):
            object_id = content[at + 1 : at + 1 + DIGEST_BYTES]
            size = int.from_bytes(content[at + 1 + DIGEST_BYTES : at + _ENTRY_BYTES], "big")
            found[object_id, _SCHEMES[content[at]]] = size
        return found


@asynccontextmanager
async def inventory_of(services: RepairServices, report: FsckReport, phase: Phase) -> AsyncIterator[Inventory]:
    """List the store; keys that nobody explains are problems."""
    async with SpoolDirectory(services.spool_dir, f"fsck-{services.environment.uuid().hex}") as spools:
        inventory = Inventory(spools)
        async with listed(services.store, "") as keys:
            async for stored in keys:
                await inventory.take(report, stored)
                report.checked["stored keys"] += 1
                phase.advance()
        yield inventory


def _explained(key: str) -> str | None:
    """Say what a key is that no row names."""
    first = key.partition("/")[0]
    if first == "fetch" and fetch_pack_id(key) is None:
        return None
    if first == "journal" and parse_journal_key(key) is None:
        return None
    return NAMED_BY.get(first)
