"""What a push does most, as one statement each: nothing is decided on the way because nothing stands in the way.

A transaction of several statements holds its connection, and its locks, while its thread gets the interpreter back
after each of them. Usually there is nothing to decide in between: the attempt is the current one, nothing it brings is
being collected, its owner has no quota, its branch is where it was. Then one statement does it all, in the same order
of locks as the transaction it stands for: each part asks for what the one before it gave. Where something is in the
way, it changes nothing and says so by giving ``None``, and the transaction of several statements finds out what.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence

from psycopg import errors as pg_errors
from psycopg.types.json import Json

from storage.job_rows import NewJob
from storage.postgres import jobs
from storage.postgres.acceptance import accepted
from storage.postgres.arrays import Byteas, Int8s
from storage.postgres.branches import move_branch
from storage.postgres.database import Connection, one_large_statement
from storage.postgres.history import commit_arguments, commit_parts, snapshot_arguments, snapshot_parts
from storage.rows import (
    QUOTA_NONE,
    BranchMove,
    CommitRow,
    MoveResult,
    Outcome,
    PushRows,
    PushState,
    PushTicket,
    SnapshotRef,
    StoredBlob,
    Written,
)
from wire.ids import Scheme

_unhindered = """
    known AS MATERIALIZED (
        SELECT wanted.at, p.pack FROM unnest(%(pack_ids)b) WITH ORDINALITY AS wanted (id, at)
        CROSS JOIN LATERAL (SELECT pack FROM packs WHERE pack_id = wanted.id OFFSET 0) AS p
    ), unhindered AS MATERIALIZED (
        SELECT 1
        WHERE NOT EXISTS (
            SELECT 1 FROM unnest(%(ids)b) AS wanted (id)
            WHERE EXISTS (SELECT 1 FROM collect_marks m
                          WHERE m.kind = 0 AND m.scheme = %(scheme)s AND m.id = wanted.id OFFSET 0))
          AND NOT EXISTS (
            SELECT 1 FROM unnest(%(pack_ids)b) AS wanted (id)
            WHERE EXISTS (SELECT 1 FROM collect_marks m
                          WHERE m.kind = 1 AND m.scheme = '' AND m.id = wanted.id OFFSET 0))
          AND NOT EXISTS (SELECT 1 FROM owner_quotas q JOIN repositories r USING (owner)
                          WHERE r.repo = %(repo)s AND q.quota_bytes IS NOT NULL)
          AND (SELECT count(*) FROM known) = cardinality(%(pack_ids)b)
    )
"""
_new_blobs = """
        INSERT INTO blobs (blob_id, scheme, size, pack, "offset")
        SELECT new.id, %(scheme)s, new.size, (SELECT k.pack FROM known k WHERE k.at = new.pack), new.at
        FROM unnest(%(ids)b, %(sizes)b, %(packs)b, %(offsets)b) AS new (id, size, pack, at)
        WHERE EXISTS (SELECT 1 FROM may)
        ON CONFLICT DO NOTHING RETURNING 1
