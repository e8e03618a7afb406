"""The ``PackRepairs`` part of the memory index."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace

import trio

from storage.memory.collection_marks import lease_begun, meet_marks
from storage.memory.content_cache import store_row
from storage.memory.tables import PushEntry, Tables
from storage.pack_repair import PackRepair
from storage.rows import StoredBlob
from wire.ids import Scheme


class MemoryPackRepairs:
    """See ``storage.pack_repair.PackRepairs`` for what each operation promises."""

    tables: Tables

    async def complete_pack(
        self, repo: int, scheme: Scheme, objects: Sequence[StoredBlob], *, brought_by: uuid.UUID | None,
        lease: uuid.UUID | None = None,
    ) -> PackRepair:  # fmt: skip
        await trio.lowlevel.checkpoint()
        tables, repair = self.tables, PackRepair()
        pushes = tables.pushes_of(repo)
        push = None if brought_by is None else self._brought(repo, brought_by)
        meet_marks(tables, scheme, objects, 0 if lease is None else lease_begun(tables, lease))
        for blob in objects:
            key, before = (scheme, blob.object_id), repair
            row = tables.blobs.get(key)
            if row is None:
                store_row(tables, scheme, blob)
                repair += PackRepair(rows=1)
            elif row.pack_id == blob.pack_id and row != blob:
                tables.blobs[key] = replace(row, offset=blob.offset, size=blob.size)
                repair += PackRepair(ranges=1)
            if tables.cached.pop(key, None) is not None:
                tables.blobs[key] = replace(blob, content=None)
                repair += PackRepair(promoted=1)
            if push is not None and not any(blob.object_id in one.blobs for one in pushes):
                push.blobs.add(blob.object_id)
                repair += PackRepair(refs=1)
            elif push is None and repair != before:
                tables.collection.suspect(key, loose=False)
        return repair

    def _brought(self, repo: int, push_id: uuid.UUID) -> PushEntry | None:
        """Find an accepted push, unless something was collected from its repository since it began."""
        collection = self.tables.collection
        for push in self.tables.pushes_of(repo):
            if push.record.push_id == push_id:
                return push if collection.known.get(push.number, 0) == collection.collected.get(repo, 0) else None
        return None

    async def held_packs(self, repo: int, scheme: Scheme, after: bytes, most: int) -> tuple[set[bytes], bytes | None]:
        await trio.lowlevel.checkpoint()
        held = sorted({i for p in self.tables.pushes_of(repo) for i in p.blobs if i > after})[:most]
        rows = [self.tables.blobs.get((scheme, i)) for i in held]
        packs = {row.pack_id for row in rows if row is not None and row.pack_id is not None}
        return packs, held[-1] if len(held) == most else None
