"""Taking references from repositories that no branch leads to any more, and those of pushes that came to nothing.

A step locks the repository against whoever moves its branches, looks whether they have moved since they were walked,
and takes away a bounded number of references, or all needless commits at once. Suspects are only appended here: under
that lock nobody is waited for who may wait for it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from storage.collection_rows import HANDOVER_S, RefKind, Sweep, SweepOutcome, Swept
from storage.postgres.arrays import Byteas
from storage.postgres.database import Connection, one_statement
from storage.rows import ABANDONED_S
from wire.ids import Scheme

SLACK_S = 300.0
"""What happened so shortly before a sweep may have been written by a clock that is behind: looked at again."""
_TIDIED_AT_ONCE = 10_000
_q_sweepable = """
    SELECT r.repo FROM repositories r WHERE r.repo > %(after)s AND (
        (r.deleted_at <= %(kept)s AND r.deleted_at > r.swept_until)
        OR EXISTS (SELECT 1 FROM pushes p WHERE p.repo = r.repo AND p.state = 0 AND p.lease_expires <= %(abandoned)s)
        OR EXISTS (SELECT 1 FROM pushes p WHERE p.repo = r.repo AND p.state = 2 AND p.finished_at > r.swept_at)
        OR EXISTS (SELECT 1 FROM branch_log l WHERE l.repo = r.repo AND (l.forced OR l.new IS NULL)
                                                    AND l.at <= %(kept)s AND l.at > r.swept_until)
    ) ORDER BY r.repo LIMIT %(most)s
"""
_q_repository = """
    SELECT scheme, coalesce(deleted_at <= %(kept)s, false),
           EXISTS (SELECT 1 FROM branch_log l WHERE l.repo = r.repo AND (l.forced OR l.new IS NULL)
                                                    AND l.at <= %(kept)s AND l.at > r.swept_until)
    FROM repositories r WHERE repo = %(repo)s
"""
_q_cut = """
    UPDATE pushes p SET attempt = p.attempt + 1, bytes = 0, begun = pg_current_xact_id()
    FROM (SELECT push FROM pushes WHERE repo = %(repo)s AND state = 0 AND lease_expires <= %(abandoned)s
          ORDER BY push FOR UPDATE) AS left_alone
    WHERE p.push = left_alone.push
"""
_q_end_run = "DELETE FROM collect_runs WHERE repo = %s"
_q_begin_run = """
    INSERT INTO collect_runs (repo, entry)
    SELECT %(repo)s, coalesce((SELECT entry FROM branch_log ORDER BY entry DESC LIMIT 1), 0) RETURNING run
"""
_q_roots = """
    INSERT INTO collect_reached (run, kind, id, visited)
    SELECT DISTINCT %(run)s::bigint, 2, head, false FROM (
        SELECT head FROM branches WHERE repo = %(repo)s
        UNION ALL SELECT old FROM branch_log WHERE repo = %(repo)s AND (at > %(kept)s OR entry > %(entry)s)
        UNION ALL SELECT new FROM branch_log WHERE repo = %(repo)s AND (at > %(kept)s OR entry > %(entry)s)
    ) AS roots WHERE head IS NOT NULL ORDER BY 3
    ON CONFLICT DO NOTHING
"""
_q_last_entry = "SELECT coalesce((SELECT entry FROM branch_log ORDER BY entry DESC LIMIT 1), 0)"
_q_run = "SELECT entry FROM collect_runs WHERE run = %s FOR UPDATE"
_q_move_on = "UPDATE collect_runs SET entry = %s WHERE run = %s"
_q_stamp = "UPDATE collect_runs SET moment = pg_current_xact_id() WHERE run = %s"
_q_unvisited = """
    SELECT id FROM collect_reached WHERE run = %s AND kind = %s AND NOT visited ORDER BY id LIMIT %s
"""
_q_reach = """
    INSERT INTO collect_reached (run, kind, id, visited)
    SELECT %(run)s, %(kind)s, new.id, %(visited)s FROM unnest(%(ids)b) AS new (id)
    ON CONFLICT (run, kind, id) DO UPDATE SET visited = true WHERE excluded.visited AND NOT collect_reached.visited
