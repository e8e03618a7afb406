"""The heartbeat clock: progress for clients that wait, and leases that stay alive while pushes run."""

from __future__ import annotations

from typing import Protocol

import structlog
import trio

from actors.actor import Actor
from storage.environment import Environment
from storage.errors import IndexUnavailable
from storage.index import Index
from storage.rows import PushTicket

log = structlog.get_logger("heartbeat")

HEARTBEAT_S = 10.0
"""Protocol §5: at least one ``P`` every 10 s."""
LEASE_S = 300.0
"""As long as a stale claim (protocol §12): thirty missed heartbeats."""
_TICKS_PER_HEARTBEAT = 4
"""The clock ticks faster than the promise, so that a tick that comes late still keeps it."""


class Beating(Protocol):
    """What the clock beats for."""

    @property
    def ticket(self) -> PushTicket | None:
        """The lease to renew, once there is one."""

    def tick(self, quiet_s: float) -> None:
        """Tell the client that the server is alive, if nothing was said for ``quiet_s`` seconds."""


class Heartbeats:
    """The running pushes the clock beats for."""

    def __init__(self) -> None:
        self._beating: dict[int, Beating] = {}

    def add(self, push: Beating) -> None:
        """Begin to beat for a push."""
        self._beating[id(push)] = push

    def remove(self, push: Beating) -> None:
        """Stop beating for a push."""
        self._beating.pop(id(push), None)

    def __len__(self) -> int:
        return len(self._beating)

    def tick(self, quiet_s: float) -> None:
        """Tick for all."""
        for push in list(self._beating.values()):
            push.tick(quiet_s)

    def tickets(self) -> list[PushTicket]:
        """Give the leases to renew."""
        return [push.ticket for push in self._beating.values() if push.ticket is not None]


class HeartbeatClock(Actor[None]):
    """A permanent child of the supervisor."""

    def __init__(
        self, heartbeats: Heartbeats, index: Index, environment: Environment, heartbeat_s: float = HEARTBEAT_S
    ) -> None:
        super().__init__("heartbeat", mailbox_size=0)
        self._heartbeats = heartbeats
        self._index = index
        self._environment = environment
        self._period_s = heartbeat_s / _TICKS_PER_HEARTBEAT
        self._quiet_s = heartbeat_s - 2 * self._period_s

    async def run(self) -> None:
        """Tick for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._renew)
            while True:
                await self.rest(self._period_s)
                self._heartbeats.tick(self._quiet_s)

    async def handle(self, message: None) -> None:
        """The clock takes no messages."""

    async def _renew(self) -> None:
        while True:
            await trio.sleep(LEASE_S / 10)
            tickets = self._heartbeats.tickets()
            if not tickets:
                continue
            try:
                await self._index.renew_pushes(tickets, self._environment.now(), LEASE_S)
            except IndexUnavailable as error:  # nine more tries before a lease runs out
                log.warning("leases not renewed", error=str(error), pushes=len(tickets))
