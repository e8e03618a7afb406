"""Making the tables anew from what the object store holds: each step one transaction that can be done again.

What is read from the store waits in tables of this module's own until it has its place: entries of the journal, and
where blobs lie. They are there while a rebuilding is under way, and say how far it has come.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from psycopg.types.json import Json

from storage.journal import DeploymentState, Entry
from storage.layout import Place
from storage.postgres.arrays import Byteas, Int8s
from storage.postgres.database import Connection
from storage.postgres.history import insert_history
from storage.postgres.pushes import require_current
from storage.postgres.reindex_facts import make_rows
from storage.reindex import DamagedSegment, Finding, Phase, Rebuilding, Step, StepKind
from storage.rows import PushRows, PushState, PushTicket
from wire.ids import Scheme

TRUTH = (
    "identities", "tokens", "repositories", "collaborators", "pushes", "branches", "branch_log", "packs", "blobs",
    "commits", "commit_records", "snapshots", "blob_refs", "commit_refs", "snapshot_refs", "owner_quotas",
    "repository_usage", "tags", "releases", "deployment", "journal_outbox",
)  # fmt: skip
_BESIDE = (
    "secrets", "held_blobs", "upload_reservations", "jobs", "job_claims", "cron", "leases", "collect_suspects",
    "collect_marks", "collect_runs", "collect_reached", "content_cache", "prebuilt_packs", "insight_lines",
    "file_last_commits", "scrub_findings", "large_bodies",
)  # fmt: skip
"""What is found out again, or was on its way."""
_q_begun = "SELECT to_regclass('reindex_state') IS NOT NULL"
_q_state = "SELECT deployment, generation, phase FROM reindex_state"
_q_begin = """
    CREATE TABLE reindex_state (deployment uuid NOT NULL, generation bigint NOT NULL, phase smallint NOT NULL);
    CREATE TABLE reindex_done (key text COLLATE "C" PRIMARY KEY);
    CREATE TABLE reindex_entries (
        entry bigint PRIMARY KEY, kind text COLLATE "C" NOT NULL, gone boolean NOT NULL, fact json NOT NULL,
        verdict json);
    CREATE INDEX reindex_steps ON reindex_entries (((fact ->> 'repo')::bigint), entry) WHERE kind IN ('push', 'swept');
    CREATE TABLE reindex_places (
        blob_id bytea NOT NULL, scheme text COLLATE "C" NOT NULL, size bigint NOT NULL, pack_id bytea,
        at bigint NOT NULL, objects bigint NOT NULL, PRIMARY KEY (blob_id, scheme));
    CREATE TABLE reindex_heads (commit_id bytea NOT NULL, pack_id bytea NOT NULL, PRIMARY KEY (commit_id, pack_id));
    CREATE TABLE reindex_findings (key text COLLATE "C" PRIMARY KEY, push bigint, last bigint, detail text NOT NULL)
"""
_q_note = "INSERT INTO reindex_state (deployment, generation, phase) VALUES (%s, %s, 0)"
_q_found = f"""
    INSERT INTO deployment (deployment, generation, state) VALUES (%s, %s, {DeploymentState.REBUILDING.value})
"""
_q_phase = "UPDATE reindex_state SET phase = %s"
_q_done = "INSERT INTO reindex_done (key) SELECT unnest(%s::text[]) ON CONFLICT DO NOTHING"
_q_is_done = "SELECT key FROM reindex_done WHERE key = ANY (%s::text[])"
_q_entry = """
    INSERT INTO reindex_entries (entry, kind, gone, fact, verdict) VALUES (%s, %s, %s, %s, %s) ON CONFLICT DO NOTHING
"""
"""A verdict stays beside the fact, as it is: it may quote what no operator on JSON can read."""
_q_place = """
    INSERT INTO reindex_places (blob_id, scheme, size, pack_id, at, objects)
    SELECT new.id, %(scheme)s, new.size, %(pack)s, new.at, %(objects)s
    FROM unnest(%(ids)b, %(sizes)b, %(ats)b) AS new (id, size, at) ORDER BY new.id
    ON CONFLICT (blob_id, scheme) DO UPDATE
        SET size = excluded.size, pack_id = excluded.pack_id, at = excluded.at, objects = excluded.objects
        WHERE (excluded.objects, excluded.pack_id) > (reindex_places.objects, reindex_places.pack_id)
           OR excluded.objects > reindex_places.objects
"""
"""Of several copies the one in the largest pack: what has been folded is there, and the others are to go."""
_q_head = """
    INSERT INTO reindex_heads (commit_id, pack_id) SELECT new.id, %(pack)s FROM unnest(%(ids)b) AS new (id)
    ON CONFLICT DO NOTHING
