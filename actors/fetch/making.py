"""Making the answers to fetches: once for all who ask the same, and on while the client is told to come again.

An answer is made by an actor of the supervisor's. Who asks waits for it for a while; when it takes longer, the client
is told to come again (503, protocol §8) and finds it under way, or made. An answer that nobody comes back for is given
up. Rights are judged for each request, before anything is found or made.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Any

import trio

from actors.actor import Actor
from storage.layout import fetch_pack_key
from storage.object_store import ReadRange
from wire.errors import Code, Refusal

KEPT = 256
"""Answers that are remembered."""
KEPT_S = 600.0
UNWANTED_S = 120.0
"""An answer that nobody has waited for so long is given up."""
_LOOK_S = 5.0


@dataclass(frozen=True, slots=True)
class FetchAnswer:
    """An assembled fetch; ``mpack_id`` is ``None`` when there is nothing to send."""

    mpack_id: bytes | None
    commit_count: int
    object_count: int
    size_bytes: int
    shallow: tuple[bytes, ...] = ()

    @property
    def where(self) -> ReadRange | None:
        """Where its pack is in the store."""
        return None if self.mpack_id is None else ReadRange(fetch_pack_key(self.mpack_id), 0, self.size_bytes)


Make = Callable[[], Awaitable[FetchAnswer]]


class FetchMaker(Actor[None]):
    """One answer being made. It takes no messages; ``done`` is set when there is an answer, an error or neither."""

    def __init__(self, name: str, make: Make, ended: Callable[[FetchMaker], None]) -> None:
        super().__init__(f"fetch {name}", mailbox_size=0)
        self._make = make
        self._ended = ended
        self._wanted_at = trio.current_time()
        self.waiting = 0
        self.done = trio.Event()
        self.made: FetchAnswer | None = None
        self.error: Exception | None = None

    async def handle(self, message: None) -> None:
        """There are no messages."""

    async def run(self) -> None:
        """Make it, unless nobody wants it any more."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._until_unwanted, nursery.cancel_scope)
                try:
                    self.made = await self._make()
                except Exception as error:  # noqa: BLE001 - whoever waits gets it
                    self.error = error
                nursery.cancel_scope.cancel()
        finally:
            self._ended(self)  # whether or not anybody comes back for it
            self.done.set()

    async def wait(self, seconds: float) -> bool:
        """Wait for the end; gives whether it was reached in time."""
        self.waiting += 1
        try:
            with trio.move_on_after(seconds):
                await self.done.wait()
        finally:
            self.waiting -= 1
            self._wanted_at = trio.current_time()
        return self.done.is_set()

    async def _until_unwanted(self, scope: trio.CancelScope) -> None:
        while self.waiting or trio.current_time() - self._wanted_at < UNWANTED_S:  # noqa: ASYNC110 - only time passes
            await trio.sleep(_LOOK_S)
        scope.cancel()


class FetchMakers:
    """The answers that are being made, and those made a short while ago."""

    def __init__(self) -> None:
        self._running: dict[Hashable, FetchMaker] = {}
        self._made: OrderedDict[Hashable, tuple[FetchAnswer, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._running)

    def made(self, key: Hashable) -> FetchAnswer | None:
        """Give an answer that was made a short while ago; whether its pack is there still is to be looked at."""
        found = self._made.get(key)
        return found[0] if found is not None and trio.current_time() - found[1] < KEPT_S else None

    async def settled(self, key: Hashable) -> None:
        """Wait until nobody makes the answer of a key any more."""
        while (maker := self._running.get(key)) is not None and not maker.done.is_set():
            await maker.done.wait()

    async def answer(
        self, key: Hashable, make: Make, start: Callable[[Actor[Any]], Awaitable[None]], patience_s: float
    ) -> FetchAnswer:
        """Give the answer of a key, by ``make`` unless somebody makes it already.

        Raises:
            Refusal: ``preparing``: it takes longer; its ``preparing_id`` is the same each time.
            Exception: whatever making it raises.
        """
        name = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
        maker = self._running.get(key)
        if maker is None:
            maker = self._running[key] = FetchMaker(name, make, lambda ended: self._end(key, ended))
            try:
                await start(maker)
            except BaseException:
                self._end(key, maker)
                maker.done.set()
                raise
        if not await maker.wait(patience_s):
            raise Refusal(Code.PREPARING, "the answer is being made: ask again", preparing_id=name)
        if maker.error is not None:
            raise maker.error
        if maker.made is None:
            raise Refusal(Code.PREPARING, "the answer was given up: ask again", preparing_id=name)
        return maker.made

    def _end(self, key: Hashable, maker: FetchMaker) -> None:
        """Let go of a maker, and remember for a while what it has made."""
        del self._running[key]
        if maker.made is None or maker.made.mpack_id is None:
            return
        self._made[key] = (maker.made, trio.current_time())
        self._made.move_to_end(key)
        while len(self._made) > KEPT:
            self._made.popitem(last=False)
