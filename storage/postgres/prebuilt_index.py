"""The ``Prebuilt`` part of the PostgreSQL index."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from storage.postgres import prebuilt
from storage.postgres.database import Database
from storage.prebuilt import PrebuiltPack


class PostgresPrebuilt:
    """See ``storage.prebuilt.Prebuilt`` for what each operation promises."""

    database: Database

    async def add_prebuilt(self, repo: int, packs: Sequence[PrebuiltPack], now: dt.datetime) -> None:
        await self.database.run(prebuilt.add_prebuilt, repo, packs, now)

    async def note_prebuilt(self, repo: int, pack: PrebuiltPack) -> None:
        await self.database.run(prebuilt.note_prebuilt, repo, pack)

    async def find_prebuilt(self, repo: int, want: Sequence[bytes], now: dt.datetime) -> PrebuiltPack | None:
        return await self.database.run(prebuilt.find_prebuilt, repo, want, now)

    async def extend_prebuilt(self, repo: int, pack: PrebuiltPack, expires: dt.datetime) -> None:
        await self.database.run(prebuilt.extend_prebuilt, repo, pack, expires)

    async def drop_prebuilt(self, repo: int, pack: PrebuiltPack) -> None:
        await self.database.run(prebuilt.drop_prebuilt, repo, pack)

    async def kept_prebuilt(self, mpack_ids: Sequence[bytes]) -> set[bytes]:
        return await self.database.run(prebuilt.kept_prebuilt, mpack_ids)

    async def forget_prebuilt(self, before: dt.datetime, most: int) -> int:
        return await self.database.run(prebuilt.forget_prebuilt, before, most)

    async def repository_bytes(self, repo: int) -> int:
        return await self.database.run(prebuilt.repository_bytes, repo)
