"""Real servers for tests: the daemon as a process of its own, and the HTTP floor inside the test."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

import trio

from museworkd.assembly import make_services
from museworkd.config import Config
from museworkd.http.access import hash_secret
from museworkd.http.app import HttpApp
from museworkd.http.server import HttpServer, open_listeners
from museworkd.http.services import HttpServices
from storage.environment import Environment, SystemEnvironment
from storage.index import Index
from storage.object_store import ObjectStore
from storage.rows import NewRepository, Repository, RepositorySettings, Right, Token, Visibility
from tests.forked_commands import ForkServer
from tests.stores import on_s3

COMMAND_TIMEOUT_S = 110
_commands = ForkServer()
TOKENS = {"alice": "token-of-alice", "bob": "token-of-bob", "reader": "token-of-reader"}


@dataclass
class Daemon:
    """A ``museworkd serve`` process."""

    process: subprocess.Popen
    url: str
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self, timeout_s: float = 60) -> int:
        self.process.terminate()
        return self.process.wait(timeout_s)

    def memory(self, key: str = "VmRSS") -> int:
        """A figure of /proc/<pid>/status in bytes."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        return int(text.split(f"{key}:")[1].split()[0]) * 1024

    def reset_peak(self) -> None:
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")


def start_daemon(data_dir: Path, database_url: str | None, *settings: str) -> Daemon:
    arguments = [sys.executable, "-m", "museworkd.cli.main", "serve", "--json", "--bind", "127.0.0.1:0"]
    arguments += ["--data-dir", str(data_dir)]
    if database_url is not None:
        arguments += ["--database-url", database_url]
    for setting in settings:
        arguments += ["--set", setting]
    data_dir.mkdir(parents=True, exist_ok=True)
    log = data_dir / "daemon.log"
    with log.open("ab") as output:
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=output, env=clean_environment(), text=True)
    line = process.stdout.readline()
    process.stdout.close()
    if not line:
        process.wait()
        raise AssertionError(f"the daemon did not start: {log.read_text()[-2000:]}")
    return Daemon(process, json.loads(line)["url"], log)


@contextmanager
def daemon(data_dir: Path, database_url: str | None, *settings: str) -> Iterator[Daemon]:
    running = start_daemon(data_dir, database_url, *settings)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.send_signal(signal.SIGKILL)
        running.process.wait()


def clean_environment(**more: str) -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("MUSEWORKD_")} | on_s3.variables() | more


def museworkd(*arguments: str, token: str | None = None, check: int | None = 0) -> subprocess.CompletedProcess:
    """Run the command line as a user would."""
    environment = clean_environment(**({"MUSEWORKD_TOKEN": token} if token else {}))
    done = _commands.run(arguments, environment, COMMAND_TIMEOUT_S)
    if check is not None:
        assert done.returncode == check, (arguments, done.returncode, done.stdout[-2000:], done.stderr[-4000:])
    return done


@dataclass
class Server:
    """The HTTP floor on a real socket, inside the test's own trio loop."""

    url: str
    services: HttpServices
    http: HttpServer
    stop: trio.Event
    repositories: dict[str, Repository] = field(default_factory=dict)

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return parts.hostname, parts.port

    async def connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream(*self.address)

    async def make_repository(
        self, owner: str = "alice", slug: str = "x", public: bool = False, **settings: object
    ) -> Repository:
        environment = self.services.environment
        made = await self.services.index.create_repository(
            NewRepository(
                environment.uuid(), owner, slug, Visibility.PUBLIC if public else Visibility.PRIVATE, "main", "code",
                environment.now(), RepositorySettings(**settings),
            )
        )  # fmt: skip
        assert made is not None
        return made


@asynccontextmanager
async def serving(
    index: Index, store: ObjectStore, tmp_path: Path, environment: Environment | None = None, **changes: object
) -> AsyncIterator[Server]:
    """Serve; ``changes`` are settings such as ``server__drain_s=1``."""
    config = Config(data_dir=tmp_path / "data")
    config = replace(config, jobs=replace(config.jobs, after_push_s=0.0))
    for name, value in changes.items():
        section, _, key = name.partition("__")
        config = replace(config, **{section: replace(getattr(config, section), **{key: value})})
    environment = environment or SystemEnvironment()
    services, children = await make_services(config, index, store, environment)
    known = await index.find_token(hash_secret(TOKENS["alice"]))  # to a server before this one
    for handle, secret in TOKENS.items() if known is None else ():
        token = Token(environment.uuid(), handle, hash_secret(secret), Right.ADMIN, environment.now(), None)
        await index.create_token(token)
    http = HttpServer(HttpApp(services), config.server)
    listeners = await open_listeners("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(services.supervisor.run, children)
        nursery.start_soon(http.run, listeners, stop, config.server.drain_s)
        with contextlib.ExitStack() as stack:
            stack.callback(nursery.cancel_scope.cancel)
            yield Server(url, services, http, stop)
