"""Blobs a repository holds before a push names them: verified uploads that wait, each until it expires.

A held blob gives nobody the right to read it. A push of the same repository may claim it, which makes it the push's
own like one it had brought itself.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Sequence

from storage.postgres.arrays import Byteas
from storage.postgres.blobs import store_rows
from storage.postgres.collection_meeting import Recorder, hold_lease
from storage.postgres.database import Connection
from storage.postgres.pushes import require_current
from storage.rows import HELD_S, PushTicket, StoredBlob
from wire.ids import DIGEST_BYTES, Scheme

# Looked up key by key, see storage/postgres/blobs.py. Ids come together by the push that brought them, so that neither
# a push is looked up nor a row is sent for each id.
_q_stored = """
    SELECT found.push, found.ids,
           (SELECT p.state = 1 OR p.push_id = %(push_id)s AND p.handle = %(handle)s AND p.state = 0
            FROM pushes p WHERE p.push = found.push) AS counts
    FROM (SELECT push, string_agg(id, '') AS ids
          FROM unnest(%(ids)b) AS wanted (id)
          CROSS JOIN LATERAL (SELECT r.push FROM blob_refs r
                              WHERE r.repo = %(repo)s AND r.blob_id = wanted.id OFFSET 0) AS r
          GROUP BY push) AS found
"""
_q_stretch = """
    SELECT found.push, found.ids,
           (SELECT p.state = 1 OR p.push_id = %(push_id)s AND p.handle = %(handle)s AND p.state = 0
            FROM pushes p WHERE p.push = found.push) AS counts
    FROM (SELECT push, string_agg(blob_id, '') AS ids
          FROM (SELECT r.blob_id, r.push FROM blob_refs r
                WHERE r.repo = %(repo)s AND r.blob_id BETWEEN %(first)s AND %(last)s
                ORDER BY r.blob_id LIMIT %(most)s) AS r
          GROUP BY push) AS found
"""
"""All ids of the repository from one to another: for ids that lie close together, a third of the work."""
_q_held = """
    SELECT h.blob_id, h.expires_at FROM unnest(%(ids)b) AS wanted (id)
    CROSS JOIN LATERAL (SELECT * FROM held_blobs
                        WHERE repo = %(repo)s AND blob_id = wanted.id AND scheme = %(scheme)s
                              AND expires_at > %(now)s OFFSET 0) AS h
"""
_q_hold = """
    INSERT INTO held_blobs (repo, scheme, blob_id, expires_at)
    SELECT %(repo)s, %(scheme)s, new.id, %(expires)s FROM unnest(%(ids)b) AS new (id)
    ON CONFLICT (repo, blob_id, scheme) DO UPDATE SET expires_at = excluded.expires_at
        WHERE held_blobs.expires_at < excluded.expires_at
"""
_q_claim = """
    INSERT INTO blob_refs (repo, blob_id, push)
    SELECT %(repo)s, wanted.id, %(push)s FROM unnest(%(ids)b) AS wanted (id)
    WHERE EXISTS (SELECT 1 FROM held_blobs h
                  WHERE h.repo = %(repo)s AND h.blob_id = wanted.id AND h.scheme = %(scheme)s
                        AND h.expires_at > %(now)s OFFSET 0)
      AND NOT EXISTS (SELECT 1 FROM blob_refs r JOIN pushes p USING (push)
                      WHERE r.repo = %(repo)s AND r.blob_id = wanted.id AND p.state = 1 OFFSET 0)
    ON CONFLICT DO NOTHING
    RETURNING blob_id
"""
_q_forget = """
    WITH gone AS (
        DELETE FROM held_blobs WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM held_blobs WHERE expires_at <= %s ORDER BY expires_at LIMIT %s FOR UPDATE SKIP LOCKED
        )) RETURNING scheme, blob_id
    )
    INSERT INTO collect_suspects SELECT 0, scheme, blob_id, false FROM gone
