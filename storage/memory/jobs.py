"""Jobs, in dictionaries; see ``storage.postgres.jobs``."""

from __future__ import annotations

import datetime as dt
import json
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from storage.job_rows import (
    COUNTED_JOBS,
    LISTED_JOBS,
    PAYLOAD_MEMBERS,
    WHOLE,
    Claim,
    ClaimedJob,
    ClaimFacts,
    CronEntry,
    Job,
    JobCounts,
    JobFilter,
    JobProgress,
    JobState,
    NewJob,
    kept_error,
)
from storage.memory.tables import CronRow, Tables

_ENDED = frozenset({JobState.DONE, JobState.FAILED, JobState.CANCELLED})


def enqueue(tables: Tables, repo: int, jobs: Sequence[NewJob], now: dt.datetime) -> list[int]:
    """Enqueue jobs of different types, at once; gives those that wait now."""
    numbers = []
    for new in sorted(jobs, key=lambda job: job.type):
        waiting = _waiting(tables, repo, new.type)
        if waiting is None:
            number = tables.next_number()
            run_at = now + dt.timedelta(seconds=new.delay_s)
            tables.jobs[number] = Job(
                number, repo, new.type, JobState.PENDING, new.priority, dict(new.payload), run_at, 0, now, None, None,
                None,
            )  # fmt: skip
        else:
            number = waiting.number
            tables.jobs[number] = replace(waiting, payload=_merged(waiting.payload, new.payload))
        numbers.append(number)
    return numbers


def claim_jobs(
    tables: Tables,
    room: Mapping[str, int],
    most: int,
    worker: str,
    now: dt.datetime,
    new_token: Callable[[], uuid.UUID],
) -> list[ClaimedJob]:
    """See ``Jobs.claim_jobs``."""
    running = {(job.repo, job.type) for job in tables.jobs.values() if job.state is JobState.RUNNING}
    ready = [
        job for job in tables.jobs.values()
        if job.state is JobState.PENDING and not job.held and job.run_at <= now
        and job.type not in tables.paused_types and (job.repo, job.type) not in running
    ]  # fmt: skip
    taken: Counter[str] = Counter()
    claimed: list[ClaimedJob] = []
    for job in sorted(ready, key=lambda job: (job.priority, job.run_at, job.number)):
        if len(claimed) >= most or taken[job.type] >= room.get(job.type, 0):
            continue
        taken[job.type] += 1
        token = new_token()
        tables.claims[job.number] = token
        tables.jobs[job.number] = replace(
            job, state=JobState.RUNNING, attempts=job.attempts + 1, claim=ClaimFacts(worker, now, now, None)
        )
        kept = tables.kept_states.get(job.number, {})
        claimed.append(
            ClaimedJob(
                Claim(job.number, token), job.repo, job.type, dict(job.payload), job.attempts + 1, job.created_at, kept
            )
        )
    return claimed


def claims_of(tables: Tables, worker: str) -> set[Claim]:
    """See ``Jobs.claims_of``."""
    return {
        Claim(number, token) for number, token in tables.claims.items()
        if (held := tables.jobs[number].claim) is not None and held.worker == worker
    }  # fmt: skip


def beat_claims(tables: Tables, beats: Mapping[Claim, JobProgress | None], now: dt.datetime) -> set[Claim]:
    """See ``Jobs.beat_claims``."""
    gone = set()
    for claim, progress in beats.items():
        job = _claimed(tables, claim)
        if job is None or job.claim is None:
            gone.add(claim)
        else:
            facts = replace(job.claim, heartbeat_at=now, progress=progress or job.claim.progress)
            tables.jobs[job.number] = replace(job, claim=facts)
    return gone


def keep_state(tables: Tables, claim: Claim, state: Mapping[str, object], now: dt.datetime) -> bool:
    """See ``Jobs.keep_state``."""
    if beat_claims(tables, {claim: None}, now):
        return False
    tables.kept_states[claim.job] = _as_kept(state)
    return True


def complete_job(tables: Tables, claim: Claim, result: Mapping[str, object], now: dt.datetime) -> bool:
    """See ``Jobs.complete_job``."""
    job = _claimed(tables, claim)
    if job is None:
        return tables.ended_by.get(claim.job) == claim.token and tables.jobs[claim.job].state is JobState.DONE
    _end(tables, job, JobState.DONE, now, result=_as_kept(result), error=None)
    tables.ended_by[job.number] = claim.token
    return True


