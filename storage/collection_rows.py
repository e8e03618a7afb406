"""Values of the collection that cross the ``Index`` port."""

from __future__ import annotations

import enum
import uuid
from dataclasses import dataclass

from storage.layout import loose_key, pack_key
from wire.ids import Scheme

TOMBSTONE_S = 300.0
"""How long nobody but the collector that took a tombstone over may delete what it stands for."""

HANDOVER_S = 7_200.0
"""How long a repository holds what was taken from it: twice as long as a client may take that was told it is stored."""


class RefKind(enum.IntEnum):
    """What a repository holds references to."""

    BLOB = 0
    SNAPSHOT = 1
    COMMIT = 2


@dataclass(frozen=True, slots=True)
class Mark:
    """Bytes in the object store that nothing is known to need: a loose object, or a pack."""

    object_id: bytes
    """Of a pack: its id."""
    scheme: Scheme | None
    """``None``: it is a pack."""

    @property
    def key(self) -> str:
        """Where the bytes are."""
        return pack_key(self.object_id) if self.scheme is None else loose_key(self.object_id, self.scheme)


@dataclass(frozen=True, slots=True)
class Sweep:
    """One look of one collector at one repository."""

    run: int
    repo: int
    scheme: Scheme | None
    gone: bool
    """Whether the repository was deleted, and long enough ago: nothing of it is needed."""
    walked: bool
    """Whether something may have been left behind by its branches, so that it has to be known what they lead to."""


class SweepOutcome(enum.Enum):
    """How a step of a sweep ended."""

    DONE = "done"
    MOVED = "moved"
    """Branches have moved: what they lead to now has to be looked at first."""
    LEASED = "leased"
    """A fetch that began before relies on it: another time."""
    LOST = "lost"
    """Another collector has begun with this repository."""


@dataclass(frozen=True, slots=True)
class Swept:
    """What a step of a sweep has taken away, or would; ``after`` is where to go on, ``None`` at the end."""

    outcome: SweepOutcome
    after: bytes | None = None
    refs: int = 0
    freed: int = 0
    """Bytes by which the repository holds less."""


@dataclass(frozen=True, slots=True)
class Review:
    """Marks that have waited long enough, and are looked at once more."""

    number: uuid.UUID
    objects: int
    packs: int
    waiting: int
    """Marks that have not waited long enough, or that somebody may rely on."""


@dataclass(frozen=True, slots=True)
class ReviewCursor:
    """How far a review has come through the tables."""

    table: int = 0
    page: int = 0
    file: int = 0
    """Of the table when it was begun: a table that is rewritten is looked at from its start."""


@dataclass(frozen=True, slots=True)
class Condemned:
    """What became of some reviewed marks."""

    looked_at: int = 0
    rows: int = 0
    """Rows of blobs that are gone."""
    blob_bytes: int = 0
    tombstones: int = 0
    """Keys that are to be deleted."""
