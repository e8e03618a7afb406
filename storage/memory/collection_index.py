"""The ``Collection`` part of the memory index; each operation is one step without a checkpoint."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Mapping, Sequence

import trio

from storage.collection_rows import Condemned, Mark, RefKind, Review, ReviewCursor, Sweep, Swept
from storage.layout import Place
from storage.memory import collection_marks, collection_sweeps
from storage.memory.collection_tables import LeaseRow
from storage.memory.tables import Tables
from wire.ids import Scheme


class MemoryCollection:
    """See ``storage.collection.Collection`` for what each operation promises."""

    tables: Tables

    async def take_lease(self, lease: uuid.UUID, repo: int, now: dt.datetime, lease_s: float) -> None:
        await trio.lowlevel.checkpoint()
        collection = self.tables.collection
        expires = now + dt.timedelta(seconds=lease_s)
        if lease in collection.leases:
            collection.leases[lease].expires_at = expires
        else:
            collection.leases[lease] = LeaseRow(repo, collection.next_moment(), expires)

    async def renew_lease(self, lease: uuid.UUID, now: dt.datetime, lease_s: float) -> bool:
        await trio.lowlevel.checkpoint()
        found = self.tables.collection.leases.get(lease)
        if found is None or found.expires_at <= now:
            return False
        found.expires_at = now + dt.timedelta(seconds=lease_s)
        return True

    async def end_lease(self, lease: uuid.UUID) -> None:
        await trio.lowlevel.checkpoint()
        self.tables.collection.leases.pop(lease, None)

    async def sweepable(self, now: dt.datetime, keep_s: float, after: int, most: int) -> list[int]:
        await trio.lowlevel.checkpoint()
        return collection_sweeps.sweepable(self.tables, now, keep_s, after, most)

    async def begin_sweep(self, repo: int, now: dt.datetime, keep_s: float) -> Sweep | None:
        await trio.lowlevel.checkpoint()
        return collection_sweeps.begin_sweep(self.tables, repo, now, keep_s)

    async def extend_sweep(self, sweep: Sweep, now: dt.datetime) -> bool:
        del now
        await trio.lowlevel.checkpoint()
        return collection_sweeps.extend_sweep(self.tables, sweep)

    async def unvisited(self, sweep: Sweep, kind: RefKind, most: int) -> list[bytes]:
        await trio.lowlevel.checkpoint()
        return collection_sweeps.unvisited(self.tables, sweep, kind, most)

    async def reach(self, sweep: Sweep, kind: RefKind, ids: Sequence[bytes], *, visited: bool) -> None:
        await trio.lowlevel.checkpoint()
        collection_sweeps.reach(self.tables, sweep, kind, ids, visited=visited)

    async def reached(self, sweep: Sweep, kind: RefKind, ids: Sequence[bytes]) -> set[bytes]:
        await trio.lowlevel.checkpoint()
        return collection_sweeps.reached(self.tables, sweep, kind, ids)

    async def sweep_commits(self, sweep: Sweep, now: dt.datetime, *, dry_run: bool = False) -> Swept:
        await trio.lowlevel.checkpoint()
        return collection_sweeps.sweep_commits(self.tables, sweep, now, dry_run=dry_run)

    async def sweep_refs(
        self, sweep: Sweep, kind: RefKind, after: bytes, most: int, now: dt.datetime, *, dry_run: bool = False
    ) -> Swept:
        await trio.lowlevel.checkpoint()
        return collection_sweeps.sweep_refs(self.tables, sweep, kind, after, most, now, dry_run=dry_run)

    async def end_sweep(self, sweep: Sweep, now: dt.datetime, keep_s: float, *, complete: bool) -> None:
        await trio.lowlevel.checkpoint()
        collection_sweeps.end_sweep(self.tables, sweep, now, keep_s, complete=complete)

    async def mark_suspects(self, now: dt.datetime, most: int) -> int:
        await trio.lowlevel.checkpoint()
        return collection_marks.mark_suspects(self.tables, now, most)

    async def mark_orphans(self, marks: Sequence[Mark], now: dt.datetime) -> int:
        await trio.lowlevel.checkpoint()
        return collection_marks.mark_orphans(self.tables, marks, now)

    async def count_marks(self) -> Mapping[str, int]:
        await trio.lowlevel.checkpoint()
        return collection_marks.count_marks(self.tables)

    async def begin_review(self, number: uuid.UUID, now: dt.datetime, lease_s: float, most: int) -> Review:
        await trio.lowlevel.checkpoint()
        return collection_marks.begin_review(self.tables, number, now, lease_s, most)

    async def review(self, number: uuid.UUID, cursor: ReviewCursor) -> ReviewCursor | None:
        del cursor
        await trio.lowlevel.checkpoint()
        collection_marks.review(self.tables, number)
        return None

    async def condemn(self, number: uuid.UUID, most: int, now: dt.datetime) -> Condemned:
        await trio.lowlevel.checkpoint()
        return collection_marks.condemn(self.tables, number, most, now)

    async def take_tombstones(self, owner: uuid.UUID, most: int, now: dt.datetime, until: dt.datetime) -> list[Mark]:
        await trio.lowlevel.checkpoint()
        return collection_marks.take_tombstones(self.tables, owner, most, now, until)

    async def bury(self, owner: uuid.UUID, marks: Sequence[Mark], now: dt.datetime) -> int:
        await trio.lowlevel.checkpoint()
        return collection_marks.bury(self.tables, owner, marks, now)

    async def forget_tombstones(self, now: dt.datetime, lease_s: float) -> int:
        await trio.lowlevel.checkpoint()
        return collection_marks.forget_tombstones(self.tables, now, lease_s)

    async def begin_fold(self, repo: int, now: dt.datetime, every_s: float) -> bool:
        await trio.lowlevel.checkpoint()
        folded = self.tables.collection.folded
        if repo not in self.tables.owners or (repo in folded and folded[repo] > now - dt.timedelta(seconds=every_s)):
            return False
        folded[repo] = now
        return True

    async def repository_places(self, repo: int, after: bytes, most: int) -> tuple[Scheme | None, list[Place]]:
        await trio.lowlevel.checkpoint()
        found = self.tables.repositories.get(repo)
        scheme = None if found is None else found.scheme
        if scheme is None:
            return None, []
        held = {i for push in self.tables.pushes_of(repo) for i in push.blobs if i > after}
        rows = {i: self.tables.blobs[scheme, i] for i in sorted(held)[:most] if (scheme, i) in self.tables.blobs}
        cached = self.tables.cached
        return scheme, [
            Place(i, row.size, row.pack_id, row.offset, (scheme, i) in cached) for i, row in rows.items()
        ]  # fmt: skip

    async def move_places(
        self, lease: uuid.UUID, scheme: Scheme, pack_id: bytes, moves: Sequence[tuple[Place, int]]
    ) -> set[bytes]:
        await trio.lowlevel.checkpoint()
        return collection_marks.move_places(self.tables, lease, scheme, pack_id, moves)