"""
_q_steps = f"""
    SELECT e.entry, e.kind, e.verdict, p.push, p.repo, p.push_id, p.attempt, p.handle, p.branch, r.scheme,
           coalesce(p.record_pack, (SELECT h.pack_id FROM branch_log b JOIN reindex_heads h ON h.commit_id = b.new
                                    WHERE b.push = p.push LIMIT 1))
    FROM reindex_entries e
    LEFT JOIN LATERAL (
        SELECT * FROM pushes WHERE e.kind = 'push' AND push = (e.fact ->> 'push')::bigint AND state = 0
    ) AS p ON true
    LEFT JOIN repositories r ON r.repo = p.repo
    WHERE e.kind IN ('push', 'swept') AND (e.fact ->> 'repo')::bigint = %s AND e.entry > %s
      AND (e.kind = 'swept' OR (e.fact ->> 'state')::smallint = {PushState.ACCEPTED.value})
      AND NOT EXISTS (SELECT 1 FROM reindex_done d WHERE d.key = 'entry/' || e.entry)
    ORDER BY e.entry LIMIT %s
"""
_q_repositories = "SELECT repo FROM repositories ORDER BY repo"
_q_count = "SELECT count(*) FROM reindex_entries WHERE kind IN ('push', 'swept')"
_q_unnamed = "SELECT count(*) FROM pushes WHERE state = 0 AND record_pack IS NULL"
_q_packs = """
    INSERT INTO packs (pack_id) SELECT DISTINCT p.pack_id FROM reindex_places p JOIN unnest(%(ids)b) AS w (id)
    ON p.blob_id = w.id WHERE p.scheme = %(scheme)s AND p.pack_id IS NOT NULL ORDER BY 1 ON CONFLICT DO NOTHING
"""
_q_blobs = """
    INSERT INTO blobs (blob_id, scheme, size, pack, "offset")
    SELECT p.blob_id, p.scheme, p.size, (SELECT k.pack FROM packs k WHERE k.pack_id = p.pack_id), p.at
    FROM unnest(%(ids)b) AS w (id) CROSS JOIN LATERAL (
        SELECT * FROM reindex_places WHERE blob_id = w.id AND scheme = %(scheme)s OFFSET 0) AS p
    ORDER BY 1 ON CONFLICT DO NOTHING
"""
_q_refs = """
    INSERT INTO blob_refs (repo, blob_id, push) SELECT %(repo)s, w.id, %(push)s FROM unnest(%(ids)b) AS w (id)
    ON CONFLICT DO NOTHING
"""
_q_snapshots_there = """
    SELECT w.id FROM unnest(%(ids)b) AS w (id)
    WHERE EXISTS (SELECT 1 FROM snapshots s WHERE s.snapshot_id = w.id OFFSET 0)
"""
_q_accept = f"""
    UPDATE pushes p SET state = {PushState.ACCEPTED.value}, verdict = e.verdict, finished_at = r.finished_at,
                        record_pack = coalesce(p.record_pack, %s)
    FROM reindex_entries e, json_populate_record(NULL::pushes, e.fact) AS r
    WHERE e.entry = %s AND p.push = r.push
"""
_q_finding = """
    INSERT INTO reindex_findings (key, push, last, detail) VALUES (%s, %s, %s, %s)
    ON CONFLICT (key) DO UPDATE SET detail = excluded.detail
"""
_q_findings = """
    SELECT p.push_id, coalesce(r.owner || '/' || r.slug, ''), f.detail FROM reindex_findings f
    LEFT JOIN pushes p USING (push) LEFT JOIN repositories r USING (repo)
    WHERE f.push IS NULL OR r.deleted_at IS NULL ORDER BY f.push NULLS FIRST, f.key
"""
_q_lacking = """
    SELECT DISTINCT r.owner || '/' || r.slug, encode(f.blob_id, 'hex') FROM blob_refs f
    JOIN repositories r USING (repo)
    WHERE r.deleted_at IS NULL AND NOT EXISTS (
        SELECT 1 FROM blobs b WHERE b.blob_id = f.blob_id AND b.scheme = r.scheme OFFSET 0)
    ORDER BY 1, 2 LIMIT 101
