"""The ``ContentCache`` part of the memory index."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import trio

from storage.content_cache import CachedContent
from storage.memory import content_cache
from storage.memory.tables import Tables
from wire.ids import Scheme


class MemoryContentCache:
    """See ``storage.content_cache.ContentCache`` for what each operation promises."""

    tables: Tables

    async def cached_contents(self, scheme: Scheme, object_ids: Sequence[bytes]) -> dict[bytes, bytes]:
        await trio.lowlevel.checkpoint()
        return content_cache.cached_contents(self.tables, scheme, object_ids)

    async def oldest_cached(self, after: int, most: int) -> list[CachedContent]:
        await trio.lowlevel.checkpoint()
        return content_cache.oldest_cached(self.tables, after, most)

    async def promote_cached(self, entries: Sequence[int], lease: uuid.UUID | None = None) -> int:
        await trio.lowlevel.checkpoint()
        return content_cache.promote_cached(self.tables, entries, lease)

    async def count_cached(self) -> tuple[int, int]:
        await trio.lowlevel.checkpoint()
        cached = self.tables.cached.values()
        return len(cached), sum(len(one.content) for one in cached)
