"""Values of jobs that cross the ``Index`` port. Times are UTC."""

from __future__ import annotations

import datetime as dt
import enum
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

JOBS_CHANNEL = "jobs"
"""Where who claims jobs hears that there may be one, or that one was cancelled."""
LISTED_JOBS = 1_000
"""Jobs that are listed at most, the newest."""
COUNTED_JOBS = 10_000
"""Jobs of a type in one state that are counted at most: so many, or more."""
ATTEMPTS_MOST = 3
"""How often a job is tried before it has failed for good (protocol §12)."""
STALE_CLAIM_S = 300.0
"""A claim without a heartbeat for so long belongs to nobody any more (protocol §12)."""
ERROR_MOST = 16_384
"""Characters of a traceback that are kept, the last ones."""
DEPLOYMENT = 0
"""In place of a repository's number: the deployment as a whole."""
PAYLOAD_MEMBERS = 100
"""Above it, the payload of a waiting job that gets more becomes :data:`WHOLE`."""
WHOLE: Mapping[str, object] = {"whole": True}
"""The payload that says: look at everything the repository holds."""


def kept_error(error: str) -> str:
    """Give of a traceback what is kept: its end, with what PostgreSQL's text cannot hold replaced."""
    return error[-ERROR_MOST:].replace("\0", "\ufffd").encode(errors="replace").decode()


class JobState(enum.IntEnum):
    """A job's life."""

    PENDING = 0
    RUNNING = 1
    DONE = 2
    FAILED = 3
    CANCELLED = 4


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to enqueue for a repository, of a type of which one at a time waits."""

    type: str
    priority: int = 0
    """The smallest goes first."""
    payload: Mapping[str, object] = field(default_factory=dict)
    """Members are added to those of a job that waits already; see :data:`PAYLOAD_MEMBERS`."""
    delay_s: float = 0.0
    """Not before so many seconds from now; a job that waits already runs when it was to."""


def wakes(jobs: Sequence[NewJob]) -> bool:
    """Tell whether who claims is to be woken for jobs: not for those that are to wait.

    Of the transactions that notify, one commits after the other, disk and all; of pushes, most leave work for later.
    """
    return any(job.delay_s <= 0 for job in jobs)


@dataclass(frozen=True, slots=True)
class JobProgress:
    """How far a job is, as its worker last said; ``total`` is ``None`` when nobody knows."""

    stage: str
    done: int = 0
    total: int | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to work on a job: what names a token that is gone does nothing."""

    job: int
    token: uuid.UUID


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """A job somebody has just claimed."""

    claim: Claim
    repo: int
    """A repository's number, or :data:`DEPLOYMENT`."""
    type: str
    payload: Mapping[str, object]
    attempt: int
    """1 for the first."""
    created_at: dt.datetime
    state: Mapping[str, object]
    """What an earlier attempt left for this one to go on from; empty at first."""


@dataclass(frozen=True, slots=True)
class ClaimFacts:
    """Who works on a job, and how far it is."""

    worker: str
    claimed_at: dt.datetime
    heartbeat_at: dt.datetime
    progress: JobProgress | None


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it stands."""

    number: int
    repo: int
    type: str
    state: JobState
    priority: int
    payload: Mapping[str, object]
    run_at: dt.datetime
    attempts: int
    created_at: dt.datetime
    finished_at: dt.datetime | None
    result: Mapping[str, object] | None
    error: str | None
    """Of its last attempt that failed: the traceback's end."""
    held: bool = False
    """Whether an operator keeps it from being claimed."""
    claim: ClaimFacts | None = None
    """While it runs."""


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs to list; ``None`` for all."""

    repo: int | None = None
    type: str | None = None
    states: frozenset[JobState] | None = None


@dataclass(frozen=True, slots=True)
class JobCounts:
    """How many jobs of a type there are in a state, and since when the oldest of those that could run waits.

    Where there are more than :data:`COUNTED_JOBS`, it is told of the first so many by number.
    """

    type: str
    state: JobState
    count: int
    oldest: dt.datetime | None


@dataclass(frozen=True, slots=True)
class CronEntry:
    """A job of the deployment that comes back; changing ``every_s`` counts from its last time."""

    name: str
    type: str
    every_s: float
    priority: int = 60
    payload: Mapping[str, object] = field(default_factory=dict)
