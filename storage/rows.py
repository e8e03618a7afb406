"""Values that cross the ``Index`` port. Ids are 32-byte digests, times are UTC, sizes are bytes."""

from __future__ import annotations

import datetime as dt
import enum
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from storage.history_rows import CommitRow as CommitRow  # noqa: PLC0414 - given on
from storage.history_rows import SnapshotRow as SnapshotRow  # noqa: PLC0414 - given on
from wire.ids import Scheme

HELD_S = 86_400.0
"""How long a repository holds a blob that no push has named yet; whoever asks whether it is stored renews that."""


class Right(enum.IntEnum):
    """What an identity may do with a repository, or a token at all; each includes the ones before."""

    NONE = 0
    READ = 1
    WRITE = 2
    ADMIN = 3


class Verify(enum.StrEnum):
    """Which ids of commits and snapshots a repository takes."""

    STRICT = "strict"
    """Those that are the hash of what they name."""
    PLAIN_LENIENT = "plain-lenient"
    """In a plain repository any: what very old tools made. Everything else is checked as ever."""


class Visibility(enum.Enum):
    """Who may read a repository without being named."""

    PRIVATE = "private"
    PUBLIC = "public"


@dataclass(frozen=True, slots=True)
class RepositorySettings:
    """What an administrator of a repository decides."""

    relaxed_paths: bool = False
    """Whether the portability part of the path policy is off."""
    require_signed_commits: bool = False
    protected_branches: tuple[str, ...] = ()
    """Branches only an admin may force."""
    verify: Verify = Verify.STRICT
    opaque_ids: bool = False
    """Whether it has ever taken ids that are not hashes: what came under them stays."""


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository. ``number`` is the index's own short key, never shown."""

    number: int
    repo_id: uuid.UUID
    owner: str
    slug: str
    visibility: Visibility
    scheme: Scheme | None
    """``None`` until the first commit fixes it."""
    default_branch: str
    domain: str
    settings: RepositorySettings
    created_at: dt.datetime


@dataclass(frozen=True, slots=True)
class NewRepository:
    """What it takes to make a repository."""

    repo_id: uuid.UUID
    owner: str
    slug: str
    visibility: Visibility
    default_branch: str
    domain: str
    created_at: dt.datetime
    settings: RepositorySettings = field(default_factory=RepositorySettings)


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token, known by the SHA-256 of its secret."""

    token_id: uuid.UUID
    handle: str
    token_hash: bytes
    scope: Right
    created_at: dt.datetime
    expires_at: dt.datetime | None
    revoked_at: dt.datetime | None = None

    def valid_at(self, moment: dt.datetime) -> bool:
        """Tell whether the token counts at a moment."""
        return self.revoked_at is None and (self.expires_at is None or moment < self.expires_at)


@dataclass(frozen=True, slots=True)
class Access:
    """What there is to judge a request to a repository by; ``None`` for what is not there."""

    token: Token | None
    repository: Repository | None
    named: Right
    """What the token's identity was named for as a collaborator."""


class PushState(enum.IntEnum):
    """A push's life."""

    OPEN = 0
    ACCEPTED = 1
    REFUSED = 2


@dataclass(frozen=True, slots=True)
class PushTicket:
    """The right to write rows for one attempt of a push; a newer attempt makes it stale."""

    number: int
    repo: int
    push_id: uuid.UUID
    attempt: int


