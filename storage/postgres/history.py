"""Commits and snapshots: written by pushes, read by fetches."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from storage.index import READ_BYTES
from storage.postgres.arrays import Byteas, Int8s
from storage.postgres.database import Connection, one_statement
from storage.postgres.large_bodies import body_bytes
from storage.postgres.pushes import require_current
from storage.rows import CommitRow, PushTicket, SnapshotRef, SnapshotRow
from wire.graph import CommitFacts
from wire.ids import Scheme

# Each id is looked up by key on its own, see ``storage.postgres.blobs``.
# What belongs together is one statement. Its parts run in order, so that all pushes take locks in the same one: each
# asks for what the one before it gave.


def snapshot_parts(condition: str) -> str:
    """Give the parts of a statement that record the snapshots of :func:`snapshot_arguments`."""
    return f"""
    stored_snapshots AS (
        INSERT INTO snapshots (snapshot_id, scheme, base_id, depth, delta, "full")
        SELECT new.id, %(scheme)s, new.base, new.depth, new.delta, new.whole
        FROM unnest(%(snapshots)b, %(bases)b, %(depths)b, %(deltas)b, %(wholes)b)
             AS new (id, base, depth, delta, whole)
        WHERE {condition}
        ON CONFLICT DO NOTHING RETURNING 1
    ), added_snapshots AS (
        INSERT INTO snapshot_refs (repo, snapshot_id, push, extras)
        SELECT %(repo)s, new.id, %(push)s, new.extras
        FROM unnest(%(snapshots)b, %(extras)b) AS new (id, extras)
        WHERE {condition} AND (SELECT count(*) FROM stored_snapshots) >= 0
          AND NOT EXISTS (SELECT 1 FROM snapshot_refs r JOIN pushes p USING (push)
                          WHERE r.repo = %(repo)s AND r.snapshot_id = new.id AND p.state = 1 OFFSET 0)
        ON CONFLICT DO NOTHING RETURNING 1
    )
"""


def commit_parts(condition: str) -> str:
    """Give the parts of a statement that record the commits of :func:`commit_arguments`."""
    return f"""
    stored_commits AS (
        INSERT INTO commits (commit_id, scheme, parents, snapshot_id, generation)
        SELECT new.id, %(scheme)s,
               ARRAY(SELECT substring(new.parents FROM at FOR 32)
                     FROM generate_series(1, octet_length(new.parents), 32) AS at ORDER BY at),
               new.snapshot, new.generation
        FROM unnest(%(commits)b, %(parents)b, %(roots)b, %(generations)b) AS new (id, parents, snapshot, generation)
        WHERE {condition}
        ON CONFLICT DO NOTHING RETURNING 1
    ), stored_records AS (
        INSERT INTO commit_records (record_id, record)
        SELECT * FROM unnest(%(records)b, %(bodies)b) AS new (id, body)
        WHERE {condition} AND (SELECT count(*) FROM stored_commits) >= 0 ORDER BY 1
        ON CONFLICT DO NOTHING RETURNING 1
    ), added_commits AS (
        INSERT INTO commit_refs (repo, commit_id, push, record_id)
        SELECT %(repo)s, new.id, %(push)s, new.record
        FROM unnest(%(commits)b, %(records)b) AS new (id, record)
        WHERE {condition} AND (SELECT count(*) FROM stored_records) >= 0
          AND NOT EXISTS (SELECT 1 FROM commit_refs r JOIN pushes p USING (push)
                          WHERE r.repo = %(repo)s AND r.commit_id = new.id AND p.state = 1 OFFSET 0)
        ON CONFLICT DO NOTHING RETURNING 1
    )
"""


_q_insert_snapshots = f"WITH {snapshot_parts('true')} SELECT count(*) FROM added_snapshots"
_q_insert_commits = f"WITH {commit_parts('true')} SELECT count(*) FROM added_commits"
_q_insert_history = f"""
    WITH {snapshot_parts("true")}, {commit_parts("(SELECT count(*) FROM added_snapshots) >= 0")}
    SELECT (SELECT count(*) FROM added_snapshots), (SELECT count(*) FROM added_commits)
"""
# What an earlier attempt has recorded was new to the repository, too.
_q_own_snapshots = """
    SELECT count(*) FROM unnest(%(snapshots)b) AS wanted (id)
    WHERE EXISTS (SELECT 1 FROM snapshot_refs r
                  WHERE r.repo = %(repo)s AND r.snapshot_id = wanted.id AND r.push = %(push)s OFFSET 0)
"""
_q_own_commits = """
    SELECT count(*) FROM unnest(%(commits)b) AS wanted (id)
    WHERE EXISTS (SELECT 1 FROM commit_refs r
                  WHERE r.repo = %(repo)s AND r.commit_id = wanted.id AND r.push = %(push)s OFFSET 0)
