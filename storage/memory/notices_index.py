"""The notifications of the memory index."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import trio

from storage.index import UNREAD_NOTIFICATIONS


class MemoryNotices:
    """See ``storage.index.Index`` for what each operation promises."""

    _listeners: dict[str, list[trio.MemorySendChannel[str]]]

    async def notify(self, channel: str, payload: str) -> None:
        await trio.lowlevel.checkpoint()
        self.notify_now(channel, payload)

    def notify_now(self, channel: str, payload: str) -> None:
        for listener in self._listeners.get(channel, []):
            with suppress(trio.WouldBlock):
                listener.send_nowait(payload)

    @asynccontextmanager
    async def listen(self, channel: str) -> AsyncIterator[AsyncIterator[str]]:
        await trio.lowlevel.checkpoint()
        send, receive = trio.open_memory_channel[str](UNREAD_NOTIFICATIONS)
        self._listeners.setdefault(channel, []).append(send)
        try:
            yield receive
        finally:
            self._listeners[channel].remove(send)
