"""The part of the ``Index`` port that keeps jobs: enqueue, claim, heartbeat, complete, fail, recover.

* At most one job of a type waits for a repository, and at most one of a type runs for it.
* A claim is a row of its own with a token. Every heartbeat and ending names it and does nothing when it is gone, so a
  worker that wakes up late can neither finish nor fail a job that somebody else has (fault F27).
* A job that goes back to wait gives way to one of its type that has come to wait meanwhile, and leaves it its payload:
  it has failed then.
* All times are the caller's; those of one deployment are expected to agree within a small part of ``STALE_CLAIM_S``.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Protocol

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


class Jobs(Protocol):
    """What is to be done later."""

    async def enqueue_jobs(self, repo: int, jobs: Sequence[NewJob], now: dt.datetime) -> list[int]:
        """Enqueue jobs of different types at once, as :meth:`Pushes.accept_push` does; gives those that wait now."""

    async def claim_jobs(self, room: Mapping[str, int], most: int, worker: str, now: dt.datetime) -> list[ClaimedJob]:
        """Claim up to ``most`` jobs whose time has come, of each type up to ``room``, the most urgent first.

        Left out are held jobs, paused types, and jobs of which one of the same type runs for the same repository.
        A claim counts as an attempt.
        """

    async def claims_of(self, worker: str) -> set[Claim]:
        """Give what a worker has claimed and not ended: it may have claimed more than it was told, an answer lost."""

    async def beat_claims(self, beats: Mapping[Claim, JobProgress | None], now: dt.datetime) -> set[Claim]:
        """Tell that claims are alive and how far they are; gives those gone. ``None`` leaves progress as it is."""

    async def keep_state(self, claim: Claim, state: Mapping[str, object], now: dt.datetime) -> bool:
        """Keep what a later attempt can go on from, and beat; gives whether the claim still holds."""

    async def complete_job(self, claim: Claim, result: Mapping[str, object], now: dt.datetime) -> bool:
        """Record that a job is done; gives whether the claim held. Done again by the same claim, it says so again."""

    async def fail_job(
        self, claim: Claim, error: str, now: dt.datetime, again_at: dt.datetime | None, most: int = ATTEMPTS_MOST
    ) -> JobState | None:
        """Record that an attempt failed: the job waits until ``again_at`` if it has attempts left, else has failed.

        ``again_at=None`` fails it for good. Gives the state it is in now, ``None`` when the claim was gone.
        Done again by the same claim, it says so again.
        """

    async def return_jobs(self, claims: Sequence[Claim], now: dt.datetime) -> int:
        """Give claims back unworked: the jobs wait again and the attempts do not count; gives how many held."""

    async def recover_stale(
        self, now: dt.datetime, stale_s: float, delay_s: float, most: int, attempts: int = ATTEMPTS_MOST
    ) -> list[tuple[int, JobState]]:
        """Take up to ``most`` claims without heartbeat for ``stale_s`` from their workers.

        Their jobs wait for ``delay_s`` or, without attempts left, have failed; gives which and in which state.
        """

    async def find_job(self, number: int) -> Job | None:
        """Find a job."""

    async def list_jobs(self, wanted: JobFilter, most: int) -> list[Job]:
        """Give the newest ``most`` jobs, at most ``LISTED_JOBS``, oldest first."""

    async def count_jobs(self) -> list[JobCounts]:
        """Count jobs by type and state, up to ``COUNTED_JOBS`` of each."""

    async def retry_job(self, number: int, now: dt.datetime) -> bool:
        """Let a job that failed or was cancelled wait again, its attempts forgotten, or one that waits run now.

        Gives whether it was one of those. It merges into a job of its type that waits.
        """

    async def cancel_job(self, number: int, now: dt.datetime) -> bool:
        """Cancel a job that waits or runs: its claim is gone at once; gives whether it was one of those."""

    async def hold_job(self, number: int, held: bool) -> bool:
        """Keep a waiting job from being claimed, or let it go; gives whether it waits."""

    async def pause_type(self, type_: str, paused: bool) -> None:
        """Keep jobs of a type from being claimed in the whole deployment, or let them go."""

    async def paused_types(self) -> set[str]:
        """Give the types that are paused."""

    async def prune_jobs(self, before: dt.datetime, most: int) -> int:
        """Forget up to ``most`` jobs that ended before a moment; gives how many."""

    async def set_cron(self, entries: Sequence[CronEntry], now: dt.datetime) -> None:
        """Make these the cron table; one that was there keeps when it ran last, a new one runs after its period."""

    async def run_cron(self, now: dt.datetime) -> list[str]:
        """Enqueue what is due, each entry once however many daemons ask; gives the names."""
