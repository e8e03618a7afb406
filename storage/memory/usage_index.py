"""The quotas and reservations of the memory index."""

from __future__ import annotations

import datetime as dt
import uuid

import trio

from storage.memory import usage
from storage.memory.tables import Tables
from storage.rows import OwnerUsage


class MemoryUsage:
    """See ``storage.index.Index`` for what each operation promises."""

    tables: Tables
    _owner_quota: int

    async def owner_usage(self, owner: str, now: dt.datetime) -> OwnerUsage:
        await trio.lowlevel.checkpoint()
        return usage.owner_usage(self.tables, owner, now, self._owner_quota)

    async def set_quota(self, owner: str, quota: int | None) -> None:
        await trio.lowlevel.checkpoint()
        self.tables.quotas[owner] = quota

    async def reserve_bytes(
        self,
        repo: int,
        reservation: bytes,
        size: int,
        now: dt.datetime,
        expires: dt.datetime,
        push_id: uuid.UUID | None = None,
    ) -> None:
        await trio.lowlevel.checkpoint()
        usage.reserve_bytes(self.tables, repo, reservation, size, now, expires, push_id, self._owner_quota)

    async def release_bytes(self, repo: int, reservation: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.tables.reservations.pop((repo, reservation), None)
