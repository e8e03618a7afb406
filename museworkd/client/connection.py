"""A connection to a server: HTTP/1.1 by h11 on a trio stream, requests one after the other, bodies that stream.

A request may be answered before its body was sent, so a push talks and listens at once. Nothing is followed, decoded,
remembered or sent along that was not asked for: no redirects, cookies or content codings.
"""

from __future__ import annotations

import functools
import os
import re
import select
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self
from urllib.parse import quote, urlsplit

import h11
import trio

from museworkd.client.errors import IntegrityError, TransferError, printable

CONNECT_S = 30.0
QUIET_S = 60.0
"""The server says something at least every 10 s while it works."""
ERROR_BODY_BYTES = 64 * 1024
"""Of an error's body no more is read."""
_READ_BYTES = 64 * 1024
_LARGE_BYTES = 1024 * 1024
"""An answer of a stated length from here on is read past the HTTP parser, which would copy each piece three times."""
_LARGE_READ_BYTES = 256 * 1024
_WRITTEN = "/%:@!$&'()*+,;=~-._?"
"""What stands in a URL for itself."""
_PLAIN = re.compile(r"[A-Za-z0-9/%:@!$&'()*+,;=~\-._?]*")
_LOOKED_AT_S = 1.0
"""A connection that was used so lately is not asked whether it is still open."""


@dataclass(frozen=True, slots=True)
class Target:
    """A URL, taken apart."""

    scheme: str
    host: str
    port: int
    authority: str
    """Host and port as the URL has them: the ``Host`` header."""
    path: str
    """Path and query."""

    @classmethod
    def of(cls, url: str) -> Self:
        """Take a URL apart; raises :class:`ValueError` for what is none."""
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.port == 0:
            raise ValueError("not an http(s) URL")
        host = parts.hostname if parts.hostname.isascii() else parts.hostname.encode("idna").decode("ascii")
        authority = f"[{host}]" if ":" in host else host
        if parts.port is not None:
            authority += f":{parts.port}"
        path = f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}"
        if not _PLAIN.fullmatch(path):
            path = quote(path, _WRITTEN)
        return cls(parts.scheme, host, parts.port or (443 if parts.scheme == "https" else 80), authority, path)

    @classmethod
    def named_by_server(cls, url: str) -> Self:
        """Take apart what a server called a URL; raises :class:`IntegrityError`."""
        try:
            return cls.of(url)
        except ValueError as error:
            raise IntegrityError(f"the server named a URL that is none: {_reason(error)}") from error

    @property
    def origin(self) -> tuple[str, str, int]:
        """What one connection can serve."""
        return self.scheme, self.host, self.port

    @property
    def name(self) -> str:
        """The server, for people."""
        return f"{self.host}:{self.port}"


class _SilentError(TransferError):
    """The server may still be at it."""