"""
_SWEPT = {"blob_refs": "blob_id", "commit_refs": "commit_id", "snapshot_refs": "snapshot_id"}
_q_sequences = (
    "SELECT setval(pg_get_serial_sequence('repositories', 'repo'), greatest(1, (SELECT max(repo) FROM repositories), "
    "(SELECT max((fact ->> 'repo')::bigint) FROM reindex_entries)))",
    "SELECT setval(pg_get_serial_sequence('pushes', 'push'), greatest(1, (SELECT max(push) FROM pushes), "
    "(SELECT max((fact ->> 'push')::bigint) FROM reindex_entries)))",
    "SELECT setval(pg_get_serial_sequence('branch_log', 'entry'), greatest(1, (SELECT max(entry) FROM branch_log)))",
    "SELECT setval(pg_get_serial_sequence('journal_outbox', 'entry'), "
    "greatest(1, (SELECT max(entry) FROM reindex_entries), (SELECT max(last) FROM reindex_findings)))",
)
_q_last = """
    SELECT greatest((SELECT max(entry) FROM reindex_entries), (SELECT max(last) FROM reindex_findings), 0)
"""
_q_in_use = f"UPDATE deployment SET state = {DeploymentState.IN_USE.value}, journalled = %s"
_q_drop = """
    DROP TABLE reindex_state, reindex_done, reindex_entries, reindex_places, reindex_heads, reindex_findings
