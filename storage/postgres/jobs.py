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

from storage.job_rows import JOBS_CHANNEL, PAYLOAD_MEMBERS, WHOLE, NewJob, wakes
from storage.postgres.database import Connection


def merged_payload(waiting: str, more: str) -> str:
    """Give the expression of a waiting job's payload with more added, by the names of both columns."""
    return f"""CASE
                WHEN (SELECT count(*) FROM jsonb_object_keys({waiting} || {more})) > {PAYLOAD_MEMBERS}
                THEN '{json.dumps(WHOLE)}'::jsonb ELSE {waiting} || {more} END"""


def queued(condition: str = "true") -> str:
    """Give the part of a statement that enqueues the jobs of :func:`job_arguments`."""
    return f"""queued AS (
        INSERT INTO jobs (repo, type, priority, payload, run_at, created_at)
        SELECT %(repo)s, new.type, new.priority, new.payload::jsonb,
               %(now)s + new.delay_s * interval '1 second', %(now)s
        FROM unnest(%(types)s::text[], %(priorities)s::smallint[], %(payloads)s::text[], %(delays)s::float8[])
             AS new (type, priority, payload, delay_s)
        WHERE {condition}
        ORDER BY new.type
        ON CONFLICT (repo, type) WHERE state = 0 DO UPDATE
            SET payload = {merged_payload("jobs.payload", "excluded.payload")}
            WHERE excluded.payload <> '{{}}'::jsonb
    )"""


_q_enqueue = f"WITH {queued()} SELECT CASE WHEN %(wakes)s THEN pg_notify(%(channel)s, '') END"
_q_waiting = """
    SELECT j.job FROM unnest(%(types)s::text[]) AS new (type)
    CROSS JOIN LATERAL (SELECT job FROM jobs WHERE repo = %(repo)s AND type = new.type AND state = 0 OFFSET 0) AS j
    ORDER BY new.type COLLATE "C"
"""


def enqueue(connection: Connection, repo: int, jobs: Sequence[NewJob], now: dt.datetime) -> None:
    """Enqueue jobs of different types, at once, and wake who claims, if there is one for now, at the end of it all."""
    if not jobs:
        return
    connection.execute(_q_enqueue, {"repo": repo, "now": now, **job_arguments(jobs)})


def job_arguments(jobs: Sequence[NewJob]) -> dict[str, object]:
    """Give the arguments of jobs of different types."""
    return {
        "types": [job.type for job in jobs],
        "priorities": [job.priority for job in jobs],
        "payloads": [json.dumps(dict(job.payload)) for job in jobs],
        "delays": [job.delay_s for job in jobs],
        "channel": JOBS_CHANNEL,
        "wakes": wakes(jobs),
    }


def enqueue_jobs(connection: Connection, repo: int, jobs: Sequence[NewJob], now: dt.datetime) -> list[int]:
    """See ``Jobs.enqueue_jobs``; those that wait are locked, so they wait still when they are looked up."""
    enqueue(connection, repo, jobs, now)
    arguments = {"repo": repo, "types": [job.type for job in jobs]}
    return [job for (job,) in connection.execute(_q_waiting, arguments)]
