"""Something between a client and a server that cuts connections where a test wants it, and counts what it passes on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from tests.servers import Server


@dataclass
class Cut:
    """Cut a connection this many bytes after the beginning of a request whose first line has such bytes."""

    request: bytes
    after_bytes: int
    stall: bool = False
    """Pass on no more instead; see ``CuttingProxy.stalled``."""


@dataclass
class CuttingProxy:
    """Cuts are used up one by one, in the order of the requests they fit."""

    server: Server
    url: str = ""
    cuts: list[Cut] = field(default_factory=list)
    lost_answers: list[bytes] = field(default_factory=list)
    """An answer that holds such bytes never arrives: the connection is cut instead."""
    sent: dict[str, int] = field(default_factory=dict)
    """Bytes the server was sent, by the request they belong to: method and last words of the path."""
    requests: list[str] = field(default_factory=list)
    stalled: trio.Event = field(default_factory=trio.Event)

    async def relay(self, client: trio.SocketStream) -> None:
        async with client, await self.server.connect() as upstream, trio.open_nursery() as nursery:
            nursery.start_soon(self._forth, client, upstream, nursery.cancel_scope)
            nursery.start_soon(self._back, client, upstream, nursery.cancel_scope)

    async def _forth(self, client: trio.SocketStream, upstream: trio.SocketStream, scope: trio.CancelScope) -> None:
        cut: Cut | None = None
        left = 0
        name = ""
        try:
            async for data in client:
                if (head := bytes(data).partition(b" HTTP/1.1\r\n")[0]) != data and b"\n" not in head:
                    name = _named(head.decode())
                    self.requests.append(name)
                    if self.cuts and self.cuts[0].request in head:
                        cut = self.cuts.pop(0)
                        left = cut.after_bytes
                if cut is not None and len(data) > left:
                    await upstream.send_all(data[:left])
                    self._count(name, left)
                    if cut.stall:
                        self.stalled.set()
                        async for _ in client:  # until it is gone
                            pass
                    break
                left -= len(data)
                await upstream.send_all(data)
                self._count(name, len(data))
        except trio.BrokenResourceError:
            pass
        scope.cancel()

    async def _back(self, client: trio.SocketStream, upstream: trio.SocketStream, scope: trio.CancelScope) -> None:
        try:
            async for data in upstream:
                if self.lost_answers and self.lost_answers[0] in data:
                    self.lost_answers.pop(0)
                    break
                await client.send_all(data)
        except trio.BrokenResourceError:
            pass
        scope.cancel()

    def _count(self, name: str, size: int) -> None:
        self.sent[name] = self.sent.get(name, 0) + size


def _named(head: str) -> str:
    method, _, target = head.partition(" ")
    words = target.partition("?")[0].strip("/").split("/")[2:]
    return f"{method} {'/'.join(words[:2])}"


@asynccontextmanager
async def cutting(server: Server) -> AsyncIterator[CuttingProxy]:
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        proxy = CuttingProxy(server, f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}")
        nursery.start_soon(trio.serve_listeners, proxy.relay, listeners)
        yield proxy
        nursery.cancel_scope.cancel()
