"""hypercorn's HTTP/1.1 connection, guarded.

Stock hypercorn 0.18 on trio lets one connection end the whole process (any exception of its protocol escapes into the
server's nursery), speaks HTTP/2 and WebSocket on request, deadlocks a connection whose application answers
before it has read its request, and resets that connection before the answer has arrived. Here

* whatever goes wrong in a connection ends that connection only;
* HTTP/1.1 is all that is spoken (TLS and HTTP/2 belong to the proxy in front);
* a request whose length can be read in two ways is refused;
* data for an application that has finished is dropped, and a disconnect never waits;
* after an early answer the connection is closed for writing and read on for a while, so that a client that is
  still uploading gets to see the answer;
* a client that ends its sending side after a complete request still gets its answer;
* a client that does not take its answer is dropped after a while.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import h11
import structlog
import trio
from h11._readers import ContentLengthReader
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Body, Request
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.trio.task_group import TaskGroup, _handle
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState
from hypercorn.utils import parse_socket_addr

from museworkd.http.settings import HttpSettings

log = structlog.get_logger("http")

READ_BYTES = 64 * 1024
"""h11 is three to five times slower with 256 KiB reads."""
BODY_READ_BYTES = 256 * 1024
_QUEUED_EVENTS = 8
_QUEUED_BYTES = 512 * 1024
_FULL_URL = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)


class GuardedConnection(TCPServer):
    """One connection; :meth:`run` never raises but for cancellation."""

    def __init__(
        self, app: AppWrapper, config: Config, context: WorkerContext, settings: HttpSettings,
        stream: trio.SocketStream,
    ) -> None:  # fmt: skip
        super().__init__(app, config, context, {}, stream)  # type: ignore[arg-type]
        self._settings = settings
        self._lingering = False
        self._reading = True
        self._reader_scope: trio.CancelScope | None = None

    async def run(self) -> None:
        """Serve the connection to its end."""
        try:
            await self._serve()
        except OSError:
            pass  # the peer is gone
        except BaseExceptionGroup as group:
            mine, rest = group.split(Exception)
            if mine is not None and mine.subgroup(lambda e: not isinstance(e, OSError)) is not None:
                log.error("connection ended by an error", exc_info=mine)
            if rest is not None:
                raise rest from None
        except Exception:
            log.exception("connection ended by an error")
        finally:
            await self._close()

    async def _serve(self) -> None:
        socket = self.stream.socket
        client = parse_socket_addr(socket.family, socket.getpeername())
        server = parse_socket_addr(socket.family, socket.getsockname())
        async with _ConnectionTasks() as tasks:
            self._task_group = tasks
            self._http = _Http1Protocol(
                self.app, self.config, self.context, tasks, ConnectionState({}), False, client, server,
                self.protocol_send,
            )  # fmt: skip
            self.protocol = self._http  # type: ignore[assignment]
            await self.idle_task.restart(tasks, self._idle_timeout)
            await self._read_data()
            self._reading = False
            await self.idle_task.stop()  # it would hold a connection that is gone

    async def protocol_send(self, event: Event) -> None:
        """Pass bytes on to the client; turn an early close into a lingering one."""
        if isinstance(event, RawData):
            await self._send(event.data)
        elif isinstance(event, Closed) and self._still_uploading():
            await self._begin_linger()
        elif self._reading or not isinstance(event, Updated):
            await super().protocol_send(event)

    async def _send(self, data: bytes) -> None:
        async with self.send_lock:
            try:
                with trio.fail_after(self._settings.send_s):
                    await self.stream.send_all(data)
            except trio.Cancelled:
                await trio.aclose_forcefully(self.stream)  # a part may be out: nothing sensible can follow
                raise
            except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
                await trio.aclose_forcefully(self.stream)
                await self.protocol.handle(Closed())

    def _still_uploading(self) -> bool:
        return not self._lingering and self._http.connection.their_state is h11.SEND_BODY

    async def _begin_linger(self) -> None:
        self._lingering = True
        await self.idle_task.stop()
        async with self.send_lock:
            try:
                await self.stream.send_eof()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                await self._close()
        if self._reader_scope is not None:
            self._reader_scope.cancel()  # the reader goes on by dropping what it reads

    async def _read_data(self) -> None:
        while not self._lingering:
            body_bytes = self._http.plain_body_bytes()
            data = await self._read_some(min(body_bytes, BODY_READ_BYTES) or READ_BYTES)
            if data is None:
                break
            if data and body_bytes:
                await self._http.take_body(data)
                continue
            answering = self._http.request_is_complete
            await self.protocol.handle(RawData(data))
            if not data and answering:
                return  # only the sending side has ended: the answer is still wanted, and is the last one
            if not data:
                break
        if self._lingering:
            await self._linger()
        await self.protocol.handle(Closed())

    async def _read_some(self, most: int) -> bytes | None:
        """Give the next bytes; ``None`` when the connection is gone or lingers now."""
        scope = self._reader_scope = trio.CancelScope()
        try:
            with scope:
                return bytes(await self.stream.receive_some(most))
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            pass
        finally:
            self._reader_scope = None
        return None

    async def _close(self) -> None:
        await trio.aclose_forcefully(self.stream)  # under cancellation as well, and whatever another task does with it

    async def _linger(self) -> None:
        left = self._settings.linger_bytes
        with trio.move_on_after(self._settings.linger_s):
            try:
                while left > 0 and (data := await self.stream.receive_some(READ_BYTES)):
                    left -= len(data)
            except (trio.ClosedResourceError, trio.BrokenResourceError):
                pass


class _Stream(HTTPStream):
    """Tell the protocol when the end of an answer comes with its last bytes."""

    def __init__(self, protocol: _Http1Protocol, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._protocol = protocol

    async def app_send(self, message: Any) -> None:
        self._protocol.ending = (
            message is not None and message["type"] == "http.response.body" and not message.get("more_body", False)
        )
        await super().app_send(message)


class _Http1Protocol(H11Protocol):
    """HTTP/1.1 and nothing else. Head, last bytes and end of an answer leave in as few packets as they can."""

    ending = False
    _held = b""

    def plain_body_bytes(self) -> int:
        """Give how many bytes can come next that are nothing but the request's body; 0 when h11 has to look.

        h11 spends as much on 64 KiB of a body with a stated length as receiving and writing them costs. All it does is
        to count them; the last byte is left to it, for it ends the request.
        """
        connection: Any = self.connection  # a test tells when h11 names its parts otherwise
        reader = connection._reader  # noqa: SLF001
        if self.stream is None or not isinstance(reader, ContentLengthReader) or connection._receive_buffer:  # noqa: SLF001
            return 0
        left: int = reader._remaining - 1  # noqa: SLF001
        return left if left >= READ_BYTES else 0

    async def take_body(self, data: bytes) -> None:
        """Pass on bytes of a body."""
        connection: Any = self.connection
        connection._reader._remaining -= len(data)  # noqa: SLF001
        if self.stream is not None:  # it may have answered while they came
            await self.stream.handle(Body(stream_id=STREAM_ID, data=data))

    async def _send_h11_event(self, event: Any) -> None:
        try:
            data = self._held + (self.connection.send(event) or b"")
        except h11.LocalProtocolError:
            if self.connection.their_state != h11.ERROR:
                raise
            return
        if isinstance(event, h11.Response) or (self.ending and isinstance(event, h11.Data)):
            self._held = data  # more follows at once
            return
        self._held = b""
        await self.send(RawData(data=data))

    async def _maybe_recycle(self) -> None:
        if self._held:  # of an answer that is cut
            data, self._held = self._held, b""
            await self.send(RawData(data=data))
        await super()._maybe_recycle()

    @property
    def request_is_complete(self) -> bool:
        """Whether a whole request has been read and is being answered."""
        return self.stream is not None and self.connection.their_state in {h11.DONE, h11.MUST_CLOSE}

    async def _check_protocol(self, event: h11.Request) -> None:
        if event.method == b"PRI":
            raise h11.RemoteProtocolError("HTTP/2 is not spoken here", error_status_hint=505)
        if event.method == b"CONNECT":
            raise h11.RemoteProtocolError("this is not a proxy", error_status_hint=405)
        names = {name.lower() for name, _ in event.headers}
        if b"transfer-encoding" in names and b"content-length" in names:
            # a proxy that believes the other of the two sees other requests than we do (threat T18)
            raise h11.RemoteProtocolError("both a length and a transfer coding")
        _origin_form(event.target)

    async def _handle_events(self) -> None:
        try:
            await super()._handle_events()
        except h11.RemoteProtocolError as error:
            if self.connection.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
                await self._send_error_response(error.error_status_hint)
            await self.send(Closed())

    async def _create_stream(self, request: h11.Request) -> None:
        self.stream = _Stream(
            self, self.app, self.config, self.context, self.task_group, self.ssl, self.client, self.server,
            self.stream_send, STREAM_ID,
        )  # fmt: skip
        await self.stream.handle(
            Request(
                stream_id=STREAM_ID, headers=list(request.headers), http_version=request.http_version.decode("ascii"),
                method=request.method.decode("ascii").upper(), raw_path=_origin_form(request.target),
                state=self.connection_state,
            )
        )  # fmt: skip
        self.keep_alive_requests += 1


def _origin_form(target: bytes) -> bytes:
    """Give path and query of a request target; a full URL is meant for us as well (RFC 9112 §3.2.2)."""
    full = _FULL_URL.match(target)
    if full is not None:
        target = target[full.end() :]
        target = target if target.startswith(b"/") else b"/" + target
    if not target.isascii() or not target.startswith(b"/"):  # h11 lets through what the URL grammar does not
        raise h11.RemoteProtocolError("the request target is not a path")
    return target


class _ConnectionTasks(TaskGroup):
    """Start the application with a queue that cannot deadlock the connection."""

    async def spawn_app(
        self, app: AppWrapper, config: Config, scope: Any, send: Callable[[Any], Awaitable[None]]
    ) -> Callable[[Any], Awaitable[None]]:
        queue = _AppQueue()

        async def give(message: Any) -> None:
            if queue.disconnected and message is not None:
                raise ConnectionResetError("nobody takes this answer any more")
            await send(message)

        async def run() -> None:
            try:
                await _handle(app, config, scope, queue.get, give, trio.to_thread.run_sync, trio.from_thread.run)
            finally:
                queue.finish()

        self.spawn(run)
        return queue.put


class _AppQueue:
    """Events on their way to the application: bounded, unless it is gone or the client is."""

    def __init__(self) -> None:
        self._events: deque[Any] = deque()
        self._bytes = 0
        self._disconnect: Any = None
        self._finished = False
        self._changed = trio.Event()

    @property
    def disconnected(self) -> bool:
        """Whether the client is gone, or has its whole answer."""
        return self._disconnect is not None

    @property
    def _is_full(self) -> bool:
        return len(self._events) >= _QUEUED_EVENTS or self._bytes >= _QUEUED_BYTES

    async def put(self, event: Any) -> None:
        """Queue an event; waits while the application is behind."""
        if event["type"] == "http.disconnect":
            self._disconnect = event
            self._wake()
            return
        while self._is_full and not self._finished and self._disconnect is None:
            await self._changed.wait()
        if not self._finished and self._disconnect is None:
            self._events.append(event)
            self._bytes += len(event.get("body", b""))
            self._wake()

    async def get(self) -> Any:
        """Give the next event; a disconnect is given again and again."""
        while not self._events and self._disconnect is None:
            await self._changed.wait()
        await trio.lowlevel.checkpoint()
        if self._events:
            event = self._events.popleft()
            self._bytes -= len(event.get("body", b""))
            self._wake()
            return event
        return self._disconnect

    def finish(self) -> None:
        """The application has ended: drop everything from now on."""
        self._finished = True
        self._events.clear()
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
