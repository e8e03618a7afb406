"""The ``Index`` port over dictionaries. Each operation is one step without a checkpoint: a transaction."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import trio

from storage.memory.branches_index import MemoryBranches
from storage.memory.collection_index import MemoryCollection
from storage.memory.content_cache_index import MemoryContentCache
from storage.memory.fsck_index import MemoryFsck
from storage.memory.insights_index import MemoryInsights
from storage.memory.job_index import MemoryJobs
from storage.memory.labels_index import MemoryLabels
from storage.memory.left_behind_index import MemoryLeftBehind
from storage.memory.pack_repair_index import MemoryPackRepairs
from storage.memory.prebuilt_index import MemoryPrebuilt
from storage.memory.pushes_index import MemoryPushes
from storage.memory.repositories_index import MemoryRepositories
from storage.memory.tables import Tables
from storage.memory.usage_index import MemoryUsage
from storage.rows import QUOTA_NONE


class MemoryIndex(
    MemoryRepositories, MemoryBranches, MemoryPushes, MemoryUsage,
    MemoryFsck, MemoryJobs, MemoryContentCache, MemoryPackRepairs, MemoryPrebuilt, MemoryInsights, MemoryCollection,
    MemoryLabels, MemoryLeftBehind,
):  # fmt: skip
    """See ``storage.index.Index`` for what each operation promises."""

    def __init__(
        self, tables: Tables | None = None, owner_quota: int = QUOTA_NONE,
        new_token: Callable[[], uuid.UUID] = uuid.uuid4,
    ) -> None:  # fmt: skip
        self.tables = tables or Tables()
        self.new_token = new_token
        self._owner_quota = owner_quota
        self._listeners: dict[str, list[trio.MemorySendChannel[str]]] = {}

    async def ping(self) -> None:
        await trio.lowlevel.checkpoint()
