"""A small HTTP/1.1 client for tests, over one real socket: h11 reads the answers, nothing reads between the lines.

It does not follow, retry, decompress or pool. Requests are written as they are given, well formed or not, so that
a test can send any bytes; answers are parsed strictly, one fresh parser each.
"""

from __future__ import annotations

import json as json_codec
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import h11
import msgpack as msgpack_codec
import trio

from tests.muse import last_frame
from tests.servers import TOKENS, Server

MSGPACK = "application/x-msgpack"
PACKSTREAM = "application/x-muse-packstream"
PATIENCE_S = 15.0
"""How long a test waits for what must come soon."""
HOST = "museworkd.test"
"""How the server is addressed, and therefore what it has in its URLs."""
_READ_BYTES = 64 * 1024


@dataclass(frozen=True)
class Answer:
    """What the server said."""

    status: int
    headers: dict[str, str]
    body: bytes
    complete: bool
    """Whether it ended as HTTP says it must, and not by a cut connection."""

    @property
    def value(self) -> object:
        """The body, decoded by its Content-Type."""
        if self.headers["content-type"] == MSGPACK:
            return msgpack_codec.unpackb(self.body)
        assert self.headers["content-type"] == "application/json", self.headers
        return json_codec.loads(self.body)

    @property
    def error(self) -> str:
        """The stable code of an error answer, whose envelope is checked on the way."""
        value = self.value
        assert isinstance(value, dict), value
        assert isinstance(value["error"], str)
        assert isinstance(value["detail"], str)
        assert value["detail"]
        assert isinstance(value["retryable"], bool)
        assert value["request_id"] == self.headers["x-request-id"] != ""
        return value["error"]


class Connection:
    """One connection to a server under test."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._left = b""
        self._parser: h11.Connection | None = None

    async def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        with trio.fail_after(PATIENCE_S):
            await self.stream.send_all(data)

    async def send_chunk(self, data: bytes) -> None:
        """Send a piece of a chunked body; ``b""`` ends it."""
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def send_eof(self) -> None:
        """End the sending side."""
        await self.stream.send_eof()

    async def ask(self, method: str, target: str, **options: object) -> Answer:
        """Send a request and read its answer."""
        await self.send(request_bytes(method, target, **options))
        return await self.answer(method)

    async def begin_answer(self, method: str = "GET") -> tuple[int, dict[str, str]]:
        """Read the head of an answer; interim answers are skipped."""
        self._new_parser(method)
        while True:
            event = await self._event()
            if isinstance(event, h11.Response):
                headers = {name.decode(): value.decode() for name, value in event.headers}
                return event.status_code, headers
            if not isinstance(event, h11.InformationalResponse):
                raise AnswerCutError(f"{event!r} instead of an answer")

    async def interim(self) -> int:
        """Read an interim (1xx) answer."""
        parser = self._new_parser("POST")
        event = await self._event()
        assert isinstance(event, h11.InformationalResponse), event
        self._left = bytes(parser.trailing_data[0])
        return event.status_code

    async def piece(self) -> bytes:
        """Read the next bytes of the answer's body, ``b""`` at its proper end."""
        event = await self._event()
        if isinstance(event, h11.Data):
            return bytes(event.data)
        if not isinstance(event, h11.EndOfMessage):
            raise AnswerCutError(f"{event!r} instead of a body")
        assert self._parser is not None
        self._left = bytes(self._parser.trailing_data[0])
        return b""

    async def answer(self, method: str = "GET") -> Answer:
        """Read a whole answer."""
        status, headers = await self.begin_answer(method)
        body, complete = await self.rest()
        return Answer(status, headers, body, complete)

    async def rest(self) -> tuple[bytes, bool]:
        """Read what is left of the answer's body; tells whether it ended properly."""
        body = bytearray()
        try:
            while piece := await self.piece():
                body += piece
        except AnswerCutError:
            return bytes(body), False
        return bytes(body), True

    async def until_end(self) -> bytes:
        """Read until the server closes the connection, gracefully or not; gives what came before."""
        data, self._left = bytearray(self._left), b""
        with trio.fail_after(PATIENCE_S):
            try:
                while piece := await self.stream.receive_some(_READ_BYTES):
                    data += piece
            except trio.BrokenResourceError:
                pass
        return bytes(data)

    async def ended_within(self, seconds: float) -> bool:
        """Wait for the server to close the connection, dropping what it sends; tells whether it did."""
        with trio.move_on_after(seconds) as scope:
            await self.until_end()
        return not scope.cancelled_caught

    def _new_parser(self, method: str) -> h11.Connection:
        parser = self._parser = h11.Connection(h11.CLIENT)
        parser.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
        parser.send(h11.EndOfMessage())
        if self._left:  # to h11, no bytes mean the end
            parser.receive_data(self._left)
            self._left = b""
        return parser

    async def _event(self) -> object:
        parser = self._parser
        assert parser is not None
        while True:
            try:
                event = parser.next_event()
            except h11.RemoteProtocolError as error:
                raise AnswerCutError(str(error)) from None
            if event is not h11.NEED_DATA:
                return event
            with trio.fail_after(PATIENCE_S):
                try:
                    data = await self.stream.receive_some(_READ_BYTES)
                except trio.BrokenResourceError:
                    data = b""
            parser.receive_data(data)