"""


def rebuilding(connection: Connection) -> Rebuilding | None:
    """Give the rebuilding that is under way."""
    if connection.execute(_q_begun).fetchone() != (True,):
        return None
    row = connection.execute(_q_state).fetchone()
    return None if row is None else Rebuilding(row[0], row[1], Phase(row[2]))


def begin(connection: Connection, deployment: uuid.UUID, generation: int, *, replace: bool) -> None:
    """Begin; with ``replace`` everything that is there goes first."""
    if replace:
        connection.execute("TRUNCATE " + ", ".join((*TRUTH, *_BESIDE)) + " RESTART IDENTITY CASCADE")
        connection.execute(
            "DROP TABLE IF EXISTS reindex_state, reindex_done, reindex_entries, reindex_places, reindex_heads, "
            "reindex_findings"
        )
    else:
        connection.execute("DELETE FROM deployment")
    connection.execute(_q_begin)
    connection.execute(_q_note, (deployment, generation))
    connection.execute(_q_found, (deployment, generation))


def enter(connection: Connection, phase: Phase) -> None:
    """Note that everything before a phase is done."""
    connection.execute(_q_phase, (phase.value,))


def done(connection: Connection, keys: Sequence[str]) -> set[str]:
    """Give those of some keys that were read."""
    return {row[0] for row in connection.execute(_q_is_done, (list(keys),))}


def take_entries(
    connection: Connection, entries: Sequence[Entry], keys: Sequence[str], damaged: Sequence[DamagedSegment]
) -> None:
    """Take entries of segments that were read, and note which segments cannot be."""
    with connection.cursor() as cursor:
        cursor.executemany(_q_entry, [_entry_row(entry) for entry in entries])
        cursor.executemany(_q_finding, [(one.key, None, one.last, one.detail) for one in damaged])
    connection.execute(_q_done, (list(keys),))


def _entry_row(entry: Entry) -> tuple[object, ...]:
    fact = dict(entry.fact)
    verdict = fact.pop("verdict", None)
    return entry.number, entry.kind, entry.gone, Json(fact), None if verdict is None else Json(verdict)


def take_places(connection: Connection, scheme: Scheme, places: Sequence[Place], objects: int, key: str | None) -> None:
    """Take where blobs lie, all in one pack or all loose; ``key`` says that this was all that key has."""
    if places:
        arguments = {
            "scheme": scheme.value, "pack": places[0].pack_id, "objects": objects,
            "ids": Byteas([p.object_id for p in places]), "sizes": Int8s([p.size for p in places]),
            "ats": Int8s([p.offset for p in places]),
        }  # fmt: skip
        connection.execute(_q_place, arguments)
    if key is not None:
        connection.execute(_q_done, ([key],))


def take_heads(connection: Connection, pack_id: bytes, commit_ids: Sequence[bytes], key: str) -> None:
    """Take which commits a record pack has that no entry may name."""
    connection.execute(_q_head, {"pack": pack_id, "ids": Byteas(sorted(set(commit_ids)))})
    connection.execute(_q_done, ([key],))


def apply_facts(connection: Connection) -> None:
    """Make what facts say; accepted pushes stay open until what they brought is there."""
    make_rows(connection)
    enter(connection, Phase.OBJECTS)


def unnamed_packs(connection: Connection) -> int:
    """Count accepted pushes of which no entry says where their records are."""
    row = connection.execute(_q_unnamed).fetchone()
    return 0 if row is None else int(row[0])


def repositories(connection: Connection) -> list[int]:
    """Give the numbers of all repositories."""
    return [row[0] for row in connection.execute(_q_repositories)]


def steps(connection: Connection, repo: int, after: int, most: int) -> list[Step]:
    """Give what is to be done again for a repository, in order."""
    found: list[Step] = []
    open_pushes: set[int] = set()
    for row in connection.execute(_q_steps, (repo, after, most)):
        step = _step(row)
        if step.ticket is not None and step.ticket.number in open_pushes:
            step = Step(step.entry, StepKind.DONE)
        elif step.ticket is not None:
            open_pushes.add(step.ticket.number)
        found.append(step)
    return found


def count_steps(connection: Connection) -> int:
    """Count all of them, done or not."""
    row = connection.execute(_q_count).fetchone()
    return 0 if row is None else int(row[0])


def _step(row: tuple[Any, ...]) -> Step:
    entry, kind, verdict, push, repo, push_id, attempt, handle, branch, scheme, pack_id = row
    if kind == "swept" or push is None:
        return Step(entry, StepKind.SWEPT if kind == "swept" else StepKind.DONE)
    head = (verdict or {}).get("head")
    return Step(
        entry, StepKind.PUSH, PushTicket(push, repo, push_id, attempt), handle, branch,
        None if scheme is None else Scheme(scheme), None if pack_id is None else bytes(pack_id), head,
    )  # fmt: skip


def claim(connection: Connection, ticket: PushTicket, scheme: Scheme, ids: Sequence[bytes]) -> set[bytes]:
    """Make blobs a push names its own; those that lie nowhere as well: whoever wants them is told."""
    require_current(connection, ticket)
    arguments = {"ids": Byteas(sorted(ids)), "scheme": scheme.value, "repo": ticket.repo, "push": ticket.number}
    for statement in (_q_packs, _q_blobs, _q_refs):
        connection.execute(statement, arguments)
    return set(ids)


def lacking_snapshots(connection: Connection, ids: Sequence[bytes]) -> list[bytes]:
    """Give those that nobody has brought."""
    there = {bytes(row[0]) for row in connection.execute(_q_snapshots_there, {"ids": Byteas(list(ids))})}
    return [snapshot_id for snapshot_id in ids if snapshot_id not in there]


def accept(
    connection: Connection, ticket: PushTicket, scheme: Scheme | None, rows: PushRows, entry: int,
    pack_id: bytes | None, damage: str | None,
) -> None:  # fmt: skip
    """Accept a push again, as its entry says; with ``damage`` nothing of what it brought came back."""
    require_current(connection, ticket)
    if scheme is not None:
        insert_history(connection, ticket, scheme, rows.snapshots, rows.commits)
    connection.execute(_q_accept, (pack_id, entry))
    if damage is not None:
        connection.execute(_q_finding, (f"push/{ticket.number}", ticket.number, None, damage))
    connection.execute(_q_done, ([f"entry/{entry}"],))


def sweep(connection: Connection, entry: int) -> None:
    """Take references away again that were taken away."""
    row = connection.execute("SELECT fact FROM reindex_entries WHERE entry = %s", (entry,)).fetchone()
    assert row is not None
    table = row[0]["of"]
    ids = Byteas([bytes.fromhex(text) for text in row[0]["ids"]])
    statement = f"DELETE FROM {table} WHERE repo = %(repo)s AND {_SWEPT[table]} IN (SELECT unnest(%(ids)b))"
    connection.execute(statement.encode(), {"repo": row[0]["repo"], "ids": ids})
    connection.execute(_q_done, ([f"entry/{entry}"],))


def findings(connection: Connection) -> list[Finding]:
    """Give what did not come back."""
    found = [
        Finding(repository, detail if push_id is None else f"push {push_id}: {detail}")
        for push_id, repository, detail in connection.execute(_q_findings)
    ]
    found += [Finding(name, f"object {blob} is nowhere in the store") for name, blob in connection.execute(_q_lacking)]
    return found


def last_entry(connection: Connection) -> int:
    """Give the last entry that was found."""
    row = connection.execute(_q_last).fetchone()
    return 0 if row is None else int(row[0])


def complete(connection: Connection) -> None:
    """Let the database be used: numbers go on after the last ones, and nothing of this is to be written out."""
    last = last_entry(connection)
    for statement in _q_sequences:
        connection.execute(statement)
    connection.execute("TRUNCATE journal_outbox")
    connection.execute(_q_in_use, (last,))
    connection.execute(_q_drop)
