"""Claiming jobs, and what the holder of a claim says while it works.

A claim is a row of ``job_claims`` with a token. It is made by the statement that sets the job running; every other
statement names the token and finds nothing to do once the row is gone.

Rows are locked in the order claim, then job, then the place that waits of (repository, type); claiming itself waits
for nobody: it skips what is locked.
"""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from collections.abc import Mapping

import psycopg
from psycopg import errors as pg_errors

from storage.job_rows import Claim, ClaimedJob, JobProgress
from storage.postgres.arrays import Int8s
from storage.postgres.database import Connection, one_statement

CLAIM_ROUNDS = 10
"""How often a claimer looks further when others are claiming what it has found."""
CLAIM_TRIES = 5
"""How often a claim is tried again that met a job which came to run in a chain of events since its statement began."""

# What is ready is looked up without a lock, of each type as much as there is room for. The most urgent are then locked
# one by one until there are enough, and one that somebody else has locked is left out: so nobody locks more than it
# takes, or another would find too little. `seen` tells whether anything was left out. (`state + 0` is the condition of
# the one index to claim by, and `state < 1` keeps the planner from looking for a number in an index of all that wait.)
# A claim does not wait for the disk: one that is lost with the server leaves its job waiting, and its worker finds it
# gone with the next heartbeat.
_q_claim = """
    WITH ready AS MATERIALIZED (
        SELECT r.job, r.priority, r.run_at FROM unnest(%(types)s::text[], %(rooms)s::bigint[]) AS w (type, room)
        CROSS JOIN LATERAL (
            SELECT j.job, j.priority, j.run_at FROM jobs j
            WHERE j.type = w.type AND (j.state + 0) = 0 AND NOT j.held AND j.run_at <= %(now)s
                  AND j.job <> ALL (%(but)b)
                  AND NOT EXISTS (SELECT 1 FROM jobs o WHERE o.repo = j.repo AND o.type = w.type AND o.state = 1
                                  OFFSET 0)
            ORDER BY j.priority, j.run_at, j.job LIMIT w.room
        ) AS r
        WHERE NOT EXISTS (SELECT 1 FROM job_types t WHERE t.type = w.type AND t.paused OFFSET 0)
        ORDER BY r.priority, r.run_at, r.job
    ), taken AS MATERIALIZED (
        SELECT r.job FROM ready r CROSS JOIN LATERAL (
            SELECT 1 FROM jobs j WHERE j.job = r.job AND j.state < 1 AND NOT j.held AND j.run_at <= %(now)s
            FOR UPDATE SKIP LOCKED
        ) AS locked LIMIT %(most)s
    ), claims AS (
        INSERT INTO job_claims (job, token, worker, claimed_at, heartbeat_at)
        SELECT job, gen_random_uuid(), %(worker)s, %(now)s, %(now)s FROM taken
        RETURNING job, token
    ), claimed AS (
        UPDATE jobs j SET state = 1, attempts = j.attempts + 1 FROM claims c
        WHERE j.job = c.job AND j.job = ANY (ARRAY(SELECT job FROM taken))
        RETURNING j.job, c.token, j.repo, j.type, j.payload, j.attempts, j.created_at, j.kept, j.priority, j.run_at
    )
    SELECT ARRAY(SELECT job FROM ready), set_config('synchronous_commit', 'off', true), c.*
    FROM (SELECT) AS always LEFT JOIN claimed c ON true
"""
_q_claims_of = "SELECT job, token FROM job_claims WHERE worker = %s"
# Locked one after the other, in the order they are given in. A heartbeat does not wait for the disk: another follows.
_q_beat = """
    WITH alive AS MATERIALIZED (
        SELECT b.job, b.progress
        FROM unnest(%(jobs)b, %(tokens)s::uuid[], %(progress)s::text[]) AS b (job, token, progress)
        CROSS JOIN LATERAL (
            SELECT 1 FROM job_claims l WHERE l.job = b.job AND l.token = b.token FOR UPDATE OFFSET 0
        ) AS l
    )
    UPDATE job_claims c SET heartbeat_at = %(now)s, progress = coalesce(a.progress::json, c.progress)
    FROM alive a WHERE c.job = a.job AND c.job = ANY (ARRAY(SELECT job FROM alive))
    RETURNING c.job, c.token, set_config('synchronous_commit', 'off', true)
"""
_q_keep = """
    WITH alive AS (
        UPDATE job_claims SET heartbeat_at = %(now)s WHERE job = %(job)s AND token = %(token)s RETURNING job
    )
    UPDATE jobs SET kept = %(state)s::json FROM alive WHERE jobs.job = alive.job RETURNING jobs.job
"""