class AnswerCutError(Exception):
    """The connection ended before the answer did."""


@asynccontextmanager
async def connected(server: Server) -> AsyncIterator[Connection]:
    """Open a connection for the length of a block."""
    async with await server.connect() as stream:
        yield Connection(stream)


async def ask(server: Server, method: str, target: str, **options: object) -> Answer:
    """Send one request on a connection of its own; see ``request_bytes`` for the options.

    A target that is a whole URL of another host, such as one an object store has, is asked there.
    """
    parts = urlsplit("" if target.startswith("//") else target)
    target = target.removeprefix(f"{parts.scheme}://{parts.netloc}")
    if parts.netloc and parts.netloc != HOST:
        async with await trio.open_tcp_stream(parts.hostname or "", parts.port or 80) as stream:
            options["headers"] = {"host": parts.netloc, **(options.get("headers") or {})}
            return await Connection(stream).ask(method, target, **options)
    async with connected(server) as connection:
        return await connection.ask(method, target, **options)


async def push(
    server: Server, frames: bytes, *, repository: str = "alice/x", token: str | None = "alice", **options: object
) -> dict[str, object]:
    """Push frames; gives the last frame, or a refusal before the first one as a frame of the type ``status``."""
    answer = await ask(server, "POST", f"/{repository}/push/stream", token=token, body=frames, **options)
    assert answer.complete
    if answer.status == 200:
        assert answer.headers["content-type"] == PACKSTREAM
        return last_frame(answer.body)
    return {"type": "status", "status": answer.status, **answer.value}


def without_id(answer: Answer) -> tuple[int, object, dict[str, str]]:
    """Everything of a refusal but what is different in every answer."""
    headers = {k: v for k, v in answer.headers.items() if k not in {"x-request-id", "date"}}
    return answer.status, {k: v for k, v in answer.value.items() if k != "request_id"}, headers


def request_bytes(
    method: str, target: str, *, token: str | None = None, headers: Mapping[str, str] | None = None,
    body: bytes | None = None, json: object = None, msgpack: object = None,
) -> bytes:  # fmt: skip
    """Write a request whose body, if any, is sent with its length. ``token`` is a handle of ``TOKENS``."""
    fields = {}
    if json is not None:
        body, fields = json_codec.dumps(json).encode(), {"content-type": "application/json"}
    elif msgpack is not None:
        body, fields = msgpack_codec.packb(msgpack), {"content-type": MSGPACK}
    if body is not None:
        fields["content-length"] = str(len(body))
    return head_bytes(method, target, token=token, headers={**fields, **(headers or {})}) + (body or b"")


def head_bytes(
    method: str, target: str, *, token: str | None = None, headers: Mapping[str, str] | None = None
) -> bytes:
    """Write a request's head."""
    fields = {"host": HOST, **({"authorization": f"Bearer {TOKENS[token]}"} if token else {})}
    fields |= {name.lower(): value for name, value in (headers or {}).items()}
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1")
