"""The ``Jobs`` part of the memory index; see ``storage.memory.jobs`` for what happens to the tables."""

from __future__ import annotations

import abc
import datetime as dt
import uuid
from collections.abc import Callable, Mapping, Sequence

import trio

from storage.job_rows import (
    ATTEMPTS_MOST,
    JOBS_CHANNEL,
    Claim,
    ClaimedJob,
    CronEntry,
    Job,
    JobCounts,
    JobFilter,
    JobProgress,
    JobState,
    NewJob,
    wakes,
)
from storage.memory import jobs
from storage.memory.tables import Tables


class MemoryJobs(abc.ABC):
    """See ``storage.job_queue.Jobs`` for what each operation promises."""

    tables: Tables
    new_token: Callable[[], uuid.UUID]

    @abc.abstractmethod
    def notify_now(self, channel: str, payload: str) -> None:
        """Wake who listens."""

    async def enqueue_jobs(self, repo: int, new_jobs: Sequence[NewJob], now: dt.datetime) -> list[int]:
        await trio.lowlevel.checkpoint()
        numbers = jobs.enqueue(self.tables, repo, new_jobs, now)
        if wakes(new_jobs):
            self.notify_now(JOBS_CHANNEL, "")
        return numbers

    async def claim_jobs(self, room: Mapping[str, int], most: int, worker: str, now: dt.datetime) -> list[ClaimedJob]:
        await trio.lowlevel.checkpoint()
        return jobs.claim_jobs(self.tables, room, most, worker, now, self.new_token)

    async def claims_of(self, worker: str) -> set[Claim]:
        await trio.lowlevel.checkpoint()
        return jobs.claims_of(self.tables, worker)

    async def beat_claims(self, beats: Mapping[Claim, JobProgress | None], now: dt.datetime) -> set[Claim]:
        await trio.lowlevel.checkpoint()
        return jobs.beat_claims(self.tables, beats, now)

    async def keep_state(self, claim: Claim, state: Mapping[str, object], now: dt.datetime) -> bool:
        await trio.lowlevel.checkpoint()
        return jobs.keep_state(self.tables, claim, state, now)

    async def complete_job(self, claim: Claim, result: Mapping[str, object], now: dt.datetime) -> bool:
        await trio.lowlevel.checkpoint()
        return jobs.complete_job(self.tables, claim, result, now)

    async def fail_job(
        self, claim: Claim, error: str, now: dt.datetime, again_at: dt.datetime | None, most: int = ATTEMPTS_MOST
    ) -> JobState | None:
        await trio.lowlevel.checkpoint()
        return jobs.fail_job(self.tables, claim, error, now, again_at, most)

    async def return_jobs(self, claims: Sequence[Claim], now: dt.datetime) -> int:
        await trio.lowlevel.checkpoint()
        count = jobs.return_jobs(self.tables, claims, now)
        self.notify_now(JOBS_CHANNEL, "")
        return count

    async def recover_stale(
        self, now: dt.datetime, stale_s: float, delay_s: float, most: int, attempts: int = ATTEMPTS_MOST
    ) -> list[tuple[int, JobState]]:
        await trio.lowlevel.checkpoint()
        recovered = jobs.recover_stale(self.tables, now, stale_s, delay_s, most, attempts)
        if recovered:
            self.notify_now(JOBS_CHANNEL, "")
        return recovered

    async def find_job(self, number: int) -> Job | None:
        await trio.lowlevel.checkpoint()
        return self.tables.jobs.get(number)

    async def list_jobs(self, wanted: JobFilter, most: int) -> list[Job]:
        await trio.lowlevel.checkpoint()
        return jobs.list_jobs(self.tables, wanted, most)

    async def count_jobs(self) -> list[JobCounts]:
        await trio.lowlevel.checkpoint()
        return jobs.count_jobs(self.tables)

    async def retry_job(self, number: int, now: dt.datetime) -> bool:
        await trio.lowlevel.checkpoint()
        done = jobs.retry_job(self.tables, number, now)
        self.notify_now(JOBS_CHANNEL, "")
        return done

    async def cancel_job(self, number: int, now: dt.datetime) -> bool:
        await trio.lowlevel.checkpoint()
        done = jobs.cancel_job(self.tables, number, now)
        self.notify_now(JOBS_CHANNEL, "")
        return done

    async def hold_job(self, number: int, held: bool) -> bool:
        await trio.lowlevel.checkpoint()
        done = jobs.hold_job(self.tables, number, held)
        self.notify_now(JOBS_CHANNEL, "")
        return done

    async def pause_type(self, type_: str, paused: bool) -> None:
        await trio.lowlevel.checkpoint()
        (self.tables.paused_types.add if paused else self.tables.paused_types.discard)(type_)
        self.notify_now(JOBS_CHANNEL, "")

    async def paused_types(self) -> set[str]:
        await trio.lowlevel.checkpoint()
        return set(self.tables.paused_types)

    async def prune_jobs(self, before: dt.datetime, most: int) -> int:
        await trio.lowlevel.checkpoint()
        return jobs.prune_jobs(self.tables, before, most)

    async def set_cron(self, entries: Sequence[CronEntry], now: dt.datetime) -> None:
        await trio.lowlevel.checkpoint()
        jobs.set_cron(self.tables, entries, now)

    async def run_cron(self, now: dt.datetime) -> list[str]:
        await trio.lowlevel.checkpoint()
        names = jobs.run_cron(self.tables, now)
        if names:
            self.notify_now(JOBS_CHANNEL, "")
        return names
