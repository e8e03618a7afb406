"""From what may be unneeded to bytes that are gone: suspects, marks, reviews, tombstones.

Transactions are short: references are looked through in pieces of the table, in the order in which it lies on disk, so
that no index of references by object is needed on the way of a push. A reference that comes while this goes on takes
the mark away by itself (see ``storage.postgres.collection_meeting``).
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Mapping, Sequence

from storage.collection_rows import Condemned, Mark, Review, ReviewCursor
from storage.postgres.arrays import Byteas
from storage.postgres.collection_meeting import OBJECT, PACK
from storage.postgres.database import Connection, one_statement
from wire.ids import Scheme

PAGES_AT_ONCE = 256
"""Of a table that is looked through: 2 MiB, some 20,000 references."""
_FENCED_AT_ONCE = 1_000
_q_mark_suspects = """
    WITH taken AS (
        DELETE FROM collect_suspects WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM collect_suspects LIMIT %(most)s FOR UPDATE SKIP LOCKED))
        RETURNING kind, scheme, id, loose
    ), suspects AS MATERIALIZED (
        SELECT kind, scheme, id, bool_or(loose) AS loose FROM taken GROUP BY 1, 2, 3
    ), marked AS (
        INSERT INTO collect_marks (kind, scheme, id, loose, marked_at)
        SELECT kind, scheme, id, loose, %(now)s FROM suspects ORDER BY 1, 2, 3
        ON CONFLICT (kind, scheme, id) DO UPDATE
            SET marked_at = excluded.marked_at, moment = excluded.moment, review = NULL,
                loose = collect_marks.loose OR excluded.loose
            WHERE collect_marks.state = 0
        RETURNING kind, scheme, id
    ), later AS (
        INSERT INTO collect_suspects
        SELECT * FROM suspects s WHERE NOT EXISTS (
            SELECT 1 FROM marked m WHERE (m.kind, m.scheme, m.id) = (s.kind, s.scheme, s.id))
    )
    SELECT count(*) FROM marked
"""
"""What has a tombstone still stays a suspect."""
_q_mark_orphans = """
    INSERT INTO collect_marks (kind, scheme, id, loose, marked_at)
    SELECT %(kind)s, %(scheme)s, new.id, true, %(now)s FROM unnest(%(ids)b) AS new (id)
    WHERE NOT EXISTS (SELECT 1 FROM blobs b WHERE %(kind)s = 0 AND b.blob_id = new.id AND b.scheme = %(scheme)s
                                                  AND b.pack IS NULL OFFSET 0)
    ON CONFLICT DO NOTHING
"""
_q_count = """
    SELECT (SELECT count(*) FROM collect_suspects), count(*) FILTER (WHERE state = 0),
           count(*) FILTER (WHERE state = 1), count(*) FILTER (WHERE state = 2) FROM collect_marks
"""
_q_choose = """
    WITH oldest AS MATERIALIZED (
        SELECT begun FROM (
            SELECT begun FROM pushes WHERE state = 0 AND lease_expires > %(now)s
            UNION ALL SELECT begun FROM leases WHERE expires_at > %(now)s
            UNION ALL SELECT pg_snapshot_xmin(pg_current_snapshot())
        ) AS live ORDER BY begun LIMIT 1
    ), chosen AS (
        UPDATE collect_marks m SET review = %(review)s, referenced = false
        FROM (SELECT kind, scheme, id FROM collect_marks
              WHERE state = 0 AND review IS DISTINCT FROM %(review)s AND marked_at <= %(before)s
                    AND moment < (SELECT begun FROM oldest)
              ORDER BY kind, scheme, id LIMIT %(most)s FOR UPDATE SKIP LOCKED) AS due
        WHERE (m.kind, m.scheme, m.id) = (due.kind, due.scheme, due.id)
        RETURNING m.kind
    )
    SELECT count(*) FILTER (WHERE kind = 0), count(*) FILTER (WHERE kind = 1) FROM chosen
