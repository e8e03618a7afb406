"""The ``ContentCache`` part of the PostgreSQL index."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from storage.content_cache import CachedContent
from storage.postgres import content_cache
from storage.postgres.database import Database
from wire.ids import Scheme


class PostgresContentCache:
    """See ``storage.content_cache.ContentCache`` for what each operation promises."""

    database: Database

    async def cached_contents(self, scheme: Scheme, object_ids: Sequence[bytes]) -> dict[bytes, bytes]:
        return await self.database.run(content_cache.cached_contents, scheme, object_ids)

    async def oldest_cached(self, after: int, most: int) -> list[CachedContent]:
        return await self.database.run(content_cache.oldest_cached, after, most)

    async def promote_cached(self, entries: Sequence[int], lease: uuid.UUID | None = None) -> int:
        return await self.database.run(content_cache.promote_cached, entries, lease)

    async def count_cached(self) -> tuple[int, int]:
        return await self.database.run(content_cache.count_cached)
