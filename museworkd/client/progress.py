"""Progress for people, on stderr: meters on a terminal, one line a phase elsewhere, nothing when asked for quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


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


class Bars:
    """Meters on a terminal."""

    def __init__(self) -> None:
        self._progress = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("{task.fields[remark]}"), console=Console(stderr=True),
        )  # fmt: skip

    @contextmanager
    def phase(self, name: str, total: int | None = None) -> Iterator[Phase]:
        """Show a meter."""
        with self._progress:
            task = self._progress.add_task(name, total=total, remark="")
            yield _Bar(self._progress, task)
            if self._progress.tasks[-1].total is None:
                self._progress.update(task, total=self._progress.tasks[-1].completed)


def meter_for(*, quiet: bool) -> Meter:
    """Choose how to show progress."""
    if quiet:
        return Quiet()
    return Bars() if sys.stderr.isatty() else Lines()


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


class _Bar:
    def __init__(self, progress: Progress, task: object) -> None:
        self._progress = progress
        self._task = task

    def advance(self, count: int = 1) -> None:
        self._progress.advance(self._task, count)  # type: ignore[arg-type]

    def total(self, count: int) -> None:
        self._progress.update(self._task, total=count)  # type: ignore[arg-type]

    def note(self, text: str) -> None:
        self._progress.update(self._task, remark=escape(text))  # type: ignore[arg-type]