def fail_job(
    tables: Tables, claim: Claim, error: str, now: dt.datetime, again_at: dt.datetime | None, most: int
) -> JobState | None:
    """See ``Jobs.fail_job``."""
    job = _claimed(tables, claim)
    if job is None:
        return _failed_already(tables, claim)
    error = kept_error(error)
    if again_at is None or job.attempts >= most:
        _end(tables, job, JobState.FAILED, now, error=error)
        state = JobState.FAILED
    else:
        state = _wait_again(tables, job, again_at, now, error)
    tables.ended_by[job.number] = claim.token
    return state


def return_jobs(tables: Tables, claims: Sequence[Claim], now: dt.datetime) -> int:
    """See ``Jobs.return_jobs``."""
    count = 0
    for claim in claims:
        job = _claimed(tables, claim)
        if job is not None:
            count += 1
            _wait_again(tables, replace(job, attempts=job.attempts - 1), job.run_at, now, job.error)
    return count


def recover_stale(
    tables: Tables, now: dt.datetime, stale_s: float, delay_s: float, most: int, attempts: int
) -> list[tuple[int, JobState]]:
    """See ``Jobs.recover_stale``."""
    limit = now - dt.timedelta(seconds=stale_s)
    stale = [(j.claim.heartbeat_at, j.number, j) for j in tables.jobs.values() if j.claim is not None]
    longest = sorted((found for found in stale if found[0] < limit), key=lambda found: found[:2])[:most]
    recovered = []
    for _, _, job in longest:
        assert job.claim is not None
        error = f"its worker {job.claim.worker} was not heard of for {stale_s:.0f} s"
        if job.attempts >= attempts:
            _end(tables, job, JobState.FAILED, now, error=error)
            recovered.append((job.number, JobState.FAILED))
        else:
            state = _wait_again(tables, job, now + dt.timedelta(seconds=delay_s), now, error)
            recovered.append((job.number, state))
    return sorted(recovered)


def list_jobs(tables: Tables, wanted: JobFilter, most: int) -> list[Job]:
    """See ``Jobs.list_jobs``."""
    found = [
        job for job in tables.jobs.values()
        if wanted.repo in {None, job.repo} and wanted.type in {None, job.type}
        and (wanted.states is None or job.state in wanted.states)
    ]  # fmt: skip
    return sorted(found, key=lambda job: -job.number)[: min(most, LISTED_JOBS)][::-1]


def count_jobs(tables: Tables) -> list[JobCounts]:
    """See ``Jobs.count_jobs``."""
    groups: dict[tuple[str, JobState], list[Job]] = {}
    for job in sorted(tables.jobs.values(), key=lambda job: job.number):
        of_kind = groups.setdefault((job.type, job.state), [])
        if len(of_kind) < COUNTED_JOBS:
            of_kind.append(job)
    return [
        JobCounts(
            kind, state, len(jobs),
            min((j.run_at for j in jobs if not j.held), default=None) if state is JobState.PENDING else None,
        )
        for (kind, state), jobs in sorted(groups.items())
    ]  # fmt: skip


def retry_job(tables: Tables, number: int, now: dt.datetime) -> bool:
    """See ``Jobs.retry_job``."""
    job = tables.jobs.get(number)
    if job is None or job.state not in {JobState.FAILED, JobState.CANCELLED, JobState.PENDING}:
        return False
    if job.state is JobState.PENDING:
        tables.jobs[number] = replace(job, run_at=min(now, job.run_at))
        return True
    waiting = _waiting(tables, job.repo, job.type)
    if waiting is not None:
        tables.jobs[waiting.number] = replace(waiting, payload=_merged(waiting.payload, job.payload))
        return True
    tables.jobs[number] = replace(
        job, state=JobState.PENDING, attempts=0, run_at=now, finished_at=None, error=None, held=False
    )
    return True


def cancel_job(tables: Tables, number: int, now: dt.datetime) -> bool:
    """See ``Jobs.cancel_job``."""
    job = tables.jobs.get(number)
    if job is None or job.state in _ENDED:
        return False
    _end(tables, job, JobState.CANCELLED, now, error=job.error)
    return True


