"""Our side: the daemon, and the command line as a client."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.first_byte import TIMES, of_muse, timed
from bench.muse_daemon import COMMAND, ENVIRONMENT, MuseDaemon
from bench.peers import BRIEF_SETTLE_S, SETTLE_S, BenchError, ClientRun, Content, Sample, run_client
from bench.workloads import BRANCH, MORE_BRANCH
from museworkd.client.repository import LocalRepository
from wire.ids import format_id

_IMPORTED = "import museworkd.cli.push_command, museworkd.client.push"
"""What every push imports; it is imported late, so that no command has to wait for another's."""


class MusePeer:
    """museworkd."""

    name = "museworkd"
    one_way = False

    def __init__(self, directory: Path, push_options: Sequence[str]) -> None:
        self.daemon = MuseDaemon(directory)
        self._push_options = push_options

    def start(self) -> None:
        """Start a daemon on an empty data directory."""
        self.daemon.start()

    def stop(self) -> Sample | None:
        """Stop the daemon, remove its data and its cluster; gives how long it held database connections."""
        return self.daemon.stop()

    def close(self) -> None:
        """Give back what counts the CPU time."""
        self.daemon.close()

    def create(self, repository: str) -> None:
        """Make a repository."""
        self.daemon.create(repository)

    def push(self, content: Content, repository: str) -> Sample:
        """Push the main branch."""
        return self._push(content.muse, repository)

    def push_by(self, content: Content, repository: str, way: str) -> Sample:
        """Push the main branch by one way, whatever the client would choose."""
        return self._push(content.muse, repository, options=["--way", way])

    def push_beside(self, content: Content, repository: str) -> None:
        """Push without measuring, for something else to be measured meanwhile; from another thread."""
        arguments = [*COMMAND, *self._push_arguments(content.muse, repository)]
        run_client(arguments, self.daemon.environment(repository))

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
        url = self.daemon.url_of(repository)
        sample, _ = self._measured(repository, "clone", url, str(target), "--quiet", "--json")
        verify = [*COMMAND, "verify", str(target), "--git", str(content.git), "--quiet", "--json"]
        run_client(verify, ENVIRONMENT)
        return sample

    def fetch(self, content: Content, target: Path, commit: str) -> Sample:  # noqa: ARG002 - the protocol's
        """Fetch into a clone."""
        with LocalRepository.find(target) as local:
            repository = local.remotes()["origin"].removeprefix(self.daemon.url).strip("/")
        sample, _ = self._measured(repository, "fetch", "-C", str(target), "--quiet", "--json")
        with LocalRepository.find(target) as local:
            if local.remote_branches("origin")[BRANCH].hex() != commit:
                raise BenchError("a fetch did not bring the newest commit")
        return sample

    def first_byte(self, repository: str) -> list[Sample]:
        """Ask for a clone until its pack begins."""
        return timed(TIMES, lambda: of_muse(self.daemon, repository))

    def start_up(self) -> Sample:
        """Start the interpreter and import what a push imports."""
        run = run_client([sys.executable, "-c", _IMPORTED], ENVIRONMENT)
        return Sample(run.wall_s, run.cpu_s, run.peak_rss_bytes)

    def refs(self, repository: str, count: int) -> list[Sample]:
        """Ask as a push and a fetch do first."""
        self.daemon.requests()
        connection = self.daemon.connect()
        walls = []
        for _ in range(count):
            began = time.perf_counter()
            self.daemon.heads(repository, connection)
            walls.append(time.perf_counter() - began)
        connection.close()
        time.sleep(SETTLE_S)
        requests = self.daemon.requests()
        return [Sample(wall, server_ms=request.ms) for wall, request in zip(walls, requests, strict=True)]

    def _push_arguments(self, source: Path, repository: str) -> list[str]:
        url = self.daemon.url_of(repository)
        return ["push", url, "--branch", BRANCH, "-C", str(source), "--quiet", "--json"]

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
        there = self.daemon.heads(repository)
        if there != {BRANCH: head}:
            raise BenchError(f"after the push to {repository} its branches are {there}, not {head}")
        return sample

    def _measured(self, repository: str, *arguments: str, settle_s: float = SETTLE_S) -> tuple[Sample, ClientRun]:
        environment = self.daemon.environment(repository)
        measuring = self.daemon.measure()
        run = run_client([*COMMAND, *arguments], environment)
        sample = Sample(run.wall_s, run.cpu_s, run.peak_rss_bytes)
        return measuring.end(sample, f"{self.daemon.path_of(repository)}/", settle_s), run


def import_git(source: Path, target: Path) -> Path:
    """Make a Muse repository of a git one, for the client to push from."""
    run_client([*COMMAND, "git-import", str(source), str(target), "--quiet", "--json"], ENVIRONMENT)
    return target
