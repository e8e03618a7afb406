"""Tags and releases."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from storage.labels import LISTED_LABELS, TagRow
from storage.postgres.arrays import Byteas
from storage.postgres.database import Connection, one_statement

_q_put_tags = """
    INSERT INTO tags (repo, tag, commit_id, record)
    SELECT %(repo)s, new.tag, new.commit_id, new.record
    FROM unnest(%(tags)s::text[], %(commits)b, %(records)b) AS new (tag, commit_id, record) ORDER BY new.tag
    ON CONFLICT (repo, tag) DO UPDATE SET commit_id = excluded.commit_id, record = excluded.record
        WHERE (tags.commit_id, tags.record) IS DISTINCT FROM (excluded.commit_id, excluded.record)
"""
_q_list_tags = "SELECT tag, commit_id, record FROM tags WHERE repo = %s ORDER BY tag LIMIT %s"
_q_put_release = """
    INSERT INTO releases (repo, release, record, created_at) VALUES (%s, %s, %s, %s)
    ON CONFLICT (repo, release) DO UPDATE SET record = excluded.record, retracted_at = NULL
    RETURNING xmax = 0
"""
_q_list_releases = """
    SELECT record FROM releases WHERE repo = %s AND retracted_at IS NULL
    ORDER BY created_at DESC, release DESC LIMIT %s
"""
_q_retract = "UPDATE releases SET retracted_at = %s WHERE repo = %s AND release = %s AND retracted_at IS NULL"


@one_statement
def put_tags(connection: Connection, repo: int, tags: Sequence[TagRow]) -> int:
    """See ``Labels.put_tags``."""
    arguments = {
        "repo": repo,
        "tags": [row.tag for row in tags],
        "commits": Byteas([row.commit_id for row in tags]),
        "records": Byteas([row.record for row in tags]),
    }
    return connection.execute(_q_put_tags, arguments).rowcount


@one_statement
def list_tags(connection: Connection, repo: int) -> list[TagRow]:
    """See ``Labels.list_tags``."""
    rows = connection.execute(_q_list_tags, (repo, LISTED_LABELS))
    return [TagRow(tag, bytes(commit_id), bytes(record)) for tag, commit_id, record in rows]


@one_statement
def put_release(connection: Connection, repo: int, release_id: str, record: bytes, now: dt.datetime) -> bool:
    """See ``Labels.put_release``."""
    row = connection.execute(_q_put_release, (repo, release_id, record, now)).fetchone()
    assert row is not None
    return bool(row[0])


@one_statement
def list_releases(connection: Connection, repo: int) -> list[bytes]:
    """See ``Labels.list_releases``."""
    return [bytes(row[0]) for row in connection.execute(_q_list_releases, (repo, LISTED_LABELS))]


@one_statement
def retract_release(connection: Connection, repo: int, release_id: str, at: dt.datetime) -> bool:
    """See ``Labels.retract_release``."""
    return connection.execute(_q_retract, (at, repo, release_id)).rowcount == 1
