"""The ``Collection`` part of the PostgreSQL index."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Mapping, Sequence

from storage.collection_rows import Condemned, Mark, RefKind, Review, ReviewCursor, Sweep, Swept
from storage.layout import Place
from storage.postgres import collection_folding, collection_leases, collection_marks, collection_sweeps
from storage.postgres.database import Database
from wire.ids import Scheme


class PostgresCollection:
    """See ``storage.collection.Collection`` for what each operation promises."""

    database: Database

    async def take_lease(self, lease: uuid.UUID, repo: int, now: dt.datetime, lease_s: float) -> None:
        await self.database.run(collection_leases.take_lease, lease, repo, now, lease_s)

    async def renew_lease(self, lease: uuid.UUID, now: dt.datetime, lease_s: float) -> bool:
        return await self.database.run(collection_leases.renew_lease, lease, now, lease_s)

    async def end_lease(self, lease: uuid.UUID) -> None:
        await self.database.run(collection_leases.end_lease, lease)

    async def sweepable(self, now: dt.datetime, keep_s: float, after: int, most: int) -> list[int]:
        return await self.database.run(collection_sweeps.sweepable, now, keep_s, after, most)

    async def begin_sweep(self, repo: int, now: dt.datetime, keep_s: float) -> Sweep | None:
        sweep = await self.database.run(collection_sweeps.begin_sweep, repo, now, keep_s)
        if sweep is not None:
            await self.database.run(collection_sweeps.stamp, sweep)
        return sweep

    async def extend_sweep(self, sweep: Sweep, now: dt.datetime) -> bool:
        extended = await self.database.run(collection_sweeps.extend_sweep, sweep, now)
        await self.database.run(collection_sweeps.stamp, sweep)
        return extended

    async def unvisited(self, sweep: Sweep, kind: RefKind, most: int) -> list[bytes]:
        return await self.database.run(collection_sweeps.unvisited, sweep, kind, most)

    async def reach(self, sweep: Sweep, kind: RefKind, ids: Sequence[bytes], *, visited: bool) -> None:
        await self.database.run(collection_sweeps.reach, sweep, kind, ids, visited)

    async def reached(self, sweep: Sweep, kind: RefKind, ids: Sequence[bytes]) -> set[bytes]:
        return await self.database.run(collection_sweeps.reached, sweep, kind, ids)

    async def sweep_commits(self, sweep: Sweep, now: dt.datetime, *, dry_run: bool = False) -> Swept:
        return await self.database.run(collection_sweeps.sweep_commits, sweep, now, dry_run)

    async def sweep_refs(
        self, sweep: Sweep, kind: RefKind, after: bytes, most: int, now: dt.datetime, *, dry_run: bool = False
    ) -> Swept:
        return await self.database.run(collection_sweeps.sweep_refs, sweep, kind, after, most, now, dry_run)

    async def end_sweep(self, sweep: Sweep, now: dt.datetime, keep_s: float, *, complete: bool) -> None:
        await self.database.run(collection_sweeps.end_sweep, sweep, now, keep_s, complete)
        while await self.database.run(collection_sweeps.tidy):
            pass

    async def mark_suspects(self, now: dt.datetime, most: int) -> int:
        return await self.database.run(collection_marks.mark_suspects, now, most)

    async def mark_orphans(self, marks: Sequence[Mark], now: dt.datetime) -> int:
        return await self.database.run(collection_marks.mark_orphans, marks, now)

    async def count_marks(self) -> Mapping[str, int]:
        return await self.database.run(collection_marks.count_marks)

    async def begin_review(self, number: uuid.UUID, now: dt.datetime, lease_s: float, most: int) -> Review:
        return await self.database.run(collection_marks.begin_review, number, now, lease_s, most)

    async def review(self, number: uuid.UUID, cursor: ReviewCursor) -> ReviewCursor | None:
        return await self.database.run(collection_marks.review, number, cursor)

    async def condemn(self, number: uuid.UUID, most: int, now: dt.datetime) -> Condemned:
        return await self.database.run(collection_marks.condemn, number, most, now)

    async def take_tombstones(self, owner: uuid.UUID, most: int, now: dt.datetime, until: dt.datetime) -> list[Mark]:
        return await self.database.run(collection_marks.take_tombstones, owner, most, now, until)

    async def bury(self, owner: uuid.UUID, marks: Sequence[Mark], now: dt.datetime) -> int:
        return await self.database.run(collection_marks.bury, owner, marks, now)

    async def forget_tombstones(self, now: dt.datetime, lease_s: float) -> int:
        return await self.database.run(collection_marks.forget_tombstones, now, lease_s)

    async def begin_fold(self, repo: int, now: dt.datetime, every_s: float) -> bool:
        return await self.database.run(collection_folding.begin_fold, repo, now, every_s)

    async def repository_places(self, repo: int, after: bytes, most: int) -> tuple[Scheme | None, list[Place]]:
        return await self.database.run(collection_folding.repository_places, repo, after, most)

    async def move_places(
        self, lease: uuid.UUID, scheme: Scheme, pack_id: bytes, moves: Sequence[tuple[Place, int]]
    ) -> set[bytes]:
        return await self.database.run(collection_folding.move_places, lease, scheme, pack_id, moves)
