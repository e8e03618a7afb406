"""A proxy in front of an S3 server that does to requests and answers what networks and stores do on bad days.

It runs inside the test's loop. Requests pass as they come, the ``Host`` header included, so that signatures made for
the proxy's address hold at the server. A rule looks at each request before it passes, and may name one :class:`Fault`.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from urllib.parse import parse_qs, unquote, urlsplit

import h11
import trio

from tests.s3_server import S3Server

_READ_BYTES = 64 * 1024
_STORE_CODES = {
    400: "IncompleteBody", 403: "AccessDenied", 404: "NoSuchKey", 409: "ConditionalRequestConflict",
    412: "PreconditionFailed", 500: "InternalError", 503: "SlowDown", 507: "InsufficientCapacity",
}  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """A request on its way."""

    method: str
    key: str
    """Without the bucket and the store's prefix; ``""`` for requests to the bucket itself."""
    query: dict[str, list[str]]
    headers: dict[str, str]
    number: int
    """Counts from 1, of all requests."""

    @property
    def is_copy(self) -> bool:
        return "x-amz-copy-source" in self.headers

    def under(self, *prefixes: str) -> bool:
        return self.key.startswith(prefixes)


@dataclass(frozen=True)
class Fault:
    """What is done to one request; the first that applies of the following."""

    delay_s: float = 0.0
    """Before it passes; the others apply as well."""
    refuse: int | None = None
    """It does not pass, and this is the answer."""
    swallow: bool = False
    """It does not pass, and the answer says that it was done."""
    cut_request_at: int | None = None
    """So many bytes of the body pass, then both connections break."""
    flip_request_at: int | None = None
    """One bit of this byte of the body."""
    lose_answer: bool = False
    """It passes and is done; then the connection breaks without an answer."""
    answer_instead: int | None = None
    """It passes and is done; the answer says otherwise."""
    hang: bool = False
    """It passes and is done; the answer never comes."""
    cut_answer_at: int | None = None
    """So many bytes of the answer's body, then the connection breaks."""
    flip_answer_at: int | None = None
    """One bit of this byte of the answer's body."""


Rule = Callable[[Asked], Fault | None]


def once(applies: Callable[[Asked], bool], fault: Fault, times: int = 1) -> Rule:
    """Make a rule for the first so many requests that something is true of."""
    left = times

    def rule(asked: Asked) -> Fault | None:
        nonlocal left
        if left and applies(asked):
            left -= 1
            return fault
        return None

    return rule


def always(applies: Callable[[Asked], bool], fault: Fault) -> Rule:
    """Make a rule for all requests that something is true of."""
    return lambda asked: fault if applies(asked) else None


@dataclass
class FaultyS3:
    """The proxy: its rules, and what it has seen."""

    server: S3Server
    port: int
    latency_s: float = 0.0
    """Added to every request."""
    rules: list[Rule] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    faults: list[tuple[Asked, Fault]] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def as_server(self) -> S3Server:
        """The server as it is seen through the proxy; what a test does itself goes past it."""
        return replace(self.server, endpoint=self.endpoint)

    def counts(self) -> dict[str, int]:
        """How many requests of each method came."""
        found: dict[str, int] = {}
        for asked in self.asked:
            name = "COPY" if asked.is_copy else asked.method
            found[name] = found.get(name, 0) + 1
        return found

    def judge(self, request: h11.Request) -> Fault:
        parts = urlsplit(request.target.decode())
        headers = {name.decode(): value.decode("latin-1") for name, value in request.headers}
        key = unquote(parts.path).lstrip("/").partition("/")[2].removeprefix("museworkd/")
        query = parse_qs(parts.query, keep_blank_values=True)
        asked = Asked(request.method.decode(), key, query, headers, len(self.asked) + 1)
        self.asked.append(asked)
        for rule in self.rules:
            fault = rule(asked)
            if fault is not None:
                self.faults.append((asked, fault))
                return replace(fault, delay_s=fault.delay_s + self.latency_s)
        return Fault(delay_s=self.latency_s)