@dataclass(frozen=True, slots=True)
class PushRecord:
    """What the index knows of a push."""

    push_id: uuid.UUID
    handle: str
    branch: str
    state: PushState
    verdict: Mapping[str, object] | None
    """Of an open push: why its last attempt ended."""
    created_at: dt.datetime
    finished_at: dt.datetime | None
    lease_expires: dt.datetime | None = field(default=None, compare=False)
    """Until when somebody works on it, as far as is known."""


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A blob whose bytes are durable in the object store, or come along to wait in the index until they are."""

    object_id: bytes
    size: int
    pack_id: bytes | None = None
    offset: int = 0
    content: bytes | None = field(default=None, repr=False)
    """The bytes, when they are in no store yet (see ``storage.content_cache``)."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a batch of blobs before they are stored.

    What others have stored is not in it: a pusher must not notice it, by the time it takes neither (threat T2).
    """

    sent: frozenset[bytes]
    """By an earlier attempt of the push that asks."""
    held: frozenset[bytes]
    """By this repository, in an accepted push."""


NOTHING_KNOWN = Known(frozenset(), frozenset())


@dataclass(frozen=True, slots=True)
class SnapshotRef:
    """A snapshot of one push, with the fields its id does not cover."""

    row: SnapshotRow
    extras: bytes
    """Canonical JSON text of the extra fields; ``b""`` for none."""


@dataclass(frozen=True, slots=True)
class PushRows:
    """Rows of a push that are recorded in its last transaction: of a small one, all of them."""

    blobs: Sequence[StoredBlob] = ()
    snapshots: Sequence[SnapshotRef] = ()
    commits: Sequence[CommitRow] = ()
    record_pack: bytes | None = None
    """The pack its commits and snapshots are in, in canonical form; nothing when there are none."""


@dataclass(frozen=True, slots=True)
class Written:
    """How many of some rows were new: blobs to the push, snapshots and commits to the repository."""

    blobs: int
    snapshots: int
    commits: int


@dataclass(frozen=True, slots=True)
class BranchTip:
    """Where a branch is."""

    head: bytes
    snapshot_id: bytes
    generation: int


class Outcome(enum.Enum):
    """How an attempt to move a branch ended."""

    MOVED = "moved"
    HEAD_DIFFERS = "head differs"
    """The branch is not where the mover believed it to be."""
    SUPERSEDED = "superseded"
    """A newer attempt of the same push is under way or was accepted, or the push was refused."""
    GONE = "gone"
    """The repository was deleted meanwhile."""
    SCHEME_DIFFERS = "scheme differs"
    """The repository's id scheme was fixed otherwise meanwhile."""
    QUOTA_EXCEEDED = "quota exceeded"
    """With it the owner's repositories would hold more than they may."""
    COLLECTED = "collected"
    """What the push may have relied on was collected since it began: it has to be sent again."""
    NOT_HELD = "not held"
    """The repository does not hold the commit any more that a branch was to be moved to."""


@dataclass(frozen=True, slots=True)
class BranchMove:
    """One compare-and-swap of a branch head. ``old=None`` means the branch does not exist."""

    branch: str
    old: bytes | None
    new: bytes | None
    """``None`` deletes the branch; a push never does."""
    forced: bool


@dataclass(frozen=True, slots=True)
class MoveResult:
    """What became of a branch move; ``head`` is the branch's head as found or as made."""

    outcome: Outcome
    head: bytes | None = None
    branch: str | None = None
    """Which of several branches it was that was found elsewhere."""
    usage: OwnerUsage | None = None
    """What the owner's repositories hold without it, when that is too much for it."""
    verdict: Mapping[str, object] | None = None
    """Of a push that was finished: what is kept of it."""


@dataclass(frozen=True, slots=True)
class OwnerUsage:
    """How much an owner's repositories hold, in bytes of contents and record packs. Deleted ones do not count."""

    used: int
    """By accepted pushes."""
    reserved: int
    """By pushes under way or left alone for less than ``ABANDONED_S``, and by announced uploads."""
    quota: int | None
    """``None`` for none."""
    by_default: bool
    """Whether the quota is the deployment's, for lack of one of the owner's own."""


ABANDONED_S = 86_400.0
"""How long a push that somebody left counts against its owner's quota."""
QUOTA_NONE = 0
"""The quota of an owner who may store without limit."""


@dataclass(frozen=True, slots=True)
class BranchLogEntry:
    """One line of a branch's log."""

    branch: str
    old: bytes | None
    new: bytes | None
    handle: str
    push_id: uuid.UUID | None
    forced: bool
    at: dt.datetime
