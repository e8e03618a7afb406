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
_q_complete = """
    WITH gone AS (
        DELETE FROM job_claims WHERE job = %(job)s AND token = %(token)s RETURNING job
    )
    UPDATE jobs SET state = 2, finished_at = %(now)s, result = %(result)s::json, error = NULL, kept = NULL,
        held = false, completed_by = %(token)s
    FROM gone WHERE jobs.job = gone.job
    RETURNING set_config('synchronous_commit', 'off', true)
"""
_q_completed = "SELECT 1 FROM jobs WHERE job = %(job)s AND completed_by = %(token)s"
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
        attempts = %(attempts)s
    WHERE job = %(job)s
"""
_q_give_way = f"""
    UPDATE jobs w SET payload = {merged_payload("w.payload", "own.payload")}
    FROM (SELECT repo, type, payload FROM jobs WHERE job = %s OFFSET 0) AS own
    WHERE w.repo = own.repo AND w.type = own.type AND w.state = 0
    RETURNING w.job
"""
_q_wait = """
    UPDATE jobs SET state = 0, run_at = %(run_at)s, error = %(error)s, attempts = %(attempts)s, result = NULL,
        finished_at = NULL
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


@one_statement
def complete_job(connection: Connection, claim: Claim, result: Mapping[str, object], now: dt.datetime) -> bool:
    """See ``Jobs.complete_job``.

    When there is no claim to delete, a second look tells whether a call like this one has done it: it may have been
    on its way still, its connection lost, when the first statement began.
    """
    arguments = {"job": claim.job, "token": claim.token, "now": now, "result": json.dumps(dict(result))}
    if connection.execute(_q_complete, arguments).fetchone() is not None:
        return True
    return connection.execute(_q_completed, arguments).fetchone() is not None


def fail_job(
    connection: Connection, claim: Claim, error: str, now: dt.datetime, again_at: dt.datetime | None,
    most: int = ATTEMPTS_MOST,
) -> JobState | None:  # fmt: skip
    """See ``Jobs.fail_job``."""
    taken = _take(connection, [claim])
    if not taken:
        return None
    (job,) = taken
    error = kept_error(error)
    if again_at is None or job.attempts >= most:
        _fail(connection, job, now, error)
        return JobState.FAILED
    return wait_again(connection, job, again_at, now, error, job.attempts)


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
    connection: Connection, job: Taken, run_at: dt.datetime, now: dt.datetime, error: str | None, attempts: int
) -> JobState:
    """Let a job that ran wait again, or give way to one of its type that waits already."""
    other = take_place(
        connection, job.number, _q_wait,
        {"job": job.number, "run_at": run_at, "error": error, "attempts": attempts},
    )  # fmt: skip
    if other is None:
        return JobState.PENDING
    words = f"job {other} goes on with it"
    _fail(connection, job, now, words if error is None else f"{error}\n{words}", attempts)
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


def _fail(connection: Connection, job: Taken, now: dt.datetime, error: str, attempts: int | None = None) -> None:
    arguments = {
        "job": job.number, "now": now, "error": error, "attempts": job.attempts if attempts is None else attempts,
    }  # fmt: skip
    connection.execute(_q_fail, arguments)