class Connection:
    """Requests to one origin. It is opened when it is needed, and anew when the server has closed it meanwhile."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._stream: trio.abc.Stream | None = None
        self._connection = h11.Connection(h11.CLIENT)
        self._used = False
        self._used_at = 0.0
        self._ended = False
        self._held = b""
        self._left: int | None = None
        """Of a large answer: bytes of its body that were not given out yet."""
        self._past_parser = False
        self.status = 0
        self.headers: dict[str, str] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    @property
    def origin(self) -> tuple[str, str, int]:
        """What it can serve."""
        return self._target.origin

    @property
    def content_type(self) -> str:
        """Of the answer that has begun."""
        return self.headers.get("content-type", "")

    async def aclose(self) -> None:
        """Close it at once; it may be used again."""
        stream, self._stream = self._stream, None
        self._left, self._past_parser = None, False
        if stream is not None:
            await trio.aclose_forcefully(stream)

    async def ask(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> None:
        """Send a whole request and wait for the answer to begin.

        A connection that was kept may have been closed by the server just now: then it is sent once more on a new one,
        unless it is a POST, whose answer may be on its way.
        """
        await self._open()
        head = {"content-length": str(len(body))} if body or method in {"POST", "PUT"} else {}
        again = self._used and method != "POST"
        try:
            await self._ask(method, path, {**headers, **head}, body)
        except TransferError as error:
            if not again or self.status or isinstance(error, _SilentError):
                raise
            await self.aclose()
            await self._open()
            await self._ask(method, path, {**headers, **head}, body)

    async def begin(self, method: str, path: str, headers: Mapping[str, str]) -> None:
        """Begin a request whose body is sent by the caller; its head leaves with the first bytes of that."""
        await self._open()
        self._held = self._head(method, path, headers)

    async def send(self, data: bytes) -> None:
        """Send a piece of the body."""
        await self._write(self._connection.send(h11.Data(data=data)))

    async def end(self, last: bytes = b"") -> None:
        """End the body."""
        data = (self._connection.send(h11.Data(data=last)) or b"") if last else b""
        await self._write(data + (self._connection.send(h11.EndOfMessage()) or b""))

    async def response(self) -> None:
        """Wait for the answer to begin; sets ``status`` and ``headers``."""
        event = await self._next()
        while isinstance(event, h11.InformationalResponse):
            event = await self._next()
        if not isinstance(event, h11.Response):
            raise TransferError(f"{self._target.name}: the connection was closed without an answer")
        self.status = event.status_code
        self.headers = {name.decode("ascii"): value.decode("latin-1") for name, value in event.headers}
        stated = "0" if "transfer-encoding" in self.headers else self.headers.get("content-length", "0")
        self._left = int(stated) if int(stated) >= _LARGE_BYTES else None

    async def receive(self) -> bytes:
        """Give the next piece of the answer's body, ``b""`` at its end."""
        if self._past_parser:
            return await self._receive_large()
        while True:
            event = await self._next() if self._left is None else self._event()
            if event is h11.NEED_DATA:  # all that had come with the head was given out
                self._past_parser = True
                return await self._receive_large()
            if isinstance(event, h11.EndOfMessage):
                await self._keep()
                return b""
            if not isinstance(event, h11.Data):
                raise TransferError(f"{self._target.name}: the connection was closed in the middle of the answer")
            if event.data:
                if self._left is not None:
                    self._left -= len(event.data)
                return bytes(event.data)

    async def _receive_large(self) -> bytes:
        """Give what comes as it is; the parser does not know of it, so the connection is closed at the end."""
        assert self._left is not None
        if not self._left:
            await self.aclose()
            return b""
        data = await self._read(_LARGE_READ_BYTES)
        if not data:
            raise TransferError(f"{self._target.name}: the connection was closed in the middle of the answer")
        data = data[: self._left]
        self._left -= len(data)
        return data

    async def receive_all(self, most: int = ERROR_BODY_BYTES) -> bytes:
        """Give a short body whole; of a longer one only so many bytes, and the connection is closed."""
        body = bytearray()
        while piece := await self.receive():
            body += piece
            if len(body) > most:
                await self.aclose()
                break
        return bytes(body[:most])

    async def _ask(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> None:
        data = self._head(method, path, headers)
        if body:
            data += self._connection.send(h11.Data(data=body)) or b""
        data += self._connection.send(h11.EndOfMessage()) or b""
        try:
            await self._write(data)
        except TransferError:
            await self.response()  # a server that wants no more may have said why
            return
        await self.response()

    def _head(self, method: str, path: str, headers: Mapping[str, str]) -> bytes:
        self.status, self.headers = 0, {}
        fields = [("host", self._target.authority), *headers.items()]
        return self._connection.send(h11.Request(method=method, target=path, headers=fields)) or b""

    async def _keep(self) -> None:
        """Make ready for the next request, or close."""
        if self._connection.our_state is h11.DONE and self._connection.their_state is h11.DONE:
            self._connection.start_next_cycle()
            self._used, self._used_at = True, trio.current_time()
        else:
            await self.aclose()

    async def _open(self) -> None:
        if self._stream is not None:
            lately = trio.current_time() - self._used_at < _LOOKED_AT_S
            if self._connection.our_state is not h11.IDLE or (not lately and _readable(self._stream)):
                await self.aclose()  # in the middle of something, or ended by the server
        if self._stream is None:
            self._stream = await _connect(self._target)
            self._connection, self._used, self._ended = h11.Connection(h11.CLIENT), False, False
            self._left, self._past_parser = None, False

    async def _write(self, data: bytes | None) -> None:
        if self._stream is None:  # the answer came early, and was whole
            raise TransferError(f"{self._target.name}: the connection was closed while sending")
        try:
            with trio.fail_after(QUIET_S):
                held, self._held = self._held, b""
                await self._stream.send_all(held + (data or b""))
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError) as error:
            raise TransferError(f"{self._target.name}: the connection was lost while sending") from error

    async def _next(self) -> object:
        while (event := self._event()) is h11.NEED_DATA:
            data = await self._read(_READ_BYTES)
            self._ended = not data
            self._connection.receive_data(data)
        return event

    def _event(self) -> object:
        try:
            return self._connection.next_event()
        except h11.RemoteProtocolError as error:
            where = "in the middle of the answer" if self.status else "without an answer"
            reason = f"the connection was closed {where}" if self._ended else _reason(error)
            raise TransferError(f"{self._target.name}: {reason}") from error

    async def _read(self, most: int) -> bytes:
        assert self._stream is not None
        try:
            with trio.fail_after(QUIET_S):
                return bytes(await self._stream.receive_some(most))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise TransferError(f"{self._target.name}: the connection was lost") from error
        except trio.TooSlowError:
            raise _SilentError(f"{self._target.name}: nothing was heard for {QUIET_S:.0f} s") from None


