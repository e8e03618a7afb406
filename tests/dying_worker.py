"""A worker that does one job and kills itself at a chosen step of it, by SIGKILL.

One process imports everything; every life is a fork of it, told what to do by a line on stdin and answered for by one
on stdout. What a life leaves behind is what a killed daemon leaves: a claim, spools, half of what its handler does.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import trio

from actors.collect import fold
from actors.fetch.assemble import FETCHES_AT_ONCE, FetchServices
from actors.jobs.builtin import BUILT_IN
from actors.jobs.handler import JobServices
from actors.jobs.registry import Registry
from actors.jobs.runner import JobObservation
from actors.jobs.settings import JobSettings
from actors.jobs.work import JobWork
from actors.supervisor import Supervisor
from museworkd.telemetry.logs import configure
from storage.environment import SystemEnvironment
from storage.objects.filesystem import FilesystemStore
from storage.postgres.database import DatabaseSettings
from storage.postgres.index import PostgresIndex
from storage.slots import Slots
from tests.servers import clean_environment
from tests.stepping import Moment, Step, Steps
from wire.limits import Limits

LIFE_S = 60.0


@dataclass(frozen=True)
class Life:
    """How a life went."""

    killed: bool
    calls: list[str]
    outcome: str | None
    """Of its job, if it came to its end."""


class Lives:
    """Starts lives one after another."""

    def __init__(self, process: subprocess.Popen, directory: Path) -> None:
        self._process = process
        self.directory = directory

    async def live(self, store: Path, database_url: str, type_: str, step: Step | None) -> Life:
        """Let a worker do the job of a type that waits, and die at a step of it, if one is given."""
        wanted = None if step is None else [step.call, step.number, step.moment.value]
        return await trio.to_thread.run_sync(self._live, json.dumps([str(store), database_url, type_, wanted]))

    @property
    def log(self) -> str:
        return (self.directory / "worker.log").read_text()

    def _live(self, line: str) -> Life:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, self.log[-3000:]
        return Life(**json.loads(answer))


@contextmanager
def dying_worker(directory: Path) -> Iterator[Lives]:
    directory.mkdir(exist_ok=True)
    with (directory / "worker.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.dying_worker", str(directory)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=clean_environment(),
            cwd=Path(__file__).parents[1],
        )  # fmt: skip
    try:
        yield Lives(process, directory)
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


def main(directory: Path) -> None:
    """Fork for every life that is asked for."""
    configure("info", "json")
    facts = directory / "life.json"
    for line in sys.stdin:
        store, database_url, type_, wanted = json.loads(line)
        facts.unlink(missing_ok=True)
        child = os.fork()
        if not child:
            step = None if wanted is None else Step(wanted[0], wanted[1], Moment(wanted[2]))
            trio.run(_live, type_, step, facts, Path(store), database_url)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        calls, outcome = json.loads(facts.read_text())
        print(json.dumps(asdict(Life(killed, calls, outcome))), flush=True)


async def _live(type_: str, step: Step | None, facts: Path, store: Path, database_url: str) -> None:
    steps = Steps()
    ended = trio.Event()
    fold.LOOSE_LEAST = fold.PACKS_LEAST = 1  # a little work is all there is

    def tell(outcome: str | None) -> None:
        facts.write_text(json.dumps([steps.calls, outcome]))

    async def die(_call: str) -> None:
        tell(None)
        os.kill(os.getpid(), signal.SIGKILL)

    def observe(job: JobObservation) -> None:
        tell(job.outcome.value)
        ended.set()

    environment, limits, spool_dir = SystemEnvironment(), Limits(), facts.parent / "spool"
    registry = Registry()
    registry.register(type_, BUILT_IN[type_].handler)
    settings = DatabaseSettings(database_url, pool_size=2)
    async with PostgresIndex(settings, environment) as index:
        watched: Any = steps.watch(index)
        files: Any = steps.watch(await FilesystemStore.open(store))
        fetch = FetchServices(watched, files, environment, spool_dir, limits, Slots(FETCHES_AT_ONCE))
        services = JobServices(watched, files, environment, spool_dir, limits, fetch, JobSettings())
        supervisor = Supervisor()
        work = JobWork(services, supervisor, registry, f"worker {os.getpid()}", observe)
        steps.arm(step, die)
        with trio.fail_after(LIFE_S):
            async with trio.open_nursery() as nursery:
                claiming = [child for child in work.children([]) if child.name in {"claimer", "claim heartbeat"}]
                await nursery.start(supervisor.run, claiming)
                await ended.wait()
                nursery.cancel_scope.cancel()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
