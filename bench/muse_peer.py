"""Our side: a real daemon with its embedded PostgreSQL, and the command line as a client.

Every start is a new one on an empty data directory, so that no push finds what an earlier run left in the store.
"""

from __future__ import annotations

import http.client
import json
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from bench.accounting import make_meter, memory_bytes, reset_peak
from bench.peers import (
    BRIEF_SETTLE_S,
    SETTLE_S,
    START_S,
    BenchError,
    ClientRun,
    Content,
    LogReader,
    Request,
    Sample,
    add_requests,
    run_client,
    stop_process,
)  # fmt: skip
from bench.workloads import BRANCH, GIT_ENVIRONMENT, MORE_BRANCH
from museworkd.client.repository import LocalRepository
from storage.errors import IndexUnavailable
from storage.postgres.embedded import EmbeddedPostgres
from wire.ids import format_id

COMMAND = [sys.executable, "-m", "museworkd.cli.main"]
ENVIRONMENT = {name: value for name, value in GIT_ENVIRONMENT.items() if not name.startswith("MUSEWORKD_")}
OWNER = "bench"
_HTTP_TIMEOUT_S = 60


class MusePeer:
    """museworkd."""

    name = "museworkd"

    def __init__(self, directory: Path, push_options: Sequence[str], stream_options: Sequence[str]) -> None:
        self._directory = directory
        self._push_options = push_options
        self.stream_options = stream_options
        self._meter = make_meter("museworkd")
        self._daemon: subprocess.Popen[bytes] | None = None
        self._environment = ENVIRONMENT
        self._url = ""

    def start(self) -> None:
        """Start a daemon on an empty data directory."""
        self._clear()
        self._directory.mkdir(parents=True)
        log = self._directory / "daemon.log"
        data = ["--data-dir", str(self._directory / "data")]
        arguments = [*COMMAND, "serve", *data, "--bind", "127.0.0.1:0", "--json", "--set", "log.format=json"]
        with log.open("wb") as output:
            self._daemon = subprocess.Popen(
                [*self._meter.launcher(), *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=output,
                env=ENVIRONMENT, start_new_session=True,
            )  # fmt: skip
        self._meter.add(self._daemon.pid)
        assert self._daemon.stdout is not None
        ready, _, _ = select.select([self._daemon.stdout], [], [], START_S)
        line = self._daemon.stdout.readline() if ready else b""
        if not line:
            raise BenchError(f"the daemon did not start: {log.read_text(errors='replace')[-2000:]}")
        self._url = str(json.loads(line)["url"])
        self._log = LogReader(log)
        token = run_client([*COMMAND, "token", "create", OWNER, "--scope", "admin", "--json", *data], ENVIRONMENT)
        self._environment = {**ENVIRONMENT, "MUSEWORKD_TOKEN": str(json.loads(token.stdout)["token"])}

    def stop(self) -> None:
        """Stop the daemon, remove its data and its cluster."""
        if self._daemon is not None:
            stop_process(self._daemon)
            assert self._daemon.stdout is not None
            self._daemon.stdout.close()
            self._daemon = None
        self._clear()

    def close(self) -> None:
        """Give back what counts the CPU time."""
        self.stop()
        self._meter.close()

    def create(self, repository: str) -> None:
        """Make a repository over the API; real histories have paths that not every system could check out."""
        body = json.dumps({"slug": repository, "settings": {"relaxed_paths": True}})
        self._ask("POST", "/api/repos", body)

    def push(self, content: Content, repository: str) -> Sample:
        """Push the main branch."""
        return self._push(content.muse, repository)

    def push_by_stream(self, content: Content, repository: str) -> Sample:
        """Push the main branch by stream, whatever the client would choose."""
        return self._push(content.muse, repository, options=self.stream_options)

    def push_beside(self, content: Content, repository: str) -> None:
        """Push without measuring, for something else to be measured meanwhile; from another thread."""
        run_client([*COMMAND, *self._push_arguments(content.muse, repository)], self._environment)

    def push_nothing(self, content: Content, repository: str) -> Sample:
        """Push again."""
        return self._push(content.muse, repository, up_to_date=True)

    def increments(self, content: Content) -> list[str]:
        """Give the commits on top of the main branch, oldest first."""
        assert content.muse_more is not None
        found: list[str] = []
        with LocalRepository.find(content.muse_more) as more, LocalRepository.find(content.muse) as base:
            at, end = more.branches()[MORE_BRANCH], base.branches()[BRANCH]
            while at != end:
                found.append(at.hex())
                facts = more.index.facts(at)
                assert facts is not None
                at = facts.parents[0]
        return found[::-1]

    def push_increment(self, content: Content, repository: str, commit: str) -> Sample:
        """Push one commit more."""
        assert content.muse_more is not None
        with LocalRepository.find(content.muse_more) as local:
            local.set_branch(BRANCH, bytes.fromhex(commit))
        return self._push(content.muse_more, repository, settle_s=BRIEF_SETTLE_S)

    def clone(self, content: Content, repository: str, target: Path) -> Sample:
        """Clone with a checkout; then compare every file of every commit with git's."""
        sample, _ = self._measured(repository, "clone", self._url_of(repository), str(target), "--quiet", "--json")
        verify = [*COMMAND, "verify", str(target), "--git", str(content.git), "--quiet", "--json"]
        run_client(verify, self._environment)
        return sample

    def start_up(self) -> Sample:
        """Start the interpreter and import what a push imports."""
        run = run_client([*COMMAND, "push", "--help"], ENVIRONMENT)
        return Sample(run.wall_s, run.cpu_s, run.peak_rss_bytes)

    def refs(self, repository: str, count: int) -> list[Sample]:
        """Ask as a push and a fetch do first."""
        self._log.lines()
        connection = self._connect()
        walls = []
        for _ in range(count):
            began = time.perf_counter()
            self._ask("GET", f"/{OWNER}/{repository}/refs", None, connection)
            walls.append(time.perf_counter() - began)
        connection.close()
        time.sleep(SETTLE_S)
        requests = self._requests()
        return [Sample(wall, server_ms=request.ms) for wall, request in zip(walls, requests, strict=True)]

    def _push_arguments(self, source: Path, repository: str) -> list[str]:
        return ["push", self._url_of(repository), "--branch", BRANCH, "-C", str(source), "--quiet", "--json"]

    def _push(
        self, source: Path, repository: str, *, up_to_date: bool = False, options: Sequence[str] | None = None,
        settle_s: float = SETTLE_S,
    ) -> Sample:  # fmt: skip
        more = self._push_options if options is None else options
        sample, run = self._measured(repository, *self._push_arguments(source, repository), *more, settle_s=settle_s)
        [report] = json.loads(run.stdout)["pushes"]
        if bool(report["up_to_date"]) != up_to_date:
            raise BenchError(f"the push to {repository} was {'not ' if up_to_date else ''}up to date")
        with LocalRepository.find(source) as local:
            head = format_id(local.branches()[BRANCH], local.scheme)
        there = self._ask("GET", f"/{OWNER}/{repository}/refs", None)["branch_heads"]
        if there != {BRANCH: head}:
            raise BenchError(f"after the push to {repository} its branches are {there}, not {head}")
        return sample

    def _measured(self, repository: str, *arguments: str, settle_s: float = SETTLE_S) -> tuple[Sample, ClientRun]:
        assert self._daemon is not None
        self._log.lines()
        idle = memory_bytes(self._daemon.pid, "VmRSS")
        reset_peak(self._daemon.pid)
        cpu_s = self._meter.cpu_s()
        run = run_client([*COMMAND, *arguments], self._environment)
        time.sleep(settle_s)
        sample = Sample(run.wall_s, run.cpu_s, run.peak_rss_bytes, self._meter.cpu_s() - cpu_s)
        sample.server_peak_bytes = max(0, memory_bytes(self._daemon.pid, "VmHWM") - idle)
        add_requests(sample, self._requests(), f"/{OWNER}/{repository}/")
        return sample, run

    def _requests(self) -> list[Request]:
        found = []
        for line in self._log.lines():
            try:
                event = json.loads(line)
            except ValueError:  # what libraries say is not JSON
                continue
            if event.get("event") == "request" and "ms" in event:
                numbers = (event["status"], event["ms"], event["received"], event["sent"])
                found.append(Request(event["method"], event["path"], *numbers))
        return found

    def _ask(
        self, method: str, path: str, body: str | None, over: http.client.HTTPConnection | None = None
    ) -> dict[str, object]:
        connection = over or self._connect()
        headers = {
            "authorization": f"Bearer {self._environment['MUSEWORKD_TOKEN']}",
            "content-type": "application/json",
        }
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        text = answer.read()
        if over is None:
            connection.close()
        if answer.status >= 300:
            raise BenchError(f"{method} {path}: {answer.status}: {text.decode(errors='replace')[:500]}")
        return dict(json.loads(text))

    def _connect(self) -> http.client.HTTPConnection:
        parts = urlsplit(self._url)
        assert parts.hostname is not None
        return http.client.HTTPConnection(parts.hostname, parts.port, timeout=_HTTP_TIMEOUT_S)

    def _url_of(self, repository: str) -> str:
        return f"{self._url}/{OWNER}/{repository}"

    def _clear(self) -> None:
        data = self._directory / "data"
        if data.is_dir():
            try:
                EmbeddedPostgres(data).destroy()
            except IndexUnavailable as error:
                print(f"bench: {error}", file=sys.stderr)
        shutil.rmtree(self._directory, ignore_errors=True)


def import_git(source: Path, target: Path) -> Path:
    """Make a Muse repository of a git one, for the client to push from."""
    run_client([*COMMAND, "git-import", str(source), str(target), "--quiet", "--json"], ENVIRONMENT)
    return target
