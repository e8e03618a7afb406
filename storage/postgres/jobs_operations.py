"""What operators do with jobs: retry, cancel, hold, pause; and forgetting those that ended long ago."""

from __future__ import annotations

import datetime as dt

from storage.job_rows import JobState
from storage.postgres.database import Connection, one_statement
from storage.postgres.jobs_endings import notify, take_place

_q_look = "SELECT state FROM jobs WHERE job = %s FOR UPDATE"
_q_run_now = "UPDATE jobs SET run_at = least(run_at, %(now)s) WHERE job = %(job)s"
_q_retry = """
    UPDATE jobs SET state = 0, attempts = 0, run_at = %(now)s, finished_at = NULL, error = NULL, held = false
    WHERE job = %(job)s
"""
_q_drop_claim = "DELETE FROM job_claims WHERE job = %s"
_q_cancel = """
    UPDATE jobs SET state = 4, finished_at = %(now)s, kept = NULL, held = false
    WHERE job = %(job)s AND state < 2
    RETURNING job
"""
_q_hold = "UPDATE jobs SET held = %s WHERE job = %s AND state < 1 RETURNING job"
_q_pause = """
    INSERT INTO job_types (type, paused) VALUES (%s, %s) ON CONFLICT (type) DO UPDATE SET paused = excluded.paused
"""
_q_paused = "SELECT type FROM job_types WHERE paused"
_q_prune = """
    DELETE FROM jobs WHERE job = ANY (ARRAY(
        SELECT job FROM jobs WHERE state >= 2 AND finished_at < %s
        ORDER BY finished_at, job LIMIT %s FOR UPDATE SKIP LOCKED
    ))
"""


def retry_job(connection: Connection, number: int, now: dt.datetime) -> bool:
    """See ``Jobs.retry_job``."""
    row = connection.execute(_q_look, (number,)).fetchone()
    if row is None:
        return False
    (state,) = row
    arguments = {"job": number, "now": now}
    if state == JobState.PENDING:
        connection.execute(_q_run_now, arguments)
    elif state in {JobState.FAILED, JobState.CANCELLED}:
        take_place(connection, number, _q_retry, arguments)
    else:
        return False
    notify(connection)
    return True


def cancel_job(connection: Connection, number: int, now: dt.datetime) -> bool:
    """See ``Jobs.cancel_job``.

    The claim is deleted first, as by every ending. A job that waited and is claimed just then has a claim after all:
    it is deleted once the job's row is locked.
    """
    connection.execute(_q_drop_claim, (number,))
    if connection.execute(_q_cancel, {"job": number, "now": now}).fetchone() is None:
        return False
    connection.execute(_q_drop_claim, (number,))
    notify(connection)
    return True


def hold_job(connection: Connection, number: int, held: bool) -> bool:
    """See ``Jobs.hold_job``."""
    if connection.execute(_q_hold, (held, number)).fetchone() is None:
        return False
    notify(connection)
    return True


def pause_type(connection: Connection, type_: str, paused: bool) -> None:
    """See ``Jobs.pause_type``."""
    connection.execute(_q_pause, (type_, paused))
    notify(connection)


@one_statement
def paused_types(connection: Connection) -> set[str]:
    """See ``Jobs.paused_types``."""
    return {kind for (kind,) in connection.execute(_q_paused)}


@one_statement
def prune_jobs(connection: Connection, before: dt.datetime, most: int) -> int:
    """See ``Jobs.prune_jobs``."""
    return connection.execute(_q_prune, (before, most)).rowcount
