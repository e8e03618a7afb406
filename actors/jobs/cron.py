"""Jobs that come back, and the end of their history: a permanent child of the supervisor in every daemon that works.

The table is the deployment's: whichever daemon looks first enqueues what is due, once. Daemons with different settings
would take turns writing it, and the last one to start wins.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import structlog
import trio

from actors.actor import Actor
from actors.jobs.handler import JobServices
from actors.jobs.settings import JobSettings
from storage.errors import IndexUnavailable
from storage.job_rows import CronEntry

log = structlog.get_logger("jobs")

LOOK_EVERY_S = 30.0
PRUNE_EVERY_S = 600.0
PRUNED_AT_ONCE = 1_000
PRUNES_AT_ONCE = 1_000
_GC_PRIORITY, _SCRUB_PRIORITY = 60, 70
_GC_PAYLOAD = {"dry_run": False}
"""Told in so many words, because a dry run that waits already gets it added to its payload."""


def cron_entries(settings: JobSettings) -> list[CronEntry]:
    """Give the jobs that come back."""
    wanted = [
        CronEntry("gc", "gc", settings.gc_every_s, _GC_PRIORITY, _GC_PAYLOAD),
        CronEntry("scrub", "scrub", settings.scrub_every_s, _SCRUB_PRIORITY),
    ]
    return [entry for entry in wanted if entry.every_s > 0]


class Cron(Actor[None]):
    """Enqueue what is due, and forget jobs that ended long ago."""

    def __init__(self, services: JobServices, entries: Sequence[CronEntry]) -> None:
        super().__init__("cron", mailbox_size=0)
        self._services = services
        self._entries = list(entries)
        self._written = False
        self._pruned_at: float | None = None

    async def run(self) -> None:
        """Look for ever."""
        while True:
            try:
                await self._look()
            except IndexUnavailable as error:
                log.warning("jobs that come back not looked for", error=str(error))
            await self.rest(LOOK_EVERY_S * (0.5 + self._services.environment.jitter()))

    async def handle(self, message: None) -> None:
        """Cron takes no messages."""

    async def _look(self) -> None:
        index, environment = self._services.index, self._services.environment
        if not self._written:
            await index.set_cron(self._entries, environment.now())
            self._written = True
        due = await index.run_cron(environment.now())
        if due:
            log.info("enqueued by cron", names=due)
        if self._pruned_at is None or trio.current_time() - self._pruned_at >= PRUNE_EVERY_S:
            await self._prune()
            self._pruned_at = trio.current_time()

    async def _prune(self) -> None:
        before = self._services.environment.now() - dt.timedelta(seconds=self._services.settings.keep_s)
        for _ in range(PRUNES_AT_ONCE):
            self.answer()
            if await self._services.index.prune_jobs(before, PRUNED_AT_ONCE) < PRUNED_AT_ONCE:
                return
