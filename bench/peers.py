"""What both peers of the bench do, and how a client is run and measured.

A client is a process of its own, as its users have it: what is timed is from its start to its end, the start of its
interpreter included. The kernel says what CPU it and its children took.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

CLIENT_TIMEOUT_S = 900.0
SETTLE_S = 0.3
"""Work that a server puts off until it has answered is counted too."""
BRIEF_SETTLE_S = 0.05
"""After each of many small operations: time for the line of the access log."""
STOP_S = 60.0
START_S = 180.0
_ERROR_BYTES = 2000


class BenchError(Exception):
    """Something did not work, or did not work right: a figure of it would be worthless."""


@dataclass(frozen=True, slots=True)
class ClientRun:
    """A client process that ended well."""

    wall_s: float
    cpu_s: float
    peak_rss_bytes: int
    stdout: str


@dataclass(frozen=True, slots=True)
class Request:
    """A line of a server's access log."""

    method: str
    path: str
    status: int
    ms: float
    received_bytes: int
    sent_bytes: int


@dataclass(slots=True)
class Sample:
    """One operation, once."""

    wall_s: float | None = None
    client_cpu_s: float | None = None
    client_peak_bytes: int | None = None
    server_cpu_s: float | None = None
    server_peak_bytes: int | None = None
    """Resident, above what was resident just before."""
    sent_bytes: int | None = None
    """From the client to the server."""
    received_bytes: int | None = None
    server_ms: float | None = None
    """What the server's access log says about all requests of the operation."""
    requests: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    """What only this operation has, by the name of the metric."""


@dataclass(frozen=True, slots=True)
class Content:
    """A workload as the peers' clients hold it."""

    name: str
    git: Path
    muse: Path
    git_more: Path | None
    """The same with commits on top, one to be pushed after another."""
    muse_more: Path | None


class Peer(Protocol):
    """A server with its client."""

    name: str
    one_way: bool
    """Whether a first push can travel in one way only."""

    def start(self) -> None:
        """Start the server, empty."""

    def stop(self) -> Sample | None:
        """Stop it and remove what it kept; gives what it tells at its end. Does nothing when it does not run."""

    def create(self, repository: str) -> None:
        """Make an empty repository, ``OWNER/NAME`` or the usual owner's."""

    def push(self, content: Content, repository: str) -> Sample:
        """Push the main branch, all of it being new to the repository."""

    def push_by(self, content: Content, repository: str, way: str) -> Sample:
        """Push the same by ``stream``, ``presigned`` or ``mpack``."""

    def push_beside(self, content: Content, repository: str) -> None:
        """Push without measuring; from another thread than everything else."""

    def push_nothing(self, content: Content, repository: str) -> Sample:
        """Push what the repository has already."""

    def close(self) -> None:
        """Stop it for good."""

    def increments(self, content: Content) -> list[str]:
        """Give the commits to push one by one."""

    def push_increment(self, content: Content, repository: str, commit: str) -> Sample:
        """Push one of them."""

    def clone(self, content: Content, repository: str, target: Path) -> Sample:
        """Clone, and prove what came."""

    def fetch(self, content: Content, target: Path, commit: str) -> Sample:
        """Bring a clone up to date; its remote branch has to be at ``commit`` afterwards."""

    def first_byte(self, repository: str) -> list[Sample]:
        """Ask for a clone as a client does, until its content begins."""

    def start_up(self) -> Sample:
        """Start the client and let it end at once."""

    def refs(self, repository: str, count: int) -> list[Sample]:
        """Ask for the branches over one connection, as every push and fetch begins."""


def run_client(arguments: Sequence[str], environment: Mapping[str, str], stdin: int = subprocess.DEVNULL) -> ClientRun:
    """Run a client to its end.

    Raises:
        BenchError: it failed, or took longer than :data:`CLIENT_TIMEOUT_S`.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        began = time.perf_counter()
        process = subprocess.Popen(list(arguments), stdin=stdin, stdout=out, stderr=err, env=dict(environment))
        timer = threading.Timer(CLIENT_TIMEOUT_S, process.kill)
        timer.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
            ended = time.perf_counter()
        except BaseException:  # the bench is told to end: nothing of it goes on
            process.kill()
            process.wait()
            raise
        finally:
            timer.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if process.returncode != 0:
            said = (out.read() + err.read())[-_ERROR_BYTES:].decode(errors="replace")
            raise BenchError(f"{' '.join(arguments)}: exit code {process.returncode}: {said}")
        cpu_s = usage.ru_utime + usage.ru_stime
        return ClientRun(ended - began, cpu_s, usage.ru_maxrss * 1024, out.read().decode())


def stop_process(process: subprocess.Popen[bytes] | None) -> None:
    """End a server that leads a session of its own, and wait for it; what it left running ends with it."""
    if process is None:
        return
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class LogReader:
    """Reads what a log has got since it was last asked."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0

    def lines(self) -> list[str]:
        """Give the new whole lines."""
        with self._path.open("rb") as file:
            file.seek(self._at)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._at += len(whole)
        return whole.decode(errors="replace").splitlines()


def add_requests(sample: Sample, found: Sequence[Request], prefix: str) -> None:
    """Note what the access log says about an operation: the requests for one repository."""
    requests = [request for request in found if request.path.startswith(prefix)]
    sample.requests = [f"{r.method} {r.path} {r.status} {r.ms:.1f} ms" for r in requests]
    sample.server_ms = round(sum(r.ms for r in requests), 3)
    sample.sent_bytes = sum(r.received_bytes for r in requests)
    sample.received_bytes = sum(r.sent_bytes for r in requests)