@one_statement
def claim_jobs(
    connection: Connection, room: Mapping[str, int], most: int, worker: str, now: dt.datetime
) -> list[ClaimedJob]:
    """See ``Jobs.claim_jobs``.

    One statement is enough unless it had to leave out what others are just claiming: then the next one looks further.
    Each is a transaction of its own; what is claimed is given when a later one fails, or nobody would work on it.
    """
    left = {kind: count for kind, count in sorted(room.items()) if count > 0}
    claimed: list[ClaimedJob] = []
    left_out: set[int] = set()
    for _ in range(CLAIM_ROUNDS):
        if not left or len(claimed) >= most:
            break
        try:
            seen, jobs = _claim(connection, left, most - len(claimed), worker, now, left_out)
        except psycopg.OperationalError:
            if not claimed:
                raise
            break
        claimed += jobs
        skipped = seen - left_out - {job.claim.job for job in jobs}
        if not skipped:
            break
        left_out |= skipped
        taken = Counter(job.type for job in jobs)
        left = {kind: count - taken[kind] for kind, count in left.items() if count > taken[kind]}
    return claimed


def _claim(
    connection: Connection, room: Mapping[str, int], most: int, worker: str, now: dt.datetime, but: set[int]
) -> tuple[set[int], list[ClaimedJob]]:
    """Claim what is not locked; gives the numbers of all that were ready, and the claimed ones, most urgent first.

    A job is running at most once of each repository and type by an index. Who looks for jobs sees which run, but not
    what happened since its statement began: when a waiting job was cancelled, another took its place and was claimed,
    and the first was retried, all in that moment, the index refuses the claim, and it is tried again.
    """
    arguments = {
        "types": list(room), "rooms": list(room.values()), "most": most, "worker": worker, "now": now,
        "but": Int8s(sorted(but)),
    }  # fmt: skip
    for _ in range(CLAIM_TRIES):
        try:
            rows = connection.execute(_q_claim, arguments).fetchall()
        except pg_errors.UniqueViolation:
            continue
        found = sorted((row[2:] for row in rows if row[2] is not None), key=lambda row: (row[8], row[9], row[0]))
        return set(rows[0][0]), [
            ClaimedJob(Claim(number, token), repo, kind, payload, attempt, created, kept or {})
            for number, token, repo, kind, payload, attempt, created, kept, _, _ in found
        ]
    return set(), []


@one_statement
def claims_of(connection: Connection, worker: str) -> set[Claim]:
    """See ``Jobs.claims_of``."""
    return {Claim(job, token) for job, token in connection.execute(_q_claims_of, (worker,))}


@one_statement
def beat_claims(connection: Connection, beats: Mapping[Claim, JobProgress | None], now: dt.datetime) -> set[Claim]:
    """See ``Jobs.beat_claims``."""
    if not beats:
        return set()
    ordered = sorted(beats, key=lambda claim: claim.job)  # several are locked, always in this order
    arguments = {
        "jobs": Int8s([claim.job for claim in ordered]),
        "tokens": [claim.token for claim in ordered],
        "progress": [_progress_text(beats[claim]) for claim in ordered],
        "now": now,
    }
    return set(beats) - {Claim(job, token) for job, token, _ in connection.execute(_q_beat, arguments)}


@one_statement
def keep_state(connection: Connection, claim: Claim, state: Mapping[str, object], now: dt.datetime) -> bool:
    """See ``Jobs.keep_state``."""
    arguments = {"job": claim.job, "token": claim.token, "state": json.dumps(dict(state)), "now": now}
    return connection.execute(_q_keep, arguments).fetchone() is not None


def _progress_text(progress: JobProgress | None) -> str | None:
    if progress is None:
        return None
    return json.dumps({"stage": progress.stage, "done": progress.done, "total": progress.total})
