"""The ``Prebuilt`` part of the memory index."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import replace

import trio

from storage.memory.tables import Tables
from storage.prebuilt import PrebuiltPack


class MemoryPrebuilt:
    """See ``storage.prebuilt.Prebuilt`` for what each operation promises."""

    tables: Tables

    async def add_prebuilt(self, repo: int, packs: Sequence[PrebuiltPack], now: dt.datetime) -> None:
        await trio.lowlevel.checkpoint()
        rows = self.tables.prebuilt
        for key, row in rows.items():
            if key[0] == repo and row.expires > now:
                rows[key] = replace(row, expires=now)
        rows.update({(repo, pack.want): pack for pack in packs})

    async def note_prebuilt(self, repo: int, pack: PrebuiltPack) -> None:
        await trio.lowlevel.checkpoint()
        row = self.tables.prebuilt.get((repo, pack.want))
        if row is None or row.expires <= pack.built_at:
            self.tables.prebuilt[repo, pack.want] = pack

    async def find_prebuilt(self, repo: int, want: Sequence[bytes], now: dt.datetime) -> PrebuiltPack | None:
        await trio.lowlevel.checkpoint()
        row = self.tables.prebuilt.get((repo, tuple(sorted(want))))
        return row if row is not None and row.expires > now else None

    async def extend_prebuilt(self, repo: int, pack: PrebuiltPack, expires: dt.datetime) -> None:
        await trio.lowlevel.checkpoint()
        row = self.tables.prebuilt.get((repo, pack.want))
        if row is not None and (row.mpack_id, row.expires) == (pack.mpack_id, pack.expires):
            self.tables.prebuilt[repo, pack.want] = replace(row, expires=expires)

    async def drop_prebuilt(self, repo: int, pack: PrebuiltPack) -> None:
        await trio.lowlevel.checkpoint()
        row = self.tables.prebuilt.get((repo, pack.want))
        if row is not None and row.mpack_id == pack.mpack_id:
            del self.tables.prebuilt[repo, pack.want]

    async def kept_prebuilt(self, mpack_ids: Sequence[bytes]) -> set[bytes]:
        await trio.lowlevel.checkpoint()
        return {row.mpack_id for row in self.tables.prebuilt.values()} & set(mpack_ids)

    async def forget_prebuilt(self, before: dt.datetime, most: int) -> int:
        await trio.lowlevel.checkpoint()
        expired = [key for key, row in self.tables.prebuilt.items() if row.expires <= before][:most]
        for key in expired:
            del self.tables.prebuilt[key]
        return len(expired)

    async def repository_bytes(self, repo: int) -> int:
        await trio.lowlevel.checkpoint()
        return self.tables.usage.get(repo, 0)