async def _connect(target: Target) -> trio.abc.Stream:
    try:
        with trio.fail_after(CONNECT_S):
            stream = await trio.open_tcp_stream(target.host, target.port)
            return stream if target.scheme == "http" else await _secured(stream, target)
    except (OSError, trio.BrokenResourceError, ssl.SSLError, UnicodeError) as error:  # the last: no name of a host
        raise TransferError(f"cannot reach {target.name}: {_reason(error.__cause__ or error)}") from error
    except trio.TooSlowError:
        raise TransferError(f"cannot reach {target.name}: no answer in {CONNECT_S:.0f} s") from None


async def _secured(stream: trio.SocketStream, target: Target) -> trio.SSLStream[trio.SocketStream]:
    secured = trio.SSLStream(stream, _tls(), server_hostname=target.host, https_compatible=True)
    try:
        await secured.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return secured


@functools.cache
def _tls() -> ssl.SSLContext:
    """Trust what the environment names, else the usual authorities."""
    if "SSL_CERT_FILE" in os.environ or "SSL_CERT_DIR" in os.environ:
        return ssl.create_default_context()
    import certifi  # takes its time, and only https needs it

    return ssl.create_default_context(cafile=certifi.where())


def _readable(stream: trio.abc.Stream) -> bool:
    """Tell whether something came on a connection that nobody has asked: its end, as a rule."""
    inner = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
    if not isinstance(inner, trio.SocketStream):
        return False
    poll = select.poll()
    poll.register(inner.socket.fileno(), select.POLLIN | select.POLLHUP | select.POLLERR)
    return bool(poll.poll(0))


def _reason(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):  # one for each address that was tried
        return "; ".join(dict.fromkeys(_reason(inner) for inner in error.exceptions))
    if isinstance(error, OSError) and error.errno and not isinstance(error, socket.gaierror | ssl.SSLError):
        return os.strerror(error.errno).lower()  # the address is named already
    return printable(str(error)) or type(error).__name__
