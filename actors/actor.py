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
        self._stirred = trio.Event()
        self._woken = False
        self._questions: list[trio.Event] = []

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

    async def rest(self, seconds: float) -> None:
        """Wait until time has passed or :meth:`wake` is called, answering the watchdog meanwhile."""
        await trio.lowlevel.checkpoint()
        with trio.move_on_after(seconds):
            while True:
                self.answer()
                if self._woken:
                    break
                self._stirred = trio.Event()
                await self._stirred.wait()
        self._woken = False

    def wake(self) -> None:
        """End the present rest, or else the next one as soon as it begins."""
        self._woken = True
        self._stirred.set()

    async def round_trip(self) -> None:
        """Wait until the actor has come to answer; only an actor that takes rests does."""
        question = trio.Event()
        self._questions.append(question)
        self._stirred.set()
        try:
            await question.wait()
        finally:
            if question in self._questions:
                self._questions.remove(question)

    def answer(self) -> None:
        """Answer the watchdog in the middle of long work."""
        questions, self._questions = self._questions, []
        for question in questions:
            question.set()

    def statistics(self) -> ActorStatistics:
        """Give a look at the actor."""
        channel = self._receive.statistics()
        return ActorStatistics(
            self.name, channel.current_buffer_used, self._mailbox_size, channel.tasks_waiting_send, self._handled,
            self._running,
        )  # fmt: skip
