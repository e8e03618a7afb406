"""The ``Index`` port: everything relational, in operations that are one transaction each.

Contract, kept by every implementation (``tests/behaviour/test_index.py``):

* An operation happens wholly or not at all; when it has returned, it is durable.
* A cancelled operation may or may not have happened. Every writing operation may be repeated.
* ``IndexUnavailable`` says that the index could not answer; nothing else does.
* Rows a push writes are seen by nobody else until :meth:`Index.accept_push` has moved the branch.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from storage.collection import Collection
from storage.content_cache import ContentCache
from storage.fsck import Checks
from storage.fsck_repairs import PlaceCorrections
from storage.insights import Insights
from storage.job_queue import Jobs
from storage.job_rows import NewJob
from storage.labels import Labels
from storage.layout import Place
from storage.left_behind import LeftBehind
from storage.pack_repair import PackRepairs
from storage.prebuilt import Prebuilt
from storage.rows import (
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

READ_BYTES = 4 * 1024 * 1024
"""What an operation that gives stored bodies gives at once; a single larger one is given alone."""
UNREAD_NOTIFICATIONS = 1_000
"""How many a listener may leave unread; later ones are dropped."""


class Identities(Protocol):
    """Who may come in."""

    async def create_token(self, token: Token) -> None:
        """Store a token; its identity is made when it is new."""

    async def revoke_token(self, token_id: uuid.UUID, at: dt.datetime) -> bool:
        """Revoke a token; gives whether there was a valid one."""

    async def find_token(self, token_hash: bytes) -> Token | None:
        """Find a token by the SHA-256 of its secret, revoked and expired ones included."""

    async def find_access(self, token_hash: bytes | None, owner: str, slug: str) -> Access:
        """Look up at once what :meth:`find_token`, ``find_repository`` and ``collaborator_right`` would give."""

    async def list_tokens(self, handle: str | None) -> list[Token]:
        """List tokens of one identity or of all, newest first."""

    async def secret(self, name: str, candidate: bytes) -> bytes:
        """Give the deployment's secret of that name, storing ``candidate`` when there is none."""


class Repositories(Protocol):
    """What there is to read and write."""

    async def create_repository(self, new: NewRepository) -> Repository | None:
        """Make a repository; ``None`` when the name is taken by another one."""

    async def find_repository(self, owner: str, slug: str) -> Repository | None:
        """Find a repository by name."""

    async def list_repositories(self, handle: str | None, everything: bool = False) -> list[Repository]:
        """List what an identity may read (``None``: anybody), or everything, by name."""

    async def repositories_numbered(self, numbers: Sequence[int]) -> dict[int, Repository]:
        """Find repositories by number; those that are gone are left out."""

    async def update_repository(
        self, number: int, visibility: Visibility, settings: RepositorySettings, default_branch: str
    ) -> bool:
        """Change a repository; gives whether it is there."""

    async def delete_repository(self, number: int, at: dt.datetime) -> bool:
        """Take a repository out of sight; its name is free again."""

    async def set_collaborator(self, number: int, handle: str, right: Right) -> None:
        """Name a collaborator; ``Right.NONE`` removes one."""

    async def collaborator_right(self, number: int, handle: str) -> Right:
        """Give what an identity was named for."""

    async def branch_heads(self, number: int) -> dict[str, bytes]:
        """Give all branches with their heads, by name."""

    async def branch_tip(self, number: int, branch: str) -> BranchTip | None:
        """Give where one branch is; ``None`` when it is not there."""

    async def move_branches(
        self, number: int, moves: Sequence[BranchMove], handle: str, now: dt.datetime
    ) -> MoveResult:
        """Move, make or delete several branches, all or none; each is a compare-and-swap with a line in its log.

        Done again after its answer was lost, it says ``MOVED`` again and does nothing.
        """

    async def branch_log(self, number: int, branch: str) -> list[BranchLogEntry]:
        """Give a branch's moves, oldest first."""


