"""Our server: a real daemon with its embedded PostgreSQL, what is asked of it directly, and what it takes.

Every start is a new one on an empty data directory, so that no push finds what an earlier run left in the store. It is
made once, by a daemon that is stopped in order, and copied each time: making a cluster takes longer than most pushes.
"""

from __future__ import annotations

import http.client
import json
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.accounting import make_meter, memory_bytes, reset_peak
from bench.peers import (
    SETTLE_S,
    START_S,
    BenchError,
    LogReader,
    Request,
    Sample,
    add_requests,
    run_client,
    stop_process,
)  # fmt: skip
from bench.workloads import GIT_ENVIRONMENT
from storage.errors import IndexUnavailable
from storage.postgres.embedded import EmbeddedPostgres

COMMAND = [sys.executable, "-m", "museworkd.cli.main"]
ENVIRONMENT = {name: value for name, value in GIT_ENVIRONMENT.items() if not name.startswith("MUSEWORKD_")}
OWNER = "bench"
_HTTP_TIMEOUT_S = 60
_HOLDS = ("hold_p50_ms", "hold_p99_ms", "hold_max_ms")


def place_of(repository: str) -> tuple[str, str]:
    """Give the owner and the name of a repository."""
    owner, _, slug = repository.rpartition("/")
    return owner or OWNER, slug


