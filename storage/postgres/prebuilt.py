"""Full clones made ahead."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from storage.postgres.arrays import Byteas
from storage.postgres.database import Connection, one_statement
from storage.prebuilt import PrebuiltPack
from wire.ids import DIGEST_BYTES

_q_expire_others = """
    UPDATE prebuilt_packs SET expires_at = %(now)s
    WHERE repo = %(repo)s AND expires_at > %(now)s AND NOT want = ANY (%(wants)b)
"""
_q_add = """
    INSERT INTO prebuilt_packs (repo, want, pack_id, commits, objects, bytes, built_at, expires_at)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s)
    ON CONFLICT (repo, want) DO UPDATE
        SET pack_id = excluded.pack_id, commits = excluded.commits, objects = excluded.objects,
            bytes = excluded.bytes, built_at = excluded.built_at, expires_at = excluded.expires_at
"""
_q_note = f"{_q_add.rstrip()}\n        WHERE prebuilt_packs.expires_at <= excluded.built_at"
_q_find = """
    SELECT want, pack_id, commits, objects, bytes, built_at, expires_at
    FROM prebuilt_packs WHERE repo = %s AND want = %s AND expires_at > %s
"""
_q_extend = """
    UPDATE prebuilt_packs SET expires_at = %(expires)s
    WHERE repo = %(repo)s AND want = %(want)s
      AND pack_id IS NOT DISTINCT FROM %(mpack_id)s::bytea AND expires_at IS NOT DISTINCT FROM %(known)s::timestamptz
"""
"""One that has been replaced or has expired meanwhile is left alone; it is found by its commits and nothing else."""
_q_drop = "DELETE FROM prebuilt_packs WHERE repo = %s AND want = %s AND pack_id IS NOT DISTINCT FROM %s::bytea"
_q_kept = "SELECT DISTINCT pack_id FROM prebuilt_packs WHERE pack_id = ANY (%b)"
_q_forget = """
    DELETE FROM prebuilt_packs WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM prebuilt_packs WHERE expires_at <= %s ORDER BY expires_at LIMIT %s FOR UPDATE SKIP LOCKED
    ))
"""
_q_bytes = "SELECT bytes FROM repository_usage WHERE repo = %s"


def add_prebuilt(connection: Connection, repo: int, packs: Sequence[PrebuiltPack], now: dt.datetime) -> None:
    """See ``Prebuilt.add_prebuilt``."""
    ordered = sorted(packs, key=_want)
    arguments = {"repo": repo, "now": now, "wants": Byteas([_want(pack) for pack in ordered])}
    connection.execute(_q_expire_others, arguments)
    for pack in ordered:
        facts = (pack.mpack_id, pack.commits, pack.objects, pack.size, pack.built_at, pack.expires)
        connection.execute(_q_add, (repo, _want(pack), *facts))


@one_statement
def note_prebuilt(connection: Connection, repo: int, pack: PrebuiltPack) -> None:
    """See ``Prebuilt.note_prebuilt``."""
    facts = (pack.mpack_id, pack.commits, pack.objects, pack.size, pack.built_at, pack.expires)
    connection.execute(_q_note, (repo, _want(pack), *facts))


@one_statement
def find_prebuilt(connection: Connection, repo: int, want: Sequence[bytes], now: dt.datetime) -> PrebuiltPack | None:
    """See ``Prebuilt.find_prebuilt``."""
    row = connection.execute(_q_find, (repo, b"".join(sorted(want)), now)).fetchone()
    if row is None:
        return None
    joined, mpack_id, commits, objects, size, built_at, expires = row
    ids = tuple(bytes(joined[at : at + DIGEST_BYTES]) for at in range(0, len(joined), DIGEST_BYTES))
    return PrebuiltPack(ids, bytes(mpack_id), commits, objects, size, built_at, expires)


@one_statement
def extend_prebuilt(connection: Connection, repo: int, pack: PrebuiltPack, expires: dt.datetime) -> None:
    """See ``Prebuilt.extend_prebuilt``."""
    arguments = {"repo": repo, "want": _want(pack), "mpack_id": pack.mpack_id, "known": pack.expires}
    connection.execute(_q_extend, {**arguments, "expires": expires})


@one_statement
def drop_prebuilt(connection: Connection, repo: int, pack: PrebuiltPack) -> None:
    """See ``Prebuilt.drop_prebuilt``."""
    connection.execute(_q_drop, (repo, _want(pack), pack.mpack_id))


@one_statement
def kept_prebuilt(connection: Connection, mpack_ids: Sequence[bytes]) -> set[bytes]:
    """See ``Prebuilt.kept_prebuilt``."""
    return {bytes(row[0]) for row in connection.execute(_q_kept, (Byteas(mpack_ids),))}


@one_statement
def forget_prebuilt(connection: Connection, before: dt.datetime, most: int) -> int:
    """See ``Prebuilt.forget_prebuilt``."""
    return connection.execute(_q_forget, (before, most)).rowcount


@one_statement
def repository_bytes(connection: Connection, repo: int) -> int:
    """See ``Prebuilt.repository_bytes``."""
    row = connection.execute(_q_bytes, (repo,)).fetchone()
    return 0 if row is None else int(row[0])


def _want(pack: PrebuiltPack) -> bytes:
    return b"".join(pack.want)
