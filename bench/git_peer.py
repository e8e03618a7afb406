"""The peer: git over smart HTTP, by nginx, fcgiwrap and ``git http-backend``, with a configuration of our own.

The servers are processes of the bench on a free port, below a temporary directory; nothing of the machine's own nginx
is read, written or restarted. Git gets what is best for it of what we tried: see the comments of the configuration.
"""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.accounting import make_meter
from bench.first_byte import TIMES, of_git, timed
from bench.peers import (
    BRIEF_SETTLE_S,
    SETTLE_S,
    START_S,
    BenchError,
    Content,
    LogReader,
    Request,
    Sample,
    add_requests,
    run_client,
    stop_process,
)  # fmt: skip
from bench.workloads import BRANCH, GIT_ENVIRONMENT, MORE_BRANCH, git

PACKAGES = ("nginx-light", "fcgiwrap")
INSTALL_TIMEOUT_S = 600
_SYSTEM_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
_WORKERS = 4
"""Of fcgiwrap: a git push makes one request at a time, so none ever waits for one."""
_LOG_FIELDS = 6
_POLL_S = 0.02

_NGINX = """\
worker_processes 1;
daemon off;
pid {run}/nginx.pid;
error_log {run}/error.log;
{user}
events {{ worker_connections 256; }}
http {{
  log_format bench "$request_method $uri $status $request_time $request_length $bytes_sent";
  access_log {log} bench;
  client_body_temp_path {run}/body;
  fastcgi_temp_path {run}/fastcgi;
  proxy_temp_path {run}/proxy;
  uwsgi_temp_path {run}/uwsgi;
  scgi_temp_path {run}/scgi;
  tcp_nodelay on;
  server {{
    listen 127.0.0.1:{port};
    client_max_body_size 0;
    location / {{
      fastcgi_pass unix:{run}/cgi;
      # neither packs of a push nor of a clone take a detour through a file of nginx
      fastcgi_request_buffering off;
      fastcgi_buffering off;
      fastcgi_read_timeout 900;
      fastcgi_param SCRIPT_FILENAME {backend};
      fastcgi_param GIT_PROJECT_ROOT {repositories};
      fastcgi_param GIT_HTTP_EXPORT_ALL 1;
      fastcgi_param GIT_PROTOCOL $http_git_protocol;
      fastcgi_param PATH_INFO $uri;
      fastcgi_param QUERY_STRING $query_string;
      fastcgi_param REQUEST_METHOD $request_method;
      fastcgi_param CONTENT_TYPE $content_type;
      fastcgi_param CONTENT_LENGTH $content_length;
      fastcgi_param HTTP_CONTENT_ENCODING $http_content_encoding;
      fastcgi_param REMOTE_ADDR $remote_addr;
    }}
  }}
}}
"""


def find_servers() -> tuple[str, str, str] | str:
    """Find nginx, fcgiwrap and http-backend, installing what is missing; a sentence says why that cannot be done."""
    backend = Path(git(None, "--exec-path")) / "git-http-backend"
    if not backend.exists():
        return f"{backend} is not there"
    found = [shutil.which(name, path=_SYSTEM_PATH) for name in ("nginx", "fcgiwrap")]
    if None in found:
        problem = _install()
        if problem is not None:
            return problem
        found = [shutil.which(name, path=_SYSTEM_PATH) for name in ("nginx", "fcgiwrap")]
    nginx, fcgiwrap = found
    if nginx is None or fcgiwrap is None:
        return "nginx or fcgiwrap is still missing after its installation"
    return nginx, fcgiwrap, str(backend)


