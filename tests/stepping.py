"""Ports whose calls are counted, so that a test can make something happen at every call of a push, one after another.

A first push is only watched (:meth:`Steps.arm` with ``None``); :func:`steps_of` makes of its calls the steps of the
others. A step is a call by its name and how often that was called before, so that a call more or less, for which there
are many reasons, does not move the steps behind it.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from actors.push import finish, objects, records, unpack

READING = (
    "find_", "list_", "known_", "lacking_", "held_", "stored_", "snapshot_", "commit_records", "collaborator_right",
    "branch_", "ancestry", "places", "secret", "ping", "get", "stream", "size", "statistics", "scan",
)  # fmt: skip
"""Calls that change nothing begin with one of these."""

OF_THE_STORE = {"put_batch", "put_file", "copy", "get", "get_ranges", "stream", "size", "delete"}
OF_THE_JOURNAL = {"deployment", "announce", "holds_facts", "last_entry", "outbox", "written_out"}
"""What the journal's writer asks of the index, also while nothing is pushed: never a step. What it puts is one."""
ACCEPTING = {"accept_push", "finish_push"}
Act = Callable[[str], Awaitable[None]]
BATCHES = [(objects, "BATCH_OBJECTS"), (records, "BATCH_RECORDS"), (finish, "BATCH_RECORDS"), (unpack, "ROWS_AT_ONCE")]
"""What the rows of a push are cut into transactions by; with ones, a small push does all that a large one does."""


class Moment(enum.Enum):
    """When it happens, of a call."""

    BEFORE = "before"
    INSIDE = "inside"
    """Between its effects, or before they are made to last: only who looks inside can tell."""
    AFTER = "after"


@dataclass(frozen=True)
class Step:
    """The n-th call of a name, counted from 1."""

    call: str
    number: int
    moment: Moment

    @property
    def writes(self) -> bool:
        """Whether the call changes something."""
        return not self.call.startswith(READING)


def steps_of(calls: Sequence[str], moment: Moment, *, writing: bool = False) -> list[Step]:
    """Give a step for each call, or each that changes something."""
    steps = [Step(call, calls[: at + 1].count(call), moment) for at, call in enumerate(calls)]
    return [step for step in steps if step.writes or not writing]


class Steps:
    """Counts the calls of the ports it watches from :meth:`arm` on, and acts at the one that was asked for."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        """Names of all calls since, the last one under way or done."""
        self.reached = False
        self.accepted = False
        """Whether the last transaction of a push has been done since."""
        self.inside: str | None = None
        """The call that is under way, if it is the one, and it is to happen inside of it."""
        self._step: Step | None = None
        self._act: Act | None = None
        self._begins: Callable[[], object] | None = None

    def arm(self, step: Step | None, act: Act, begins: Callable[[], object] | None = None) -> None:
        """Begin to count anew; ``None`` counts only. ``act`` is told the call.

        Of a step inside a call, ``begins`` is called when the call begins, and ``act`` should it come to its end.
        """
        self._step, self._act, self._begins = step, act, begins
        self.calls, self.reached, self.accepted, self.inside = [], False, False, None

    def disarm(self) -> None:
        """Let everything pass, uncounted."""
        self._act = None

    def watch(self, port: Any) -> Any:
        """Give a port whose calls are counted."""
        return _Watched(port, self)

    async def enter(self, name: str) -> bool:
        """A call begins; tells whether it is the one."""
        step = self._step
        if self._act is None:
            return False
        self.calls.append(name)
        if step is None or self.reached or name != step.call or self.calls.count(name) != step.number:
            return False
        self.reached = True
        if step.moment is Moment.BEFORE:
            await self._act(name)
        elif step.moment is Moment.INSIDE:
            self.inside = name
            if self._begins is not None:
                self._begins()
        return True

    async def leave(self, name: str, mine: bool) -> None:
        """A call has done its work."""
        self.accepted = self.accepted or name in ACCEPTING
        if mine and self._act is not None and self._step is not None and self._step.moment is not Moment.BEFORE:
            await self._act(name)


class _Watched:
    def __init__(self, inner: Any, steps: Steps) -> None:
        self._inner = inner
        self._steps = steps

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._inner, name)
        if name in OF_THE_JOURNAL or not inspect.iscoroutinefunction(operation):
            return operation

        async def call(*arguments: Any, **named: Any) -> Any:
            if name == "delete":
                arguments = (list(arguments[0]),)
                if not arguments[0]:  # of the keeper, which may or may not come by
                    return await operation(*arguments)
            mine = await self._steps.enter(name)
            result = await operation(*arguments, **named)
            await self._steps.leave(name, mine)
            return result

        return call

    @asynccontextmanager
    async def stream(self, *arguments: Any) -> AsyncIterator[AsyncIterator[bytes]]:
        mine = await self._steps.enter("stream")
        async with self._inner.stream(*arguments) as pieces:
            yield pieces
            await self._steps.leave("stream", mine)
