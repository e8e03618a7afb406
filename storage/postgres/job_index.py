"""The ``Jobs`` part of the index over PostgreSQL."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from functools import cached_property, partial

from storage.job_rows import (
    ATTEMPTS_MOST,
    Claim,
    ClaimedJob,
    CronEntry,
    Job,
    JobCounts,
    JobFilter,
    JobProgress,
    JobState,
    NewJob,
)
from storage.postgres import jobs, jobs_claims, jobs_cron, jobs_endings, jobs_listing, jobs_operations
from storage.postgres.database import Database
from storage.postgres.jobs_grouped import GroupedCompletions


class PostgresJobs:
    """See ``storage.job_queue.Jobs`` for what each operation promises."""

    database: Database

    @cached_property
    def _completions(self) -> GroupedCompletions:
        return GroupedCompletions(partial(self.database.run, jobs_endings.complete_jobs))

    async def enqueue_jobs(self, repo: int, new_jobs: Sequence[NewJob], now: dt.datetime) -> list[int]:
        return await self.database.run(jobs.enqueue_jobs, repo, new_jobs, now)

    async def claim_jobs(self, room: Mapping[str, int], most: int, worker: str, now: dt.datetime) -> list[ClaimedJob]:
        return await self.database.run(jobs_claims.claim_jobs, room, most, worker, now)

    async def claims_of(self, worker: str) -> set[Claim]:
        return await self.database.run(jobs_claims.claims_of, worker)

    async def beat_claims(self, beats: Mapping[Claim, JobProgress | None], now: dt.datetime) -> set[Claim]:
        return await self.database.run(jobs_claims.beat_claims, beats, now)

    async def keep_state(self, claim: Claim, state: Mapping[str, object], now: dt.datetime) -> bool:
        return await self.database.run(jobs_claims.keep_state, claim, state, now)

    async def complete_job(self, claim: Claim, result: Mapping[str, object], now: dt.datetime) -> bool:
        return await self._completions.record(jobs_endings.completion(claim, result, now))

    async def fail_job(
        self, claim: Claim, error: str, now: dt.datetime, again_at: dt.datetime | None, most: int = ATTEMPTS_MOST
    ) -> JobState | None:
        return await self.database.run(jobs_endings.fail_job, claim, error, now, again_at, most)

    async def return_jobs(self, claims: Sequence[Claim], now: dt.datetime) -> int:
        return await self.database.run(jobs_endings.return_jobs, claims, now)

    async def recover_stale(
        self, now: dt.datetime, stale_s: float, delay_s: float, most: int, attempts: int = ATTEMPTS_MOST
    ) -> list[tuple[int, JobState]]:
        return await self.database.run(jobs_endings.recover_stale, now, stale_s, delay_s, most, attempts)

    async def find_job(self, number: int) -> Job | None:
        return await self.database.run(jobs_listing.find_job, number)

    async def list_jobs(self, wanted: JobFilter, most: int) -> list[Job]:
        return await self.database.run(jobs_listing.list_jobs, wanted, most)

    async def count_jobs(self) -> list[JobCounts]:
        return await self.database.run(jobs_listing.count_jobs)

    async def retry_job(self, number: int, now: dt.datetime) -> bool:
        return await self.database.run(jobs_operations.retry_job, number, now)

    async def cancel_job(self, number: int, now: dt.datetime) -> bool:
        return await self.database.run(jobs_operations.cancel_job, number, now)

    async def hold_job(self, number: int, held: bool) -> bool:
        return await self.database.run(jobs_operations.hold_job, number, held)

    async def pause_type(self, type_: str, paused: bool) -> None:
        await self.database.run(jobs_operations.pause_type, type_, paused)

    async def paused_types(self) -> set[str]:
        return await self.database.run(jobs_operations.paused_types)

    async def prune_jobs(self, before: dt.datetime, most: int) -> int:
        return await self.database.run(jobs_operations.prune_jobs, before, most)

    async def set_cron(self, entries: Sequence[CronEntry], now: dt.datetime) -> None:
        await self.database.run(jobs_cron.set_cron, entries, now)

    async def run_cron(self, now: dt.datetime) -> list[str]:
        return await self.database.run(jobs_cron.run_cron, now)