"""
_q_unchosen = "SELECT count(*) FROM collect_marks WHERE state = 0 AND review IS DISTINCT FROM %s"
_q_table = """
    SELECT pg_relation_filenode(%(table)s::regclass)::bigint,
           pg_relation_size(%(table)s::regclass) / current_setting('block_size')::bigint,
           EXISTS (SELECT 1 FROM collect_marks WHERE review = %(review)s AND kind = %(kind)s AND state = 0)
"""
_in_piece = "ctid >= format('(%%s,0)', %(from)s::bigint)::tid AND ctid < format('(%%s,0)', %(to)s::bigint)::tid"
_referenced = """
    UPDATE collect_marks m SET referenced = true
    FROM (SELECT c.kind, c.scheme, c.id FROM collect_marks c JOIN ({found}) AS found ON {same}
          WHERE c.review = %(review)s AND c.state = 0 AND c.kind = %(kind)s AND NOT c.referenced
          ORDER BY c.scheme, c.id FOR UPDATE OF c) AS due
    WHERE (m.kind, m.scheme, m.id) = (due.kind, due.scheme, due.id)
"""
_q_review_refs = _referenced.format(
    found=f"SELECT DISTINCT blob_id FROM blob_refs WHERE {_in_piece}", same="c.id = found.blob_id"
)
_q_review_held = _referenced.format(
    found=f"SELECT DISTINCT blob_id FROM held_blobs WHERE {_in_piece}", same="c.id = found.blob_id"
)
_q_review_packs = _referenced.format(
    found=f"""SELECT p.pack_id FROM (SELECT DISTINCT pack FROM blobs WHERE pack IS NOT NULL AND {_in_piece}) AS used
              JOIN packs p USING (pack)""",
    same="c.id = found.pack_id",
)
_REVIEWED = [
    ("blob_refs", OBJECT, _q_review_refs), ("held_blobs", OBJECT, _q_review_held), ("blobs", PACK, _q_review_packs),
]  # fmt: skip
_q_pick = """
    SELECT kind, scheme, id, loose, referenced FROM collect_marks
    WHERE review = %s AND state = 0 ORDER BY kind, scheme, id LIMIT %s FOR UPDATE SKIP LOCKED
"""
_q_lock_blobs = """
    SELECT 1 FROM blobs b JOIN unnest(%(ids)b) AS gone (id) ON b.blob_id = gone.id
    WHERE b.scheme = %(scheme)s ORDER BY b.blob_id FOR UPDATE OF b
"""
_q_delete_blobs = """
    DELETE FROM blobs b USING unnest(%(ids)b) AS gone (id)
    WHERE b.blob_id = gone.id AND b.scheme = %(scheme)s RETURNING b.blob_id, b.size, b.pack, b.pending
"""
_q_suspect_packs = """
    INSERT INTO collect_suspects SELECT 1, '', pack_id, true FROM packs WHERE pack = ANY (%s)
"""
_q_loose = """
    SELECT b.blob_id FROM unnest(%(ids)b) AS wanted (id)
    CROSS JOIN LATERAL (SELECT blob_id FROM blobs WHERE blob_id = wanted.id AND scheme = %(scheme)s AND pack IS NULL
                        OFFSET 0) AS b
"""
_q_delete_packs = "DELETE FROM packs WHERE pack_id = ANY (%(ids)b)"
_q_entomb = """
    UPDATE collect_marks SET state = 1, until = %(now)s, owner = NULL
    WHERE kind = %(kind)s AND scheme = %(scheme)s AND id = ANY (%(ids)b)
