"""Who watches: every change of a branch as it happens, and what clients wanted and were told.

The invariants of a run are judged from these records, never from what the server says of itself.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from storage.memory.index import MemoryIndex
from wire.ids import format_id

_MOVERS = {"accept_push", "finish_push", "move_branches"}
_CLAIM_ENDERS = {"fail_job", "return_jobs", "recover_stale", "cancel_job"}


@dataclass
class Operation:
    """What a client wanted of a branch, and what it was told. Ids in their text form."""

    who: str
    repo: int
    branch: str
    new: str | None
    force: bool
    expected: tuple[str | None] | None
    """Where the branch was to be, when the client said so."""
    push_id: uuid.UUID | None
    began: int
    outcome: str = "unknown"
    """``acknowledged``, ``refused``, or ``unknown``: then it may have happened."""
    ended: int | None = None
    nameless: bool = False
    """Whether it is a push without an id of its own: each time it is sent, it is another one."""


@dataclass(frozen=True)
class Change:
    """A branch that moved."""

    moment: int
    repo: int
    branch: str
    old: str | None
    new: str | None
    cause: uuid.UUID | str
    """The push, or the identity of who moved it otherwise."""


class Witness:
    """Sees every operation of the index at the moment it is done."""

    def __init__(self, world: Any, index: MemoryIndex) -> None:
        self._world = world
        self._index = index
        self._moment = 0
        self.operations: list[Operation] = []
        self.changes: list[Change] = []
        self._heads: dict[tuple[int, str], str] = {}

    def moment(self) -> int:
        """Give the next point of the run's own time, in which no two things are at once."""
        self._moment += 1
        return self._moment

    def heads(self, repo: int) -> Mapping[str, str]:
        """Give where the branches of a repository are."""
        return {branch: head for (number, branch), head in self._heads.items() if number == repo}

    def begins(self, operation: Operation) -> Operation:
        """Take note of what a client is about to do."""
        self.operations.append(operation)
        return operation

    def ends(self, operation: Operation, outcome: str) -> None:
        """Take note of what a client was told."""
        operation.outcome, operation.ended = outcome, self.moment()
        shown = (operation.new or "nothing")[7:15]
        self._world.trace.say(operation.who, f"{outcome}: {operation.branch} of {operation.repo} to {shown}")

    def saw(self, operation: str, arguments: Sequence[Any], result: Any) -> None:
        """See ``ports.Witness``."""
        if operation in _MOVERS:
            first = arguments[0]
            repo, cause = (first, arguments[2]) if operation == "move_branches" else (first.repo, first.push_id)
            self._world.trace.say("index", f"{operation} of {repo}: {result.outcome.value}")
            self._see_branches(repo, cause)
            self._see_usage()
        elif operation == "claim_jobs":
            self._world.jobs.claimed(result)
        elif operation == "complete_job" and result:
            self._world.jobs.completed(arguments[0])
        elif operation in _CLAIM_ENDERS:
            self._world.jobs.ended(self._index.tables.claims)

    def _see_usage(self) -> None:
        """No more is held than the quota in force allows."""
        quota, tables = self._world.plan.quota, self._index.tables
        used = sum(tables.usage[number] for number in tables.repositories)
        if quota and not self._world.weather.calm and used > quota:
            self._world.violated("Q", f"{used} bytes are held, the quota is {quota}")

    def _see_branches(self, repo: int, cause: uuid.UUID | str) -> None:
        branches = {
            b: format_id(head, self._world.scheme(repo)) for b, head in self._index.tables.branches[repo].items()
        }
        before = self.heads(repo)
        for branch in sorted(branches.keys() | before.keys()):
            old, new = before.get(branch), branches.get(branch)
            if old != new:
                change = Change(self.moment(), repo, branch, old, new, cause)
                self.changes.append(change)
                self._world.trace.say("index", f"{branch} of {repo}: {(old or '-')[7:15]} -> {(new or '-')[7:15]}")
                if new is None:
                    del self._heads[repo, branch]
                else:
                    self._heads[repo, branch] = new