"""
_new_pending_blobs = """
        INSERT INTO blobs (blob_id, scheme, size, pack, "offset", pending)
        SELECT new.id, %(scheme)s, new.size, (SELECT k.pack FROM known k WHERE k.at = new.pack), new.at, new.waits = 1
        FROM unnest(%(ids)b, %(sizes)b, %(packs)b, %(offsets)b, %(waiting)b) AS new (id, size, pack, at, waits)
        WHERE EXISTS (SELECT 1 FROM may)
        ON CONFLICT DO NOTHING RETURNING blob_id, pending
    ), cached AS (
        INSERT INTO content_cache (blob_id, scheme, content)
        SELECT stored.blob_id, %(scheme)s, given.content
        FROM stored JOIN unnest(%(ids)b, %(contents)b) AS given (id, content) ON given.id = stored.blob_id
        WHERE stored.pending AND given.content IS NOT NULL
        ON CONFLICT DO NOTHING RETURNING 1
"""
_new_refs = """
    added AS (
        INSERT INTO blob_refs (repo, blob_id, push)
        SELECT %(repo)s, new.id, %(push)s FROM unnest(%(ids)b) AS new (id)
        WHERE EXISTS (SELECT 1 FROM may) AND (SELECT count(*) FROM stored) >= 0
        ON CONFLICT DO NOTHING RETURNING blob_id
    )
"""

_attempted = f"""
    attempted AS MATERIALIZED (
        SELECT 1 FROM pushes
        WHERE push = %(push)s AND state = {PushState.OPEN.value} AND attempt = %(attempt)s FOR KEY SHARE
    )
"""
_is_current = "EXISTS (SELECT 1 FROM attempted)"
_q_record_snapshots = f"""
    WITH {_attempted}, {snapshot_parts(_is_current)} SELECT (SELECT count(*) FROM added_snapshots) FROM attempted
"""
_q_record_commits = f"""
    WITH {_attempted}, {commit_parts(_is_current)} SELECT (SELECT count(*) FROM added_commits) FROM attempted
"""


def _record(new_blobs: str) -> str:
    return f"""
        WITH {_attempted}, {_unhindered}, may AS MATERIALIZED (SELECT 1 FROM attempted, unhindered),
        stored AS ({new_blobs}),
        {_new_refs}, brought AS MATERIALIZED (
            SELECT count(*) AS blobs, coalesce(sum(new.size), 0)::bigint AS bytes
            FROM added JOIN unnest(%(ids)b, %(sizes)b) AS new (id, size) ON new.id = added.blob_id
        ), counted AS (
            UPDATE pushes SET bytes = pushes.bytes + brought.bytes FROM brought
            WHERE push = %(push)s AND brought.bytes > 0
        )
        SELECT brought.blobs FROM brought, may
    """


_q_record = _record(_new_blobs)
_q_record_pending = _record(_new_pending_blobs)

_insert_branch = """
    INSERT INTO branches (repo, name, head, updated_at)
    SELECT %(repo)s, %(branch)s, %(new)s, %(now)s WHERE EXISTS (SELECT 1 FROM recorded)
    ON CONFLICT DO NOTHING RETURNING 1
"""
_move_branch = f"{move_branch} AND EXISTS (SELECT 1 FROM recorded) RETURNING 1"


_IS_THERE = "scheme = %(scheme)s", "SHARE", ""
_MAY_BE_FIRST = (
    "(scheme IS NULL OR scheme = %(scheme)s)",
    "NO KEY UPDATE",
    """fixed AS (
        UPDATE repositories SET scheme = %(scheme)s
        WHERE repo = %(repo)s AND scheme IS NULL AND EXISTS (SELECT 1 FROM may)
    ),""",
)
"""A repository's condition, its lock, and the fixing of its scheme: a first push makes a branch."""


def _finish(new_blobs: str, swap: str, repository: tuple[str, str, str]) -> str:
    condition, lock, fixed = repository
    # Of the one statement, what was not as foreseen has to take back the rest: only an error does that.
    return f"""
        WITH attempted AS MATERIALIZED (
            SELECT bytes, collected FROM pushes
            WHERE push = %(push)s AND state = {PushState.OPEN.value} AND attempt = %(attempt)s FOR UPDATE
        ), settled_repository AS MATERIALIZED (
            SELECT collected FROM repositories
            WHERE repo = %(repo)s AND deleted_at IS NULL AND {condition}
                AND EXISTS (SELECT 1 FROM attempted) FOR {lock}
        ), {_unhindered}, may AS MATERIALIZED (
            SELECT attempted.bytes + %(bytes)s AS bytes
            FROM attempted JOIN settled_repository USING (collected), unhindered
        ), {fixed} stored AS ({new_blobs}), {_new_refs},
        {snapshot_parts("EXISTS (SELECT 1 FROM may) AND (SELECT count(*) FROM added) >= 0")},
        {commit_parts("EXISTS (SELECT 1 FROM may) AND (SELECT count(*) FROM added_snapshots) >= 0")},
        recorded AS MATERIALIZED (SELECT 1 FROM may WHERE (SELECT count(*) FROM added_commits) >= 0),
        swapped AS ({swap}),
        {accepted("(SELECT bytes FROM may)")}
        SELECT CASE WHEN EXISTS (SELECT 1 FROM may) THEN 1 / (
                   (SELECT count(*) FROM swapped) = 1 AND (SELECT count(*) FROM added) = %(blob_count)s
                   AND (SELECT count(*) FROM added_snapshots) = %(snapshot_count)s
                   AND (SELECT count(*) FROM added_commits) = %(commit_count)s
               )::int END,
               CASE WHEN %(wakes)s AND EXISTS (SELECT 1 FROM may) THEN pg_notify(%(channel)s, '') END
    """


_q_finish_new = _finish(_new_blobs, _insert_branch, _MAY_BE_FIRST)
_q_finish_new_pending = _finish(_new_pending_blobs, _insert_branch, _MAY_BE_FIRST)
_q_finish_moved = _finish(_new_blobs, _move_branch, _IS_THERE)
_q_finish_moved_pending = _finish(_new_pending_blobs, _move_branch, _IS_THERE)


@one_large_statement
def record_at_once(
    connection: Connection, ticket: PushTicket, scheme: Scheme, blobs: Sequence[StoredBlob]
) -> int | None:
    """Record blobs of a push whose owner has no quota; ``None``: nothing was done, something is in the way."""
    arguments = _blob_arguments(blobs) | _names(ticket, scheme)
    row = connection.execute(_q_record_pending if "waiting" in arguments else _q_record, arguments).fetchone()
    return None if row is None else row[0]


@one_large_statement
def record_snapshots_at_once(
    connection: Connection, ticket: PushTicket, scheme: Scheme, snapshots: Sequence[SnapshotRef]
) -> int | None:
    """Record snapshots of a first attempt; ``None``: nothing was done, it is not the current one."""
    arguments = _names(ticket, scheme) | snapshot_arguments(snapshots)
    row = connection.execute(_q_record_snapshots, arguments).fetchone()
    return None if row is None else row[0]


@one_large_statement
def record_commits_at_once(
    connection: Connection, ticket: PushTicket, scheme: Scheme, commits: Sequence[CommitRow]
) -> int | None:
    """Record commits of a first attempt; ``None``: nothing was done, it is not the current one."""
    row = connection.execute(_q_record_commits, _names(ticket, scheme) | commit_arguments(commits)).fetchone()
    return None if row is None else row[0]


@one_large_statement
def finish_at_once(
    connection: Connection, ticket: PushTicket, scheme: Scheme, rows: PushRows, move: BranchMove,
    verdict: Callable[[Written], Mapping[str, object]], now: dt.datetime, record_bytes: int,
    new_jobs: Sequence[NewJob],
) -> MoveResult | None:  # fmt: skip
    """Finish the first attempt of a push that brings only what is new; ``None``: nothing was done."""
    words = verdict(Written(len(rows.blobs), len(rows.snapshots), len(rows.commits)))
    arguments = {
        **_blob_arguments(rows.blobs), **snapshot_arguments(rows.snapshots), **commit_arguments(rows.commits),
        **_names(ticket, scheme), **jobs.job_arguments(new_jobs),
        "branch": move.branch, "old": move.old, "new": move.new, "forced": move.forced, "is_change": True, "now": now,
        "bytes": record_bytes + sum(blob.size for blob in rows.blobs), "record_pack": rows.record_pack,
        "blob_count": len(rows.blobs), "snapshot_count": len(rows.snapshots), "commit_count": len(rows.commits),
        "verdict": Json(dict(words)),
    }  # fmt: skip
    plain, pending = (
        (_q_finish_new, _q_finish_new_pending) if move.old is None else (_q_finish_moved, _q_finish_moved_pending)
    )
    try:
        done = connection.execute(pending if "waiting" in arguments else plain, arguments).fetchone()
    except pg_errors.DivisionByZero:
        return None
    return None if done is None or done[0] is None else MoveResult(Outcome.MOVED, move.new, verdict=words)


def is_usual(ticket: PushTicket, blobs: Sequence[StoredBlob], quota: int) -> bool:
    """Tell whether blobs may be recorded at once, as far as can be told without asking the database."""
    return quota == QUOTA_NONE and ticket.attempt == 1 and len({blob.object_id for blob in blobs}) == len(blobs)


def _names(ticket: PushTicket, scheme: Scheme) -> dict[str, object]:
    return {"repo": ticket.repo, "push": ticket.number, "attempt": ticket.attempt, "scheme": scheme.value}


def _blob_arguments(blobs: Sequence[StoredBlob]) -> dict[str, object]:
    """In order of id, or two pushes would wait for each other in a circle."""
    ordered = sorted(blobs, key=lambda blob: blob.object_id)
    pack_ids = sorted({blob.pack_id for blob in blobs if blob.pack_id is not None})
    numbers = {pack_id: number for number, pack_id in enumerate(pack_ids, 1)}
    arguments: dict[str, object] = {
        "pack_ids": Byteas(pack_ids),
        "ids": Byteas([blob.object_id for blob in ordered]),
        "sizes": Int8s([blob.size for blob in ordered]),
        "packs": Int8s([None if blob.pack_id is None else numbers[blob.pack_id] for blob in ordered]),
        "offsets": Int8s([blob.offset for blob in ordered]),
    }
    if any(blob.content is not None for blob in ordered):
        arguments["contents"] = Byteas([blob.content for blob in ordered])
        arguments["waiting"] = Int8s([int(blob.content is not None) for blob in ordered])
    return arguments
