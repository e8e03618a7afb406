"""The part of a daemon that does jobs: its children, what they share, and its end."""

from __future__ import annotations

from collections.abc import Sequence

from actors.jobs.claimer import Claimer, ClaimHeartbeat
from actors.jobs.cron import Cron, cron_entries
from actors.jobs.handler import JobServices
from actors.jobs.recovery import StaleClaims
from actors.jobs.registry import Registry
from actors.jobs.runner import JobObserver, unobserved
from actors.jobs.runs import JobRuns
from actors.supervisor import Child, Supervisor
from storage.job_rows import CronEntry


class JobWork:
    """Made once, when a daemon that works starts."""

    def __init__(
        self, services: JobServices, supervisor: Supervisor, registry: Registry, worker: str,
        observe: JobObserver = unobserved,
    ) -> None:  # fmt: skip
        self.services = services
        self.runs = JobRuns(registry.limits(), services.settings.at_once)
        self._supervisor = supervisor
        self._registry = registry
        self._worker = worker
        self._observe = observe

    def children(self, cron: Sequence[CronEntry] | None = None) -> list[Child]:
        """Give the permanent children that the supervisor has to run."""
        services, runs = self.services, self.runs
        entries = cron_entries(services.settings) if cron is None else cron
        return [
            Child(
                "claimer",
                lambda: Claimer(services, self._supervisor, self._registry, runs, self._worker, self._observe),
            ),
            Child("claim heartbeat", lambda: ClaimHeartbeat(services, runs)),
            Child("stale claims", lambda: StaleClaims(services)),
            Child("cron", lambda: Cron(services, entries)),
        ]

    async def give_back(self) -> int:
        """Give back what the daemon holds; for its end, when nothing of it runs any more.

        Raises:
            IndexUnavailable: the claims go stale instead.
        """
        index, environment = self.services.index, self.services.environment
        known = await self.runs.give_back(index, environment)
        return known + await self.runs.give_back_unheard(index, self._worker, environment)

    def statistics(self) -> dict[str, float]:
        """Give how many jobs run here, and how many were claimed since the daemon began."""
        return {"running": len(self.runs), "claimed": self.runs.claimed}
