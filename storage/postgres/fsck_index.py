"""The parts of the PostgreSQL index that ``fsck``, ``backfill`` and repairs work with."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from storage.collection_rows import RefKind
from storage.fsck import AcceptedPush, BroughtRecord, LoggedMove
from storage.fsck_repairs import PlaceCorrection
from storage.history_rows import SnapshotRow
from storage.postgres import fsck_history, fsck_records, fsck_repairs, history, large_bodies
from storage.postgres.database import Database
from wire.ids import Scheme


class PostgresFsck:
    """See ``storage.fsck`` and ``storage.fsck_repairs`` for what each operation promises."""

    database: Database

    async def correct_places(
        self, lease: uuid.UUID, scheme: Scheme, corrections: Sequence[PlaceCorrection]
    ) -> set[bytes]:
        return await self.database.run(fsck_repairs.correct_places, lease, scheme, corrections)

    async def held_ids(self, repo: int, kind: RefKind, after: bytes, most: int) -> list[bytes]:
        return await self.database.run(fsck_history.held_ids, repo, kind, after, most)

    async def unheld(self, repo: int, kind: RefKind, ids: Sequence[bytes]) -> set[bytes]:
        return await self.database.run(fsck_history.unheld, repo, kind, ids)

    async def branch_moves_after(self, repo: int, after: tuple[str, int], most: int) -> list[LoggedMove]:
        return await self.database.run(fsck_history.branch_moves_after, repo, after, most)

    async def stored_snapshot(self, scheme: Scheme, snapshot_id: bytes) -> SnapshotRow | None:
        chain = await self.database.run(history.snapshot_chain, scheme, snapshot_id)
        return chain[0] if chain else None

    async def mend_snapshot(self, scheme: Scheme, wrong: SnapshotRow | None, right: SnapshotRow) -> bool:
        right = await large_bodies.row_apart(self.database, right)
        return await self.database.run(fsck_history.mend_snapshot, scheme, wrong, right)

    async def pushes_after(self, after: int, most: int) -> list[AcceptedPush]:
        return await self.database.run(fsck_records.pushes_after, after, most)

    async def pushes_with_records(self, repo: int, pushes: Sequence[int]) -> set[int]:
        return await self.database.run(fsck_records.pushes_with_records, repo, pushes)

    async def brought_records(
        self, repo: int, pushes: Sequence[int], kind: RefKind, after: tuple[bytes, int], most: int
    ) -> list[BroughtRecord]:
        return await self.database.run(fsck_records.brought_records, repo, pushes, kind, after, most)

    async def brought_commits(self, repo: int, push: int, commit_ids: Sequence[bytes]) -> dict[bytes, bytes]:
        return await self.database.run(fsck_records.brought_commits, repo, push, commit_ids)

    async def brought_extras(self, repo: int, push: int, snapshot_ids: Sequence[bytes]) -> dict[bytes, bytes]:
        return await self.database.run(fsck_records.brought_extras, repo, push, snapshot_ids)

    async def brought_before(self, repo: int, push: int, snapshot_ids: Sequence[bytes]) -> set[bytes]:
        return await self.database.run(fsck_records.brought_before, repo, push, snapshot_ids)

    async def name_record_pack(self, push: int, known: bytes | None, pack_id: bytes) -> bool:
        return await self.database.run(fsck_records.name_record_pack, push, known, pack_id)
