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
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from storage.layout import Place
from storage.rows import (
    BranchLogEntry,
    BranchMove,
    CommitRow,
    Known,
    MoveResult,
    NewRepository,
    PushRecord,
    PushTicket,
    Repository,
    RepositorySettings,
    Right,
    SnapshotRef,
    SnapshotRow,
    StoredBlob,
    Token,
    Visibility,
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

    async def find_push(self, repo: int, push_id: uuid.UUID) -> PushRecord | None:
        """Look a push up."""

    async def renew_pushes(self, tickets: Sequence[PushTicket], now: dt.datetime, lease_s: float) -> None:
        """Extend the leases of running pushes, all at once."""

    async def known_blobs(
        self, repo: int, scheme: Scheme, object_ids: Sequence[bytes], push: int | None = None
    ) -> Known:
        """Look a batch of blobs up before storing them; ``push`` is the number of the push that asks."""

    async def record_blobs(self, ticket: PushTicket, scheme: Scheme, blobs: Sequence[StoredBlob]) -> int:
        """Record blobs of a push that are in the store now; gives how many the push did not have yet."""

    async def lacking_blobs(self, ticket: PushTicket, object_ids: Sequence[bytes]) -> list[bytes]:
        """Give those neither in this push nor held by its repository."""

    async def lacking_snapshots(self, ticket: PushTicket, snapshot_ids: Sequence[bytes]) -> list[bytes]:
        """Give those neither in this push nor held by its repository."""

    async def lacking_commits(self, ticket: PushTicket, commit_ids: Sequence[bytes]) -> list[bytes]:
        """Give those not held by its repository; a push's own commits are not looked at."""

    async def record_snapshots(self, ticket: PushTicket, scheme: Scheme, snapshots: Sequence[SnapshotRef]) -> int:
        """Record verified snapshots of a push, bases first; gives how many are new to the repository."""

    async def snapshot_depths(self, scheme: Scheme, snapshot_ids: Sequence[bytes]) -> dict[bytes, int]:
        """Give how deep the chains of stored snapshots are, whoever stored them; unknown ones are left out."""

    async def record_commits(self, ticket: PushTicket, scheme: Scheme, commits: Sequence[CommitRow]) -> int:
        """Record verified commits of a push, parents first; gives how many are new to the repository."""

    async def accept_push(
        self,
        ticket: PushTicket,
        scheme: Scheme,
        move: BranchMove,
        verdict: Mapping[str, object],
        now: dt.datetime,
    ) -> MoveResult:
        """Make a push visible: move the branch, fix the scheme, log the move and keep the verdict, at once.

        Done again by the attempt that was accepted, it says ``MOVED`` again and does nothing.
        """

    async def refuse_push(self, ticket: PushTicket, verdict: Mapping[str, object], now: dt.datetime) -> None:
        """Keep a final refusal as the push's verdict."""

    async def interrupt_push(self, ticket: PushTicket, news: Mapping[str, object], now: dt.datetime) -> None:
        """End an attempt whose push may be sent again; ``news`` is told to whoever asks until it is."""


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


class Index(Identities, Repositories, Pushes, History, Protocol):
    """The whole port."""

    async def ping(self) -> None:
        """Check that the index answers."""

    async def notify(self, channel: str, payload: str) -> None:
        """Wake every listener of a channel in the deployment; delivery is best effort."""

    def listen(self, channel: str) -> AbstractAsyncContextManager[AsyncIterator[str]]:
        """Listen on a channel; the iterator ends with ``IndexUnavailable`` when the connection is lost.

        Of what is left unread, the first :data:`UNREAD_NOTIFICATIONS` are kept.
        """
