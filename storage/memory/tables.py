"""The memory index's tables: what PostgreSQL keeps in rows, in dictionaries."""

from __future__ import annotations

import datetime as dt
import uuid
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from storage.content_cache import CachedContent
from storage.job_rows import CronEntry, Job
from storage.labels import TagRow
from storage.memory.collection_tables import CollectionTables
from storage.memory.insights import InsightTables
from storage.prebuilt import PrebuiltPack
from storage.rows import (
    BranchLogEntry,
    CommitRow,
    PushRecord,
    PushState,
    PushTicket,
    Repository,
    Right,
    SnapshotRow,
    StoredBlob,
    Token,
)
from wire.graph import CommitFacts
from wire.ids import Scheme

Key = tuple[Scheme, bytes]
OwnRows = tuple[set[bytes], dict[bytes, bytes], dict[bytes, CommitRow], int]
"""Of a push: blobs, snapshots with their extras, commits, and the bytes of the blobs."""


@dataclass(slots=True)
class PushEntry:
    """A push and the rows that are its own until it is accepted."""

    number: int
    repo: int
    record: PushRecord
    attempt: int
    lease_expires: dt.datetime
    blobs: set[bytes] = field(default_factory=set)
    snapshots: dict[bytes, bytes] = field(default_factory=dict)
    """Snapshot id → extras."""
    commits: dict[bytes, CommitRow] = field(default_factory=dict)
    size: int = 0
    """Bytes of the blobs it has brought."""

    def rows(self) -> OwnRows:
        """Give a copy of its rows, for :meth:`restore`."""
        return set(self.blobs), dict(self.snapshots), dict(self.commits), self.size

    def restore(self, kept: OwnRows) -> None:
        """Undo what was recorded since."""
        self.blobs, self.snapshots, self.commits, self.size = kept

    @property
    def accepted(self) -> bool:
        """Whether its rows count."""
        return self.record.state is PushState.ACCEPTED


@dataclass(frozen=True, slots=True)
class Reservation:
    """An announced upload."""

    size: int
    push_id: uuid.UUID | None
    expires: dt.datetime


@dataclass(frozen=True, slots=True)
class CronRow:
    """A job that comes back, and when next."""

    entry: CronEntry
    next_at: dt.datetime


@dataclass(slots=True)
class Tables:
    """Everything the index knows."""

    tokens: dict[uuid.UUID, Token] = field(default_factory=dict)
    secrets: dict[str, bytes] = field(default_factory=dict)
    repositories: dict[int, Repository] = field(default_factory=dict)
    owners: dict[int, str] = field(default_factory=dict)
    """Of all repositories, deleted ones included."""
    collaborators: dict[tuple[int, str], Right] = field(default_factory=dict)
    branches: dict[int, dict[str, bytes]] = field(default_factory=lambda: defaultdict(dict))
    branch_log: dict[int, list[BranchLogEntry]] = field(default_factory=lambda: defaultdict(list))
    pushes: dict[int, PushEntry] = field(default_factory=dict)
    blobs: dict[Key, StoredBlob] = field(default_factory=dict)
    cached: dict[Key, CachedContent] = field(default_factory=dict)
    """Contents of pending blobs."""
    prebuilt: dict[tuple[int, tuple[bytes, ...]], PrebuiltPack] = field(default_factory=dict)
    held_blobs: dict[tuple[int, Scheme, bytes], dt.datetime] = field(default_factory=dict)
    """Until when a repository holds a blob that no push has named."""
    commits: dict[Key, CommitFacts] = field(default_factory=dict)
    snapshots: dict[Key, SnapshotRow] = field(default_factory=dict)
    quotas: dict[str, int | None] = field(default_factory=dict)
    usage: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    reservations: dict[tuple[int, bytes], Reservation] = field(default_factory=dict)
    jobs: dict[int, Job] = field(default_factory=dict)
    claims: dict[int, uuid.UUID] = field(default_factory=dict)
    """Job → token of who works on it."""
    ended_by: dict[int, uuid.UUID] = field(default_factory=dict)
    kept_states: dict[int, Mapping[str, object]] = field(default_factory=dict)
    paused_types: set[str] = field(default_factory=set)
    cron: dict[str, CronRow] = field(default_factory=dict)
    insights: InsightTables = field(default_factory=InsightTables)
    collection: CollectionTables = field(default_factory=CollectionTables)
    tags: dict[tuple[int, str], TagRow] = field(default_factory=dict)
    releases: dict[tuple[int, str], tuple[bytes, dt.datetime, dt.datetime | None]] = field(default_factory=dict)
    """Record, when it was made, and when it was retracted."""
    last_number: int = 0

    def next_number(self) -> int:
        """Give a fresh short key."""
        self.last_number += 1
        return self.last_number

    def pushes_of(self, repo: int, also: PushTicket | None = None) -> list[PushEntry]:
        """Give a repository's accepted pushes, and one that may still be open."""
        number = None if also is None else also.number
        return [p for p in self.pushes.values() if p.repo == repo and (p.accepted or p.number == number)]

    def repository_named(self, owner: str, slug: str) -> Repository | None:
        """Find a repository by name."""
        for repository in self.repositories.values():
            if (repository.owner, repository.slug) == (owner, slug):
                return repository
        return None
