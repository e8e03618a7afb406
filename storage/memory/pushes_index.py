"""The pushes: their turns and their one last transaction of the memory index."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import trio

from storage.job_rows import JOBS_CHANNEL, NewJob, wakes
from storage.memory import jobs, usage
from storage.memory.blobs_index import MemoryBlobs
from storage.memory.history_index import MemoryHistory
from storage.memory.notices_index import MemoryNotices
from storage.memory.open_pushes import find_entry, is_current
from storage.memory.tables import PushEntry, Tables
from storage.rows import (
    ABANDONED_S,
    BranchLogEntry,
    BranchMove,
    MoveResult,
    Outcome,
    PushRecord,
    PushRows,
    PushState,
    PushTicket,
    Written,
)
from wire.ids import Scheme


class MemoryPushes(MemoryBlobs, MemoryHistory, MemoryNotices):
    """See ``storage.index.Index`` for what each operation promises."""

    tables: Tables
    _owner_quota: int

    async def begin_push(
        self, repo: int, push_id: uuid.UUID, handle: str, branch: str, now: dt.datetime, lease_s: float
    ) -> PushTicket | PushRecord:
        await trio.lowlevel.checkpoint()
        expires = now + dt.timedelta(seconds=lease_s)
        entry = find_entry(self.tables, repo, push_id)
        if entry is None:
            record = PushRecord(push_id, handle, branch, PushState.OPEN, None, now, None)
            entry = PushEntry(self.tables.next_number(), repo, record, 0, expires)
            self.tables.pushes[entry.number] = entry
        if entry.record.state is not PushState.OPEN or entry.record.handle != handle:
            return entry.record
        entry.attempt += 1
        collection = self.tables.collection
        collection.begun[entry.number] = collection.next_moment()
        collected = collection.collected.get(repo, 0)
        if collection.known.setdefault(entry.number, collected) != collected:
            collection.known[entry.number] = collected
            entry.snapshots.clear()  # what they were built on may be gone
        entry.record = replace(entry.record, verdict=None)
        entry.lease_expires = expires
        return PushTicket(entry.number, repo, push_id, entry.attempt)

    async def is_of_scheme(self, ticket: PushTicket, scheme: Scheme) -> bool:
        await trio.lowlevel.checkpoint()
        return self._is_of_scheme(self.tables.pushes[ticket.number], scheme)

    def _is_of_scheme(self, entry: PushEntry, scheme: Scheme) -> bool:
        tables = self.tables
        return (
            all((scheme, i) in tables.blobs for i in entry.blobs)
            and all((scheme, i) in tables.snapshots for i in entry.snapshots)
            and all((scheme, i) in tables.commits for i in entry.commits)
        )

    async def find_push(self, repo: int, push_id: uuid.UUID) -> PushRecord | None:
        await trio.lowlevel.checkpoint()
        entry = find_entry(self.tables, repo, push_id)
        return None if entry is None else replace(entry.record, lease_expires=entry.lease_expires)

    async def renew_pushes(self, tickets: Sequence[PushTicket], now: dt.datetime, lease_s: float) -> None:
        await trio.lowlevel.checkpoint()
        given_up = now - dt.timedelta(seconds=ABANDONED_S)
        for ticket in tickets:
            if is_current(self.tables, ticket) and self.tables.pushes[ticket.number].lease_expires > given_up:
                self.tables.pushes[ticket.number].lease_expires = now + dt.timedelta(seconds=lease_s)

    async def accept_push(
        self,
        ticket: PushTicket,
        scheme: Scheme,
        move: BranchMove,
        verdict: Mapping[str, object],
        now: dt.datetime,
        record_bytes: int = 0,
        new_jobs: Sequence[NewJob] = (),
    ) -> MoveResult:
        await trio.lowlevel.checkpoint()
        return self._accept(ticket, scheme, move, verdict, now, record_bytes, new_jobs)

    def _accept(
        self, ticket: PushTicket, scheme: Scheme, move: BranchMove, verdict: Mapping[str, object], now: dt.datetime,
        record_bytes: int, new_jobs: Sequence[NewJob],
    ) -> MoveResult:  # fmt: skip
        found = self.tables.pushes.get(ticket.number)
        if found is not None and found.accepted and found.attempt == ticket.attempt:
            return MoveResult(Outcome.MOVED, move.new)
        if not is_current(self.tables, ticket):
            return MoveResult(Outcome.SUPERSEDED)
        repository = self.tables.repositories.get(ticket.repo)
        if repository is None:
            return MoveResult(Outcome.GONE)
        if repository.scheme not in {None, scheme}:
            return MoveResult(Outcome.SCHEME_DIFFERS)
        if repository.scheme is None and not self._is_of_scheme(self.tables.pushes[ticket.number], scheme):
            return MoveResult(Outcome.SCHEME_DIFFERS)
        collection = self.tables.collection
        if collection.known.get(ticket.number, 0) != collection.collected.get(ticket.repo, 0):
            return MoveResult(Outcome.COLLECTED)
        branches = self.tables.branches[ticket.repo]
        head = branches.get(move.branch)
        if head not in {move.old, move.new}:
            return MoveResult(Outcome.HEAD_DIFFERS, head)
        entry = self.tables.pushes[ticket.number]
        too_much = usage.settle(self.tables, entry, entry.size + record_bytes, now, self._owner_quota)
        if too_much is not None:
            return MoveResult(Outcome.QUOTA_EXCEEDED, usage=too_much)
        self.tables.repositories[ticket.repo] = replace(repository, scheme=scheme)
        assert move.new is not None
        branches[move.branch] = move.new
        if head != move.new:
            self.tables.branch_log[ticket.repo].append(
                BranchLogEntry(move.branch, head, move.new, entry.record.handle, ticket.push_id, move.forced, now)
            )
        self._finish(entry, PushState.ACCEPTED, verdict, now)
        jobs.enqueue(self.tables, ticket.repo, new_jobs, now)
        if wakes(new_jobs):
            self.notify_now(JOBS_CHANNEL, "")
        return MoveResult(Outcome.MOVED, move.new)

    async def finish_push(
        self,
        ticket: PushTicket,
        scheme: Scheme,
        rows: PushRows,
        move: BranchMove,
        verdict: Callable[[Written], Mapping[str, object]],
        now: dt.datetime,
        record_bytes: int = 0,
        new_jobs: Sequence[NewJob] = (),
    ) -> MoveResult:
        await trio.lowlevel.checkpoint()
        found = self.tables.pushes.get(ticket.number)
        if found is not None and found.accepted and found.attempt == ticket.attempt:
            return MoveResult(Outcome.MOVED, move.new, verdict=found.record.verdict)
        if not is_current(self.tables, ticket):
            return MoveResult(Outcome.SUPERSEDED)
        undo = self._undoing(ticket, scheme, rows)
        try:
            blobs = self._record_blobs(ticket, scheme, rows.blobs) if rows.blobs else 0
            snapshots = self._record_snapshots(ticket, scheme, rows.snapshots) if rows.snapshots else 0
            commits = self._record_commits(ticket, scheme, rows.commits) if rows.commits else 0
            words = verdict(Written(blobs, snapshots, commits))
            result = self._accept(ticket, scheme, move, words, now, record_bytes, new_jobs)
        except BaseException:
            undo()
            raise
        if result.outcome is not Outcome.MOVED:
            undo()
            return result
        return replace(result, verdict=words)

    async def refuse_push(self, ticket: PushTicket, verdict: Mapping[str, object], now: dt.datetime) -> None:
        await trio.lowlevel.checkpoint()
        if is_current(self.tables, ticket):
            self._finish(self.tables.pushes[ticket.number], PushState.REFUSED, verdict, now)

    async def interrupt_push(self, ticket: PushTicket, news: Mapping[str, object], now: dt.datetime) -> None:
        await trio.lowlevel.checkpoint()
        if is_current(self.tables, ticket):
            entry = self.tables.pushes[ticket.number]
            entry.record, entry.lease_expires = replace(entry.record, verdict=dict(news)), now

    def _undoing(self, ticket: PushTicket, scheme: Scheme, rows: PushRows) -> Callable[[], None]:
        """Give what takes back all that recording these rows changes, as a transaction that is rolled back does."""
        tables, entry = self.tables, self.tables.pushes[ticket.number]
        kept, marks = entry.rows(), dict(tables.collection.marks)
        new_blobs = {(scheme, blob.object_id) for blob in rows.blobs} - tables.blobs.keys()
        new_snapshots = {(scheme, ref.row.snapshot_id) for ref in rows.snapshots} - tables.snapshots.keys()
        new_commits = {(scheme, row.commit_id) for row in rows.commits} - tables.commits.keys()

        def undo() -> None:
            entry.restore(kept)
            tables.collection.marks.update(marks)  # recording takes some away, and adds none
            for key in new_blobs:
                tables.blobs.pop(key, None)
                tables.cached.pop(key, None)
            for key in new_snapshots:
                tables.snapshots.pop(key, None)
            for key in new_commits:
                tables.commits.pop(key, None)

        return undo

    @staticmethod
    def _finish(entry: PushEntry, state: PushState, verdict: Mapping[str, object], now: dt.datetime) -> None:
        entry.record = replace(entry.record, state=state, verdict=dict(verdict), finished_at=now)