"""
_q_drop = "DELETE FROM collect_marks WHERE kind = %(kind)s AND scheme = %(scheme)s AND id = ANY (%(ids)b)"
_q_take = """
    UPDATE collect_marks m SET owner = %(owner)s, until = %(until)s
    FROM (SELECT kind, scheme, id FROM collect_marks WHERE state = 1 AND until <= %(now)s
          ORDER BY until LIMIT %(most)s FOR UPDATE SKIP LOCKED) AS due
    WHERE (m.kind, m.scheme, m.id) = (due.kind, due.scheme, due.id)
    RETURNING m.kind, m.scheme, m.id
"""
_q_bury = """
    UPDATE collect_marks SET state = 2, moment = pg_current_xact_id(), marked_at = %(now)s, owner = NULL, until = NULL
    WHERE state = 1 AND owner = %(owner)s AND kind = %(kind)s AND scheme = %(scheme)s AND id = ANY (%(ids)b)
"""
_q_end_leases = "DELETE FROM leases WHERE expires_at <= %s"
_q_fence = f"""
    UPDATE pushes p SET attempt = p.attempt + 1, begun = pg_current_xact_id()
    FROM (SELECT push FROM pushes WHERE state = 0 AND lease_expires <= %s
              AND begun < (SELECT moment FROM collect_marks WHERE state = 2 ORDER BY moment DESC LIMIT 1)
          ORDER BY push LIMIT {_FENCED_AT_ONCE} FOR UPDATE) AS lost
    WHERE p.push = lost.push
"""
"""Whoever has lost its lease and wakes up finds that its attempt is over."""
_q_forget = """
    DELETE FROM collect_marks WHERE state = 2 AND marked_at <= %s AND NOT (moment > coalesce((
        SELECT begun FROM (
            SELECT begun FROM pushes WHERE state = 0 UNION ALL SELECT begun FROM leases
        ) AS live ORDER BY begun LIMIT 1), pg_current_xact_id()))
