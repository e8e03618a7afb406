"""Jobs: what is to be done later. Enqueued in the transaction that makes it necessary, so none is forgotten.

At most one job of a type waits for a repository. A type whose work follows from the index has an empty payload: the
job looks up what is to be done when it runs. What the index cannot tell is merged into the payload of the job that
waits, member by member, within bounds.

A job that waits already is locked, whether its payload grows or not: who claims skips it until this transaction has
ended, and so sees what it was enqueued for. Without the lock it could be claimed and run before the push is visible,
and the push would have no job.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence

from storage.postgres.database import Connection
from storage.rows import JOBS_CHANNEL, LISTED_JOBS, PAYLOAD_MEMBERS, WHOLE, Job, JobState, NewJob

_q_enqueue = f"""
    WITH queued AS (
        INSERT INTO jobs (repo, type, priority, payload, run_at, created_at)
        SELECT %(repo)s, new.type, new.priority, new.payload::jsonb, %(now)s, %(now)s
        FROM unnest(%(types)s::text[], %(priorities)s::smallint[], %(payloads)s::text[])
             AS new (type, priority, payload)
        ORDER BY new.type
        ON CONFLICT (repo, type) WHERE state = 0 DO UPDATE
            SET payload = CASE
                WHEN (SELECT count(*) FROM jsonb_object_keys(jobs.payload || excluded.payload)) > {PAYLOAD_MEMBERS}
                THEN '{json.dumps(WHOLE)}'::jsonb ELSE jobs.payload || excluded.payload END
            WHERE excluded.payload <> '{{}}'::jsonb
    )
    SELECT pg_notify(%(channel)s, '')
"""
_q_list = """
    SELECT job, repo, type, state, priority, payload, run_at, attempts, created_at, finished_at, result, error
    FROM jobs WHERE repo = %s ORDER BY job DESC LIMIT %s
"""


def enqueue(connection: Connection, repo: int, jobs: Sequence[NewJob], now: dt.datetime) -> None:
    """Enqueue jobs of different types, at once, and wake who claims when the transaction has ended."""
    if not jobs:
        return
    arguments = {
        "repo": repo,
        "now": now,
        "types": [job.type for job in jobs],
        "priorities": [job.priority for job in jobs],
        "payloads": [json.dumps(dict(job.payload)) for job in jobs],
        "channel": JOBS_CHANNEL,
    }
    connection.execute(_q_enqueue, arguments)


def list_jobs(connection: Connection, repo: int) -> list[Job]:
    """See ``Jobs.list_jobs``."""
    rows = connection.execute(_q_list, (repo, LISTED_JOBS)).fetchall()
    return [
        Job(number, of, kind, JobState(state), priority, payload, run_at, attempts, created, finished, result, error)
        for number, of, kind, state, priority, payload, run_at, attempts, created, finished, result, error
        in reversed(rows)
    ]  # fmt: skip
