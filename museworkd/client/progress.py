"""Progress for people, on stderr: meters on a terminal, one line a phase elsewhere, nothing when asked for quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Phase(Protocol):
    """One stretch of work."""

    def advance(self, count: int = 1) -> None:
        """Count work that is done."""

    def total(self, count: int) -> None:
        """Say how much there is."""

    def note(self, text: str) -> None:
        """Show a short remark beside the meter."""


class Meter(Protocol):
    """Shows phases."""

    @contextmanager
    def phase(self, name: str, total: int | None = None) -> Iterator[Phase]:
        """Show a phase for the length of a block."""


class Quiet:
    """Shows nothing."""

    @contextmanager
    def phase(self, name: str, total: int | None = None) -> Iterator[Phase]:  # noqa: ARG002 - the protocol's
        """Show nothing."""
        yield _Counted()


class Lines:
    """One line when a phase ends: for logs and pipes."""

    @contextmanager
    def phase(self, name: str, total: int | None = None) -> Iterator[Phase]:  # noqa: ARG002 - the protocol's
        """Print the phase's name, count and seconds when it is over."""
        began = time.monotonic()
        phase = _Counted()
        yield phase
        counted = f" {phase.done}" if phase.done else ""
        remark = f" ({phase.remark})" if phase.remark else ""
        sys.stderr.write(f"{name}:{counted} done in {time.monotonic() - began:.1f} s{remark}\n")


def meter_for(*, quiet: bool) -> Meter:
    """Choose how to show progress."""
    if quiet:
        return Quiet()
    if not sys.stderr.isatty():
        return Lines()
    from museworkd.client.progress_bars import Bars  # not needed by pipes, and slow to begin

    return Bars()


class _Counted:
    def __init__(self) -> None:
        self.done = 0
        self.remark = ""

    def advance(self, count: int = 1) -> None:
        self.done += count

    def total(self, count: int) -> None:
        pass

    def note(self, text: str) -> None:
        self.remark = text