"""


def mark_suspects(connection: Connection, now: dt.datetime, most: int) -> int:
    """See ``Marking.mark_suspects``."""
    row = connection.execute(_q_mark_suspects, {"now": now, "most": most}).fetchone()
    return 0 if row is None else int(row[0])


def mark_orphans(connection: Connection, marks: Sequence[Mark], now: dt.datetime) -> int:
    """See ``Marking.mark_orphans``."""
    return sum(
        connection.execute(_q_mark_orphans, {**place, "now": now}).rowcount for place in _by_place(marks)
    )  # fmt: skip


@one_statement
def count_marks(connection: Connection) -> Mapping[str, int]:
    """See ``Marking.count_marks``."""
    row = connection.execute(_q_count).fetchone()
    assert row is not None
    return dict(zip(("suspects", "marked", "tombstoned", "deleted"), map(int, row), strict=True))


def begin_review(connection: Connection, number: uuid.UUID, now: dt.datetime, lease_s: float, most: int) -> Review:
    """See ``Marking.begin_review``."""
    before = now - dt.timedelta(seconds=lease_s)
    chosen = connection.execute(_q_choose, {"review": number, "now": now, "before": before, "most": most}).fetchone()
    left = connection.execute(_q_unchosen, (number,)).fetchone()
    assert chosen is not None
    assert left is not None
    return Review(number, chosen[0], chosen[1], left[0])


def review(connection: Connection, number: uuid.UUID, cursor: ReviewCursor) -> ReviewCursor | None:
    """See ``Marking.review``."""
    table, kind, query = _REVIEWED[cursor.table]
    arguments = {"review": number, "table": table, "kind": kind}
    row = connection.execute(_q_table, arguments).fetchone()
    assert row is not None
    file, pages, wanted = row
    page = 0 if file != cursor.file else cursor.page
    if wanted and page < pages:
        connection.execute(query, {**arguments, "from": page, "to": page + PAGES_AT_ONCE})
        return ReviewCursor(cursor.table, page + PAGES_AT_ONCE, file)
    return ReviewCursor(cursor.table + 1) if cursor.table + 1 < len(_REVIEWED) else None


def condemn(connection: Connection, number: uuid.UUID, most: int, now: dt.datetime) -> Condemned:
    """See ``Marking.condemn``."""
    picked = connection.execute(_q_pick, (number, most)).fetchall()
    rows = size = tombstones = 0
    groups: dict[tuple[int, str], list[tuple[bytes, bool, bool]]] = {}
    for kind, scheme, object_id, loose, referenced in picked:
        groups.setdefault((kind, scheme), []).append((bytes(object_id), loose, referenced))
    for (kind, scheme), marks in groups.items():
        needless = [object_id for object_id, _, referenced in marks if not referenced]
        if kind == PACK:
            connection.execute(_q_delete_packs, {"ids": Byteas(needless)})
            doomed = set(needless)
        else:
            doomed, gone, gone_bytes = _condemn_objects(connection, scheme, marks, needless)
            rows, size = rows + gone, size + gone_bytes
        place = {"kind": kind, "scheme": scheme, "now": now}
        kept = [object_id for object_id, *_ in marks if object_id not in doomed]
        connection.execute(_q_entomb, {**place, "ids": Byteas(sorted(doomed))})
        connection.execute(_q_drop, {**place, "ids": Byteas(kept)})
        tombstones += len(doomed)
    return Condemned(len(picked), rows, size, tombstones)


def _condemn_objects(
    connection: Connection, scheme: str, marks: Sequence[tuple[bytes, bool, bool]], needless: Sequence[bytes]
) -> tuple[set[bytes], int, int]:
    """Delete rows of objects nothing refers to; gives whose loose copies are to go, and what rows and bytes went."""
    arguments = {"scheme": scheme, "ids": Byteas(needless)}
    connection.execute(_q_lock_blobs, arguments)
    deleted = connection.execute(_q_delete_blobs, arguments).fetchall()
    packs = sorted({pack for _, _, pack, _ in deleted if pack is not None})
    if packs:
        connection.execute(_q_suspect_packs, (packs,))
    doomed = {bytes(object_id) for object_id, _, pack, pending in deleted if pack is None and not pending}
    doomed |= {object_id for object_id, loose, _ in marks if loose}
    still = connection.execute(_q_loose, {"scheme": scheme, "ids": Byteas(sorted(doomed))})
    doomed -= {bytes(row[0]) for row in still}
    return doomed, len(deleted), sum(size for _, size, _, _ in deleted)


def take_tombstones(
    connection: Connection, owner: uuid.UUID, most: int, now: dt.datetime, until: dt.datetime
) -> list[Mark]:
    """See ``Marking.take_tombstones``."""
    rows = connection.execute(_q_take, {"owner": owner, "most": most, "now": now, "until": until})
    return [Mark(bytes(object_id), None if kind == PACK else Scheme(scheme)) for kind, scheme, object_id in rows]


def bury(connection: Connection, owner: uuid.UUID, marks: Sequence[Mark], now: dt.datetime) -> int:
    """See ``Marking.bury``."""
    arguments = {"owner": owner, "now": now}
    return sum(connection.execute(_q_bury, {**place, **arguments}).rowcount for place in _by_place(marks))


def forget_tombstones(connection: Connection, now: dt.datetime, lease_s: float) -> int:
    """See ``Marking.forget_tombstones``."""
    connection.execute(_q_end_leases, (now,))
    connection.execute(_q_fence, (now,))
    return connection.execute(_q_forget, (now - dt.timedelta(seconds=lease_s),)).rowcount


def _by_place(marks: Sequence[Mark]) -> list[dict[str, object]]:
    """Group marks by kind and scheme, the ids in order."""
    found: dict[tuple[int, str], list[bytes]] = {}
    for mark in marks:
        place = (PACK, "") if mark.scheme is None else (OBJECT, mark.scheme.value)
        found.setdefault(place, []).append(mark.object_id)
    return [{"kind": kind, "scheme": scheme, "ids": Byteas(sorted(ids))} for (kind, scheme), ids in found.items()]
