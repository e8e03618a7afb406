"""Reading what may be a copy of a blob, and proving that it is one, before anything is done with it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import trio

from actors.spool import SpoolDirectory
from storage.environment import Environment
from storage.errors import ObjectDamaged, ObjectMissing, ObjectUnreadable
from storage.index import Index
from storage.layout import loose_key
from storage.object_store import ObjectStore, ReadRange
from wire.ids import Kind, Scheme, hash_bytes, hasher_for
from wire.limits import MIB, Limits

IN_MEMORY_BYTES = 4 * MIB
"""A larger content goes by way of a local file."""


class RepairServices(Protocol):
    """What a repair works with: the services of a fetch and those of a job have it."""

    @property
    def index(self) -> Index:
        """Where rows are corrected."""

    @property
    def store(self) -> ObjectStore:
        """Where copies are, and are put."""

    @property
    def environment(self) -> Environment:
        """Time and randomness."""

    @property
    def spool_dir(self) -> Path:
        """Where large contents wait."""

    @property
    def limits(self) -> Limits:
        """For what is read of packs."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A proved content: in memory, or in a local file that goes with the block it was read in."""

    object_id: bytes
    size: int
    content: bytes
    path: Path | None

    async def put(self, store: ObjectStore, scheme: Scheme) -> None:
        """Make it the loose object of its blob, durably; once."""
        key = loose_key(self.object_id, scheme)
        if self.path is None:
            await store.put_batch([(key, self.content)])
        else:
            await store.put_file(key, self.path)


@asynccontextmanager
async def proved_copy(
    services: RepairServices, scheme: Scheme, object_id: bytes, where: ReadRange
) -> AsyncIterator[Copy | None]:
    """Read what lies somewhere; gives ``None`` unless it hashes to the id.

    Raises:
        StoreUnavailable: the store cannot answer now; what it can never read is no copy.
    """
    async with SpoolDirectory(services.spool_dir, f"repair-{services.environment.uuid().hex}") as spools:
        try:
            found = await _read(services.store, scheme, object_id, where, spools)
        except (ObjectMissing, ObjectDamaged, ObjectUnreadable):
            found = None
        yield found


async def _read(
    store: ObjectStore, scheme: Scheme, object_id: bytes, where: ReadRange, spools: SpoolDirectory
) -> Copy | None:
    if where.size <= IN_MEMORY_BYTES:
        (content,) = await store.get_ranges([where])
        found = await trio.to_thread.run_sync(hash_bytes, Kind.BLOB, content, scheme)
        return Copy(object_id, where.size, content, None) if found == object_id else None
    hasher, spool = hasher_for(Kind.BLOB, where.size, scheme), spools.new()
    async with store.stream(where.key, where.offset, where.size) as pieces:
        async for piece in pieces:
            hasher.update(piece)
            await spool.append(piece)
    if hasher.digest() != object_id:
        return None
    return Copy(object_id, where.size, b"", await trio.to_thread.run_sync(spool.flush))
