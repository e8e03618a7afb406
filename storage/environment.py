"""The ports through which time, randomness and ids enter, so that a simulation can replay them."""

from __future__ import annotations

import datetime as dt
import random
import secrets
import uuid
from typing import Protocol


class Environment(Protocol):
    """What the outside world decides."""

    def now(self) -> dt.datetime:
        """Give the wall-clock time in UTC."""

    def random_bytes(self, count: int) -> bytes:
        """Give unpredictable bytes."""

    def uuid(self) -> uuid.UUID:
        """Give a fresh id."""

    def jitter(self) -> float:
        """Give a number in [0, 1) for spreading retries."""


class SystemEnvironment:
    """The real world."""

    def now(self) -> dt.datetime:
        """Give the system's time."""
        return dt.datetime.now(dt.UTC)

    def random_bytes(self, count: int) -> bytes:
        """Give bytes from the system's generator."""
        return secrets.token_bytes(count)

    def uuid(self) -> uuid.UUID:
        """Give a version 4 UUID."""
        return uuid.uuid4()

    def jitter(self) -> float:
        """Give a random number."""
        return random.random()  # noqa: S311 - spreading retries needs no secrecy


class SeededEnvironment:
    """A replayable world: everything follows from the seed; time stands still until it is moved."""

    def __init__(self, seed: int, start: dt.datetime | None = None) -> None:
        self._random = random.Random(seed)  # noqa: S311
        self._now = start or dt.datetime(2026, 1, 1, tzinfo=dt.UTC)

    def now(self) -> dt.datetime:
        """Give the time this world stands at."""
        return self._now

    def move(self, seconds: float) -> None:
        """Let time pass."""
        self._now += dt.timedelta(seconds=seconds)

    def random_bytes(self, count: int) -> bytes:
        """Give the generator's next bytes."""
        return self._random.randbytes(count)

    def uuid(self) -> uuid.UUID:
        """Give the generator's next version 4 UUID."""
        return uuid.UUID(bytes=self._random.randbytes(16), version=4)

    def jitter(self) -> float:
        """Give the generator's next number."""
        return self._random.random()
