"""A daemon that kills itself at a chosen step of a push and is started again at once, as systemd would.

One process imports everything and binds the socket; every life of the daemon is a fork of it, so a start costs some
hundredths of a second. What arrives while no daemon lives waits in the backlog. ``POST /step`` says where to die,
``GET /step`` gives the calls since.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import trio

from museworkd import daemon
from museworkd.config import Config, DatabaseConfig, ServerConfig
from museworkd.http.access import hash_secret
from museworkd.http.app import HttpApp
from museworkd.telemetry.logs import configure
from storage.environment import SystemEnvironment
from storage.postgres.index import PostgresIndex
from storage.rows import NewRepository, RepositorySettings, Right, Token, Visibility
from tests.http_client import AnswerCutError, ask
from tests.servers import TOKENS, Server, clean_environment
from tests.stepping import BATCHES, Moment, Step, Steps

DIED, PID = "died.json", "pid"


class Dying:
    """The daemon as its tests see it; it answers on one address through all its lives."""

    def __init__(self, directory: Path, address: tuple[str, int]) -> None:
        self.server = Server(f"http://{address[0]}:{address[1]}", None, None, None)
        self.directory = directory

    async def die_at(self, step: Step | None, small_batches: bool = False) -> None:
        """Have the present life end at a step; ``None``: only watch. It may do everything in batches of one."""
        body = [small_batches, *([step.call, step.number, step.moment.value] if step else [])]
        assert (await ask(self.server, "POST", "/step", json=body)).status == 200

    async def live_on(self) -> list[str]:
        """Take the step back; gives the calls since it was set."""
        return (await ask(self.server, "GET", "/step")).value

    def pid(self) -> int:
        """The process of the present life."""
        return int((self.directory / PID).read_text())

    def died(self) -> dict | None:
        """Where it died since the last question."""
        try:
            found = json.loads((self.directory / DIED).read_text())
        except FileNotFoundError:
            return None
        (self.directory / DIED).unlink()
        return found

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()


@contextmanager
def dying_server(directory: Path, database_url: str) -> Iterator[Dying]:
    directory.mkdir()
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener, (directory / "log").open("wb") as log:
        address = listener.getsockname()
        arguments = [sys.executable, "-m", "tests.dying_server", str(listener.fileno()), str(directory), database_url]
        process = subprocess.Popen(
            arguments, pass_fds=[listener.fileno()], stderr=log, start_new_session=True, env=clean_environment(),
            cwd=Path(__file__).parents[1],
        )  # fmt: skip
    try:
        yield Dying(directory, address)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


async def make_repository(index: PostgresIndex, slug: str) -> bool:
    """Make a repository of alice, and her token if it is the first; gives whether it is new."""
    environment = SystemEnvironment()
    token = Token(environment.uuid(), "alice", hash_secret(TOKENS["alice"]), Right.ADMIN, environment.now(), None)
    if await index.find_token(token.token_hash) is None:
        await index.create_token(token)
    new = NewRepository(
        environment.uuid(), "alice", slug, Visibility.PRIVATE, "main", "code", environment.now(), RepositorySettings()
    )
    return await index.create_repository(new) is not None


async def heard(call: Any) -> Any:
    """Give what a call gives, or ``None`` when the server died over it."""
    try:
        return await call
    except (AnswerCutError, trio.BrokenResourceError):
        return None


def main(listener_fd: int, directory: Path, database_url: str) -> int:
    """Live again and again, until a life ends in another way than by SIGKILL."""
    configure("info", "json")
    while True:
        child = os.fork()
        if not child:
            live(listener_fd, directory, database_url)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            return 1


def live(listener_fd: int, directory: Path, database_url: str) -> None:
    (directory / PID).write_text(str(os.getpid()))
    steps = Steps()
    make_services = daemon.make_services

    def die() -> None:
        (directory / DIED).write_text(json.dumps({"calls": steps.calls, "accepted": steps.accepted}))
        os.kill(os.getpid(), signal.SIGKILL)

    async def act(call: str) -> None:
        die()

    def watched(config: Config, index: Any, store: Any, *others: Any) -> Any:
        return make_services(config, steps.watch(index), steps.watch(store), *others)

    async def listening(host: str, port: int) -> list[trio.SocketListener]:
        sock = socket.socket(fileno=os.dup(listener_fd))
        return [trio.SocketListener(trio.socket.from_stdlib_socket(sock))]

    class SteppedApp(HttpApp):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["path"] != "/step":
                await super().__call__(scope, receive, send)
                return
            if scope["method"] == "POST":
                small_batches, *step = json.loads((await receive())["body"])
                steps.arm(Step(*step[:2], Moment(step[2])) if step else None, act)
                if small_batches:
                    for module, name in BATCHES:
                        setattr(module, name, 1)
            else:
                steps.disarm()
            answer = json.dumps(steps.calls).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": answer, "more_body": False})

    _look_inside(steps, die)
    daemon.make_services = watched
    daemon.open_listeners = listening
    daemon.HttpApp = SteppedApp
    database = DatabaseConfig(url=database_url, pool_size=4)
    config = Config(directory / "data", ServerConfig(bind="127.0.0.1:0", role="web"), database)
    trio.run(daemon.run_daemon, config, lambda url: None)


def _look_inside(steps: Steps, die: Any) -> None:
    """Die inside of a call: before COMMIT is sent, and before the last file of it gets its name."""
    commit, replace = psycopg.Connection.commit, Path.replace
    named: list[Path] = []

    def dying_commit(self: psycopg.Connection) -> None:
        if steps.inside:
            die()
        commit(self)

    def dying_replace(self: Path, target: Path) -> Path:
        if steps.inside:
            named.append(target)
            if len(named) > 1 or steps.inside != "put_batch":
                die()
        return replace(self, target)

    psycopg.Connection.commit = dying_commit
    Path.replace = dying_replace


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
