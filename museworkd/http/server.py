"""Listening, the connection limit, and shutting down in order."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.worker_context import WorkerContext

from museworkd.http.guard import GuardedConnection
from museworkd.http.settings import HttpSettings

log = structlog.get_logger("http")

ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]

BACKLOG = 256
_OUT_OF_DESCRIPTORS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
_ACCEPT_PAUSE_S = 0.1
_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
    b"Connection: close\r\nContent-Length: %d\r\n\r\n%s"
)
_BUSY_BODY = b'{"error":"busy","detail":"too many connections","request_id":"","retryable":true}'


@dataclass(frozen=True, slots=True)
class ServerStatistics:
    """A look at the server."""

    connections: int
    accepted: int
    refused: int


class HttpServer:
    """Serve an ASGI application on listening sockets."""

    def __init__(self, app: ASGIApp, settings: HttpSettings) -> None:
        self._app = ASGIWrapper(app)
        self._settings = settings
        self._config = _hypercorn_config(settings)
        self._connections = self._accepted = self._refused = 0

    async def run(
        self, listeners: Sequence[trio.SocketListener], stop: trio.Event, drain_s: float,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:  # fmt: skip
        """Serve until ``stop`` is set; then stop accepting, let requests finish for ``drain_s`` seconds, and end."""
        context = WorkerContext(None)
        async with trio.open_nursery() as connections:
            try:
                async with trio.open_nursery() as accepting:
                    for listener in listeners:
                        accepting.start_soon(self._accept, listener, context, connections)
                    task_status.started()
                    await stop.wait()
                    accepting.cancel_scope.cancel()
            finally:
                for listener in listeners:
                    listener.socket.close()  # also under cancellation
            await context.terminated.set()
            connections.cancel_scope.deadline = trio.current_time() + drain_s

    def statistics(self) -> ServerStatistics:
        """Give a look at the server."""
        return ServerStatistics(self._connections, self._accepted, self._refused)

    async def _accept(self, listener: trio.SocketListener, context: WorkerContext, nursery: trio.Nursery) -> None:
        while True:
            try:
                stream = await listener.accept()
            except OSError as error:
                if error.errno not in _OUT_OF_DESCRIPTORS:
                    raise
                log.warning("cannot accept", error=str(error))
                await trio.sleep(_ACCEPT_PAUSE_S)
                continue
            self._accepted += 1
            if self._connections >= self._settings.max_connections:
                self._refused += 1
                nursery.start_soon(_refuse, stream)
                continue
            self._connections += 1
            nursery.start_soon(self._serve, stream, context)

    async def _serve(self, stream: trio.SocketStream, context: WorkerContext) -> None:
        try:
            with contextlib.suppress(OSError):
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            await GuardedConnection(self._app, self._config, context, self._settings, stream).run()
        finally:
            self._connections -= 1


async def open_listeners(host: str, port: int) -> list[trio.SocketListener]:
    """Bind; a port of 0 picks a free one."""
    try:
        return list(await trio.open_tcp_listeners(port, host=host, backlog=BACKLOG))
    except OSError as error:
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}") from error


async def _refuse(stream: trio.SocketStream) -> None:
    try:
        with trio.move_on_after(1), contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await stream.send_all(_BUSY % (len(_BUSY_BODY), _BUSY_BODY))
            await stream.send_eof()
            while await stream.receive_some(65536):
                pass
    finally:
        await trio.aclose_forcefully(stream)


def _hypercorn_config(settings: HttpSettings) -> Config:
    config = Config()
    config.keep_alive_timeout = settings.idle_s
    config.keep_alive_max_requests = 1_000_000
    config.h11_max_incomplete_size = settings.head_bytes
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = None
    return config
