"""Talking to a server: small requests and downloads over httpx, pushes over a connection that streams both ways.

httpx sends a whole request before it reads the answer, so a push's progress and early refusals would not be seen; the
duplex connection is h11 on a trio stream.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Self
from urllib.parse import urlsplit

import certifi
import h11
import httpx
import msgpack
import trio

from museworkd.client.errors import ClientError, IntegrityError, TransferError
from museworkd.client.remote import MSGPACK, UNENCODED, Remote
from wire.canonical import parse_json
from wire.errors import Refusal
from wire.pull import unpack_whole

__all__ = [
    "MSGPACK", "Api", "Duplex", "Remote", "decode", "download", "open_duplex", "printable", "refusal_error", "refused",
]  # fmt: skip
CONNECT_S = 30.0
QUIET_S = 60.0
"""The server says something at least every 10 s while it works."""
_READ_BYTES = 64 * 1024
_ERROR_BODY_BYTES = 64 * 1024
"""Of an error's body no more is read."""
ANSWER_BYTES = 16 * 1024 * 1024
"""The longest control answer: the heads of some 150,000 branches."""


class Api:
    """Control requests to one repository."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self._client = httpx.AsyncClient(timeout=httpx.Timeout(QUIET_S, connect=CONNECT_S), follow_redirects=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._client.aclose()

    async def get(self, path: str) -> dict[str, object]:
        """GET an endpoint."""
        return await self._call("GET", path, None)

    async def post(self, path: str, body: Mapping[str, object]) -> dict[str, object]:
        """POST a map to an endpoint."""
        return await self._call("POST", path, body)

    async def _call(self, method: str, path: str, body: Mapping[str, object] | None) -> dict[str, object]:
        headers = self._remote.headers
        content = None
        if body is not None:
            content = msgpack.packb(body)
            headers["content-type"] = MSGPACK
        try:
            async with self._client.stream(method, self._remote.at(path), headers=headers, content=content) as response:
                kind = response.headers.get("content-type", "")
                if response.status_code >= 300:
                    raise refused(response.status_code, kind, await _error_body(response))
                return decode(kind, await _answer(response))
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise TransferError(f"cannot reach {self._remote.url}: {_reason(error)}") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise TransferError(f"{self._remote.url}: {_reason(error)}") from error


@asynccontextmanager
async def download(url: str, offset: int) -> AsyncIterator[tuple[int, AsyncIterator[bytes]]]:
    """GET a URL from an offset on; gives the offset the server really starts at, and the pieces."""
    headers = {"user-agent": "museworkd-client", **UNENCODED}
    if offset:
        headers["range"] = f"bytes={offset}-"
    timeout = httpx.Timeout(QUIET_S, connect=CONNECT_S)
    try:
        async with (
            httpx.AsyncClient(timeout=timeout, follow_redirects=False) as client,
            client.stream("GET", url, headers=headers) as response,
        ):
            if response.status_code not in {200, 206}:
                body = await _error_body(response)
                raise refused(response.status_code, response.headers.get("content-type", ""), body)
            _check_unencoded(response.headers.get("content-encoding", ""))
            pieces = response.aiter_raw(256 * 1024)
            try:
                yield (offset if response.status_code == 206 else 0), pieces
            except Exception:
                await _give_up(response, pieces)
                raise
    except httpx.InvalidURL as error:
        raise IntegrityError(f"the server named a URL that is none: {_reason(error)}") from error
    except httpx.HTTPError as error:
        raise TransferError(f"the download was cut: {_reason(error)}") from error


async def _answer(response: httpx.Response) -> bytes:
    _check_unencoded(response.headers.get("content-encoding", ""))
    body = await _beginning(response, ANSWER_BYTES)
    if len(body) > ANSWER_BYTES:
        raise IntegrityError(f"the server's answer is longer than {ANSWER_BYTES} bytes")
    return body


async def _error_body(response: httpx.Response) -> bytes:
    """Give the beginning of an error's body: what is longer is no sentence for anybody."""
    return (await _beginning(response, _ERROR_BODY_BYTES))[:_ERROR_BODY_BYTES]


async def _beginning(response: httpx.Response, most: int) -> bytes:
    """Read a body to its end, or until it has more than ``most`` bytes."""
    body = bytearray()
    pieces = response.aiter_raw()
    async for piece in pieces:
        body += piece
        if len(body) > most:
            await _give_up(response, pieces)
            break
    return bytes(body)


async def _give_up(response: httpx.Response, pieces: AsyncIterator[bytes]) -> None:
    """Close a connection in the middle of a body; httpx ends its generators only when they are asked for more."""
    await response.aclose()
    with contextlib.suppress(httpx.HTTPError, httpx.StreamError):
        async for _ in pieces:
            pass


def _check_unencoded(encoding: str) -> None:
    if encoding.strip().lower() not in {"", "identity"}:
        raise IntegrityError(f"the server's answer is encoded ({printable(encoding)[:40]}), which was not asked for")


def _reason(error: Exception) -> str:
    return printable(str(error)) or type(error).__name__