"""
_q_reached = """
    SELECT wanted.id FROM unnest(%(ids)b) AS wanted (id)
    WHERE EXISTS (SELECT 1 FROM collect_reached r WHERE r.run = %(run)s AND r.kind = %(kind)s AND r.id = wanted.id
                  OFFSET 0)
"""
_q_lock = "SELECT 1 FROM repositories WHERE repo = %s FOR UPDATE"
_q_state = """
    SELECT EXISTS (SELECT 1 FROM branch_log l WHERE l.entry > c.entry AND l.repo = c.repo),
           EXISTS (SELECT 1 FROM leases l WHERE l.repo = c.repo AND l.expires_at > %(now)s AND l.begun < c.moment)
    FROM collect_runs c WHERE c.run = %(run)s FOR KEY SHARE
"""
_needless = """
    (p.state = 2 OR (p.state = 0 AND p.lease_expires <= %(abandoned)s)
     OR (p.state = 1 AND %(accepted)s AND NOT EXISTS (
         SELECT 1 FROM collect_reached c WHERE c.run = %(run)s AND c.kind = %(kind)s AND c.id = r.{id} OFFSET 0)))
"""
# Of commits all at once: apart, so that the planner may compare them with what was reached as a whole.
_came_to_nothing = "(p.state = 2 OR (p.state = 0 AND p.lease_expires <= %(abandoned)s))"
_left_behind = """
    p.state = 1 AND NOT EXISTS (SELECT 1 FROM collect_reached c
                                WHERE c.run = %(run)s AND c.kind = %(kind)s AND c.id = r.commit_id)
"""
_count_commits = """
    SELECT count(*) FROM commit_refs r JOIN pushes p USING (push) WHERE r.repo = %(repo)s AND {these}
"""
_take_commits = """
    DELETE FROM commit_refs r USING pushes p WHERE r.repo = %(repo)s AND p.push = r.push AND {these}
"""
_q_count_commits = [_count_commits.format(these=these) for these in (_came_to_nothing, _left_behind)]
_q_take_commits = [_take_commits.format(these=these) for these in (_came_to_nothing, _left_behind)]
_some = """
    batch AS MATERIALIZED (
        SELECT DISTINCT {id} AS id FROM {table} WHERE repo = %(repo)s AND {id} > %(after)s ORDER BY 1 LIMIT %(most)s)
"""
_result = """
    SELECT (SELECT count(*) FROM batch), (SELECT id FROM batch ORDER BY id DESC LIMIT 1),
           (SELECT count(*) FROM gone), (SELECT count(*) FROM gone WHERE state = 1)
"""
_freed = """
    (SELECT coalesce(sum(b.size), 0) FROM (SELECT DISTINCT id FROM gone WHERE state = 1) AS g
     JOIN blobs b ON b.blob_id = g.id AND b.scheme = %(scheme)s)
"""


def _statements(table: str, id_: str, freed: str, more: str) -> tuple[str, str]:
    """Give the statement that counts and the one that takes away."""
    some = _some.format(id=id_, table=table)
    these = f"r.repo = %(repo)s AND r.{id_} = batch.id AND p.push = r.push AND {_needless.format(id=id_)}"
    count = f"""
        WITH {some}, gone AS (SELECT r.{id_} AS id, p.state FROM batch, {table} r, pushes p WHERE {these})
        {_result}, {freed}
    """
    take = f"""
        WITH {some}, gone AS (
            DELETE FROM {table} r USING batch, pushes p WHERE {these} RETURNING r.{id_} AS id, p.state
        ) {more} {_result}, {freed}
    """
    return count, take


_q_count_snapshots, _q_take_snapshots = _statements("snapshot_refs", "snapshot_id", "0", "")
_q_count_blobs, _q_take_blobs = _statements(
    "blob_refs", "blob_id", _freed,
    """, held AS (
        INSERT INTO held_blobs (repo, scheme, blob_id, expires_at)
        SELECT DISTINCT %(repo)s::bigint, %(scheme)s::text, id, %(until)s::timestamptz FROM gone
        WHERE state = 1 AND %(until)s::timestamptz IS NOT NULL ORDER BY 3
        ON CONFLICT (repo, blob_id, scheme) DO UPDATE SET expires_at = excluded.expires_at
            WHERE held_blobs.expires_at < excluded.expires_at
    ), suspects AS (
        INSERT INTO collect_suspects
        SELECT DISTINCT 0, b.scheme, b.blob_id, false FROM gone JOIN blobs b ON b.blob_id = gone.id
        WHERE gone.state <> 1 OR %(until)s::timestamptz IS NULL)
    """,
)  # fmt: skip
_q_count_collection = "UPDATE repositories SET collected = collected + 1 WHERE repo = %s"
_q_use_less = "UPDATE repository_usage SET bytes = greatest(0, bytes - %s) WHERE repo = %s"
_q_swept = """
    UPDATE repositories SET swept_at = greatest(swept_at, %(now)s), swept_until = greatest(swept_until, %(kept)s)
    WHERE repo = %(repo)s
