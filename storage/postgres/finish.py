"""The last transaction of a push: what is not recorded yet, and its acceptance, at once."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from storage.job_rows import NewJob
from storage.postgres.acceptance import accept_current, lock_attempt
from storage.postgres.blobs import insert_blobs
from storage.postgres.database import Connection
from storage.postgres.history import insert_history
from storage.rows import QUOTA_NONE, BranchMove, MoveResult, Outcome, PushRows, PushTicket, Written
from wire.ids import Scheme


def finish_push(
    connection: Connection, ticket: PushTicket, scheme: Scheme, rows: PushRows, move: BranchMove,
    verdict: Callable[[Written], Mapping[str, object]], now: dt.datetime, record_bytes: int = 0,
    new_jobs: Sequence[NewJob] = (), quota: int = QUOTA_NONE,
) -> MoveResult:  # fmt: skip
    """See ``Pushes.finish_push``; ``quota`` is the deployment's default. Unless it is moved, all is rolled back."""
    attempt = lock_attempt(connection, ticket, scheme)
    if attempt.decided is not None:
        moved = attempt.decided.outcome is Outcome.MOVED
        return replace(attempt.decided, head=move.new) if moved else attempt.decided
    blobs, size = insert_blobs(connection, ticket, scheme, rows.blobs) if rows.blobs else (0, 0)
    snapshots, commits = insert_history(connection, ticket, scheme, rows.snapshots, rows.commits)
    words = verdict(Written(blobs, snapshots, commits))
    size += attempt.brought_bytes + record_bytes
    result = accept_current(connection, ticket, move, words, now, size, new_jobs, quota, rows.record_pack)
    return replace(result, verdict=words) if result.outcome is Outcome.MOVED else result
