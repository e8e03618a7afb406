"""The part of the ``Index`` port that keeps what background work has found out; none of it is the truth.

A line is a branch as one type of job knows it. Who works on one begins it, which makes whoever began it before stale:
what a stale worker writes is dropped, so a daemon that wakes up late can do no harm. The scrub reads from here what
has to be in the object store, in order, and keeps what it found.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from storage.layout import Place
from wire.ids import Scheme


@dataclass(frozen=True, slots=True)
class LineTicket:
    """The right to write to a line, until somebody else begins it."""

    line: int
    epoch: int


@dataclass(frozen=True, slots=True)
class LineStanding:
    """Where a line stands."""

    commit_id: bytes | None = None
    """What it is up to date with."""
    target_id: bytes | None = None
    """What it is being brought to by several transactions: until then what is kept of its paths is mixed."""
    done_path: bytes | None = None
    """Of the target: paths up to this one, in order of their UTF-8, are there."""
    state: bytes | None = None
    """What the next job goes on from; only its type knows what it means."""
    report: Mapping[str, object] | None = None
    """What readers are shown."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line as it was found."""

    ticket: LineTicket
    standing: LineStanding


@dataclass(frozen=True, slots=True)
class PathChanges:
    """What changes in a line's table of last commits, by path."""

    last: Mapping[str, bytes] = field(default_factory=dict)
    gone: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.last) + len(self.gone)


@dataclass(frozen=True, slots=True)
class LastCommits:
    """The last commits of some paths, and the commit they were found from; ``None`` while they are incomplete."""

    commit_id: bytes | None
    by_path: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class StoredPlace:
    """A blob that has to be in the object store."""

    scheme: Scheme
    place: Place


@dataclass(frozen=True, slots=True)
class Finding:
    """Damage of a key of the object store."""

    key: str
    object_id: bytes | None
    """Which object of it, ``None`` for the file as a whole."""
    problem: str
    """``missing``, ``damaged`` or ``unreadable``."""
    detail: str


@dataclass(frozen=True, slots=True)
class KeptFinding:
    """A finding with when it was met first and last."""

    finding: Finding
    found_at: dt.datetime
    seen_at: dt.datetime


def path_id(path: str) -> bytes:
    """Give what stands for a path in a key."""
    return hashlib.sha256(path.encode()).digest()


class Insights(Protocol):
    """What was found out about branches and about what is stored."""

    async def begin_line(self, repo: int, type_: str, branch: str, now: dt.datetime) -> Line:
        """Begin to work on a line, made when it is new, and make earlier tickets stale."""

    async def find_line(self, repo: int, type_: str, branch: str) -> Line | None:
        """Look a line up without working on it."""

    async def write_line(
        self, ticket: LineTicket, standing: LineStanding, now: dt.datetime, paths: PathChanges | None = None
    ) -> bool:
        """Write where a line stands and what changes with it, at once; gives whether the ticket counted."""

    async def clear_paths(self, ticket: LineTicket, most: int) -> int | None:
        """Forget up to ``most`` of a line's last commits; gives how many, ``None`` when the ticket is stale."""

    async def copy_paths(self, ticket: LineTicket, source: int, after: bytes, most: int) -> bytes | None:
        """Copy up to ``most`` last commits of another line, those behind ``after`` in order of ``path_id``.

        Gives the last one copied; ``None`` when there was none or the ticket is stale.
        """

    async def last_commits(self, repo: int, type_: str, branch: str, paths: Sequence[str]) -> LastCommits:
        """Give the last commits of paths; those it has none of are left out."""

    async def forget_lines(self, repo: int, type_: str, keep: Sequence[str], most: int) -> int:
        """Forget lines of branches that are not kept, up to ``most`` rows; gives how many, 0 when none is left."""

    async def forget_deleted_lines(self, most: int) -> int:
        """Forget lines of repositories that were deleted, up to ``most`` rows; gives how many, 0 when none is left."""

    async def stored_after(self, after: tuple[bytes, Scheme] | None, most: int) -> list[StoredPlace]:
        """List blobs that have to be in the object store, in order of id and scheme: pending ones are left out."""

    async def packs_after(self, after: bytes, most: int) -> list[bytes]:
        """List the ids of packs in order."""

    async def record_findings(self, findings: Sequence[Finding], now: dt.datetime) -> None:
        """Keep findings, at most some hundreds at once; one that is known was seen again."""

    async def forget_findings(self, before: dt.datetime) -> int:
        """Forget what was not seen since: it has been mended or deleted; gives how many."""

    async def list_findings(self, most: int) -> list[KeptFinding]:
        """List findings in order of key."""
