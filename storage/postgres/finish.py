"""The last transaction of a push: what is not recorded yet, and its acceptance, at once."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from storage.postgres.blobs import insert_blobs
from storage.postgres.database import Connection
from storage.postgres.history import insert_commits, insert_snapshots
from storage.postgres.pushes import accept_current
from storage.rows import QUOTA_NONE, BranchMove, MoveResult, NewJob, Outcome, PushRows, PushState, PushTicket, Written
from wire.ids import Scheme

_q_look = "SELECT state, attempt, bytes, verdict FROM pushes WHERE push = %s FOR UPDATE"
"""Locked from the start: two attempts that both hold a share of the row could not both get it alone."""


def finish_push(
    connection: Connection, ticket: PushTicket, scheme: Scheme, rows: PushRows, move: BranchMove,
    verdict: Callable[[Written], Mapping[str, object]], now: dt.datetime, record_bytes: int = 0,
    new_jobs: Sequence[NewJob] = (), quota: int = QUOTA_NONE,
) -> MoveResult:  # fmt: skip
    """See ``Pushes.finish_push``; ``quota`` is the deployment's default. Unless it is moved, all is rolled back."""
    state, attempt, brought, kept = connection.execute(_q_look, (ticket.number,)).fetchone() or (None, None, 0, None)
    if (state, attempt) == (PushState.ACCEPTED.value, ticket.attempt):  # by a call like this one, its answer lost
        return MoveResult(Outcome.MOVED, move.new, verdict=kept)
    if (state, attempt) != (PushState.OPEN.value, ticket.attempt):
        return MoveResult(Outcome.SUPERSEDED)
    blobs, size = insert_blobs(connection, ticket, scheme, rows.blobs) if rows.blobs else (0, 0)
    snapshots = insert_snapshots(connection, ticket, scheme, rows.snapshots) if rows.snapshots else 0
    commits = insert_commits(connection, ticket, scheme, rows.commits) if rows.commits else 0
    words = verdict(Written(blobs, snapshots, commits))
    size += brought + record_bytes
    result = accept_current(connection, ticket, scheme, move, words, now, size, new_jobs, quota)
    if result.outcome is not Outcome.MOVED:
        connection.rollback()
        return result
    return replace(result, verdict=words)
