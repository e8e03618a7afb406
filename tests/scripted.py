"""A server that says what a test tells it to, for clients whose server is hostile."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import h11
import trio


class Scripted:
    """A server that answers as it is told, and keeps the heads of what it was asked."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.answers: list[tuple[int, dict[str, str], bytes | Iterator[bytes]]] = []
        self.streamed_bytes = 0
        """Of bodies without an end, what the client took."""
        self.heads: list[tuple[str, dict[str, str]]] = []

    def say(self, body: object, status: int = 200, **headers: str) -> None:
        given = isinstance(body, bytes | Iterator)
        data = body if given else json.dumps(body).encode()
        kind = {} if given else {"content-type": "application/json"}
        self.answers.append((status, {**kind, **{k.replace("_", "-"): v for k, v in headers.items()}}, data))

    async def handle(self, stream: trio.SocketStream) -> None:
        connection = h11.Connection(h11.SERVER)
        async with stream:
            while True:
                event = connection.next_event()
                if event is h11.NEED_DATA:
                    connection.receive_data(await stream.receive_some(65536))
                elif isinstance(event, h11.Request):
                    headers = {name.decode(): value.decode() for name, value in event.headers}
                    self.heads.append((event.target.decode(), headers))
                elif isinstance(event, h11.EndOfMessage):
                    status, fields, body = self.answers.pop(0)
                    if not isinstance(body, bytes):
                        await self._stream(stream, connection, status, fields, body)
                        return
                    fields = {**fields, "content-length": str(len(body)), "connection": "close"}
                    data = connection.send(h11.Response(status_code=status, headers=list(fields.items())))
                    await stream.send_all(data + connection.send(h11.Data(data=body)))
                    return
                elif isinstance(event, h11.ConnectionClosed):
                    return

    async def _stream(self, stream, connection, status: int, fields: dict[str, str], body: Iterator[bytes]) -> None:
        """Send pieces for as long as the client takes them."""
        fields = {**fields, "transfer-encoding": "chunked", "connection": "close"}
        data = connection.send(h11.Response(status_code=status, headers=list(fields.items())))
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(data)
            for piece in body:
                await stream.send_all(connection.send(h11.Data(data=piece)))
                self.streamed_bytes += len(piece)


@asynccontextmanager
async def scripted() -> AsyncIterator[Scripted]:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    server = Scripted(f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, server.handle, listeners)
        yield server
        nursery.cancel_scope.cancel()