class Duplex:
    """One request whose body and answer stream at the same time."""

    def __init__(self, stream: trio.abc.Stream, name: str) -> None:
        self._stream = stream
        self._name = name
        self._connection = h11.Connection(h11.CLIENT)
        self.status = 0
        self.content_type = ""

    async def send(self, data: bytes) -> None:
        """Send a piece of the body."""
        await self._write(self._connection.send(h11.Data(data=data)))

    async def end(self) -> None:
        """End the body."""
        await self._write(self._connection.send(h11.EndOfMessage()))

    async def response(self) -> None:
        """Wait for the answer to begin; sets ``status`` and ``content_type``."""
        event = await self._next()
        while isinstance(event, h11.InformationalResponse):
            event = await self._next()
        if not isinstance(event, h11.Response):
            raise TransferError(f"{self._name}: the connection was closed without an answer")
        self.status = event.status_code
        fields = {bytes(name): bytes(value).decode("latin-1") for name, value in event.headers}
        self.content_type = fields.get(b"content-type", "")
        _check_unencoded(fields.get(b"content-encoding", ""))

    async def receive(self) -> bytes:
        """Give the next piece of the answer's body, ``b""`` at its end."""
        while True:
            event = await self._next()
            if isinstance(event, h11.EndOfMessage):
                return b""
            if not isinstance(event, h11.Data):
                raise TransferError(f"{self._name}: the connection was closed in the middle of the answer")
            if event.data:
                return bytes(event.data)

    async def receive_all(self, most: int = _ERROR_BODY_BYTES) -> bytes:
        """Give a short body whole, or its first ``most`` bytes."""
        body = b""
        while len(body) < most and (piece := await self.receive()):
            body += piece
        return body[:most]

    async def _begin(self, method: str, target: str, headers: Mapping[str, str]) -> None:
        await self._write(
            self._connection.send(h11.Request(method=method, target=target, headers=list(headers.items())))
        )

    async def _write(self, data: bytes | None) -> None:
        try:
            with trio.fail_after(QUIET_S):
                await self._stream.send_all(data or b"")
        except (trio.BrokenResourceError, trio.TooSlowError) as error:
            raise TransferError(f"{self._name}: the connection was lost while sending") from error

    async def _next(self) -> object:
        while True:
            try:
                event = self._connection.next_event()
            except h11.RemoteProtocolError as error:
                raise TransferError(f"{self._name}: {_reason(error)}") from error
            if event is not h11.NEED_DATA:
                return event
            try:
                with trio.fail_after(QUIET_S):
                    data = bytes(await self._stream.receive_some(_READ_BYTES))
            except trio.BrokenResourceError as error:
                raise TransferError(f"{self._name}: the connection was lost") from error
            except trio.TooSlowError:
                raise TransferError(f"{self._name}: nothing was heard for {QUIET_S:.0f} s") from None
            self._connection.receive_data(data)


@asynccontextmanager
async def open_duplex(remote: Remote, path: str, content_type: str) -> AsyncIterator[Duplex]:
    """Begin a POST whose body is sent by the caller."""
    parts = urlsplit(remote.at(path))
    assert parts.hostname is not None
    port = parts.port or (443 if parts.scheme == "https" else 80)
    name = f"{parts.hostname}:{port}"
    try:
        with trio.fail_after(CONNECT_S):
            stream: trio.abc.Stream = await trio.open_tcp_stream(parts.hostname, port)
            if parts.scheme == "https":
                context = ssl.create_default_context(cafile=certifi.where())
                secured = trio.SSLStream(stream, context, server_hostname=parts.hostname, https_compatible=True)
                await secured.do_handshake()
                stream = secured
    except (OSError, trio.BrokenResourceError, ssl.SSLError) as error:
        raise TransferError(f"cannot reach {name}: {error}") from error
    except trio.TooSlowError:
        raise TransferError(f"cannot reach {name}: no answer in {CONNECT_S:.0f} s") from None
    try:
        duplex = Duplex(stream, name)
        host = parts.netloc.rpartition("@")[2]
        headers = {"host": host, **remote.headers, "content-type": content_type, "transfer-encoding": "chunked"}
        await duplex._begin("POST", parts.path, headers)  # noqa: SLF001 - same module
        yield duplex
    finally:
        await trio.aclose_forcefully(stream)


def decode(content_type: str, body: bytes) -> dict[str, object]:
    """Decode a control answer."""
    try:
        value = unpack_whole(body, "the answer") if MSGPACK in content_type else parse_json(body, "the answer")
    except Refusal as refusal:
        raise IntegrityError(f"the server's answer cannot be read: {refusal.detail}") from refusal
    if not isinstance(value, dict):
        raise IntegrityError("the server's answer is not a map")
    return value


def refused(status: int, content_type: str, body: bytes) -> ClientError:
    """Make an error out of an error answer."""
    try:
        members = decode(content_type, body)
    except IntegrityError:
        return ClientError(f"the server answered {status}")
    return refusal_error(members, status)


def refusal_error(members: Mapping[str, object], status: int = 0) -> ClientError:
    """Make an error out of the envelope of protocol §11."""
    code = str(members.get("error", status))
    text = f"refused by the server ({printable(code)}): {printable(str(members.get('detail', '')))}"
    missing = members.get("missing")
    if isinstance(missing, list) and len(missing) > 1:
        text += f" (and {len(missing) - 1} more listed)"
    return TransferError(text, code) if members.get("retryable") is True else ClientError(text, code)


def printable(text: str) -> str:
    """Make text from elsewhere safe for a terminal (threat T26)."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
