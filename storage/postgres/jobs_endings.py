"""How a claim ends: done, failed, given back, or taken from a worker that is not heard of.

Each begins with deleting the claim; whoever does not find it has nothing to say any more. What happens to the job is
in the same transaction.

A job that goes back to wait may find that another of its type has come to wait for its repository meanwhile: it
leaves that one its payload and has failed. Several such places are taken in the order of repository and type, in
which a push takes those of the jobs it enqueues, so nobody waits for anybody in a circle.
"""

from __future__ import annotations

import datetime as dt
import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from psycopg import errors as pg_errors

from storage.job_rows import ATTEMPTS_MOST, JOBS_CHANNEL, Claim, JobState, kept_error
from storage.postgres.arrays import Int8s
from storage.postgres.database import Connection, one_statement
from storage.postgres.jobs import merged_payload

WAIT_TRIES = 10
"""How often a job finds its place taken by one that is claimed before it can be given the payload."""

# Nobody waits for the disk here: a completion that is lost with the server leaves the job to its claim, which becomes
# stale, and the job is done again, as after a crash just before it. What was committed earlier is not lost with it.
# Several at once are locked in the order they are given in, by number.
_q_complete = """
    WITH held AS MATERIALIZED (
        SELECT b.* FROM unnest(%(jobs)b, %(tokens)s::uuid[], %(results)s::json[], %(ended)s::timestamptz[])
            AS b (job, token, result, ended)
        CROSS JOIN LATERAL (
            SELECT 1 FROM job_claims l WHERE l.job = b.job AND l.token = b.token FOR UPDATE OFFSET 0
        ) AS l
    ), gone AS (
        DELETE FROM job_claims WHERE job = ANY (ARRAY(SELECT job FROM held)) RETURNING job
    )
    UPDATE jobs j SET state = 2, finished_at = held.ended, result = held.result, error = NULL, kept = NULL,
        held = false, completed_by = held.token
    FROM gone JOIN held USING (job)
    WHERE j.job = gone.job AND j.job = ANY (ARRAY(SELECT job FROM gone))
    RETURNING j.job, held.token, set_config('synchronous_commit', 'off', true)
"""
_q_completed = """
    SELECT b.job, b.token FROM unnest(%(jobs)b, %(tokens)s::uuid[]) AS b (job, token)
    CROSS JOIN LATERAL (
        SELECT 1 FROM jobs j WHERE j.job = b.job AND j.completed_by = b.token AND j.state = 2 OFFSET 0
    ) AS j
"""
_q_take = """
    WITH held AS MATERIALIZED (
        SELECT b.job FROM unnest(%(jobs)b, %(tokens)s::uuid[]) AS b (job, token)
        CROSS JOIN LATERAL (
            SELECT 1 FROM job_claims l WHERE l.job = b.job AND l.token = b.token FOR UPDATE OFFSET 0
        ) AS l
    ), gone AS (
        DELETE FROM job_claims WHERE job = ANY (ARRAY(SELECT job FROM held)) RETURNING job, worker
    )
    SELECT j.job, j.repo, j.type, j.attempts, j.run_at, j.error, gone.worker
    FROM gone CROSS JOIN LATERAL (SELECT * FROM jobs WHERE job = gone.job OFFSET 0) AS j
"""
_q_take_stale = """
    WITH stale AS MATERIALIZED (
        SELECT job FROM job_claims WHERE heartbeat_at < %(limit)s
        ORDER BY heartbeat_at, job LIMIT %(most)s FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM job_claims WHERE job = ANY (ARRAY(SELECT job FROM stale)) RETURNING job, worker
    )
    SELECT j.job, j.repo, j.type, j.attempts, j.run_at, j.error, gone.worker
    FROM gone CROSS JOIN LATERAL (SELECT * FROM jobs WHERE job = gone.job OFFSET 0) AS j
"""
_q_fail = """
    UPDATE jobs SET state = 3, finished_at = %(now)s, result = NULL, error = %(error)s, kept = NULL, held = false,
        attempts = %(attempts)s, completed_by = %(ended_by)s
    WHERE job = %(job)s
"""
_q_failed = "SELECT state FROM jobs WHERE job = %s AND completed_by = %s"
# Who waits is looked up by key: what statistics say of those that wait is always late.
_q_give_way = f"""
    UPDATE jobs w SET payload = {merged_payload("w.payload", "own.payload")}
    FROM (SELECT repo, type, payload FROM jobs WHERE job = %s OFFSET 0) AS own
    CROSS JOIN LATERAL (SELECT job FROM jobs WHERE repo = own.repo AND type = own.type AND state = 0 OFFSET 0) AS other
    WHERE w.job = other.job AND w.state < 1
    RETURNING w.job
"""
_q_wait = """
    UPDATE jobs SET state = 0, run_at = %(run_at)s, error = %(error)s, attempts = %(attempts)s, result = NULL,
        finished_at = NULL, completed_by = %(ended_by)s
    WHERE job = %(job)s
"""
_q_notify = "SELECT pg_notify(%s, '')"


@dataclass(frozen=True, slots=True)
class Taken:
    """A running job whose claim this transaction has deleted."""

    number: int
    repo: int
    type: str
    attempts: int
    run_at: dt.datetime
    error: str | None
    worker: str


@dataclass(frozen=True, slots=True)
class Completion:
    """What a claim has come to."""

    claim: Claim
    result: str
    """As JSON."""
    ended: dt.datetime


def completion(claim: Claim, result: Mapping[str, object], now: dt.datetime) -> Completion:
    """Give a completion as it is recorded; raises ``ValueError`` or ``TypeError`` for a result that is no JSON."""
    return Completion(claim, json.dumps(dict(result), allow_nan=False), now)


