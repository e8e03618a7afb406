"""What the memory index keeps of the collection."""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import dataclass, field

from storage.collection_rows import RefKind
from wire.ids import Scheme

Place = tuple[Scheme | None, bytes]
"""Of a mark: ``None`` and a pack's id, or an object's scheme and id."""


@dataclass(slots=True)
class LeaseRow:
    """Somebody who relies on what is stored."""

    repo: int
    begun: int
    expires_at: dt.datetime


@dataclass(slots=True)
class MarkRow:
    """A mark; see ``migrations/0007_collection.sql``."""

    loose: bool
    marked_at: dt.datetime
    moment: int
    state: int = 0
    review: uuid.UUID | None = None
    referenced: bool = False
    owner: uuid.UUID | None = None
    until: dt.datetime | None = None


@dataclass(slots=True)
class RunRow:
    """One look at a repository."""

    repo: int
    entries: int
    moment: int
    reached: dict[RefKind, dict[bytes, bool]]
    """Of each id, whether it was visited."""


@dataclass(slots=True)
class CollectionTables:
    """Everything that is only the collector's, and what others note for it."""

    moment: int = 0
    begun: dict[int, int] = field(default_factory=dict)
    """Push → moment of its last attempt."""
    known: dict[int, int] = field(default_factory=dict)
    """Push → how often its repository had been collected from when it began."""
    collected: dict[int, int] = field(default_factory=dict)
    """Repository → how often references were taken from it."""
    deleted: dict[int, tuple[dt.datetime, Scheme | None]] = field(default_factory=dict)
    """Repositories that are gone."""
    swept: dict[int, tuple[dt.datetime, dt.datetime]] = field(default_factory=dict)
    """Repository → when it was swept last, and what was left behind until when is gone."""
    folded: dict[int, dt.datetime] = field(default_factory=dict)
    """Repository → when its last folding began."""
    leases: dict[uuid.UUID, LeaseRow] = field(default_factory=dict)
    suspects: dict[Place, bool] = field(default_factory=dict)
    marks: dict[Place, MarkRow] = field(default_factory=dict)
    runs: dict[int, RunRow] = field(default_factory=dict)

    def next_moment(self) -> int:
        """Give a moment later than all before."""
        self.moment += 1
        return self.moment

    def suspect(self, place: Place, *, loose: bool) -> None:
        """Note that something may have lost its last reference."""
        self.suspects[place] = loose or self.suspects.get(place, False)
