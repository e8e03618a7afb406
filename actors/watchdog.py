"""The watchdog: a question through the whole tree, again and again; who gives no answer is named.

Whoever watches the process learns of it in two ways. ``Supervisor.silent`` names the permanent actors without a sign of
life for :data:`SILENT_S`, which the health pages show; and while there are any, or while the loop is blocked, ``alive``
is not called, after which a process manager restarts the daemon.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog
import trio

from actors.actor import Actor
from actors.supervisor import Supervisor

log = structlog.get_logger("watchdog")

ROUND_S = 10.0
SILENT_S = 180.0
"""An actor may wait for the index for as long as a statement, a lost connection and the pool may take."""
LATE_S = 1.0
"""A loop that was blocked for longer is worth a line in the log."""


class Watchdog(Actor[None]):
    """A permanent child of the supervisor."""

    def __init__(
        self, supervisor: Supervisor, alive: Callable[[], None] = lambda: None, round_s: float = ROUND_S,
        silent_s: float = SILENT_S,
    ) -> None:  # fmt: skip
        super().__init__("watchdog", mailbox_size=0)
        self._supervisor = supervisor
        self._alive = alive
        self._round_s = round_s
        self._silent_s = silent_s
        self._quiet_since: dict[int, float] = {}

    async def run(self) -> None:
        """Ask for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ask)
            while True:  # beside the questions, so that it can answer its own
                due = trio.current_time() + self._round_s
                await self.rest(self._round_s)
                late_s = trio.current_time() - due
                if late_s > LATE_S:
                    log.warning("the loop was blocked", seconds=round(late_s, 1))

    async def handle(self, message: None) -> None:
        """The watchdog takes no messages."""

    async def _ask(self) -> None:
        while True:
            began = trio.current_time()
            quiet = await self._supervisor.round_trip(self._round_s)
            if quiet is None:
                log.error("the supervisor does not answer")
            else:
                self._judge(quiet, began)
            await trio.sleep(self._round_s)

    def _judge(self, quiet: list[Actor[object]], asked_at: float) -> None:
        since = {id(actor): self._quiet_since.get(id(actor), asked_at) for actor in quiet}
        self._quiet_since = since
        limit = trio.current_time() - self._silent_s
        silent = tuple(sorted(actor.name for actor in quiet if since[id(actor)] <= limit))
        if silent != self._supervisor.silent:
            if silent:
                log.error("actors are silent", actors=silent, seconds=self._silent_s)
            else:
                log.info("all actors answer again")
        self._supervisor.silent = silent
        if not silent:
            self._alive()