def _install() -> str | None:
    if shutil.which("apt-get") is None:
        return f"install {' and '.join(PACKAGES)}; there is no apt-get to do it with"
    as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if as_root and shutil.which("sudo") is None:
        return f"as root, run: apt-get install {' '.join(PACKAGES)}"
    print(f"bench: installing {' and '.join(PACKAGES)}", file=sys.stderr)
    quiet = [*as_root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq"]
    install = [*quiet, "install", "--yes", "--no-install-recommends", *PACKAGES]
    for command in (install, [*quiet, "update"], install):
        done = subprocess.run(command, capture_output=True, timeout=INSTALL_TIMEOUT_S, check=False)
        if command is install and done.returncode == 0:
            return None
    return f"as root, run: apt-get install {' '.join(PACKAGES)}"


class GitPeer:
    """Git."""

    name = "git"
    one_way = True

    def __init__(self, servers: tuple[str, str, str], directory: Path, options: Sequence[str]) -> None:
        self._nginx, self._fcgiwrap, self._backend = servers
        self._directory = directory
        self._client = ["git", *options]
        self._run: Path | None = None
        self._processes: list[subprocess.Popen[bytes]] = []
        self._meter = make_meter("git")
        self._port = 0

    def start(self) -> None:
        """Start nginx and fcgiwrap over an empty directory of repositories."""
        shutil.rmtree(self._directory, ignore_errors=True)
        self._directory.mkdir(parents=True)
        self._run = run = Path(tempfile.mkdtemp(prefix="museworkd-bench-"))  # sockets have short names
        log = self._directory / "access.log"
        log.touch()
        self._port = _free_port()
        configuration = run / "nginx.conf"
        configuration.write_text(
            _NGINX.format(
                run=run, log=log, port=self._port, backend=self._backend, repositories=self._directory,
                user="user root;" if os.geteuid() == 0 else "",
            )
        )  # fmt: skip
        self._launch(self._fcgiwrap, "-c", str(_WORKERS), "-s", f"unix:{run}/cgi")
        self._launch(self._nginx, "-p", str(run), "-e", str(run / "error.log"), "-c", str(configuration))
        self._wait_ready(run / "cgi")
        self._log = LogReader(log)

    def stop(self) -> None:
        """Stop both and remove everything."""
        for process in reversed(self._processes):
            stop_process(process)
        self._processes.clear()
        shutil.rmtree(self._directory, ignore_errors=True)
        if self._run is not None:
            shutil.rmtree(self._run, ignore_errors=True)
            self._run = None

    def close(self) -> None:
        """Give back what counts the CPU time."""
        self.stop()
        self._meter.close()

    def create(self, repository: str) -> None:
        """Make a bare repository that takes pushes."""
        path = self._directory / f"{repository}.git"
        git(None, "init", "--quiet", "--bare", f"--initial-branch={BRANCH}", str(path))
        git(path, "config", "http.receivepack", "true")

    def push(self, content: Content, repository: str) -> Sample:
        """Push the main branch."""
        return self._push(content.git, repository, BRANCH, git(content.git, "rev-parse", BRANCH))

    def push_by(self, content: Content, repository: str, way: str) -> Sample:  # noqa: ARG002 - the protocol's
        """Push the main branch: git has one way."""
        return self.push(content, repository)

    def push_beside(self, content: Content, repository: str) -> None:
        """Push without measuring, for something else to be measured meanwhile; from another thread."""
        run_client([*self._client, *self._push_arguments(content.git, repository, BRANCH)], GIT_ENVIRONMENT)

    def push_nothing(self, content: Content, repository: str) -> Sample:
        """Push again."""
        return self.push(content, repository)

    def increments(self, content: Content) -> list[str]:
        """Give the commits on top of the main branch, oldest first."""
        assert content.git_more is not None
        return git(content.git_more, "rev-list", "--reverse", f"{BRANCH}..{MORE_BRANCH}").split()

    def push_increment(self, content: Content, repository: str, commit: str) -> Sample:
        """Push one commit more."""
        assert content.git_more is not None
        return self._push(content.git_more, repository, commit, commit, BRIEF_SETTLE_S)

    def clone(self, content: Content, repository: str, target: Path) -> Sample:
        """Clone with a checkout, and check all objects."""
        sample = self._measured(repository, "clone", "--quiet", self._url(repository), str(target))
        git(target, "fsck", "--full", "--strict")
        if git(target, "rev-parse", "HEAD") != git(content.git, "rev-parse", BRANCH):
            raise BenchError(f"git cloned another head of {content.name}")
        return sample

    def fetch(self, content: Content, target: Path, commit: str) -> Sample:  # noqa: ARG002 - the protocol's
        """Fetch into a clone."""
        url = git(target, "config", "remote.origin.url")
        repository = url.removeprefix(f"http://127.0.0.1:{self._port}/").removesuffix(".git")
        sample = self._measured(repository, "-C", str(target), "fetch", "--quiet")
        if git(target, "rev-parse", f"refs/remotes/origin/{BRANCH}") != commit:
            raise BenchError("git's fetch did not bring the newest commit")
        return sample

    def first_byte(self, repository: str) -> list[Sample]:
        """Ask for a clone until its pack begins."""
        return timed(TIMES, lambda: of_git(self._port, repository, START_S))

    def place(self, repository: str, made: Path) -> str:
        """Put a bare repository where it is served, without a push; gives its URL."""
        shutil.copytree(made, self._directory / f"{repository}.git")
        return self._url(repository)

    def cpu_s(self) -> float | None:
        """Give what its processes used so far, if that can be told."""
        return self._meter.cpu_s() if self._meter.exact else None

    def start_up(self) -> Sample:
        """Start git."""
        run = run_client([*self._client, "version"], GIT_ENVIRONMENT)
        return Sample(run.wall_s, run.cpu_s, run.peak_rss_bytes)

    def refs(self, repository: str, count: int) -> list[Sample]:
        """Ask as a push does first."""
        self._log.lines()
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=START_S)
        walls = []
        for _ in range(count):
            began = time.perf_counter()
            connection.request("GET", f"/{repository}.git/info/refs?service=git-receive-pack")
            answer = connection.getresponse()
            answer.read()
            walls.append(time.perf_counter() - began)
            if answer.status != 200:
                raise BenchError(f"git answered {answer.status} for its refs")
        connection.close()
        time.sleep(SETTLE_S)
        requests = self._requests()
        return [Sample(wall, server_ms=request.ms) for wall, request in zip(walls, requests, strict=True)]

    def _push_arguments(self, source: Path, repository: str, what: str) -> list[str]:
        return ["-C", str(source), "push", "--quiet", self._url(repository), f"{what}:refs/heads/{BRANCH}"]

    def _push(self, source: Path, repository: str, what: str, head: str, settle_s: float = SETTLE_S) -> Sample:
        sample = self._measured(repository, *self._push_arguments(source, repository, what), settle_s=settle_s)
        if git(self._directory / f"{repository}.git", "rev-parse", BRANCH) != head:
            raise BenchError(f"git pushed another head to {repository}")
        return sample

    def _measured(self, repository: str, *arguments: str, settle_s: float = SETTLE_S) -> Sample:
        self._log.lines()
        cpu_s = self._meter.cpu_s()
        run = run_client([*self._client, *arguments], GIT_ENVIRONMENT)
        time.sleep(settle_s)
        sample = Sample(run.wall_s, run.cpu_s, run.peak_rss_bytes)
        if self._meter.exact:  # nobody waits for fcgiwrap's children, so /proc would not do
            sample.server_cpu_s = self._meter.cpu_s() - cpu_s
        add_requests(sample, self._requests(), f"/{repository}.git/")
        return sample

    def _requests(self) -> list[Request]:
        found = []
        for line in self._log.lines():
            fields = line.split(" ")
            if len(fields) == _LOG_FIELDS:
                method, path, status, seconds, received, sent = fields
                found.append(Request(method, path, int(status), float(seconds) * 1000, int(received), int(sent)))
        return found

    def _url(self, repository: str) -> str:
        return f"http://127.0.0.1:{self._port}/{repository}.git"

    def _launch(self, *arguments: str) -> None:
        assert self._run is not None
        with (self._run / "output.log").open("ab") as output:
            process = subprocess.Popen(
                [*self._meter.launcher(), *arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                env={**GIT_ENVIRONMENT, "PATH": _SYSTEM_PATH}, start_new_session=True,
            )  # fmt: skip
        self._processes.append(process)
        self._meter.add(process.pid)

    def _wait_ready(self, cgi: Path) -> None:
        assert self._run is not None
        give_up_at = time.monotonic() + START_S
        while time.monotonic() < give_up_at and all(process.poll() is None for process in self._processes):
            try:
                socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
            except OSError:
                time.sleep(_POLL_S)
                continue
            if cgi.exists():
                return
        said = (self._run / "output.log").read_text(errors="replace")[-1000:]
        raise BenchError(f"nginx or fcgiwrap did not start: {said}")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
