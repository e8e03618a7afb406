"""Values of a rebuilding of the index from the object store."""

from __future__ import annotations

import enum
import uuid
from dataclasses import dataclass

from storage.rows import PushTicket
from wire.ids import Scheme


class Phase(enum.IntEnum):
    """What a rebuilding is at; everything before is done."""

    JOURNAL = 0
    """Reading the entries."""
    FACTS = 1
    OBJECTS = 2
    """Reading where blobs lie."""
    HISTORY = 3
    """Doing again what pushes and collections did, in order, each repository on its own."""
    EPOCH = 4


@dataclass(frozen=True, slots=True)
class Rebuilding:
    """One that is under way."""

    deployment: uuid.UUID
    generation: int
    phase: Phase


class StepKind(enum.Enum):
    """What is to be done again."""

    PUSH = "push"
    SWEPT = "swept"
    DONE = "done"
    """It was done, and its entry is only a later word on the same push."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do again, of one repository."""

    entry: int
    kind: StepKind
    ticket: PushTicket | None = None
    handle: str = ""
    branch: str = ""
    scheme: Scheme | None = None
    record_pack: bytes | None = None
    head: str | None = None


@dataclass(frozen=True, slots=True)
class DamagedSegment:
    """A part of the journal that cannot be read."""

    key: str
    last: int
    """Its last entry's number, as its key says: nothing new may have it."""
    detail: str


@dataclass(frozen=True, slots=True)
class Finding:
    """Something acknowledged that the store does not give back."""

    repository: str
    detail: str