class Pushes(Protocol):
    """The life of a push. ``lease_s`` is how long its rows are kept from collection without renewal."""

    async def begin_push(
        self, repo: int, push_id: uuid.UUID, handle: str, branch: str, now: dt.datetime, lease_s: float
    ) -> PushTicket | PushRecord:
        """Start an attempt, making older ones stale; a finished push gives its record instead."""

    async def is_of_scheme(self, ticket: PushTicket, scheme: Scheme) -> bool:
        """Tell whether all that an open push has recorded so far is of a scheme."""

    async def find_push(self, repo: int, push_id: uuid.UUID) -> PushRecord | None:
        """Look a push up."""

    async def renew_pushes(self, tickets: Sequence[PushTicket], now: dt.datetime, lease_s: float) -> None:
        """Extend the leases of running pushes, all at once."""

    async def known_blobs(
        self, repo: int, scheme: Scheme, object_ids: Sequence[bytes], push: int | None = None
    ) -> Known:
        """Look a batch of blobs up before storing them; ``push`` is the number of the push that asks."""

    async def record_blobs(self, ticket: PushTicket, scheme: Scheme, blobs: Sequence[StoredBlob]) -> int:
        """Record blobs of a push that are in the store now; gives how many the push did not have yet.

        Raises:
            QuotaExceeded: with what else is under way, its owner would hold more than it may. Nothing was recorded,
                and what the push has brought so far is not counted as on its way until it is begun again.
            Tombstoned: some of them are being collected: the next attempt has to store them again.
        """

    async def lacking_blobs(self, ticket: PushTicket, object_ids: Sequence[bytes]) -> list[bytes]:
        """Give those neither in this push nor held by its repository."""

    async def lacking_snapshots(self, ticket: PushTicket, snapshot_ids: Sequence[bytes]) -> list[bytes]:
        """Give those neither in this push nor held by its repository."""

    async def lacking_commits(self, ticket: PushTicket, commit_ids: Sequence[bytes]) -> list[bytes]:
        """Give those not held by its repository; a push's own commits are not looked at."""

    async def record_snapshots(self, ticket: PushTicket, scheme: Scheme, snapshots: Sequence[SnapshotRef]) -> int:
        """Record verified snapshots of a push, bases first; gives how many are new to the repository by this push."""

    async def snapshot_depths(self, scheme: Scheme, snapshot_ids: Sequence[bytes]) -> dict[bytes, int]:
        """Give how deep the chains of stored snapshots are, whoever stored them; unknown ones are left out."""

    async def record_commits(self, ticket: PushTicket, scheme: Scheme, commits: Sequence[CommitRow]) -> int:
        """Record verified commits of a push, parents first; gives how many are new to the repository by this push."""

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
        """Make a push visible: move the branch, fix the scheme, log the move and keep the verdict, at once.

        The same transaction counts what the push brought, ``record_bytes`` of records with it, and enqueues what is
        to be done after it. Concurrent pushes cannot exceed their owner's quota together.

        Done again by the attempt that was accepted, it says ``MOVED`` again and does nothing.
        """

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
        """Record what is left of a push and accept it, at once; unless the branch is moved, nothing is recorded.

        ``verdict`` makes the verdict of what was new; it runs in the transaction and must not take long.
        """

    async def refuse_push(self, ticket: PushTicket, verdict: Mapping[str, object], now: dt.datetime) -> None:
        """Keep a final refusal as the push's verdict."""

    async def interrupt_push(self, ticket: PushTicket, news: Mapping[str, object], now: dt.datetime) -> None:
        """End an attempt whose push may be sent again; ``news`` is told to whoever asks until it is."""


class Holdings(Protocol):
    """Blobs a repository holds before a push names them, each until it expires. Nobody may read them."""

    async def stored_blobs(
        self,
        repo: int,
        scheme: Scheme,
        object_ids: Sequence[bytes],
        now: dt.datetime,
        push: tuple[uuid.UUID, str] | None = None,
    ) -> set[bytes]:
        """Give those a push of this repository need not bring: accepted, held, or brought by an open push.

        That push is named by its id and its identity. What is given because it is held stays so for at least half of
        ``HELD_S``.
        """

    async def hold_blobs(
        self,
        repo: int,
        scheme: Scheme,
        blobs: Sequence[StoredBlob],
        expires: dt.datetime,
        lease: uuid.UUID | None = None,
    ) -> None:
        """Record blobs that are in the store now, and hold them for a repository; never for less long than before.

        They were put there by somebody who had taken that lease.

        Raises:
            LeaseLost, Tombstoned: they may be gone again: put them there anew.
        """

    async def claim_blobs(
        self, ticket: PushTicket, scheme: Scheme, object_ids: Sequence[bytes], now: dt.datetime
    ) -> set[bytes]:
        """Make those the push's own that its repository holds and nothing else gives it; gives which."""

    async def forget_held(self, now: dt.datetime, most: int) -> int:
        """Forget up to ``most`` holdings that have expired; gives how many. The blobs themselves are not touched."""


