"""Daemons that do jobs, as forks of a process that has imported everything and has a package with jobs installed.

Each is a process like any other, with its own memory, connections and log, that can be killed, stopped and drained;
only that it need not start Python anew.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.forked_commands import ForkServer
from tests.job_plugin import install
from tests.servers import clean_environment

START_S = 60.0


@dataclass
class ForkedWorker:
    """A running ``museworkd serve``."""

    pid: int
    url: str
    log: Path
    _status: int
    _code: int | None = None

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def wait(self, limit_s: float = 60.0) -> int:
        """Wait for its end; gives the exit code as ``subprocess`` does."""
        if self._code is None:
            if not select.select([self._status], [], [], limit_s)[0]:
                raise TimeoutError(f"it still runs: {self.log.read_text()[-2000:]}")
            self._code = int(os.read(self._status, 100))
        return self._code

    def alive(self) -> bool:
        """Tell whether it runs."""
        return self._code is None and not select.select([self._status], [], [], 0)[0]

    def end(self) -> None:
        """Kill it if it still runs."""
        if self._status < 0:
            return
        if self.alive():
            with contextlib.suppress(ProcessLookupError):
                self.signal(signal.SIGKILL)
            self.wait()
        os.close(self._status)
        self._status = -1


class Workers:
    """Starts workers on one database and one store."""

    def __init__(self, forks: ForkServer) -> None:
        self._forks = forks

    @contextmanager
    def running(
        self, directory: Path, database_url: str, count: int, *settings: str, role: str = "worker"
    ) -> Iterator[list[ForkedWorker]]:
        """Run some workers for a block; they start at the same time."""
        begun, workers = [], []
        common = ["--json", "--bind", "127.0.0.1:0", "--role", role, "--database-url", database_url]
        common += ["--set", f"store.path={directory / 'store'}"]
        for setting in settings:
            common += ["--set", setting]
        try:
            for number in range(count):
                data_dir = directory / f"worker-{number}"
                data_dir.mkdir(exist_ok=True)
                log, (told, tells) = data_dir / "daemon.log", os.pipe()
                with log.open("ab") as err:
                    arguments = ["serve", "--data-dir", str(data_dir), *common]
                    status = self._forks.begin(arguments, clean_environment(), tells, err.fileno())
                os.close(tells)
                begun.append((told, status, log))
            for told, status, log in begun:
                with os.fdopen(told, "r") as announced:
                    assert select.select([announced], [], [], START_S)[0], log.read_text()[-2000:]
                    line = announced.readline()
                assert line, log.read_text()[-2000:]
                facts = json.loads(line)
                workers.append(ForkedWorker(facts["pid"], facts["url"], log, status))
            yield workers
        finally:
            for worker in workers:
                worker.end()


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """Workers with the package of ``tests.job_plugin`` installed."""
    site = tmp_path_factory.mktemp("site")
    install(site)
    forks = ForkServer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(site))
        forks.start()
    yield Workers(forks)
    forks.close()
