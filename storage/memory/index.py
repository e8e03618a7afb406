"""The ``Index`` port over dictionaries. Each operation is one step without a checkpoint: a transaction."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import TypeVar

import trio

from storage.errors import StaleTicket
from storage.index import READ_BYTES, UNREAD_NOTIFICATIONS
from storage.job_rows import JOBS_CHANNEL, NewJob
from storage.layout import Place
from storage.memory import held, jobs, usage
from storage.memory.collection_index import MemoryCollection
from storage.memory.collection_marks import lease_begun, meet_marks
from storage.memory.content_cache import store_row
from storage.memory.content_cache_index import MemoryContentCache
from storage.memory.insights_index import MemoryInsights
from storage.memory.job_index import MemoryJobs
from storage.memory.labels_index import MemoryLabels
from storage.memory.pack_repair_index import MemoryPackRepairs
from storage.memory.prebuilt_index import MemoryPrebuilt
from storage.memory.tables import OwnRows, PushEntry, Tables
from storage.rows import (
    ABANDONED_S,
    QUOTA_NONE,
    Access,
    BranchLogEntry,
    BranchMove,
    BranchTip,
    CommitRow,
    Known,
    MoveResult,
    NewRepository,
    Outcome,
    OwnerUsage,
    PushRecord,
    PushRows,
    PushState,
    PushTicket,
    Repository,
    RepositorySettings,
    Right,
    SnapshotRef,
    SnapshotRow,
    StoredBlob,
    Token,
    Visibility,
    Written,
)
from wire.graph import CommitFacts
from wire.ids import Scheme

T = TypeVar("T")


class MemoryIndex(
    MemoryJobs, MemoryContentCache, MemoryPackRepairs, MemoryPrebuilt, MemoryInsights, MemoryCollection,
    MemoryLabels,
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

    async def notify(self, channel: str, payload: str) -> None:
        await trio.lowlevel.checkpoint()
        self.notify_now(channel, payload)

    def notify_now(self, channel: str, payload: str) -> None:
        for listener in self._listeners.get(channel, []):
            with suppress(trio.WouldBlock):
                listener.send_nowait(payload)

    @asynccontextmanager
    async def listen(self, channel: str) -> AsyncIterator[AsyncIterator[str]]:
        await trio.lowlevel.checkpoint()
        send, receive = trio.open_memory_channel[str](UNREAD_NOTIFICATIONS)
        self._listeners.setdefault(channel, []).append(send)
        try:
            yield receive
        finally:
            self._listeners[channel].remove(send)

    async def create_token(self, token: Token) -> None:
        await trio.lowlevel.checkpoint()
        self.tables.tokens.setdefault(token.token_id, token)

    async def revoke_token(self, token_id: uuid.UUID, at: dt.datetime) -> bool:
        await trio.lowlevel.checkpoint()
        token = self.tables.tokens.get(token_id)
        if token is None or token.revoked_at is not None:
            return False
        self.tables.tokens[token_id] = replace(token, revoked_at=at)
        return True

    async def find_token(self, token_hash: bytes) -> Token | None:
        await trio.lowlevel.checkpoint()
        return next((t for t in self.tables.tokens.values() if t.token_hash == token_hash), None)

    async def find_access(self, token_hash: bytes | None, owner: str, slug: str) -> Access:
        token = None if token_hash is None else await self.find_token(token_hash)
        repository = await self.find_repository(owner, slug)
        named = Right.NONE
        if token is not None and repository is not None:
            named = await self.collaborator_right(repository.number, token.handle)
        return Access(token, repository, named)

    async def list_tokens(self, handle: str | None) -> list[Token]:
        await trio.lowlevel.checkpoint()
        found = [t for t in self.tables.tokens.values() if handle in {None, t.handle}]
        return sorted(found, key=lambda t: (-t.created_at.timestamp(), t.token_id))

    async def secret(self, name: str, candidate: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        return self.tables.secrets.setdefault(name, candidate)

    async def create_repository(self, new: NewRepository) -> Repository | None:
        await trio.lowlevel.checkpoint()
        found = self.tables.repository_named(new.owner, new.slug)
        if found is not None:
            return found if found.repo_id == new.repo_id else None
        number = self.tables.next_number()
        made = Repository(
            number, new.repo_id, new.owner, new.slug, new.visibility, None, new.default_branch, new.domain,
            new.settings, new.created_at,
        )  # fmt: skip
        self.tables.repositories[number] = made
        self.tables.owners[number] = made.owner
        return made

    async def find_repository(self, owner: str, slug: str) -> Repository | None:
        await trio.lowlevel.checkpoint()
        return self.tables.repository_named(owner, slug)

    async def list_repositories(self, handle: str | None, everything: bool = False) -> list[Repository]:
        await trio.lowlevel.checkpoint()
        tables = self.tables
        found = [
            r
            for r in tables.repositories.values()
            if everything
            or r.visibility is Visibility.PUBLIC
            or (handle is not None and (r.owner == handle or (r.number, handle) in tables.collaborators))
        ]
        return sorted(found, key=lambda r: (r.owner, r.slug))

    async def repositories_numbered(self, numbers: Sequence[int]) -> dict[int, Repository]:
        await trio.lowlevel.checkpoint()
        return {n: self.tables.repositories[n] for n in numbers if n in self.tables.repositories}

    async def update_repository(
        self, number: int, visibility: Visibility, settings: RepositorySettings, default_branch: str
    ) -> bool:
        await trio.lowlevel.checkpoint()
        found = self.tables.repositories.get(number)
        if found is None:
            return False
        self.tables.repositories[number] = replace(
            found, visibility=visibility, settings=settings, default_branch=default_branch
        )
        return True

    async def delete_repository(self, number: int, at: dt.datetime) -> bool:
        await trio.lowlevel.checkpoint()
        gone = self.tables.repositories.pop(number, None)
        if gone is not None:
            self.tables.collection.deleted[number] = (at, gone.scheme)
        return gone is not None

    async def set_collaborator(self, number: int, handle: str, right: Right) -> None:
        await trio.lowlevel.checkpoint()
        if right is Right.NONE:
            self.tables.collaborators.pop((number, handle), None)
        else:
            self.tables.collaborators[number, handle] = right

    async def collaborator_right(self, number: int, handle: str) -> Right:
        await trio.lowlevel.checkpoint()
        return self.tables.collaborators.get((number, handle), Right.NONE)

    async def branch_heads(self, number: int) -> dict[str, bytes]:
        await trio.lowlevel.checkpoint()
        return dict(sorted(self.tables.branches[number].items()))

    async def branch_tip(self, number: int, branch: str) -> BranchTip | None:
        await trio.lowlevel.checkpoint()
        head = self.tables.branches[number].get(branch)
        scheme = None if number not in self.tables.repositories else self.tables.repositories[number].scheme
        if head is None or scheme is None:
            return None
        facts = self.tables.commits[scheme, head]
        return BranchTip(head, facts.snapshot_id, facts.order)

    async def move_branches(
        self, number: int, moves: Sequence[BranchMove], handle: str, now: dt.datetime
    ) -> MoveResult:
        await trio.lowlevel.checkpoint()
        if number not in self.tables.repositories:
            return MoveResult(Outcome.GONE)
        branches = self.tables.branches[number]
        ordered = sorted(moves, key=lambda move: move.branch)
        for move in ordered:
            head = branches.get(move.branch)
            if head not in {move.old, move.new}:
                return MoveResult(Outcome.HEAD_DIFFERS, head, move.branch)
            held = self.tables.pushes_of(number)
            is_lost = move.new is not None and not any(move.new in push.commits for push in held)
            if is_lost and self.tables.collection.collected.get(number, 0):
                return MoveResult(Outcome.NOT_HELD, None, move.branch)
        for move in ordered:
            head = branches.get(move.branch)
            if move.new is None:
                branches.pop(move.branch, None)
            else:
                branches[move.branch] = move.new
            if head != move.new:
                self.tables.branch_log[number].append(
                    BranchLogEntry(move.branch, head, move.new, handle, None, move.forced, now)
                )
        return MoveResult(Outcome.MOVED)

    async def branch_log(self, number: int, branch: str) -> list[BranchLogEntry]:
        await trio.lowlevel.checkpoint()
        return [entry for entry in self.tables.branch_log[number] if entry.branch == branch]

    async def begin_push(
        self, repo: int, push_id: uuid.UUID, handle: str, branch: str, now: dt.datetime, lease_s: float
    ) -> PushTicket | PushRecord:
        await trio.lowlevel.checkpoint()
        expires = now + dt.timedelta(seconds=lease_s)
        entry = self._push(repo, push_id)
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
        entry = self._push(repo, push_id)
        return None if entry is None else replace(entry.record, lease_expires=entry.lease_expires)

    async def renew_pushes(self, tickets: Sequence[PushTicket], now: dt.datetime, lease_s: float) -> None:
        await trio.lowlevel.checkpoint()
        given_up = now - dt.timedelta(seconds=ABANDONED_S)
        for ticket in tickets:
            if self._is_current(ticket) and self.tables.pushes[ticket.number].lease_expires > given_up:
                self.tables.pushes[ticket.number].lease_expires = now + dt.timedelta(seconds=lease_s)

    async def known_blobs(
        self, repo: int, scheme: Scheme, object_ids: Sequence[bytes], push: int | None = None
    ) -> Known:
        del scheme  # a repository has one
        await trio.lowlevel.checkpoint()
        pushes = self.tables.pushes_of(repo)
        asking = None if push is None else self.tables.pushes.get(push)
        return Known(
            frozenset(i for i in object_ids if asking is not None and asking.repo == repo and i in asking.blobs),
            frozenset(i for i in object_ids if any(i in p.blobs for p in pushes)),
        )

    async def record_blobs(self, ticket: PushTicket, scheme: Scheme, stored: Sequence[StoredBlob]) -> int:
        await trio.lowlevel.checkpoint()
        entry = self._current(ticket)
        new = {blob.object_id: blob.size for blob in stored if blob.object_id not in entry.blobs}
        usage.count(self.tables, entry, sum(new.values()), self._owner_quota)
        entry.size -= sum(new.values())
        return self._record_blobs(ticket, scheme, stored)

    def _record_blobs(self, ticket: PushTicket, scheme: Scheme, stored: Sequence[StoredBlob]) -> int:
        entry = self._current(ticket)
        meet_marks(self.tables, scheme, stored, self.tables.collection.begun.get(ticket.number, 0))
        before = len(entry.blobs)
        entry.size += sum({b.object_id: b.size for b in stored if b.object_id not in entry.blobs}.values())
        for blob in stored:
            store_row(self.tables, scheme, blob)
            entry.blobs.add(blob.object_id)
        return len(entry.blobs) - before

    async def lacking_blobs(self, ticket: PushTicket, object_ids: Sequence[bytes]) -> list[bytes]:
        await trio.lowlevel.checkpoint()
        pushes = self.tables.pushes_of(ticket.repo, ticket)
        return [i for i in dict.fromkeys(object_ids) if not any(i in p.blobs for p in pushes)]

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
        entry = self._current(ticket)
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
        entry = self._current(ticket)
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
        found = self.tables.pushes.get(ticket.number)
        if found is not None and found.accepted and found.attempt == ticket.attempt:
            return MoveResult(Outcome.MOVED, move.new)
        if not self._is_current(ticket):
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
        if new_jobs:
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
        found = self.tables.pushes.get(ticket.number)
        if found is not None and found.accepted and found.attempt == ticket.attempt:
            await trio.lowlevel.checkpoint()
            return MoveResult(Outcome.MOVED, move.new, verdict=found.record.verdict)
        if not self._is_current(ticket):
            await trio.lowlevel.checkpoint()
            return MoveResult(Outcome.SUPERSEDED)
        kept = self.tables.pushes[ticket.number].rows()
        with trio.CancelScope(shield=True):  # as a transaction: wholly or not at all
            try:
                blobs = self._record_blobs(ticket, scheme, rows.blobs) if rows.blobs else 0
                snapshots = await self.record_snapshots(ticket, scheme, rows.snapshots) if rows.snapshots else 0
                commits = await self.record_commits(ticket, scheme, rows.commits) if rows.commits else 0
                words = verdict(Written(blobs, snapshots, commits))
                result = await self.accept_push(ticket, scheme, move, words, now, record_bytes, new_jobs)
            except BaseException:
                self._undo(ticket, kept)
                raise
        if result.outcome is not Outcome.MOVED:
            self._undo(ticket, kept)
            return result
        return replace(result, verdict=words)

    async def refuse_push(self, ticket: PushTicket, verdict: Mapping[str, object], now: dt.datetime) -> None:
        await trio.lowlevel.checkpoint()
        if self._is_current(ticket):
            self._finish(self.tables.pushes[ticket.number], PushState.REFUSED, verdict, now)

    async def interrupt_push(self, ticket: PushTicket, news: Mapping[str, object], now: dt.datetime) -> None:
        await trio.lowlevel.checkpoint()
        if self._is_current(ticket):
            entry = self.tables.pushes[ticket.number]
            entry.record, entry.lease_expires = replace(entry.record, verdict=dict(news)), now

    async def stored_blobs(
        self,
        repo: int,
        scheme: Scheme,
        object_ids: Sequence[bytes],
        now: dt.datetime,
        push: tuple[uuid.UUID, str] | None = None,
    ) -> set[bytes]:
        await trio.lowlevel.checkpoint()
        return held.stored_blobs(self.tables, repo, scheme, object_ids, now, push)

    async def hold_blobs(
        self,
        repo: int,
        scheme: Scheme,
        stored: Sequence[StoredBlob],
        expires: dt.datetime,
        lease: uuid.UUID | None = None,
    ) -> None:
        await trio.lowlevel.checkpoint()
        meet_marks(self.tables, scheme, stored, 0 if lease is None else lease_begun(self.tables, lease))
        held.hold_blobs(self.tables, repo, scheme, stored, expires)

    async def claim_blobs(
        self, ticket: PushTicket, scheme: Scheme, object_ids: Sequence[bytes], now: dt.datetime
    ) -> set[bytes]:
        await trio.lowlevel.checkpoint()
        entry = self._current(ticket)
        claimed = held.claim_blobs(self.tables, entry, scheme, object_ids, now)
        usage.count_claimed(self.tables, entry, scheme, claimed)
        return claimed

    async def forget_held(self, now: dt.datetime, most: int) -> int:
        await trio.lowlevel.checkpoint()
        return held.forget_held(self.tables, now, most)

    async def owner_usage(self, owner: str, now: dt.datetime) -> OwnerUsage:
        await trio.lowlevel.checkpoint()
        return usage.owner_usage(self.tables, owner, now, self._owner_quota)

    async def set_quota(self, owner: str, quota: int | None) -> None:
        await trio.lowlevel.checkpoint()
        self.tables.quotas[owner] = quota

    async def reserve_bytes(
        self,
        repo: int,
        reservation: bytes,
        size: int,
        now: dt.datetime,
        expires: dt.datetime,
        push_id: uuid.UUID | None = None,
    ) -> None:
        await trio.lowlevel.checkpoint()
        usage.reserve_bytes(self.tables, repo, reservation, size, now, expires, push_id, self._owner_quota)

    async def release_bytes(self, repo: int, reservation: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.tables.reservations.pop((repo, reservation), None)

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

    async def places(self, scheme: Scheme, object_ids: Sequence[bytes]) -> dict[bytes, Place]:
        await trio.lowlevel.checkpoint()
        return self._places(scheme, object_ids)

    async def held_places(self, repo: int, scheme: Scheme, object_ids: Sequence[bytes]) -> dict[bytes, Place]:
        await trio.lowlevel.checkpoint()
        pushes = self.tables.pushes_of(repo)
        return self._places(scheme, [i for i in object_ids if any(i in p.blobs for p in pushes)])

    def _places(self, scheme: Scheme, object_ids: Iterable[bytes]) -> dict[bytes, Place]:
        rows = {i: self.tables.blobs.get((scheme, i)) for i in object_ids}
        cached = self.tables.cached
        return {
            i: Place(i, row.size, row.pack_id, row.offset, (scheme, i) in cached)
            for i, row in rows.items() if row is not None
        }  # fmt: skip

    def _first_held(
        self, repo: int, ids: Iterable[bytes], rows_of: Callable[[PushEntry], Mapping[bytes, bytes]]
    ) -> dict[bytes, bytes]:
        tables = [rows_of(p) for p in self.tables.pushes_of(repo)]
        return {i: next(rows[i] for rows in tables if i in rows) for i in ids if any(i in rows for rows in tables)}

    def _push(self, repo: int, push_id: uuid.UUID) -> PushEntry | None:
        return next((p for p in self.tables.pushes.values() if (p.repo, p.record.push_id) == (repo, push_id)), None)

    def _is_current(self, ticket: PushTicket) -> bool:
        entry = self.tables.pushes.get(ticket.number)
        return entry is not None and entry.record.state is PushState.OPEN and entry.attempt == ticket.attempt

    def _current(self, ticket: PushTicket) -> PushEntry:
        if not self._is_current(ticket):
            raise StaleTicket(f"push {ticket.push_id} attempt {ticket.attempt}")
        return self.tables.pushes[ticket.number]

    def _undo(self, ticket: PushTicket, kept: OwnRows) -> None:
        if self._is_current(ticket):  # else a newer attempt has rows there
            self.tables.pushes[ticket.number].restore(kept)

    @staticmethod
    def _finish(entry: PushEntry, state: PushState, verdict: Mapping[str, object], now: dt.datetime) -> None:
        entry.record = replace(entry.record, state=state, verdict=dict(verdict), finished_at=now)


def _that_fit(found: dict[bytes, T], size: Callable[[T], int]) -> dict[bytes, T]:
    before = 0
    fit: dict[bytes, T] = {}
    for key, body in found.items():
        if before < READ_BYTES:
            fit[key] = body
        before += size(body)
    return fit
