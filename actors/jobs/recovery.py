"""Recovery of jobs whose daemon is gone: a permanent child of the supervisor in every daemon that works.

Any number of them may look at once: a claim is taken from its worker in one transaction, by one of them.
"""

from __future__ import annotations

import structlog

from actors.actor import Actor
from actors.jobs.handler import JobServices
from storage.errors import IndexUnavailable

log = structlog.get_logger("jobs")

LOOKS_PER_STALE = 10
"""So a job waits little longer than ``jobs.stale_s``."""
LOOK_MOST_S = 30.0
RECOVERED_AT_ONCE = 100
ROUNDS_AT_ONCE = 100


class StaleClaims(Actor[None]):
    """Let jobs wait again whose claims nobody keeps."""

    def __init__(self, services: JobServices) -> None:
        super().__init__("stale claims", mailbox_size=0)
        self._services = services

    async def run(self) -> None:
        """Look for ever."""
        period_s = min(self._services.settings.stale_s / LOOKS_PER_STALE, LOOK_MOST_S)
        while True:
            await self.rest(period_s * (0.5 + self._services.environment.jitter()))
            try:
                await self._recover()
            except IndexUnavailable as error:
                log.warning("stale claims not looked for", error=str(error))

    async def handle(self, message: None) -> None:
        """The recovery takes no messages."""

    async def _recover(self) -> None:
        settings = self._services.settings
        for _ in range(ROUNDS_AT_ONCE):
            self.answer()
            recovered = await self._services.index.recover_stale(
                self._services.environment.now(), settings.stale_s, settings.retry_s, RECOVERED_AT_ONCE
            )
            for number, state in recovered:
                log.warning("recovered a job from a worker that is gone", job=number, state=state.name.lower())
            if len(recovered) < RECOVERED_AT_ONCE:
                return