"""
_q_forget_pushes = "DELETE FROM pushes WHERE repo = %(repo)s AND state = 0 AND lease_expires <= %(abandoned)s"
_q_forget_run = "DELETE FROM collect_runs WHERE run = %s"
_q_tidy = f"""
    DELETE FROM collect_reached WHERE ctid = ANY (ARRAY(
        SELECT r.ctid FROM collect_reached r
        WHERE NOT EXISTS (SELECT 1 FROM collect_runs c WHERE c.run = r.run) LIMIT {_TIDIED_AT_ONCE}))
"""


def sweepable(connection: Connection, now: dt.datetime, keep_s: float, after: int, most: int) -> list[int]:
    """See ``Sweeping.sweepable``."""
    arguments = {"kept": _ago(now, keep_s), "abandoned": _ago(now, ABANDONED_S), "after": after, "most": most}
    return [row[0] for row in connection.execute(_q_sweepable, arguments)]


def begin_sweep(connection: Connection, repo: int, now: dt.datetime, keep_s: float) -> Sweep | None:
    """See ``Sweeping.begin_sweep``; :func:`stamp` follows in a transaction of its own."""
    arguments = {"repo": repo, "kept": _ago(now, keep_s), "abandoned": _ago(now, ABANDONED_S)}
    found = connection.execute(_q_repository, arguments).fetchone()
    if found is None:
        return None
    scheme, gone, walked = found
    connection.execute(_q_cut, arguments)
    connection.execute(_q_lock, (repo,))  # whoever moves a branch now gets a later entry in the log
    connection.execute(_q_end_run, (repo,))
    row = connection.execute(_q_begin_run, arguments).fetchone()
    assert row is not None
    if walked and not gone:
        (entry,) = connection.execute(_q_run, (row[0],)).fetchone() or (0,)
        connection.execute(_q_roots, {**arguments, "run": row[0], "entry": entry})
    return Sweep(row[0], repo, None if scheme is None else Scheme(scheme), gone, walked and not gone)


def stamp(connection: Connection, sweep: Sweep) -> None:
    """Note a moment after the branches were looked at: who began before may know of older ones."""
    connection.execute(_q_stamp, (sweep.run,))


def extend_sweep(connection: Connection, sweep: Sweep, now: dt.datetime) -> bool:
    """See ``Sweeping.extend_sweep``; :func:`stamp` follows in a transaction of its own."""
    connection.execute(_q_lock, (sweep.repo,))
    row = connection.execute(_q_run, (sweep.run,)).fetchone()
    last = connection.execute(_q_last_entry).fetchone()
    if row is None or last is None:
        return False
    arguments = {"run": sweep.run, "repo": sweep.repo, "kept": now, "entry": row[0]}
    connection.execute(_q_roots, arguments)
    connection.execute(_q_move_on, (last[0], sweep.run))
    return True


@one_statement
def unvisited(connection: Connection, sweep: Sweep, kind: RefKind, most: int) -> list[bytes]:
    """See ``Sweeping.unvisited``."""
    return [bytes(row[0]) for row in connection.execute(_q_unvisited, (sweep.run, kind.value, most))]


def reach(connection: Connection, sweep: Sweep, kind: RefKind, ids: Sequence[bytes], visited: bool) -> None:
    """See ``Sweeping.reach``."""
    connection.execute(_q_reach, {"run": sweep.run, "kind": kind.value, "ids": _ordered(ids), "visited": visited})


@one_statement
def reached(connection: Connection, sweep: Sweep, kind: RefKind, ids: Sequence[bytes]) -> set[bytes]:
    """See ``Sweeping.reached``."""
    rows = connection.execute(_q_reached, {"run": sweep.run, "kind": kind.value, "ids": _ordered(ids)})
    return {bytes(row[0]) for row in rows}


def sweep_commits(connection: Connection, sweep: Sweep, now: dt.datetime, dry_run: bool) -> Swept:
    """See ``Sweeping.sweep_commits``."""
    outcome, accepted = _enter(connection, sweep, now)
    if accepted is None:
        return Swept(outcome)
    arguments = _arguments(sweep, RefKind.COMMIT, now, accepted)
    counts = [0, 0]
    for at in range(2 if accepted else 1):
        if dry_run:
            row = connection.execute(_q_count_commits[at], arguments).fetchone()
            counts[at] = 0 if row is None else row[0]
        else:
            counts[at] = connection.execute(_q_take_commits[at], arguments).rowcount
    if counts[1] and not dry_run:
        connection.execute(_q_count_collection, (sweep.repo,))
    return Swept(outcome, None, sum(counts))


def sweep_refs(
    connection: Connection, sweep: Sweep, kind: RefKind, after: bytes, most: int, now: dt.datetime, dry_run: bool
) -> Swept:
    """See ``Sweeping.sweep_refs``."""
    outcome, accepted = _enter(connection, sweep, now)
    if accepted is None:
        return Swept(outcome)
    if kind is RefKind.BLOB:
        query = _q_count_blobs if dry_run else _q_take_blobs
    else:
        query = _q_count_snapshots if dry_run else _q_take_snapshots
    arguments = {**_arguments(sweep, kind, now, accepted), "after": after, "most": most}
    arguments["until"] = None if sweep.gone else now + dt.timedelta(seconds=HANDOVER_S)
    row = connection.execute(query, arguments).fetchone()
    assert row is not None
    looked_at, last, refs, were_accepted, freed = row
    if were_accepted and not dry_run:
        connection.execute(_q_count_collection, (sweep.repo,))
        if freed:
            connection.execute(_q_use_less, (freed, sweep.repo))
    return Swept(outcome, bytes(last) if looked_at == most else None, refs, int(freed))


def end_sweep(connection: Connection, sweep: Sweep, now: dt.datetime, keep_s: float, complete: bool) -> None:
    """See ``Sweeping.end_sweep``; :func:`tidy` follows."""
    if complete:
        arguments = {
            "repo": sweep.repo, "now": _ago(now, SLACK_S), "kept": _ago(now, keep_s + SLACK_S),
            "abandoned": _ago(now, ABANDONED_S),
        }  # fmt: skip
        connection.execute(_q_forget_pushes, arguments)
        connection.execute(_q_swept, arguments)
    connection.execute(_q_forget_run, (sweep.run,))


def tidy(connection: Connection) -> int:
    """Forget some of what runs have reached that are over; gives how much."""
    return connection.execute(_q_tidy).rowcount


def _enter(connection: Connection, sweep: Sweep, now: dt.datetime) -> tuple[SweepOutcome, bool | None]:
    """Lock the repository; gives how things stand, and whether references of accepted pushes may go, if any may."""
    connection.execute(_q_lock, (sweep.repo,))
    row = connection.execute(_q_state, {"run": sweep.run, "now": now}).fetchone()
    if row is None:
        return SweepOutcome.LOST, None
    moved, leased = row
    if sweep.walked and moved:
        return SweepOutcome.MOVED, None
    accepted = sweep.walked or sweep.gone
    if accepted and leased:
        return SweepOutcome.LEASED, False
    return SweepOutcome.DONE, accepted


def _arguments(sweep: Sweep, kind: RefKind, now: dt.datetime, accepted: bool) -> dict[str, object]:
    return {
        "run": sweep.run, "repo": sweep.repo, "kind": kind.value, "accepted": accepted,
        "abandoned": _ago(now, ABANDONED_S), "scheme": None if sweep.scheme is None else sweep.scheme.value,
    }  # fmt: skip


def _ordered(ids: Sequence[bytes]) -> Byteas:
    return Byteas(sorted(set(ids)))


def _ago(now: dt.datetime, seconds: float) -> dt.datetime:
    return now - dt.timedelta(seconds=seconds)