"""
_q_lacking_snapshots = """
    SELECT DISTINCT wanted.id FROM unnest(%(ids)b) AS wanted (id)
    WHERE NOT EXISTS (
        SELECT 1 FROM snapshot_refs r JOIN pushes p USING (push)
        WHERE r.repo = %(repo)s AND r.snapshot_id = wanted.id AND (p.state = 1 OR r.push = %(push)s) OFFSET 0
    )
"""
_q_held_commits = """
    SELECT wanted.id, c.generation
    FROM (SELECT DISTINCT unnest(%(ids)b)) AS wanted (id)
    CROSS JOIN LATERAL (
        SELECT generation FROM commits
        WHERE commit_id = wanted.id AND scheme = (SELECT scheme FROM repositories WHERE repo = %(repo)s) OFFSET 0
    ) AS c
    WHERE EXISTS (SELECT 1 FROM commit_refs r JOIN pushes p USING (push)
                  WHERE r.repo = %(repo)s AND r.commit_id = wanted.id AND p.state = 1 OFFSET 0)
"""
# Nothing is followed that is older by more generations than may be given anyway: what a walk from the newest
# generation down needs next comes first, however wide the history is further down.
_q_ancestry = """
    WITH RECURSIVE lowest AS MATERIALIZED (
        SELECT max(c.generation) - %(deep)s AS generation FROM unnest(%(ids)b) AS wanted (id)
        CROSS JOIN LATERAL (
            SELECT generation FROM commits WHERE commit_id = wanted.id AND scheme = %(scheme)s OFFSET 0
        ) AS c
    ), walk (commit_id) AS (
        SELECT unnest(%(ids)b)
        UNION
        SELECT unnest(c.parents) FROM walk CROSS JOIN LATERAL (
            SELECT parents, generation FROM commits
            WHERE commit_id = walk.commit_id AND scheme = %(scheme)s OFFSET 0
        ) AS c
        WHERE c.generation > (SELECT generation FROM lowest)
    ), nearest AS (SELECT commit_id, row_number() OVER () AS place FROM walk LIMIT %(most)s)
    SELECT c.commit_id, c.parents, c.snapshot_id, c.generation
    FROM nearest CROSS JOIN LATERAL (
        SELECT * FROM commits WHERE commit_id = nearest.commit_id AND scheme = %(scheme)s OFFSET 0
    ) AS c
    ORDER BY nearest.place
"""
# Of bodies only so many are read that they fit into memory: what lies before each is summed up, in order of asking,
# and a length is known without reading the body.
_q_commit_records = """
    SELECT id, record, record_id FROM (
        SELECT wanted.id, first.record, first.record_id, wanted.at,
               sum(octet_length(first.record)) OVER (ORDER BY wanted.at) - octet_length(first.record) AS before
        FROM unnest(%(ids)b) WITH ORDINALITY AS wanted (id, at)
        CROSS JOIN LATERAL (
            SELECT b.record, b.record_id FROM commit_refs r
            JOIN pushes p ON p.push = r.push AND p.state = 1
            JOIN commit_records b USING (record_id)
            WHERE r.repo = %(repo)s AND r.commit_id = wanted.id ORDER BY r.push LIMIT 1
        ) AS first
    ) AS sized
    WHERE before < %(most)s ORDER BY at
"""
_snapshot_columns = 'snapshot_id, base_id, depth, delta, "full"'
_q_snapshot_deltas = f"""
    SELECT id, base_id, depth, delta, NULL FROM (
        SELECT wanted.id, s.base_id, s.depth, s.delta, wanted.at,
               sum(s.size) OVER (ORDER BY wanted.at) - s.size AS before
        FROM unnest(%(ids)b) WITH ORDINALITY AS wanted (id, at)
        CROSS JOIN LATERAL (
            SELECT *, {body_bytes("delta")} AS size
            FROM snapshots WHERE snapshot_id = wanted.id AND scheme = %(scheme)s OFFSET 0
        ) AS s
    ) AS sized
    WHERE before < %(most)s ORDER BY at
"""
_q_snapshot_depths = """
    SELECT s.snapshot_id, s.depth FROM unnest(%(ids)b) AS wanted (id)
    CROSS JOIN LATERAL (
        SELECT snapshot_id, depth FROM snapshots WHERE snapshot_id = wanted.id AND scheme = %(scheme)s OFFSET 0
    ) AS s
