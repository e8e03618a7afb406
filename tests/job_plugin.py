"""A package with job types for tests, as an operator would install one: its handlers do what files tell them.

A daemon finds it by its entry points, on ``PYTHONPATH``. ``test.slow`` says in ``events`` that it has begun, keeps a
state, and waits until there is a file ``go``, or one ``go-<process>``; so tests need not guess when it is where.
"""

from __future__ import annotations

from pathlib import Path

_MODULE = """
import os
from pathlib import Path

import trio


def _note(directory, *words):
    line = " ".join(str(word) for word in words) + "\\n"
    fd = os.open(directory / "events", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, line.encode())
    os.close(fd)


async def slow(context):
    directory, job = Path(context.job.payload["directory"]), context.job
    _note(directory, "begun", os.getpid(), job.claim.job, job.attempt)
    with context.phase("wait"):
        if context.job.payload.get("keep"):
            await context.keep_state({"kept_by": job.attempt})
            _note(directory, "kept", os.getpid(), job.claim.job, job.attempt)
        while not ((directory / "go").exists() or (directory / f"go-{os.getpid()}").exists()):
            await context.progress("waiting")
            await trio.sleep(0.02)
    _note(directory, "ended", os.getpid(), job.claim.job, job.attempt)
    return {"pid": os.getpid(), "found": dict(job.state)}


async def quick(context):
    _note(Path(context.job.payload["directory"]), "begun", os.getpid(), context.job.claim.job, context.job.attempt)
    await trio.sleep(0.005)
    return {"pid": os.getpid()}
"""
_METADATA = "Metadata-Version: 2.1\nName: jobs-of-tests\nVersion: 1\n"
_ENTRY_POINTS = "[museworkd.jobs]\ntest.slow = jobs_of_tests:slow\ntest.quick = jobs_of_tests:quick\n"


def install(site: Path) -> None:
    """Put the package into a directory that is on ``PYTHONPATH``."""
    facts = site / "jobs_of_tests-1.dist-info"
    facts.mkdir(parents=True)
    (site / "jobs_of_tests.py").write_text(_MODULE)
    (facts / "METADATA").write_text(_METADATA)
    (facts / "entry_points.txt").write_text(_ENTRY_POINTS)


class Events:
    """What the handlers of the package have said so far."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()

    def all(self, what: str) -> list[tuple[int, int, int]]:
        """Give process, job and attempt of every event of a kind."""
        path = self.directory / "events"
        lines = path.read_text().splitlines() if path.exists() else []
        return [
            (int(pid), int(job), int(attempt))
            for name, pid, job, attempt in (line.split() for line in lines)
            if name == what
        ]

    def go(self, pid: int | None = None) -> None:
        """Let the handlers go on, of one process or of all."""
        (self.directory / ("go" if pid is None else f"go-{pid}")).touch()
