"""Jobs of a simulated deployment: the built-in handlers, and one whose effects can be counted."""

from __future__ import annotations

import functools
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import trio

from actors.jobs.builtin import builtin_registry
from actors.jobs.cron import cron_entries
from actors.jobs.handler import Handler, JobContext
from actors.jobs.registry import Registry
from actors.jobs.settings import JobSettings
from storage.job_rows import Claim, ClaimedJob, CronEntry, Job, JobState

TALLY = "simulated.tally"
"""A job that does something for every member of its payload, and goes on where an attempt before it was cut."""
SETTINGS = JobSettings(poll_s=60.0, stale_s=300.0, retry_s=10.0, gc_every_s=200.0, gc_keep_s=60.0, scrub_every_s=500.0)
_NO_JOBS, _EACH_TYPE = 0.5, 0.3
_OF_BYTES = frozenset({"gc", "mpack.gc", "mpack.index", "content.promote", "fetch.mpack.prebuild", "scrub"})
"""Types that read, write or delete what is stored: the others tell nothing beside a collector."""
_WORK_S = (0.0, 0.1, 2.0, 40.0, 100.0)
_FROM_OUTSIDE = ("injected", "not heard of", "goes on with it", "StoreUnavailable", "IndexUnavailable")
"""A job whose error says one of these did not fail by a mistake of its handler."""


class HandlerTripped(Exception):
    """injected: a handler that fails."""


@functools.cache
def _built_in() -> Registry:
    return builtin_registry()


def types_drawn(rng: random.Random, *, collecting: bool) -> frozenset[str]:
    """Draw which types of jobs a deployment does: often none at all, for most of what a push does needs none."""
    if rng.random() < _NO_JOBS:
        return frozenset()
    types = [type_ for type_ in _built_in().types() if rng.random() < _EACH_TYPE]
    return frozenset([TALLY, *(type_ for type_ in types if not collecting or type_ in _OF_BYTES)])


def registry_of(world: Any, daemon: Any) -> Registry:
    """Make the registry of one daemon."""
    registry, built_in = Registry(), _built_in()
    for type_ in built_in.types():
        if type_ in world.plan.types:
            registry.register(type_, built_in.get(type_), built_in.limits()[type_])
    if TALLY in world.plan.types:
        registry.register(TALLY, _tally(world, daemon), 2)
    return registry


def _tally(world: Any, daemon: Any) -> Handler:
    rng = world.draw("tally", daemon.name)

    async def run(context: JobContext) -> Mapping[str, object]:
        done = dict(context.job.state)
        for number, key in enumerate(sorted(context.job.payload)):
            await context.progress("tally", number, len(context.job.payload))
            if key in done:
                continue
            with context.phase("work"):
                await trio.sleep(rng.choice(_WORK_S))
            if world.weather.strikes("handlers fail"):
                raise HandlerTripped("injected: a handler that fails")
            world.jobs.tallied(key)
            done[key] = True
            if rng.random() < 0.5:
                await context.keep_state(done)
        return {"tallied": len(context.job.payload)}

    return run


class JobLedger:
    """What jobs were asked for, what they did, and who may do it: seen from outside."""

    def __init__(self, world: Any) -> None:
        self._world = world
        self._wanted: set[str] = set()
        self._tallied: Counter[str] = Counter()
        self._tokens: dict[int, object] = {}
        """Job → the claim that holds."""
        self._completed: dict[int, object] = {}
        """Job → the claim by which it was done."""

    def wanted(self, keys: Iterable[str]) -> None:
        """Take note of members of a payload whose enqueueing was acknowledged."""
        self._wanted.update(keys)

    def tallied(self, key: str) -> None:
        """Take note that a handler did its work for one."""
        self._tallied[key] += 1

    def claimed(self, jobs: list[ClaimedJob]) -> None:
        """Look at what was claimed."""
        for job in jobs:
            number = job.claim.job
            self._world.trace.say("index", f"{job.type} {number} attempt {job.attempt}")
            if number in self._tokens:
                self._world.violated("I5", f"job {number} was claimed while somebody else works on it")
            if number in self._completed:
                self._world.violated("I5", f"job {number} was claimed again after it was done")
            self._tokens[number] = job.claim.token

    def completed(self, claim: Claim) -> None:
        """Look at a completion that was recorded."""
        done_by = self._completed.get(claim.job)
        if done_by == claim.token:  # it says so again
            return
        if done_by is not None:
            self._world.violated("I5", f"job {claim.job} was completed twice")
        elif self._tokens.get(claim.job) != claim.token:
            self._world.violated("I5", f"job {claim.job} was completed by a worker that had lost it")
        self._completed[claim.job] = claim.token
        self._tokens.pop(claim.job, None)

    def taken_from(self, claims: Iterable[Claim]) -> bool:
        """Tell whether somebody else works on what these claims were for."""
        return any(self._tokens.get(claim.job) not in {None, claim.token} for claim in claims)

    def ended(self, claims: Mapping[int, object]) -> None:
        """Take note of claims that were taken or given back, by those that are left."""
        for number in [number for number, token in self._tokens.items() if claims.get(number) != token]:
            del self._tokens[number]

    def check(self, jobs: Mapping[int, Job]) -> None:
        """I5 and I8: what was asked for was done, or given up for a reason that came from outside."""
        given_up: set[str] = set()
        for job in jobs.values():
            if job.state is JobState.FAILED:
                given_up |= job.payload.keys()
                if not self._excused(job.error or ""):
                    self._world.violated("I8", f"job {job.number} {job.type} failed: {job.error}")
            if job.state is JobState.DONE and job.number not in self._completed:
                self._world.violated("I5", f"job {job.number} is done and nobody completed it")
        lost = sorted(key for key in self._wanted if not self._tallied[key] and key not in given_up)
        if lost:
            self._world.violated("I5", f"enqueued and never done: {lost}")

    def _excused(self, error: str) -> bool:
        """Tell whether what a job failed of came from outside."""
        faults = self._world.plan.faults
        garbled = self._world.may_be_damaged and ("ObjectDamaged" in error or "ObjectMissing" in error)
        return bool(faults) and (garbled or any(word in error for word in _FROM_OUTSIDE))


def cron_of(types: frozenset[str]) -> list[CronEntry]:
    """Give what comes back of the types a deployment does."""
    return [entry for entry in cron_entries(SETTINGS) if entry.type in types]


def unended(jobs: Mapping[int, Job], types: list[str], before: Any) -> list[Job]:
    """Give jobs of known types that were there at a moment and have not ended."""
    waiting = {JobState.PENDING, JobState.RUNNING}
    return [j for j in jobs.values() if j.state in waiting and j.type in types and j.created_at <= before]
