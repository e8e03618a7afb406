"""Something between a client and PostgreSQL that can lose the answer to a COMMIT."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

SOCKET_NAME = ".s.PGSQL.5432"


class LossyProxy:
    """Relays a Unix socket directory; while ``losses`` is positive, answers to COMMIT are lost with the connection."""

    def __init__(self, server_directory: Path) -> None:
        self._server = server_directory / SOCKET_NAME
        self.losses = 0

    async def relay(self, client: trio.SocketStream) -> None:
        server = await trio.open_unix_socket(self._server)
        copied = trio.Event()
        async with client, server, trio.open_nursery() as nursery:
            nursery.start_soon(self._copy, server, client, nursery.cancel_scope, copied)
            async for data in client:
                if self.losses and b"COMMIT" in data:
                    self.losses -= 1
                    nursery.cancel_scope.cancel()
                    with trio.CancelScope(shield=True):
                        await copied.wait()  # nobody else reads the answer
                        await server.send_all(data)
                        await server.receive_some()  # it is done, and nobody will hear of it
                    break
                await server.send_all(data)
            nursery.cancel_scope.cancel()

    async def _copy(
        self, server: trio.SocketStream, client: trio.SocketStream, scope: trio.CancelScope, copied: trio.Event
    ) -> None:
        try:
            async for data in server:
                await client.send_all(data)
        finally:
            copied.set()
        scope.cancel()


@asynccontextmanager
async def lossy_proxy(server_directory: Path, directory: Path) -> AsyncIterator[LossyProxy]:
    """Offer a server's socket in another directory."""
    proxy = LossyProxy(server_directory)
    listener = trio.socket.socket(trio.socket.AF_UNIX)
    await listener.bind(str(directory / SOCKET_NAME))
    listener.listen()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, proxy.relay, [trio.SocketListener(listener)])
        yield proxy
        nursery.cancel_scope.cancel()
