"""What the stages of one push share."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import trio

from actors.heartbeat import LEASE_S, Heartbeats
from actors.journal.writing import NoJournal, Settling
from actors.push.kept import KeptContents, KeptRoom
from actors.push.observed import Observer, unobserved
from storage.environment import Environment
from storage.index import Index
from storage.object_store import ObjectStore
from storage.rows import PushTicket, Repository, Right, SnapshotRef, StoredBlob
from storage.slots import Slots
from wire.errors import malformed
from wire.ids import Scheme
from wire.limits import Limits
from wire.paths import PathPolicy

BATCH_OBJECTS = 64
"""Protocol §12: stream objects per batch."""
BATCH_BYTES = 2 * 1024 * 1024
OWN_BLOBS = 32_768
"""Some 8 MiB."""
BATCHES_PER_PUSH = 3
"""Batches of one push on their way into the store: enough to keep decoding, storing and recording busy."""
BATCHES_IN_ALL = 32
"""For all pushes of a daemon together: 64 MiB."""


def mpack_reservation(mpack_id: bytes) -> bytes:
    """Give the name under which room for an upload is reserved; objects have other ones."""
    return hashlib.sha256(b"mpack " + mpack_id).digest()


class ClientGone(Exception):
    """The client disconnected before its push was complete; there is nobody to answer."""


@dataclass(frozen=True, slots=True)
class PushServices:
    """What every push of a daemon works with."""

    index: Index
    store: ObjectStore
    environment: Environment
    heartbeats: Heartbeats
    spool_dir: Path
    limits: Limits = field(default_factory=Limits)
    lease_s: float = LEASE_S
    batches: Slots = field(default_factory=lambda: Slots(BATCHES_IN_ALL))
    observe: Observer = unobserved
    followup_delay_s: float = 0.0
    """How long the jobs that follow a push wait for more pushes."""
    kept: KeptRoom = field(default_factory=KeptRoom)
    journal: Settling = field(default_factory=NoJournal)


@dataclass(frozen=True, slots=True)
class PushRequest:
    """Who pushes where; authenticated and looked up before the actor is made."""

    repository: Repository
    handle: str
    right: Right
    request_id: str

    @property
    def policy(self) -> PathPolicy:
        """The repository's path policy."""
        return PathPolicy.RELAXED if self.repository.settings.relaxed_paths else PathPolicy.PORTABLE


@dataclass(frozen=True, slots=True)
class PushPlan:
    """What the header says, parsed."""

    push_id: uuid.UUID
    branch: str
    head: bytes
    scheme: Scheme
    force: bool
    expected_head: bytes | None
    has_expected_head: bool
    """An ``expected_head`` of nil says that the branch must not exist."""
    announced_objects: int | None


@dataclass(slots=True)
class Unrecorded:
    """Rows of what is stored already that wait for the push's last transaction: of a small push, all of them."""

    blobs: list[StoredBlob] = field(default_factory=list)
    snapshots: list[SnapshotRef] = field(default_factory=list)

    def take_blobs(self) -> list[StoredBlob]:
        """Take the blobs, to record them after all."""
        taken, self.blobs = self.blobs, []
        return taken

    def take_snapshots(self) -> list[SnapshotRef]:
        """Take the snapshots, to record them after all."""
        taken, self.snapshots = self.snapshots, []
        return taken


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of a push that has begun."""

    plan: PushPlan
    ticket: PushTicket
    kept: KeptContents
    unrecorded: Unrecorded = field(default_factory=Unrecorded)
    own_blobs: set[bytes] = field(default_factory=set)
    """Blobs this attempt has brought, the first :data:`OWN_BLOBS`: about those the index need not be asked."""

    first: bool = False
    """Whether nothing can be there: no push of the repository was accepted before, and this one not tried."""

    @classmethod
    async def begun(cls, services: PushServices, request: PushRequest, plan: PushPlan, ticket: PushTicket) -> Attempt:
        """Make the state of an attempt that has begun.

        Raises:
            Refusal: ``malformed``: an earlier attempt was of the other id scheme; what it brought under an id of
                those digits are other bytes.
        """
        untouched = request.repository.scheme is None
        if untouched and ticket.attempt > 1 and not await services.index.is_of_scheme(ticket, plan.scheme):
            raise malformed("this push was begun with ids of the other scheme: send it under another push id")
        kept = KeptContents(services.kept, services.limits)
        return cls(plan, ticket, kept, first=untouched and ticket.attempt == 1)

    def brought(self, blobs: Iterable[bytes]) -> None:
        """Take note of blobs that are stored."""
        if len(self.own_blobs) < OWN_BLOBS:
            self.own_blobs.update(blobs)


class Timings:
    """Where a push's time goes, by phase; phases overlap, so they do not add up to the whole."""

    def __init__(self) -> None:
        self._spent_s: dict[str, float] = {}
        self._began = trio.current_time()

    def add(self, phase: str, seconds: float) -> None:
        """Count seconds of a phase."""
        self._spent_s[phase] = self._spent_s.get(phase, 0.0) + seconds

    def measure(self, phase: str) -> _Measure:
        """Count the time of a block."""
        return _Measure(self, phase)

    def in_ms(self) -> dict[str, float]:
        """Give milliseconds by phase, and the whole as ``elapsed``."""
        spent = {phase: round(seconds * 1000, 3) for phase, seconds in sorted(self._spent_s.items())}
        return {**spent, "elapsed": round((trio.current_time() - self._began) * 1000, 3)}


class _Measure:
    def __init__(self, timings: Timings, phase: str) -> None:
        self._timings = timings
        self._phase = phase
        self._started = 0.0

    def __enter__(self) -> None:
        self._started = trio.current_time()

    def __exit__(self, *exc: object) -> None:
        self._timings.add(self._phase, trio.current_time() - self._started)


@dataclass(slots=True)
class Counts:
    """What a push has done so far."""

    blobs_received: int = 0
    blobs_written: int = 0
    snapshots_written: int = 0
    commits_received: int = 0
    commits_written: int = 0
    inflated_bytes: int = 0
    delta_instructions: int = 0
