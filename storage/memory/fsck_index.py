"""The parts of the memory index that ``fsck`` and repairs work with."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import trio

from storage.collection_rows import RefKind
from storage.fsck import LoggedMove
from storage.fsck_repairs import PlaceCorrection
from storage.history_rows import SnapshotRow
from storage.layout import Place
from storage.memory.collection_marks import lease_begun, meet_marks
from storage.memory.content_cache import store_row
from storage.memory.tables import Tables
from storage.rows import StoredBlob
from wire.ids import Scheme


class MemoryFsck:
    """See ``storage.fsck`` and ``storage.fsck_repairs`` for what each operation promises."""

    tables: Tables

    async def correct_places(
        self, lease: uuid.UUID, scheme: Scheme, corrections: Sequence[PlaceCorrection]
    ) -> set[bytes]:
        await trio.lowlevel.checkpoint()
        tables = self.tables
        new = [_stored(place) for _, place in corrections]
        meet_marks(tables, scheme, new, lease_begun(tables, lease))
        corrected = set()
        for (old, place), blob in zip(corrections, new, strict=True):
            key = scheme, place.object_id
            if old is None:
                store_row(tables, scheme, blob)
            elif self._place(key) == old:
                tables.blobs[key] = blob
                tables.cached.pop(key, None)
                if old.pack_id != place.pack_id and not old.pending:
                    mark = (scheme, old.object_id) if old.pack_id is None else (None, old.pack_id)
                    tables.collection.suspect(mark, loose=True)
            if self._place(key) == place:
                corrected.add(place.object_id)
        return corrected

    async def held_ids(self, repo: int, kind: RefKind, after: bytes, most: int) -> list[bytes]:
        await trio.lowlevel.checkpoint()
        return sorted(held for held in self._held(repo, kind) if held > after)[:most]

    async def unheld(self, repo: int, kind: RefKind, ids: Sequence[bytes]) -> set[bytes]:
        await trio.lowlevel.checkpoint()
        return set(ids) - self._held(repo, kind)

    async def branch_moves_after(self, repo: int, after: tuple[str, int], most: int) -> list[LoggedMove]:
        await trio.lowlevel.checkpoint()
        moves = [LoggedMove(number, entry) for number, entry in enumerate(self.tables.branch_log[repo], 1)]
        moves.sort(key=lambda move: (move.entry.branch, move.number))
        return [move for move in moves if (move.entry.branch, move.number) > after][:most]

    async def stored_snapshot(self, scheme: Scheme, snapshot_id: bytes) -> SnapshotRow | None:
        await trio.lowlevel.checkpoint()
        return self.tables.snapshots.get((scheme, snapshot_id))

    async def mend_snapshot(self, scheme: Scheme, wrong: SnapshotRow | None, right: SnapshotRow) -> bool:
        await trio.lowlevel.checkpoint()
        key = scheme, right.snapshot_id
        found = self.tables.snapshots.get(key)
        if wrong is None or found is None:
            mended = wrong is None and found is None
        else:
            mended = (found.base_id, found.delta, found.full) == (wrong.base_id, wrong.delta, wrong.full)
        if mended:
            self.tables.snapshots[key] = right
        return mended

    def _held(self, repo: int, kind: RefKind) -> set[bytes]:
        of_kind = {RefKind.BLOB: "blobs", RefKind.SNAPSHOT: "snapshots", RefKind.COMMIT: "commits"}[kind]
        return {held for push in self.tables.pushes_of(repo) for held in getattr(push, of_kind)}

    def _place(self, key: tuple[Scheme, bytes]) -> Place | None:
        row = self.tables.blobs.get(key)
        if row is None:
            return None
        return Place(row.object_id, row.size, row.pack_id, row.offset, key in self.tables.cached)


def _stored(place: Place) -> StoredBlob:
    return StoredBlob(place.object_id, place.size, place.pack_id, place.offset)