"""
_STRETCH_IDS, _STRETCH_PART, _STRETCH_FACTOR = 100, 0.2, 4
"""So many ids within a fifth of all possible ones are many that lie close together, unless the repository holds four
times as many there."""
_HEAD_BITS = 64


def stored_blobs(
    connection: Connection, repo: int, scheme: Scheme, object_ids: Sequence[bytes], now: dt.datetime,
    push: tuple[uuid.UUID, str] | None = None,
) -> set[bytes]:  # fmt: skip
    """See ``Holdings.stored_blobs``."""
    wanted = sorted(object_ids)
    there = _brought(connection, repo, wanted, push)
    found = {object_id for object_id in wanted if object_id in there}
    rest = [object_id for object_id in wanted if object_id not in there]
    if not rest:
        return found
    arguments = {"repo": repo, "scheme": scheme.value, "now": now, "ids": Byteas(rest)}
    fading = []
    soon = now + dt.timedelta(seconds=HELD_S / 2)
    for object_id, held_until in connection.execute(_q_held, arguments, binary=True):
        found.add(object_id)
        if held_until < soon:
            fading.append(object_id)
    if fading:
        expires = now + dt.timedelta(seconds=HELD_S)
        connection.execute(_q_hold, {**arguments, "ids": Byteas(sorted(fading)), "expires": expires})
    return found


def _brought(
    connection: Connection, repo: int, wanted: Sequence[bytes], push: tuple[uuid.UUID, str] | None
) -> set[bytes]:
    """Give at least those of some ids, in order, that accepted pushes and one open push have brought."""
    push_id, handle = push or (None, None)
    arguments = {"repo": repo, "push_id": push_id, "handle": handle}
    if len(wanted) >= _STRETCH_IDS and _head(wanted[-1]) - _head(wanted[0]) <= _STRETCH_PART * 2**_HEAD_BITS:
        most = _STRETCH_FACTOR * len(wanted)
        bounds = {"first": wanted[0], "last": wanted[-1], "most": most}
        rows = connection.execute(_q_stretch, {**arguments, **bounds}, binary=True).fetchall()
        if sum(len(ids) for _, ids, _ in rows) < most * DIGEST_BYTES:
            return _ids(rows)
    return _ids(connection.execute(_q_stored, {**arguments, "ids": Byteas(wanted)}, binary=True).fetchall())


def _ids(rows: Sequence[tuple[int, bytes, bool]]) -> set[bytes]:
    return {ids[at : at + DIGEST_BYTES] for _, ids, counts in rows if counts for at in range(0, len(ids), DIGEST_BYTES)}


def _head(object_id: bytes) -> int:
    return int.from_bytes(object_id[: _HEAD_BITS // 8], "big")


def hold_blobs(
    connection: Connection, repo: int, scheme: Scheme, blobs: Sequence[StoredBlob], expires: dt.datetime,
    lease: uuid.UUID | None = None,
) -> None:  # fmt: skip
    """See ``Holdings.hold_blobs``."""
    if lease is not None:
        hold_lease(connection, lease)
    ids = store_rows(connection, scheme, blobs, Recorder(lease=lease))
    connection.execute(_q_hold, {"repo": repo, "scheme": scheme.value, "expires": expires, "ids": ids})


def claim_blobs(
    connection: Connection, ticket: PushTicket, scheme: Scheme, object_ids: Sequence[bytes], now: dt.datetime
) -> set[bytes]:
    """See ``Holdings.claim_blobs``."""
    require_current(connection, ticket)
    arguments = {
        "repo": ticket.repo, "push": ticket.number, "scheme": scheme.value, "now": now,
        "ids": Byteas(sorted(object_ids)),
    }  # fmt: skip
    return {bytes(row[0]) for row in connection.execute(_q_claim, arguments)}


def forget_held(connection: Connection, now: dt.datetime, most: int) -> int:
    """See ``Holdings.forget_held``."""
    return connection.execute(_q_forget, (now, most)).rowcount