class Quotas(Protocol):
    """What an owner's repositories take up, and may."""

    async def owner_usage(self, owner: str, now: dt.datetime) -> OwnerUsage:
        """Give how much an owner's repositories hold and how much they may."""

    async def set_quota(self, owner: str, quota: int | None) -> None:
        """Set an owner's quota in bytes; ``QUOTA_NONE`` for none, ``None`` for the deployment's default."""

    async def reserve_bytes(
        self,
        repo: int,
        reservation: bytes,
        size: int,
        now: dt.datetime,
        expires: dt.datetime,
        push_id: uuid.UUID | None = None,
    ) -> None:
        """Count an announced upload against the quota of the repository's owner, if there is one.

        Done again with the same ``reservation`` (32 bytes), it counts once. It counts until it expires, is released,
        or the push of that ``push_id`` is accepted.

        Raises:
            QuotaExceeded: there is no room for it; nothing was reserved.
        """

    async def release_bytes(self, repo: int, reservation: bytes) -> None:
        """Let go of a reservation, if there is one."""


class History(Protocol):
    """Reading what was accepted."""

    async def held_commits(self, repo: int, commit_ids: Sequence[bytes]) -> dict[bytes, int]:
        """Give those the repository holds, with their generation."""

    async def ancestry(self, scheme: Scheme, commit_ids: Sequence[bytes], most: int) -> list[CommitFacts]:
        """Give facts of these commits and of up to ``most`` of their ancestors, nearest first.

        No ancestors are given of commits that are ``most`` generations older than the newest of those asked for.
        """

    async def commit_records(self, repo: int, commit_ids: Sequence[bytes]) -> dict[bytes, bytes]:
        """Give the canonical records a repository holds of commits, the first ones asked for that fit into memory.

        One that is not what was written, as far as its implementation can tell, is as good as lost.
        At least one is given if there is any, at most :data:`READ_BYTES` else; the same holds for snapshots.
        """

    async def snapshot_deltas(self, scheme: Scheme, snapshot_ids: Sequence[bytes]) -> dict[bytes, SnapshotRow]:
        """Give snapshots as changes to their bases, the first that fit; full contents are left out."""

    async def snapshot_extras(self, repo: int, snapshot_ids: Sequence[bytes]) -> dict[bytes, bytes]:
        """Give the extra fields a repository holds of snapshots, the first that fit; those without any are left out."""

    async def snapshot_chain(self, scheme: Scheme, snapshot_id: bytes) -> list[SnapshotRow]:
        """Give a snapshot and its bases up to the nearest full content, in that order; empty when unknown."""

    async def places(self, scheme: Scheme, object_ids: Sequence[bytes]) -> dict[bytes, Place]:
        """Say where blobs are; unknown ones are left out."""

    async def held_places(self, repo: int, scheme: Scheme, object_ids: Sequence[bytes]) -> dict[bytes, Place]:
        """Say where blobs are that an accepted push of this repository holds."""


class Index(
    Identities, Repositories, Pushes, Holdings, Quotas, Jobs, History, ContentCache, PackRepairs,
    Checks, PlaceCorrections,
    Prebuilt, Insights, Collection, Labels, LeftBehind, Protocol,
):  # fmt: skip
    """The whole port."""

    async def ping(self) -> None:
        """Check that the index answers."""

    async def notify(self, channel: str, payload: str) -> None:
        """Wake every listener of a channel in the deployment; delivery is best effort."""

    def listen(self, channel: str) -> AbstractAsyncContextManager[AsyncIterator[str]]:
        """Listen on a channel; the iterator ends with ``IndexUnavailable`` when the connection is lost.

        Of what is left unread, the first :data:`UNREAD_NOTIFICATIONS` are kept.
        """