@one_statement
def complete_jobs(connection: Connection, completions: Sequence[Completion]) -> set[Claim]:
    """Record that jobs of different claims are done; gives those whose claim held. See ``Jobs.complete_job``.

    Where there is no claim to delete, a second look tells whether a call like this one has done it: it may have been
    on its way still, its connection lost, when the first statement began.
    """
    ordered = sorted(completions, key=lambda one: one.claim.job)
    arguments = {
        "jobs": Int8s([one.claim.job for one in ordered]), "tokens": [one.claim.token for one in ordered],
        "results": [one.result for one in ordered], "ended": [one.ended for one in ordered],
    }  # fmt: skip
    held = {Claim(job, token) for job, token, _ in connection.execute(_q_complete, arguments)}
    if len(held) < len(ordered):
        held |= {Claim(job, token) for job, token in connection.execute(_q_completed, arguments)}
    return held


def fail_job(
    connection: Connection, claim: Claim, error: str, now: dt.datetime, again_at: dt.datetime | None,
    most: int = ATTEMPTS_MOST,
) -> JobState | None:  # fmt: skip
    """See ``Jobs.fail_job``."""
    taken = _take(connection, [claim])
    if not taken:
        return _failed_already(connection, claim)
    (job,) = taken
    error = kept_error(error)
    if again_at is None or job.attempts >= most:
        _fail(connection, job, now, error, ended_by=claim.token)
        return JobState.FAILED
    return wait_again(connection, job, again_at, now, error, job.attempts, claim.token)


def return_jobs(connection: Connection, claims: Sequence[Claim], now: dt.datetime) -> int:
    """See ``Jobs.return_jobs``."""
    taken = _take(connection, claims)
    for job in taken:
        wait_again(connection, job, job.run_at, now, job.error, job.attempts - 1)
    if taken:
        notify(connection)
    return len(taken)


def recover_stale(
    connection: Connection, now: dt.datetime, stale_s: float, delay_s: float, most: int,
    attempts: int = ATTEMPTS_MOST,
) -> list[tuple[int, JobState]]:  # fmt: skip
    """See ``Jobs.recover_stale``."""
    limit = now - dt.timedelta(seconds=stale_s)
    again_at = now + dt.timedelta(seconds=delay_s)
    recovered = []
    for job in _in_order(connection.execute(_q_take_stale, {"limit": limit, "most": most}).fetchall()):
        error = f"its worker {job.worker} was not heard of for {stale_s:.0f} s"
        if job.attempts >= attempts:
            _fail(connection, job, now, error)
            state = JobState.FAILED
        else:
            state = wait_again(connection, job, again_at, now, error, job.attempts)
        recovered.append((job.number, state))
    if recovered:
        notify(connection)
    return sorted(recovered)


def wait_again(
    connection: Connection, job: Taken, run_at: dt.datetime, now: dt.datetime, error: str | None, attempts: int,
    ended_by: uuid.UUID | None = None,
) -> JobState:  # fmt: skip
    """Let a job that ran wait again, or give way to one of its type that waits already."""
    other = take_place(
        connection, job.number, _q_wait,
        {"job": job.number, "run_at": run_at, "error": error, "attempts": attempts, "ended_by": ended_by},
    )  # fmt: skip
    if other is None:
        return JobState.PENDING
    words = f"job {other} goes on with it"
    _fail(connection, job, now, words if error is None else f"{error}\n{words}", attempts, ended_by)
    return JobState.FAILED


def take_place(connection: Connection, number: int, query: str, arguments: Mapping[str, object]) -> int | None:
    """Run ``query``, which lets a job wait, unless another of its type waits; gives the one that got its payload.

    One that is enqueued at this moment by a transaction that has not ended is waited for: it may be rolled back.
    """
    for _ in range(WAIT_TRIES):
        row = connection.execute(_q_give_way, (number,)).fetchone()
        if row is not None:
            return int(row[0])
        try:
            with connection.transaction():
                connection.execute(query, arguments)
        except pg_errors.UniqueViolation:
            continue
        return None
    raise pg_errors.SerializationFailure("others of its type come to wait and are claimed all the time")


def notify(connection: Connection) -> None:
    """Wake who claims when the transaction has ended."""
    connection.execute(_q_notify, (JOBS_CHANNEL,))


def _take(connection: Connection, claims: Sequence[Claim]) -> list[Taken]:
    ordered = sorted(claims, key=lambda claim: claim.job)
    arguments = {"jobs": Int8s([claim.job for claim in ordered]), "tokens": [claim.token for claim in ordered]}
    return _in_order(connection.execute(_q_take, arguments).fetchall())


def _in_order(rows: Iterable[tuple[object, ...]]) -> list[Taken]:
    taken = [Taken(*row) for row in rows]  # type: ignore[arg-type]
    return sorted(taken, key=lambda job: (job.repo, job.type))


def _failed_already(connection: Connection, claim: Claim) -> JobState | None:
    """Say again what a call like this one has come to, its answer lost; ``None`` when it was not by this claim."""
    row = connection.execute(_q_failed, (claim.job, claim.token)).fetchone()
    if row is None:
        return None
    return {0: JobState.PENDING, 1: JobState.PENDING, 3: JobState.FAILED}.get(row[0])


def _fail(
    connection: Connection, job: Taken, now: dt.datetime, error: str, attempts: int | None = None,
    ended_by: uuid.UUID | None = None,
) -> None:  # fmt: skip
    arguments = {
        "job": job.number, "now": now, "error": error, "attempts": job.attempts if attempts is None else attempts,
        "ended_by": ended_by,
    }  # fmt: skip
    connection.execute(_q_fail, arguments)