class MuseDaemon:
    """A daemon, started and stopped many times."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._made = directory.with_name(f"{directory.name}-made")
        self._data = ["--data-dir", str(directory / "data")]
        self._meter = make_meter("museworkd")
        self._process: subprocess.Popen[bytes] | None = None
        self._tokens: dict[str, str] = {}
        self.url = ""

    def start(self) -> None:
        """Start it on an empty data directory."""
        self._clear()
        self._directory.mkdir(parents=True)
        self._tokens = {owner: token for owner, token in self._tokens.items() if owner == OWNER and self._made.is_dir()}
        if not self._made.is_dir():
            self._launch()
            self.token(OWNER)
            self._end()
            data = self._directory / "data"
            if not (data / "postgres").is_symlink():  # else the cluster lies elsewhere, and goes on as it is
                copy_directory(data, self._made)
        else:
            copy_directory(self._made, self._directory / "data")
        self._launch()

    def _launch(self) -> None:
        log = self._directory / "daemon.log"
        arguments = [*COMMAND, "serve", *self._data, "--bind", "127.0.0.1:0", "--json", "--set", "log.format=json"]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [*self._meter.launcher(), *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=output,
                env=ENVIRONMENT, start_new_session=True,
            )  # fmt: skip
        self._meter.add(self._process.pid)
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], START_S)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            raise BenchError(f"the daemon did not start: {log.read_text(errors='replace')[-2000:]}")
        self.url = str(json.loads(line)["url"])
        self._log = LogReader(log)

    def stop(self) -> Sample | None:
        """Stop it, remove its data and its cluster; gives how long it held database connections."""
        held = self._end()
        self._clear()
        return held

    def _end(self) -> Sample | None:
        if self._process is None:
            return None
        stop_process(self._process)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = None
        return held_connections((self._directory / "daemon.log").read_text(errors="replace").splitlines())

    def close(self) -> None:
        """Give back what counts the CPU time."""
        self.stop()
        shutil.rmtree(self._made, ignore_errors=True)
        self._meter.close()

    def token(self, owner: str) -> str:
        """Give a token of an owner, who may be new."""
        if owner not in self._tokens:
            arguments = [*COMMAND, "token", "create", owner, "--scope", "admin", "--json", *self._data]
            self._tokens[owner] = str(json.loads(run_client(arguments, ENVIRONMENT).stdout)["token"])
        return self._tokens[owner]

    def environment(self, repository: str) -> dict[str, str]:
        """Give the environment in which its owner's client runs."""
        return {**ENVIRONMENT, "MUSEWORKD_TOKEN": self.token(place_of(repository)[0])}

    def create(self, repository: str) -> None:
        """Make a repository over the API; real histories have paths that not every system could check out."""
        owner, slug = place_of(repository)
        body = {"slug": slug, "settings": {"relaxed_paths": True}}
        self.ask("POST", "/api/repos", owner, body)

    def url_of(self, repository: str) -> str:
        """Give the URL a client pushes to."""
        return self.url + self.path_of(repository)

    def path_of(self, repository: str) -> str:
        """Give what the paths of all its requests begin with."""
        owner, slug = place_of(repository)
        return f"/{owner}/{slug}"

    def heads(self, repository: str, over: http.client.HTTPConnection | None = None) -> object:
        """Ask for the branches, as a push and a fetch do first."""
        return self.ask("GET", f"{self.path_of(repository)}/refs", place_of(repository)[0], over=over)["branch_heads"]

    def ask(
        self, method: str, path: str, owner: str = OWNER, body: Mapping[str, object] | None = None,
        over: http.client.HTTPConnection | None = None,
    ) -> dict[str, object]:  # fmt: skip
        """Ask in JSON."""
        connection = over or self.connect()
        headers = {"authorization": f"Bearer {self.token(owner)}", "content-type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read()
        if over is None:
            connection.close()
        if answer.status >= 300:
            raise BenchError(f"{method} {path}: {answer.status}: {text.decode(errors='replace')[:500]}")
        return dict(json.loads(text))

    def connect(self) -> http.client.HTTPConnection:
        """Give a connection to ask over."""
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        return http.client.HTTPConnection(parts.hostname, parts.port, timeout=_HTTP_TIMEOUT_S)

    def requests(self) -> list[Request]:
        """Give what the access log has got since it was last asked."""
        found = []
        for event in _events(self._log.lines()):
            if event.get("event") == "request" and "ms" in event:
                numbers = (event["status"], event["ms"], event["received"], event["sent"])
                found.append(Request(event["method"], event["path"], *numbers))
        return found

    def resident_bytes(self) -> int:
        """Give what it has in memory now."""
        assert self._process is not None
        return memory_bytes(self._process.pid, "VmRSS")

    def measure(self, idle_bytes: int | None = None) -> Measuring:
        """Begin to count what it takes; memory above ``idle_bytes``, or above what it has now."""
        assert self._process is not None
        self.requests()
        return Measuring(self, self._process.pid, self.resident_bytes() if idle_bytes is None else idle_bytes)

    def cpu_s(self) -> float:
        """Give what all its processes used so far."""
        return self._meter.cpu_s()

    def _clear(self) -> None:
        data = self._directory / "data"
        if data.is_dir():
            try:
                EmbeddedPostgres(data).destroy()
            except IndexUnavailable as error:
                print(f"bench: {error}", file=sys.stderr)
        shutil.rmtree(self._directory, ignore_errors=True)


class Measuring:
    """What a daemon takes between two moments."""

    def __init__(self, daemon: MuseDaemon, pid: int, idle_bytes: int) -> None:
        self._daemon = daemon
        self._pid = pid
        self._idle = idle_bytes
        reset_peak(pid)
        self._cpu_s = daemon.cpu_s()

    def end(self, sample: Sample, path: str, settle_s: float = SETTLE_S) -> Sample:
        """Note it all in a sample; ``path``: what the paths of its requests begin with."""
        time.sleep(settle_s)
        sample.server_cpu_s = self._daemon.cpu_s() - self._cpu_s
        sample.server_peak_bytes = max(0, memory_bytes(self._pid, "VmHWM") - self._idle)
        add_requests(sample, self._daemon.requests(), path)
        return sample


def copy_directory(source: Path, target: Path) -> None:
    """Copy a directory with its owners: a cluster belongs to who runs it."""
    done = subprocess.run(["cp", "-a", str(source), str(target)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchError(f"{source} could not be copied: {done.stderr[-500:]}")


def held_connections(lines: list[str]) -> Sample | None:
    """Read what a daemon says at its end about the connections to its database; ``None``: it did not come to that."""
    last = None
    for event in _events(lines):
        if event.get("event") == "database" and set(_HOLDS) <= event.keys():
            last = Sample(figures={name: float(event[name]) for name in (*_HOLDS, "transactions", "retries")})
    return last


def _events(lines: list[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:  # what libraries say is not JSON
            continue
        if isinstance(event, dict):
            found.append(event)
    return found