@asynccontextmanager
async def faulty_s3(server: S3Server) -> AsyncIterator[FaultyS3]:
    """Run a proxy in front of a server for the length of a block."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        proxy = FaultyS3(server, listeners[0].socket.getsockname()[1])
        nursery.start_soon(trio.serve_listeners, lambda stream: _serve(proxy, stream), listeners)
        yield proxy
        nursery.cancel_scope.cancel()


class _Side:
    """One side of the proxy: a connection to whom it speaks HTTP."""

    def __init__(self, stream: trio.SocketStream, role: type[h11.SERVER | h11.CLIENT]) -> None:
        self.stream = stream
        self.http = h11.Connection(role)

    async def next(self) -> object:
        while True:
            event = self.http.next_event()
            if event is not h11.NEED_DATA:
                return event
            if self.http.they_are_waiting_for_100_continue:
                await self.send(h11.InformationalResponse(status_code=100, headers=[]))
            self.http.receive_data(bytes(await self.stream.receive_some(_READ_BYTES)))

    async def send(self, event: h11.Event) -> None:
        data = self.http.send(event)
        if data:
            await self.stream.send_all(data)


class _Broken(Exception):
    """The connections are to break now."""


async def _serve(proxy: FaultyS3, stream: trio.SocketStream) -> None:
    """Serve one connection; whatever goes wrong with it ends it."""
    client, server = _Side(stream, h11.SERVER), None
    try:
        while isinstance(request := await client.next(), h11.Request):
            fault = proxy.judge(request)
            await trio.sleep(fault.delay_s)
            if fault.refuse is not None or fault.swallow:
                await _read_off(client)
                await _answer(client, 200 if fault.swallow else fault.refuse or 500, request.method == b"HEAD")
            else:
                port = urlsplit(proxy.server.endpoint).port
                server = server or _Side(await trio.open_tcp_stream("127.0.0.1", port or 80), h11.CLIENT)
                await _pass(client, server, request, fault)
                if server.http.our_state is h11.DONE and server.http.their_state is h11.DONE:
                    server.http.start_next_cycle()
                else:
                    server.stream.socket.close()
                    server = None
            if client.http.our_state is not h11.DONE or client.http.their_state is not h11.DONE:
                break
            client.http.start_next_cycle()
    except (_Broken, OSError, trio.BrokenResourceError, trio.ClosedResourceError, h11.ProtocolError):
        pass
    finally:
        for side in (client, server):
            if side is not None:
                side.stream.socket.close()


async def _pass(client: _Side, server: _Side, request: h11.Request, fault: Fault) -> None:
    expects = {b"expect"}
    headers = [(name, value) for name, value in request.headers if name not in expects]
    await server.send(h11.Request(method=request.method, target=request.target, headers=headers))
    await _carry(client, server, fault.cut_request_at, fault.flip_request_at)
    response = await server.next()
    while isinstance(response, h11.InformationalResponse):
        response = await server.next()
    if not isinstance(response, h11.Response):
        raise _Broken
    if fault.lose_answer or fault.hang or fault.answer_instead is not None:
        await _read_off(server)
        if fault.hang:
            await trio.sleep_forever()
        if fault.lose_answer:
            raise _Broken
        await _answer(client, fault.answer_instead or 500, request.method == b"HEAD")
        return
    await client.send(h11.Response(status_code=response.status_code, headers=response.headers, reason=response.reason))
    await _carry(server, client, fault.cut_answer_at, fault.flip_answer_at)


async def _carry(source: _Side, target: _Side, cut_at: int | None, flip_at: int | None) -> None:
    """Carry a body to its end, or to where it is cut."""
    passed = 0
    while isinstance(event := await source.next(), h11.Data):
        data = bytearray(event.data)
        if flip_at is not None and passed <= flip_at < passed + len(data):
            data[flip_at - passed] ^= 1
        if cut_at is not None and passed + len(data) > cut_at:
            await target.send(h11.Data(data=bytes(data[: cut_at - passed])))
            raise _Broken
        passed += len(data)
        await target.send(h11.Data(data=bytes(data)))
    if not isinstance(event, h11.EndOfMessage):
        raise _Broken
    if cut_at is not None:  # it was shorter: cut before its end
        raise _Broken
    await target.send(h11.EndOfMessage())


async def _read_off(side: _Side) -> None:
    while isinstance(await side.next(), h11.Data):
        pass


async def _answer(client: _Side, status: int, bodiless: bool) -> None:
    code = _STORE_CODES.get(status, "InternalError")
    body = b"" if status == 200 else f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode()
    headers = [("content-type", "application/xml"), ("content-length", str(len(body))), ("etag", '"0"')]
    await client.send(h11.Response(status_code=status, headers=headers))
    if body and not bodiless:
        await client.send(h11.Data(data=body))
    with contextlib.suppress(h11.LocalProtocolError):
        await client.send(h11.EndOfMessage())
