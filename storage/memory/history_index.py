"""The commits and snapshots of the memory index."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import trio

from storage.index import READ_BYTES
from storage.memory.open_pushes import current
from storage.memory.tables import PushEntry, Tables
from storage.rows import CommitRow, PushTicket, SnapshotRef, SnapshotRow
from wire.graph import CommitFacts
from wire.ids import Scheme

T = TypeVar("T")


class MemoryHistory:
    """See ``storage.index.Index`` for what each operation promises."""

    tables: Tables

    async def lacking_snapshots(self, ticket: PushTicket, snapshot_ids: Sequence[bytes]) -> list[bytes]:
        await trio.lowlevel.checkpoint()
        pushes = self.tables.pushes_of(ticket.repo, ticket)
        return [i for i in dict.fromkeys(snapshot_ids) if not any(i in p.snapshots for p in pushes)]

    async def lacking_commits(self, ticket: PushTicket, commit_ids: Sequence[bytes]) -> list[bytes]:
        await trio.lowlevel.checkpoint()
        pushes = self.tables.pushes_of(ticket.repo)
        return [i for i in dict.fromkeys(commit_ids) if not any(i in p.commits for p in pushes)]

    async def record_snapshots(self, ticket: PushTicket, scheme: Scheme, snapshots: Sequence[SnapshotRef]) -> int:
        await trio.lowlevel.checkpoint()
        return self._record_snapshots(ticket, scheme, snapshots)

    def _record_snapshots(self, ticket: PushTicket, scheme: Scheme, snapshots: Sequence[SnapshotRef]) -> int:
        entry = current(self.tables, ticket)
        held = {i for p in self.tables.pushes_of(ticket.repo) for i in p.snapshots}
        before = len(entry.snapshots)
        for ref in snapshots:
            self.tables.snapshots.setdefault((scheme, ref.row.snapshot_id), ref.row)
            if ref.row.snapshot_id not in held:
                entry.snapshots.setdefault(ref.row.snapshot_id, ref.extras)
        if ticket.attempt == 1:
            return len(entry.snapshots) - before
        return len(entry.snapshots.keys() & {ref.row.snapshot_id for ref in snapshots})

    async def snapshot_depths(self, scheme: Scheme, snapshot_ids: Sequence[bytes]) -> dict[bytes, int]:
        await trio.lowlevel.checkpoint()
        rows = {i: self.tables.snapshots.get((scheme, i)) for i in snapshot_ids}
        return {i: row.depth for i, row in rows.items() if row is not None}

    async def record_commits(self, ticket: PushTicket, scheme: Scheme, commits: Sequence[CommitRow]) -> int:
        await trio.lowlevel.checkpoint()
        return self._record_commits(ticket, scheme, commits)

    def _record_commits(self, ticket: PushTicket, scheme: Scheme, commits: Sequence[CommitRow]) -> int:
        entry = current(self.tables, ticket)
        held = {i for p in self.tables.pushes_of(ticket.repo) for i in p.commits}
        before = len(entry.commits)
        for row in commits:
            facts = CommitFacts(row.commit_id, row.parents, row.snapshot_id, row.generation)
            self.tables.commits.setdefault((scheme, row.commit_id), facts)
            if row.commit_id not in held:
                entry.commits.setdefault(row.commit_id, row)
        if ticket.attempt == 1:
            return len(entry.commits) - before
        return len(entry.commits.keys() & {row.commit_id for row in commits})

    async def held_commits(self, repo: int, commit_ids: Sequence[bytes]) -> dict[bytes, int]:
        await trio.lowlevel.checkpoint()
        pushes = self.tables.pushes_of(repo)
        rows = {i: next((p.commits[i] for p in pushes if i in p.commits), None) for i in commit_ids}
        return {i: row.generation for i, row in rows.items() if row is not None}

    async def ancestry(self, scheme: Scheme, commit_ids: Sequence[bytes], most: int) -> list[CommitFacts]:
        await trio.lowlevel.checkpoint()
        found: dict[bytes, CommitFacts] = {}
        level = dict.fromkeys(commit_ids)
        room = len(level) + most
        lowest = None
        while level and len(found) < room:
            facts = [f for i in level if (f := self.tables.commits.get((scheme, i))) is not None]
            if lowest is None:
                lowest = max((f.order for f in facts), default=0) - most
            found.update((f.commit_id, f) for f in facts[: room - len(found)])
            level = dict.fromkeys(
                parent for f in facts if f.order > lowest for parent in f.parents if parent not in found
            )
        return list(found.values())

    async def commit_records(self, repo: int, commit_ids: Sequence[bytes]) -> dict[bytes, bytes]:
        await trio.lowlevel.checkpoint()
        found = self._first_held(repo, commit_ids, lambda p: {i: row.record for i, row in p.commits.items()})
        return _that_fit(found, len)

    async def snapshot_deltas(self, scheme: Scheme, snapshot_ids: Sequence[bytes]) -> dict[bytes, SnapshotRow]:
        await trio.lowlevel.checkpoint()
        rows = {i: self.tables.snapshots.get((scheme, i)) for i in snapshot_ids}
        found = {i: replace(row, full=None) for i, row in rows.items() if row is not None}
        return _that_fit(found, lambda row: len(row.delta))

    async def snapshot_extras(self, repo: int, snapshot_ids: Sequence[bytes]) -> dict[bytes, bytes]:
        await trio.lowlevel.checkpoint()
        found = _that_fit(self._first_held(repo, snapshot_ids, lambda p: p.snapshots), len)
        return {i: extras for i, extras in found.items() if extras}

    async def snapshot_chain(self, scheme: Scheme, snapshot_id: bytes) -> list[SnapshotRow]:
        await trio.lowlevel.checkpoint()
        chain: list[SnapshotRow] = []
        wanted: bytes | None = snapshot_id
        while wanted is not None and (row := self.tables.snapshots.get((scheme, wanted))) is not None:
            chain.append(row)
            wanted = row.base_id if row.full is None else None
        return chain

    def _first_held(
        self, repo: int, ids: Iterable[bytes], rows_of: Callable[[PushEntry], Mapping[bytes, bytes]]
    ) -> dict[bytes, bytes]:
        tables = [rows_of(p) for p in self.tables.pushes_of(repo)]
        return {i: next(rows[i] for rows in tables if i in rows) for i in ids if any(i in rows for rows in tables)}


def _that_fit(found: dict[bytes, T], size: Callable[[T], int]) -> dict[bytes, T]:
    before = 0
    fit: dict[bytes, T] = {}
    for key, body in found.items():
        if before < READ_BYTES:
            fit[key] = body
        before += size(body)
    return fit
