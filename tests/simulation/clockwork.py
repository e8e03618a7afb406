"""What makes a run the same every time: a mock clock, one thread, a seeded scheduler, and one record of what happened.

Everything that is drawn comes from the seed, each drawer with a stream of its own, so that what one draws does not
change what another gets; time is the mock clock's, which jumps ahead whenever nobody has anything to do.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import random
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import structlog
import trio
import trio._core._run as trio_run
import trio.testing

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
KEPT_EVENTS = 400
"""Of a run's trace, the last ones are kept to be shown; all of them are in its hash."""


def stream(seed: int, *names: object) -> random.Random:
    """Give the random numbers of one drawer of a run."""
    return random.Random(f"{seed} {' '.join(map(str, names))}")


class Trace:
    """What happened, in order; the hash of all of it tells whether two runs were the same."""

    def __init__(self) -> None:
        self.events: deque[str] = deque(maxlen=KEPT_EVENTS)
        self.count = 0
        self._hash = hashlib.sha256()

    def say(self, who: str, what: str) -> None:
        """Add an event."""
        line = f"{trio.current_time():10.3f}  {who:<10} {what}"
        self.count += 1
        self._hash.update(line.encode())
        self.events.append(line)

    def digest(self) -> str:
        """Give the hash of everything so far."""
        return self._hash.hexdigest()


class SimulatedEnvironment:
    """``storage.environment.Environment`` by the mock clock; ``skew_s`` is how far a machine's clock is off."""

    def __init__(self, rng: random.Random, skew_s: float = 0.0) -> None:
        self._rng = rng
        self._skew_s = skew_s

    def now(self) -> dt.datetime:
        """See ``Environment``."""
        return START + dt.timedelta(seconds=trio.current_time() + self._skew_s)

    def random_bytes(self, count: int) -> bytes:
        """See ``Environment``."""
        return self._rng.randbytes(count)

    def uuid(self) -> uuid.UUID:
        """See ``Environment``."""
        return uuid.UUID(bytes=self._rng.randbytes(16), version=4)

    def jitter(self) -> float:
        """See ``Environment``."""
        return self._rng.random()


def run(seed: int, main: Callable[..., Awaitable[Any]], *arguments: object) -> Any:
    """Run an async function to its end in a world of its own; the same seed gives the same run."""
    clock = trio.testing.MockClock(autojump_threshold=0)
    with _one_thread(), _seeded_scheduler(seed):
        return trio.run(main, *arguments, clock=clock)


@contextmanager
def logs_to(take: Callable[[MutableMapping[str, Any]], None]) -> Iterator[None]:
    """Hand every line of the log to ``take``, and print none."""

    def processor(_logger: object, level: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["log_level"] = level
        take(event)
        raise structlog.DropEvent

    processors = structlog.get_config()["processors"]  # in place: loggers that are bound already have this list
    before = list(processors)
    processors[:] = [processor]
    try:
        yield
    finally:
        processors[:] = before


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let what would run in a worker thread run in the loop, as if it took no time."""
    real = trio.to_thread.run_sync
    trio.to_thread.run_sync = _inline  # type: ignore[assignment]
    try:
        yield
    finally:
        trio.to_thread.run_sync = real


async def _inline(function: Callable[..., Any], *arguments: object, **_options: object) -> Any:
    await trio.lowlevel.checkpoint_if_cancelled()
    try:
        return function(*arguments)
    finally:
        await trio.lowlevel.cancel_shielded_checkpoint()


@contextmanager
def _seeded_scheduler(seed: int) -> Iterator[None]:
    """Let trio choose by the seed which of the tasks that can run goes first, as pytest-trio does for Hypothesis."""
    deterministic, state = trio_run._ALLOW_DETERMINISTIC_SCHEDULING, trio_run._r.getstate()
    trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    trio_run._r.seed(f"scheduler {seed}")
    try:
        yield
    finally:
        trio_run._ALLOW_DETERMINISTIC_SCHEDULING = deterministic  # type: ignore[misc]
        trio_run._r.setstate(state)
