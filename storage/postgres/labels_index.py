"""The ``Labels`` part of the PostgreSQL index."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from storage.labels import TagRow
from storage.postgres import labels
from storage.postgres.database import Database


class PostgresLabels:
    """See ``storage.labels.Labels`` for what each operation promises."""

    database: Database

    async def put_tags(self, repo: int, tags: Sequence[TagRow]) -> int:
        return await self.database.run(labels.put_tags, repo, tags)

    async def list_tags(self, repo: int) -> list[TagRow]:
        return await self.database.run(labels.list_tags, repo)

    async def put_release(self, repo: int, release_id: str, record: bytes, now: dt.datetime) -> bool:
        return await self.database.run(labels.put_release, repo, release_id, record, now)

    async def list_releases(self, repo: int) -> list[bytes]:
        return await self.database.run(labels.list_releases, repo)

    async def retract_release(self, repo: int, release_id: str, at: dt.datetime) -> bool:
        return await self.database.run(labels.retract_release, repo, release_id, at)
