"""The actor base: one task that owns its state and takes messages from a bounded mailbox."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Generic, TypeVar

import trio

M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class ActorStatistics:
    """A look at one actor."""

    name: str
    mailbox_used: int
    mailbox_size: int
    senders_waiting: int
    handled: int
    running: bool


class Actor(abc.ABC, Generic[M]):
    """Subclasses implement :meth:`handle` (a message loop) or override :meth:`run` (a life of their own).

    A full mailbox makes senders wait: that is how a slow actor slows down whoever feeds it.
    """

    def __init__(self, name: str, mailbox_size: int = 16) -> None:
        self.name = name
        self._mailbox_size = mailbox_size
        self._send, self._receive = trio.open_memory_channel[M](mailbox_size)
        self._handled = 0
        self._running = False

    async def post(self, message: M) -> None:
        """Put a message into the mailbox, waiting for room.

        Raises:
            trio.BrokenResourceError: the actor has ended.
        """
        await self._send.send(message)

    def post_nowait(self, message: M) -> None:
        """Put a message into the mailbox or raise ``trio.WouldBlock``."""
        self._send.send_nowait(message)

    async def live(self) -> None:
        """Run the actor to its end; called once, by the supervisor."""
        self._running = True
        try:
            await self.run()
        finally:
            self._running = False
            self._receive.close()  # senders learn that nobody listens any more

    async def run(self) -> None:
        """Handle messages until the actor is cancelled."""
        while True:
            await self.handle(await self.next_message())

    @abc.abstractmethod
    async def handle(self, message: M) -> None:
        """Handle one message."""

    async def next_message(self) -> M:
        """Take the next message from the mailbox."""
        message = await self._receive.receive()
        self._handled += 1
        return message

    def statistics(self) -> ActorStatistics:
        """Give a look at the actor."""
        channel = self._receive.statistics()
        return ActorStatistics(
            self.name, channel.current_buffer_used, self._mailbox_size, channel.tasks_waiting_send, self._handled,
            self._running,
        )  # fmt: skip
