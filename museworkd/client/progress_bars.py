"""Progress on a terminal: a meter for each phase."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from museworkd.client.progress import Phase


class Bars:
    """Meters on a terminal."""

    def __init__(self) -> None:
        self._progress = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("{task.fields[remark]}"), console=Console(stderr=True),
        )  # fmt: skip
        self._open = 0
        """Phases that are shown now: one may lie in another."""

    @contextmanager
    def phase(self, name: str, total: int | None = None) -> Iterator[Phase]:
        """Show a meter; the display ends with the outermost."""
        if not self._open:
            self._progress.start()
        self._open += 1
        try:
            task = self._progress.add_task(name, total=total, remark="")
            yield _Bar(self._progress, task)
            (shown,) = (each for each in self._progress.tasks if each.id == task)
            if shown.total is None:
                self._progress.update(task, total=shown.completed)
        finally:
            self._open -= 1
            if not self._open:
                self._progress.stop()


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