"""
_q_snapshot_extras = """
    SELECT id, extras FROM (
        SELECT wanted.id, first.extras, wanted.at,
               sum(octet_length(first.extras)) OVER (ORDER BY wanted.at) - octet_length(first.extras) AS before
        FROM unnest(%(ids)b) WITH ORDINALITY AS wanted (id, at)
        CROSS JOIN LATERAL (
            SELECT r.extras FROM snapshot_refs r
            JOIN pushes p ON p.push = r.push AND p.state = 1
            WHERE r.repo = %(repo)s AND r.snapshot_id = wanted.id ORDER BY r.push LIMIT 1
        ) AS first
    ) AS sized
    WHERE before < %(most)s ORDER BY at
"""
_q_snapshot_chain = f"""
    WITH RECURSIVE chain AS (
        SELECT {_snapshot_columns}, 0 AS step FROM snapshots WHERE snapshot_id = %(id)b AND scheme = %(scheme)s
        UNION ALL
        SELECT s.snapshot_id, s.base_id, s.depth, s.delta, s."full", chain.step + 1
        FROM chain JOIN snapshots s ON s.snapshot_id = chain.base_id AND s.scheme = %(scheme)s
        WHERE chain."full" IS NULL
    )
    SELECT {_snapshot_columns} FROM chain ORDER BY step
