"""The command line in processes of its own that need not start Python anew: forks of one that has imported everything.

A start of Python with all modules costs more than most commands do. A fork has its own memory, environment, streams
and end, like any process; that ``python -m museworkd.cli.main`` itself starts is what the daemon's tests show.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

_REQUEST_BYTES = 256 * 1024


class ForkServer:
    """Runs commands for this process; started when the first one is asked for, gone when this process is."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen | None = None
        self._owner = 0

    def run(
        self, arguments: Sequence[str], environment: Mapping[str, str], timeout_s: float
    ) -> subprocess.CompletedProcess:
        """Run one command to its end."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            status = self.begin(arguments, environment, out.fileno(), err.fileno())
            with os.fdopen(status, "rb") as answer:
                if not select.select([answer], [], [], timeout_s)[0]:
                    raise subprocess.TimeoutExpired(list(arguments), timeout_s)
                code = int(answer.read())
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(list(arguments), code, out.read().decode(), err.read().decode())

    def begin(self, arguments: Sequence[str], environment: Mapping[str, str], out: int, err: int) -> int:
        """Begin a command with these streams; gives the descriptor from which its exit status can be read."""
        status, told = os.pipe()
        try:
            request = json.dumps([list(arguments), dict(environment), str(Path.cwd())]).encode()
            socket.send_fds(self._connected(), [request], [out, err, told])
        finally:
            os.close(told)
        return status

    def _connected(self) -> socket.socket:
        if self._socket is None or self._owner != os.getpid():
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "tests.forked_commands", str(theirs.fileno())], pass_fds=[theirs.fileno()],
                    start_new_session=True, cwd=Path(__file__).parents[1], stdin=subprocess.DEVNULL,
                )  # fmt: skip
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * _REQUEST_BYTES)
            self._socket, self._owner = ours, os.getpid()
            atexit.register(self.close)
        return self._socket

    def start(self) -> None:
        """Start it now, with the environment as it is."""
        self._connected()

    def close(self) -> None:
        """End it; commands that run go on."""
        if self._socket is not None and self._process is not None and self._owner == os.getpid():
            self._socket.close()
            self._process.wait()


def serve(sock: socket.socket) -> None:
    """Fork for every request, until nobody can ask any more."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        request, fds, _, _ = socket.recv_fds(sock, _REQUEST_BYTES, 3)
        if not request:
            return
        if not os.fork():
            _watch(request, fds)
        for fd in fds:
            os.close(fd)


def _watch(request: bytes, fds: Sequence[int]) -> None:
    """Run the command in a fork and tell its exit status as ``subprocess`` does."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    out, err, told = fds
    child = os.fork()
    if not child:
        os.close(told)
        _command(request, out, err)
    _, status = os.waitpid(child, 0)
    os.write(told, str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def _command(request: bytes, out: int, err: int) -> None:
    from museworkd.cli.main import main

    arguments, environment, directory = json.loads(request)
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["museworkd", *arguments]
    code: object = 1
    try:
        main()
        code = 0
    except SystemExit as ended:
        code = ended.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


def _warm() -> None:
    """Import what the commands import when they run."""
    for name in (
        "museworkd.cli.main", "museworkd.daemon", "museworkd.client.checkout", "museworkd.client.fetch",
        "museworkd.client.git_import", "museworkd.client.push", "museworkd.client.verify",
    ):  # fmt: skip
        importlib.import_module(name)


if __name__ == "__main__":
    _warm()
    serve(socket.socket(fileno=int(sys.argv[1])))
