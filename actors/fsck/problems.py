"""What ``fsck`` may find, by stable codes, and what it tells in the end."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from storage.layout import Place
from wire.ids import Scheme

PROBLEMS_MOST = 10_000
"""Kept to be shown and mended; more are only counted."""


class Problem(enum.StrEnum):
    """What can be wrong. Extended, never renamed."""

    OBJECT_MISSING = "object_missing"
    """The index says a blob is loose, or in a pack, and no such file is in the store."""
    OBJECT_SIZE = "object_size"
    """A loose object has another length than the index says."""
    RANGE_OUTSIDE = "range_outside"
    """The index says a blob lies where its pack has ended."""
    CONTENT_MISSING = "content_missing"
    """A blob is said to wait in the index, and its content is not there, or is another one."""
    ROW_MISSING = "row_missing"
    """A repository holds a blob, and the index does not say where it is."""
    BLOB_UNHELD = "blob_unheld"
    """A snapshot names a blob its repository does not hold."""
    COMMIT_MISSING = "commit_missing"
    """A repository holds a commit, and the index has no facts or no sound record of it."""
    COMMIT_WRONG = "commit_wrong"
    """What the index says of a commit is not what its record says, or the record does not hash to its id."""
    PARENT_MISSING = "parent_missing"
    """A commit's parent is not held by its repository."""
    SNAPSHOT_UNHELD = "snapshot_unheld"
    """A commit's snapshot is not held by its repository."""
    SNAPSHOT_MISSING = "snapshot_missing"
    """A repository holds a snapshot, and the index lacks its row or one of those it is stored as changes to."""
    SNAPSHOT_WRONG = "snapshot_wrong"
    """A snapshot's chain does not hash to its id, or its row cannot be read."""
    HEAD_MISSING = "head_missing"
    """A branch is at a commit its repository does not hold."""
    BRANCH_LOG = "branch_log"
    """A branch's log is no chain, or does not end where the branch is."""
    RECORDS_UNNAMED = "records_unnamed"
    """An accepted push brought commits or snapshots, and no record pack is known to have them: ``backfill``."""
    RECORDS_MISSING = "records_missing"
    """The record pack of an accepted push is not in the store."""
    UNKNOWN_KEY = "unknown_key"
    """The store has a key that museworkd does not make."""
    OBJECT_DAMAGED = "object_damaged"
    """A blob's bytes do not hash to its id."""
    PACK_DAMAGED = "pack_damaged"
    """A pack's bytes do not hash to its name."""
    RECORDS_DAMAGED = "records_damaged"
    """A record pack's bytes do not hash to its name."""
    JOURNAL_DAMAGED = "journal_damaged"
    """A segment of the journal does not hash to its name."""
    UNREADABLE = "unreadable"
    """The store fails for good at reading a key."""


@dataclass(slots=True)
class Found:
    """One problem."""

    problem: Problem
    detail: str
    key: str | None = None
    object_id: bytes | None = None
    repository: str | None = None
    scheme: Scheme | None = None
    place: Place | None = None
    """Of a blob: where the index says it is."""
    push: int | None = None
    mended: bool = False

    def shown(self) -> dict[str, object]:
        """Give what people and programs are told."""
        return {
            "problem": self.problem.value, "key": self.key,
            "object_id": None if self.object_id is None else self.object_id.hex(),
            "repository": self.repository, "detail": self.detail, "mended": self.mended,
        }  # fmt: skip


@dataclass(slots=True)
class FsckReport:
    """What was looked at and what was found."""

    checked: Counter[str] = field(default_factory=Counter)
    """How many of each kind of thing were looked at."""
    explained: Counter[str] = field(default_factory=Counter)
    """Stored keys no row names, by what they are: nothing is wrong with them."""
    problems: Counter[Problem] = field(default_factory=Counter)
    found: list[Found] = field(default_factory=list)

    def add(self, found: Found) -> None:
        """Take a problem."""
        self.problems[found.problem] += 1
        if len(self.found) < PROBLEMS_MOST:
            self.found.append(found)

    @property
    def left(self) -> int:
        """Problems that were not mended."""
        return sum(self.problems.values()) - sum(found.mended for found in self.found)

    def shown(self) -> dict[str, object]:
        """Give it all as a value."""
        return {
            "whole": not self.left, "problems": sum(self.problems.values()),
            "mended": sum(found.mended for found in self.found), "left": self.left,
            "by_problem": {problem.value: count for problem, count in sorted(self.problems.items())},
            "checked": dict(sorted(self.checked.items())), "explained": dict(sorted(self.explained.items())),
            "found": [found.shown() for found in self.found],
        }  # fmt: skip


class Phase(Protocol):
    """One stretch of work that is watched."""

    def advance(self, count: int = 1) -> None:
        """Count work that is done."""


class Watch(Protocol):
    """Who is told how far it is."""

    def phase(self, name: str, total: int | None = None) -> AbstractContextManager[Phase]:
        """Show a phase for the length of a block."""


NAMED_BY: Mapping[str, str] = {
    "fetch": "fetch packs", "staging": "uploads", "journal": "journal", "deployment": "journal",
}  # fmt: skip
"""Prefixes of keys that no row names, and what they are."""