def hold_job(tables: Tables, number: int, held: bool) -> bool:
    """See ``Jobs.hold_job``."""
    job = tables.jobs.get(number)
    if job is None or job.state is not JobState.PENDING:
        return False
    tables.jobs[number] = replace(job, held=held)
    return True


def prune_jobs(tables: Tables, before: dt.datetime, most: int) -> int:
    """See ``Jobs.prune_jobs``."""
    old = [
        (job.finished_at, job.number) for job in tables.jobs.values()
        if job.state in _ENDED and job.finished_at is not None and job.finished_at < before
    ]  # fmt: skip
    for _, number in sorted(old)[:most]:
        del tables.jobs[number]
        tables.ended_by.pop(number, None)
    return min(len(old), most)


def set_cron(tables: Tables, entries: Sequence[CronEntry], now: dt.datetime) -> None:
    """See ``Jobs.set_cron``."""
    rows = {}
    for entry in entries:
        period = dt.timedelta(seconds=entry.every_s)
        before = tables.cron.get(entry.name)
        last = now if before is None else before.next_at - dt.timedelta(seconds=before.entry.every_s)
        rows[entry.name] = CronRow(entry, last + period)
    tables.cron = rows


def run_cron(tables: Tables, now: dt.datetime) -> list[str]:
    """See ``Jobs.run_cron``."""
    due = [row for row in tables.cron.values() if row.next_at <= now]
    for row in sorted(due, key=lambda row: (row.entry.type, row.entry.name)):
        entry = row.entry
        enqueue(tables, 0, [NewJob(entry.type, entry.priority, entry.payload)], now)
        tables.cron[entry.name] = CronRow(entry, now + dt.timedelta(seconds=entry.every_s))
    return sorted(row.entry.name for row in due)


def _waiting(tables: Tables, repo: int, kind: str) -> Job | None:
    return next((j for j in tables.jobs.values() if (j.repo, j.type, j.state) == (repo, kind, JobState.PENDING)), None)


def _merged(waiting: Mapping[str, object], more: Mapping[str, object]) -> dict[str, object]:
    merged = {**waiting, **more}
    return dict(WHOLE) if len(merged) > PAYLOAD_MEMBERS else merged


def _as_kept(value: Mapping[str, object]) -> dict[str, object]:
    """Give a copy that is nobody else's, as it comes back from a database."""
    return dict(json.loads(json.dumps(dict(value))))


def _claimed(tables: Tables, claim: Claim) -> Job | None:
    return tables.jobs[claim.job] if tables.claims.get(claim.job) == claim.token else None


def _failed_already(tables: Tables, claim: Claim) -> JobState | None:
    if tables.ended_by.get(claim.job) != claim.token:
        return None
    state = tables.jobs[claim.job].state
    return {JobState.RUNNING: JobState.PENDING, JobState.PENDING: state, JobState.FAILED: state}.get(state)


def _end(
    tables: Tables, job: Job, state: JobState, now: dt.datetime, *, result: Mapping[str, object] | None = None,
    error: str | None,
) -> None:  # fmt: skip
    tables.claims.pop(job.number, None)
    tables.ended_by.pop(job.number, None)
    tables.kept_states.pop(job.number, None)
    tables.jobs[job.number] = replace(
        job, state=state, finished_at=now, result=result, error=error, claim=None, held=False
    )


def _wait_again(tables: Tables, job: Job, run_at: dt.datetime, now: dt.datetime, error: str | None) -> JobState:
    """Let a job that ran wait again, or give way to one of its type that waits already."""
    waiting = _waiting(tables, job.repo, job.type)
    if waiting is not None:
        tables.jobs[waiting.number] = replace(waiting, payload=_merged(waiting.payload, job.payload))
        words = f"job {waiting.number} goes on with it"
        _end(tables, job, JobState.FAILED, now, error=words if error is None else f"{error}\n{words}")
        return JobState.FAILED
    tables.claims.pop(job.number, None)
    tables.ended_by.pop(job.number, None)
    tables.jobs[job.number] = replace(job, state=JobState.PENDING, run_at=run_at, error=error, claim=None)
    return JobState.PENDING