"""


def record_snapshots(
    connection: Connection, ticket: PushTicket, scheme: Scheme, snapshots: Sequence[SnapshotRef]
) -> int:
    """See ``Pushes.record_snapshots``."""
    require_current(connection, ticket)
    return insert_snapshots(connection, ticket, scheme, snapshots)


def insert_snapshots(
    connection: Connection, ticket: PushTicket, scheme: Scheme, snapshots: Sequence[SnapshotRef]
) -> int:
    """Record snapshots of an attempt that is known to be the current one."""
    arguments = _arguments(ticket, scheme) | snapshot_arguments(snapshots)
    added = _count(connection, _q_insert_snapshots, arguments)
    return added if ticket.attempt == 1 else _count(connection, _q_own_snapshots, arguments)


def record_commits(connection: Connection, ticket: PushTicket, scheme: Scheme, commits: Sequence[CommitRow]) -> int:
    """See ``Pushes.record_commits``."""
    require_current(connection, ticket)
    return insert_commits(connection, ticket, scheme, commits)


def insert_commits(connection: Connection, ticket: PushTicket, scheme: Scheme, commits: Sequence[CommitRow]) -> int:
    """Record commits of an attempt that is known to be the current one."""
    arguments = _arguments(ticket, scheme) | commit_arguments(commits)
    added = _count(connection, _q_insert_commits, arguments)
    return added if ticket.attempt == 1 else _count(connection, _q_own_commits, arguments)


def insert_history(
    connection: Connection, ticket: PushTicket, scheme: Scheme, snapshots: Sequence[SnapshotRef],
    commits: Sequence[CommitRow],
) -> tuple[int, int]:  # fmt: skip
    """Record both of an attempt that is known to be the current one; gives how many were new to the repository."""
    if not snapshots and not commits:
        return 0, 0
    arguments = _arguments(ticket, scheme) | snapshot_arguments(snapshots) | commit_arguments(commits)
    row = connection.execute(_q_insert_history, arguments).fetchone()
    assert row is not None
    if ticket.attempt == 1:
        return row[0], row[1]
    return _count(connection, _q_own_snapshots, arguments), _count(connection, _q_own_commits, arguments)


@one_statement
def lacking_snapshots(connection: Connection, ticket: PushTicket, snapshot_ids: Sequence[bytes]) -> list[bytes]:
    """See ``Pushes.lacking_snapshots``."""
    arguments = {"repo": ticket.repo, "push": ticket.number, "ids": Byteas(snapshot_ids)}
    return [bytes(row[0]) for row in connection.execute(_q_lacking_snapshots, arguments)]


@one_statement
def lacking_commits(connection: Connection, ticket: PushTicket, commit_ids: Sequence[bytes]) -> list[bytes]:
    """See ``Pushes.lacking_commits``."""
    held = held_commits(connection, ticket.repo, commit_ids)
    return [commit_id for commit_id in dict.fromkeys(commit_ids) if commit_id not in held]


@one_statement
def held_commits(connection: Connection, repo: int, commit_ids: Sequence[bytes]) -> dict[bytes, int]:
    """See ``History.held_commits``."""
    rows = connection.execute(_q_held_commits, {"repo": repo, "ids": Byteas(commit_ids)})
    return {bytes(commit_id): generation for commit_id, generation in rows}


@one_statement
def ancestry(connection: Connection, scheme: Scheme, commit_ids: Sequence[bytes], most: int) -> list[CommitFacts]:
    """See ``History.ancestry``."""
    wanted = list(dict.fromkeys(commit_ids))
    arguments = {"scheme": scheme.value, "ids": Byteas(wanted), "most": len(wanted) + most, "deep": most}
    return [
        CommitFacts(bytes(commit_id), tuple(map(bytes, parents)), bytes(snapshot_id), generation)
        for commit_id, parents, snapshot_id, generation in connection.execute(_q_ancestry, arguments)
    ]


@one_statement
def commit_records(connection: Connection, repo: int, commit_ids: Sequence[bytes]) -> dict[bytes, bytes]:
    """See ``History.commit_records``."""
    arguments = {"repo": repo, "ids": Byteas(commit_ids), "most": READ_BYTES}
    rows = connection.execute(_q_commit_records, arguments, binary=True)
    return {  # what is not what was written is as good as lost, also in what no commit's id covers
        bytes(commit_id): bytes(record)
        for commit_id, record, record_id in rows
        if hashlib.sha256(record).digest() == record_id
    }


@one_statement
def snapshot_deltas(connection: Connection, scheme: Scheme, snapshot_ids: Sequence[bytes]) -> dict[bytes, SnapshotRow]:
    """See ``History.snapshot_deltas``."""
    arguments = {"scheme": scheme.value, "ids": Byteas(snapshot_ids), "most": READ_BYTES}
    rows = connection.execute(_q_snapshot_deltas, arguments, binary=True)
    return {row.snapshot_id: row for row in map(_snapshot, rows)}


@one_statement
def snapshot_depths(connection: Connection, scheme: Scheme, snapshot_ids: Sequence[bytes]) -> dict[bytes, int]:
    """See ``Pushes.snapshot_depths``."""
    rows = connection.execute(_q_snapshot_depths, {"scheme": scheme.value, "ids": Byteas(snapshot_ids)})
    return {bytes(snapshot_id): depth for snapshot_id, depth in rows}


@one_statement
def snapshot_extras(connection: Connection, repo: int, snapshot_ids: Sequence[bytes]) -> dict[bytes, bytes]:
    """See ``History.snapshot_extras``."""
    arguments = {"repo": repo, "ids": Byteas(snapshot_ids), "most": READ_BYTES}
    rows = connection.execute(_q_snapshot_extras, arguments, binary=True)
    return {bytes(snapshot_id): bytes(extras) for snapshot_id, extras in rows if extras}


@one_statement
def snapshot_chain(connection: Connection, scheme: Scheme, snapshot_id: bytes) -> list[SnapshotRow]:
    """See ``History.snapshot_chain``."""
    rows = connection.execute(_q_snapshot_chain, {"scheme": scheme.value, "id": snapshot_id}, binary=True)
    return [_snapshot(row) for row in rows]


def _arguments(ticket: PushTicket, scheme: Scheme) -> dict[str, object]:
    return {"repo": ticket.repo, "push": ticket.number, "scheme": scheme.value}


# Pushes that bring the same rows wait for each other: in one order, or they would wait in a circle.
def snapshot_arguments(snapshots: Sequence[SnapshotRef]) -> dict[str, object]:
    """Give what :func:`snapshot_parts` takes, in order of id."""
    refs = sorted(snapshots, key=lambda ref: ref.row.snapshot_id)
    rows = [ref.row for ref in refs]
    return {
        "snapshots": Byteas([row.snapshot_id for row in rows]),
        "bases": Byteas([row.base_id for row in rows]),
        "depths": Int8s([row.depth for row in rows]),
        "deltas": Byteas([row.delta for row in rows]),
        "wholes": Byteas([row.full for row in rows]),
        "extras": Byteas([ref.extras for ref in refs]),
    }


def commit_arguments(commits: Sequence[CommitRow]) -> dict[str, object]:
    """Give what :func:`commit_parts` takes, in order of id."""
    commits = sorted(commits, key=lambda c: c.commit_id)
    return {
        "commits": Byteas([c.commit_id for c in commits]),
        "parents": Byteas([b"".join(c.parents) for c in commits]),
        "roots": Byteas([c.snapshot_id for c in commits]),
        "generations": Int8s([c.generation for c in commits]),
        "records": Byteas([hashlib.sha256(c.record).digest() for c in commits]),
        "bodies": Byteas([c.record for c in commits]),
    }


def _count(connection: Connection, query: str, arguments: dict[str, object]) -> int:
    row = connection.execute(query, arguments).fetchone()
    return 0 if row is None else row[0]


def _snapshot(row: tuple[object, ...]) -> SnapshotRow:
    snapshot_id, base_id, depth, delta, full = row
    return SnapshotRow(snapshot_id, base_id, depth, delta, full)  # type: ignore[arg-type]
