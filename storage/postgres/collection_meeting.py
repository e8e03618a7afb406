"""What whoever records something does about the collector: takes marks away, and stops before tombstones.

It comes first in its transaction. A mark is locked by whoever looks at it, so between this and the collector's last
look one waits for the other: either the mark is gone, and what it marked is kept, or it is a tombstone.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from storage.errors import LeaseLost, StaleTicket, Tombstoned
from storage.postgres.arrays import Byteas
from storage.postgres.database import Connection
from storage.rows import StoredBlob
from wire.ids import Scheme

# Packs come first in the ids, then objects, each in order: nobody waits for anybody in a circle. The attempt is read by
# the same statement: an attempt that sees no tombstone because a newer one has outlived it sees the newer one, too.
_q_meet = """
    SELECT now.attempt, m.kind, m.id, m.state, m.moment < now.begun
    FROM (SELECT (SELECT p.attempt FROM pushes p WHERE p.push = %(push)s) AS attempt,
                 coalesce((SELECT p.begun FROM pushes p WHERE p.push = %(push)s),
                          (SELECT l.begun FROM leases l WHERE l.lease = %(lease)s)) AS begun) AS now
    LEFT JOIN (
        SELECT met.* FROM unnest(%(ids)b) WITH ORDINALITY AS wanted (id, at)
        CROSS JOIN LATERAL (
            SELECT kind, id, state, moment FROM collect_marks
            WHERE kind = CASE WHEN wanted.at <= %(packs)s THEN 1 ELSE 0 END
              AND scheme = CASE WHEN wanted.at <= %(packs)s THEN '' ELSE %(scheme)s END AND id = wanted.id
            FOR UPDATE
        ) AS met
    ) AS m ON true
"""
_q_clear = """
    DELETE FROM collect_marks WHERE kind = %(kind)s AND scheme = %(scheme)s AND id = ANY (%(ids)b)
"""
_q_hold_lease = "SELECT 1 FROM leases WHERE lease = %s FOR KEY SHARE"
MARKED, TOMBSTONED, BURIED = 0, 1, 2
OBJECT, PACK = 0, 1


@dataclass(frozen=True, slots=True)
class Recorder:
    """Who records: an attempt of a push, or somebody with a lease, or nobody who began."""

    push: int | None = None
    attempt: int | None = None
    lease: uuid.UUID | None = None


NOBODY = Recorder()


def hold_lease(connection: Connection, lease: uuid.UUID) -> None:
    """Keep a lease from being taken away before this transaction ends; raises :class:`LeaseLost`."""
    if connection.execute(_q_hold_lease, (lease,)).fetchone() is None:
        raise LeaseLost(str(lease))


def meet_marks(
    connection: Connection, scheme: Scheme, pack_ids: Sequence[bytes], blobs: Sequence[StoredBlob], recorder: Recorder,
    *, moved: bool = False,
) -> None:  # fmt: skip
    """Take away the marks of what is about to be recorded; both sequences in order of id.

    What is only ``moved`` is nobody's the more for it, and stays marked.

    Raises:
        Tombstoned: its bytes are being deleted, or were, perhaps after the recorder has put them there.
        StaleTicket: a newer attempt of the push has begun.
    """
    arguments = {
        "ids": Byteas([*pack_ids, *(blob.object_id for blob in blobs)]), "packs": len(pack_ids),
        "scheme": scheme.value, "push": recorder.push, "lease": recorder.lease,
    }  # fmt: skip
    met = connection.execute(_q_meet, arguments).fetchall()
    if met[0][0] != recorder.attempt:
        raise StaleTicket(f"push {recorder.push} attempt {recorder.attempt}")
    if met[0][1] is None:
        return
    places = {blob.object_id: blob for blob in blobs}
    cleared: dict[int, list[bytes]] = {OBJECT: [], PACK: []}
    for _, kind, found_id, state, is_older in met:
        object_id = bytes(found_id)
        if kind == OBJECT and state != MARKED and places[object_id].pack_id is not None:
            continue  # the loose copy goes, this one is elsewhere
        waits = kind == OBJECT and places[object_id].content is not None
        if state == TOMBSTONED or (state == BURIED and not (is_older or waits)):
            raise Tombstoned(object_id.hex())
        if moved and state == MARKED:
            continue
        cleared[kind].append(object_id)
    for kind, ids in cleared.items():
        if ids:
            place = {"kind": kind, "scheme": scheme.value if kind == OBJECT else "", "ids": Byteas(ids)}
            connection.execute(_q_clear, place)
