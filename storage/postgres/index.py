"""The ``Index`` port over PostgreSQL: every operation is one transaction in one worker-thread hop."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Self

from storage.environment import Environment, SystemEnvironment
from storage.errors import QuotaExceeded
from storage.job_rows import NewJob
from storage.layout import Place
from storage.postgres import (
    access,
    at_once,
    blobs,
    branches,
    finish,
    held,
    history,
    identities,
    large_bodies,
    pushes,
    repositories,
    schemes,
    usage,
)
from storage.postgres.collection_index import PostgresCollection
from storage.postgres.content_cache_index import PostgresContentCache
from storage.postgres.database import Connection, Database, DatabaseSettings, DatabaseStatistics
from storage.postgres.fsck_index import PostgresFsck
from storage.postgres.insights_index import PostgresInsights
from storage.postgres.job_index import PostgresJobs
from storage.postgres.journal_index import PostgresJournal
from storage.postgres.labels_index import PostgresLabels
from storage.postgres.left_behind import PostgresLeftBehind
from storage.postgres.listener import listen
from storage.postgres.pack_repair_index import PostgresPackRepairs
from storage.postgres.prebuilt_index import PostgresPrebuilt
from storage.rows import (
    QUOTA_NONE,
    Access,
    BranchLogEntry,
    BranchMove,
    BranchTip,
    CommitRow,
    Known,
    MoveResult,
    NewRepository,
    OwnerUsage,
    PushRecord,
    PushRows,
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


class PostgresIndex(
    PostgresContentCache, PostgresFsck, PostgresPackRepairs, PostgresPrebuilt, PostgresInsights, PostgresJobs,
    PostgresCollection, PostgresLabels, PostgresLeftBehind, PostgresJournal,
):  # fmt: skip
    """See ``storage.index.Index`` for what each operation promises."""

    def __init__(
        self, settings: DatabaseSettings, environment: Environment | None = None, owner_quota: int = QUOTA_NONE
    ) -> None:
        self._settings = settings
        self._owner_quota = owner_quota
        self.database = Database(settings, environment or SystemEnvironment())

    async def __aenter__(self) -> Self:
        await self.database.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.database.aclose()

    def statistics(self) -> DatabaseStatistics:
        """Give a look at the connections."""
        return self.database.statistics()

    async def ping(self) -> None:
        await self.database.run(_ping)

    async def notify(self, channel: str, payload: str) -> None:
        await self.database.run(_notify, channel, payload)

    def listen(self, channel: str) -> AbstractAsyncContextManager[AsyncIterator[str]]:
        return listen(self._settings, channel)

    async def create_token(self, token: Token) -> None:
        await self.database.run(identities.create_token, token)

    async def revoke_token(self, token_id: uuid.UUID, at: dt.datetime) -> bool:
        return await self.database.run(identities.revoke_token, token_id, at)

    async def find_token(self, token_hash: bytes) -> Token | None:
        return await self.database.run(identities.find_token, token_hash)

    async def find_access(self, token_hash: bytes | None, owner: str, slug: str) -> Access:
        return await self.database.run(access.find_access, token_hash, owner, slug)

    async def list_tokens(self, handle: str | None) -> list[Token]:
        return await self.database.run(identities.list_tokens, handle)

    async def secret(self, name: str, candidate: bytes) -> bytes:
        return await self.database.run(identities.secret, name, candidate)

    async def create_repository(self, new: NewRepository) -> Repository | None:
        return await self.database.run(repositories.create_repository, new)

    async def find_repository(self, owner: str, slug: str) -> Repository | None:
        return await self.database.run(repositories.find_repository, owner, slug)

    async def list_repositories(self, handle: str | None, everything: bool = False) -> list[Repository]:
        return await self.database.run(repositories.list_repositories, handle, everything)

    async def repositories_numbered(self, numbers: Sequence[int]) -> dict[int, Repository]:
        return await self.database.run(repositories.repositories_numbered, numbers)

    async def update_repository(
        self, number: int, visibility: Visibility, settings: RepositorySettings, default_branch: str
    ) -> bool:
        return await self.database.run(repositories.update_repository, number, visibility, settings, default_branch)

    async def delete_repository(self, number: int, at: dt.datetime) -> bool:
        return await self.database.run(repositories.delete_repository, number, at)

    async def set_collaborator(self, number: int, handle: str, right: Right) -> None:
        await self.database.run(repositories.set_collaborator, number, handle, right)

    async def collaborator_right(self, number: int, handle: str) -> Right:
        return await self.database.run(repositories.collaborator_right, number, handle)

    async def branch_heads(self, number: int) -> dict[str, bytes]:
        return await self.database.run(repositories.branch_heads, number)

    async def branch_tip(self, number: int, branch: str) -> BranchTip | None:
        return await self.database.run(repositories.branch_tip, number, branch)

    async def move_branches(
        self, number: int, moves: Sequence[BranchMove], handle: str, now: dt.datetime
    ) -> MoveResult:
        return await self.database.run(branches.move_branches, number, moves, handle, now)

    async def branch_log(self, number: int, branch: str) -> list[BranchLogEntry]:
        return await self.database.run(repositories.branch_log, number, branch)

    async def begin_push(
        self, repo: int, push_id: uuid.UUID, handle: str, branch: str, now: dt.datetime, lease_s: float
    ) -> PushTicket | PushRecord:
        return await self.database.run(pushes.begin_push, repo, push_id, handle, branch, now, lease_s)

    async def is_of_scheme(self, ticket: PushTicket, scheme: Scheme) -> bool:
        return await self.database.run(schemes.is_of_scheme, ticket, scheme)

    async def find_push(self, repo: int, push_id: uuid.UUID) -> PushRecord | None:
        return await self.database.run(pushes.find_push, repo, push_id)

    async def renew_pushes(self, tickets: Sequence[PushTicket], now: dt.datetime, lease_s: float) -> None:
        await self.database.run(pushes.renew_pushes, tickets, now, lease_s)

    async def known_blobs(
        self, repo: int, scheme: Scheme, object_ids: Sequence[bytes], push: int | None = None
    ) -> Known:
        return await self.database.run(blobs.known_blobs, repo, scheme, object_ids, push)

    async def record_blobs(self, ticket: PushTicket, scheme: Scheme, stored: Sequence[StoredBlob]) -> int:
        if at_once.is_usual(ticket, stored, self._owner_quota):
            added = await self.database.run(at_once.record_at_once, ticket, scheme, stored)
            if added is not None:
                return added
        written = await self.database.run(blobs.record_blobs, ticket, scheme, stored, self._owner_quota)
        if isinstance(written, QuotaExceeded):
            raise written
        return written

    async def lacking_blobs(self, ticket: PushTicket, object_ids: Sequence[bytes]) -> list[bytes]:
        return await self.database.run(blobs.lacking_blobs, ticket, object_ids)

    async def lacking_snapshots(self, ticket: PushTicket, snapshot_ids: Sequence[bytes]) -> list[bytes]:
        return await self.database.run(history.lacking_snapshots, ticket, snapshot_ids)

    async def lacking_commits(self, ticket: PushTicket, commit_ids: Sequence[bytes]) -> list[bytes]:
        return await self.database.run(history.lacking_commits, ticket, commit_ids)

    async def record_snapshots(self, ticket: PushTicket, scheme: Scheme, snapshots: Sequence[SnapshotRef]) -> int:
        refs = await large_bodies.put_apart(self.database, snapshots)
        if ticket.attempt == 1:
            added = await self.database.run(at_once.record_snapshots_at_once, ticket, scheme, refs)
            if added is not None:
                return added
        return await self.database.run(history.record_snapshots, ticket, scheme, refs)

    async def snapshot_depths(self, scheme: Scheme, snapshot_ids: Sequence[bytes]) -> dict[bytes, int]:
        return await self.database.run(history.snapshot_depths, scheme, snapshot_ids)

    async def record_commits(self, ticket: PushTicket, scheme: Scheme, commits: Sequence[CommitRow]) -> int:
        if ticket.attempt == 1:
            added = await self.database.run(at_once.record_commits_at_once, ticket, scheme, commits)
            if added is not None:
                return added
        return await self.database.run(history.record_commits, ticket, scheme, commits)

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
        return await self.database.run(
            pushes.accept_push, ticket, scheme, move, verdict, now, record_bytes, new_jobs, self._owner_quota
        )

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
        rows = replace(rows, snapshots=await large_bodies.put_apart(self.database, rows.snapshots))
        arguments = (ticket, scheme, rows, move, verdict, now, record_bytes, new_jobs)
        if at_once.is_usual(ticket, rows.blobs, self._owner_quota) and move.old != move.new:
            result = await self.database.run(at_once.finish_at_once, *arguments)
            if result is not None:
                return result
        return await self.database.run(finish.finish_push, *arguments, self._owner_quota)

    async def refuse_push(self, ticket: PushTicket, verdict: Mapping[str, object], now: dt.datetime) -> None:
        await self.database.run(pushes.refuse_push, ticket, verdict, now)

    async def interrupt_push(self, ticket: PushTicket, news: Mapping[str, object], now: dt.datetime) -> None:
        await self.database.run(pushes.interrupt_push, ticket, news, now)

    async def stored_blobs(
        self,
        repo: int,
        scheme: Scheme,
        object_ids: Sequence[bytes],
        now: dt.datetime,
        push: tuple[uuid.UUID, str] | None = None,
    ) -> set[bytes]:
        return await self.database.run(held.stored_blobs, repo, scheme, object_ids, now, push)

    async def hold_blobs(
        self,
        repo: int,
        scheme: Scheme,
        stored: Sequence[StoredBlob],
        expires: dt.datetime,
        lease: uuid.UUID | None = None,
    ) -> None:
        await self.database.run(held.hold_blobs, repo, scheme, stored, expires, lease)

    async def claim_blobs(
        self, ticket: PushTicket, scheme: Scheme, object_ids: Sequence[bytes], now: dt.datetime
    ) -> set[bytes]:
        return await self.database.run(_claim_blobs, ticket, scheme, object_ids, now)

    async def forget_held(self, now: dt.datetime, most: int) -> int:
        return await self.database.run(held.forget_held, now, most)

    async def owner_usage(self, owner: str, now: dt.datetime) -> OwnerUsage:
        return await self.database.run(usage.owner_usage, owner, now, self._owner_quota)

    async def set_quota(self, owner: str, quota: int | None) -> None:
        await self.database.run(usage.set_quota, owner, quota)

    async def reserve_bytes(
        self,
        repo: int,
        reservation: bytes,
        size: int,
        now: dt.datetime,
        expires: dt.datetime,
        push_id: uuid.UUID | None = None,
    ) -> None:
        await self.database.run(usage.reserve_bytes, repo, reservation, size, now, expires, push_id, self._owner_quota)

    async def release_bytes(self, repo: int, reservation: bytes) -> None:
        await self.database.run(usage.release_bytes, repo, reservation)

    async def held_commits(self, repo: int, commit_ids: Sequence[bytes]) -> dict[bytes, int]:
        return await self.database.run(history.held_commits, repo, commit_ids)

    async def ancestry(self, scheme: Scheme, commit_ids: Sequence[bytes], most: int) -> list[CommitFacts]:
        return await self.database.run(history.ancestry, scheme, commit_ids, most)

    async def commit_records(self, repo: int, commit_ids: Sequence[bytes]) -> dict[bytes, bytes]:
        return await self.database.run(history.commit_records, repo, commit_ids)

    async def snapshot_deltas(self, scheme: Scheme, snapshot_ids: Sequence[bytes]) -> dict[bytes, SnapshotRow]:
        rows = await self.database.run(history.snapshot_deltas, scheme, snapshot_ids)
        return {found: await large_bodies.together(self.database, row) for found, row in rows.items()}

    async def snapshot_extras(self, repo: int, snapshot_ids: Sequence[bytes]) -> dict[bytes, bytes]:
        return await self.database.run(history.snapshot_extras, repo, snapshot_ids)

    async def snapshot_chain(self, scheme: Scheme, snapshot_id: bytes) -> list[SnapshotRow]:
        rows = await self.database.run(history.snapshot_chain, scheme, snapshot_id)
        return [await large_bodies.together(self.database, row) for row in rows]

    async def places(self, scheme: Scheme, object_ids: Sequence[bytes]) -> dict[bytes, Place]:
        return await self.database.run(blobs.places, scheme, object_ids)

    async def held_places(self, repo: int, scheme: Scheme, object_ids: Sequence[bytes]) -> dict[bytes, Place]:
        return await self.database.run(blobs.held_places, repo, scheme, object_ids)


def _claim_blobs(
    connection: Connection, ticket: PushTicket, scheme: Scheme, object_ids: Sequence[bytes], now: dt.datetime
) -> set[bytes]:
    claimed = held.claim_blobs(connection, ticket, scheme, object_ids, now)
    usage.count_claimed(connection, ticket, scheme, list(claimed))
    return claimed


def _ping(connection: Connection) -> None:
    connection.execute("SELECT 1")


def _notify(connection: Connection, channel: str, payload: str) -> None:
    connection.execute("SELECT pg_notify(%s, %s)", (channel, payload))
