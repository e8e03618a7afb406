"""Every statement on the way of a push and of a fetch finds its rows by key, however large the tables are.

The operations run over large tables through a connection that has each statement explained first, so a statement
that is added or changed is looked at without anybody remembering to.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

import psycopg
import pytest

from storage.collection_rows import RefKind
from storage.insights import LineStanding, LineTicket, PathChanges
from storage.job_rows import JobFilter, NewJob
from storage.layout import Place
from storage.postgres import (
    acceptance,
    access,
    at_once,
    blobs,
    branches,
    collection_leases,
    content_cache,
    finish,
    fsck_history,
    fsck_records,
    fsck_repairs,
    held,
    history,
    identities,
    insights,
    insights_scrub,
    jobs,
    jobs_listing,
    left_behind,
    pack_repair,
    prebuilt,
    pushes,
    repositories,
    schemes,
    usage,
)
from storage.postgres.database import DatabaseSettings, connection_arguments
from storage.postgres.index import PostgresIndex
from storage.prebuilt import PrebuiltPack
from storage.rows import (
    BranchMove,
    CommitRow,
    NewRepository,
    Outcome,
    PushRows,
    PushTicket,
    SnapshotRef,
    SnapshotRow,
    StoredBlob,
    Visibility,
)
from wire.ids import Scheme

MANY, SOME = 200_000, 20_000
BATCH = 1_000
LARGE_BATCH = 10_000
NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
REPO, PUSH = 10, 100
"""A tenth of everything is in this repository; this push of it is open."""

KEYS = {
    "blobs": {"blob_id"}, "blob_refs": {"blob_id"}, "held_blobs": {"blob_id"}, "packs": {"pack", "pack_id"},
    "commits": {"commit_id"}, "commit_refs": {"commit_id"}, "commit_records": {"record_id"},
    "snapshots": {"snapshot_id"}, "snapshot_refs": {"snapshot_id"},
    "pushes": {"push", "push_id"}, "branches": {"repo"}, "branch_log": {"repo"},
    "repositories": {"repo", "owner"}, "collaborators": {"repo"}, "tokens": {"token_hash"},
    "owner_quotas": {"owner"}, "repository_usage": {"repo"}, "upload_reservations": {"repo"}, "jobs": {"repo"},
    "content_cache": {"blob_id", "entry"}, "prebuilt_packs": {"repo", "pack_id"},
    "insight_lines": {"type", "line"}, "file_last_commits": {"line"},
}  # fmt: skip
"""Columns of which a look-up has to name one: a repository's number alone would read all that it holds."""
OF_FEW = {"pushes_in_flight"}
"""Indexes with few rows of each repository."""

FILL = [
    f"INSERT INTO identities SELECT 'h' || n, now() FROM generate_series(1, {SOME}) n",
    f"""INSERT INTO tokens SELECT gen_random_uuid(), 'h' || n, sha256(('t' || n)::bytea), 1, now()
        FROM generate_series(1, {SOME}) n""",
    f"""INSERT INTO repositories
        (repo_id, owner, slug, visibility, scheme, default_branch, domain, settings, created_at)
        SELECT gen_random_uuid(), 'h' || n, 'x', 'private', 'typed', 'main', 'code', '{{}}', now()
        FROM generate_series(1, {SOME}) n""",
    f"INSERT INTO collaborators SELECT n, 'h' || n + 1, 1 FROM generate_series(1, {SOME}) n",
    f"""INSERT INTO pushes (repo, push_id, handle, branch, attempt, state, lease_expires, created_at)
        SELECT 1 + n % 10, md5('u' || n)::uuid, 'h1', 'main', 1, CASE WHEN n % 100 = 99 THEN 0 ELSE 1 END, now(), now()
        FROM generate_series(0, {SOME - 1}) n""",
    f"""INSERT INTO branches SELECT 1 + n % 200, 'b' || n, sha256(('c' || n)::bytea), now()
        FROM generate_series(0, {SOME - 1}) n""",
    f"""INSERT INTO branch_log (repo, branch, new, handle, push, forced, at)
        SELECT 1 + n % 10, 'b' || n % 200, sha256(('c' || n)::bytea), 'h1', 1 + n, false, now()
        FROM generate_series(0, {SOME - 1}) n""",
    f"INSERT INTO packs (pack_id) SELECT sha256(('p' || n)::bytea) FROM generate_series(1, {SOME}) n",
    f"""INSERT INTO blobs SELECT sha256(('b' || n)::bytea), 'typed', n, CASE WHEN n % 2 = 0 THEN 1 + n % {SOME} END, 0
        FROM generate_series(0, {MANY - 1}) n ORDER BY 1, 2""",
    f"""INSERT INTO blob_refs SELECT 1 + n % 10, sha256(('b' || n)::bytea), 1 + n % {SOME}
        FROM generate_series(0, {MANY - 1}) n ORDER BY 1, 2""",
    f"""INSERT INTO held_blobs SELECT 1 + n % 10, 'typed', sha256(('b' || n + 1)::bytea), now()
        FROM generate_series(0, {MANY // 2 - 1}) n ORDER BY 1, 3""",
    f"""INSERT INTO commits SELECT sha256(('c' || n)::bytea), 'typed',
            CASE WHEN n > 0 THEN ARRAY[sha256(('c' || n - 1)::bytea)] ELSE '{{}}' END,
            sha256(('s' || n)::bytea), n + 1
        FROM generate_series(0, {MANY - 1}) n ORDER BY 1, 2""",
    f"""INSERT INTO commit_records SELECT sha256(('r' || n)::bytea), 'a record'::bytea
        FROM generate_series(0, {MANY // 2 - 1}) n ORDER BY 1, 2""",
    f"""INSERT INTO commit_refs SELECT 1 + n % 10, sha256(('c' || n)::bytea), 1 + n % {SOME},
            sha256(('r' || n % {MANY // 2})::bytea)
        FROM generate_series(0, {MANY - 1}) n ORDER BY 1, 2""",
    f"""INSERT INTO snapshots SELECT sha256(('s' || n)::bytea), 'typed',
            CASE WHEN n > 0 THEN sha256(('s' || n - 1)::bytea) END, n % 40, 'changes'::bytea,
            CASE WHEN n % 40 = 0 THEN 'full'::bytea END
        FROM generate_series(0, {MANY // 2 - 1}) n ORDER BY 1, 2""",
    f"""INSERT INTO snapshot_refs SELECT 1 + n % 10, sha256(('s' || n)::bytea), 1 + n % {SOME}, '{{}}'::bytea
        FROM generate_series(0, {MANY // 2 - 1}) n ORDER BY 1, 2""",
    f"""INSERT INTO pushes (repo, push_id, handle, branch, attempt, state, lease_expires, created_at)
        SELECT 11 + n, md5('o' || n)::uuid, 'h1', 'main', 1, 0, now(), now() FROM generate_series(1, {SOME}) n""",
    f"INSERT INTO owner_quotas SELECT 'h' || n, 1::bigint << 60 FROM generate_series(1, {SOME}) n",
    f"INSERT INTO repository_usage SELECT n, n FROM generate_series(1, {SOME}) n",
    f"""INSERT INTO upload_reservations SELECT n % 2000, sha256(('v' || n)::bytea), 1, md5('u' || n)::uuid, now()
        FROM generate_series(1, {SOME}) n""",
    f"""INSERT INTO jobs (repo, type, state, priority, payload, run_at, created_at)
        SELECT n, 'mpack.gc', state, 0, '{{}}', now(), now()
        FROM generate_series(1, {SOME}) n, generate_series(0, 3) state""",
    f"""INSERT INTO content_cache (blob_id, scheme, content) SELECT sha256(('b' || n)::bytea), 'typed', 'content'
        FROM generate_series(0, {SOME - 1}) n ORDER BY 1""",
    "UPDATE blobs b SET pending = true FROM content_cache c WHERE c.blob_id = b.blob_id",
    f"""INSERT INTO prebuilt_packs
        SELECT 1 + n % 2000, sha256(('c' || n)::bytea), sha256(('m' || n)::bytea), 1, 1, 1, now(), now()
        FROM generate_series(0, {SOME - 1}) n""",
    f"""INSERT INTO insight_lines (repo, type, branch, epoch, updated_at)
        SELECT 1 + n / 20, 't' || n % 4, 'b' || n % 20, 1, now() FROM generate_series(0, {SOME - 1}) n""",
    f"""INSERT INTO file_last_commits
        SELECT 1 + n % 20, sha256(('f' || n / 20)::bytea), sha256(('c' || n)::bytea)
        FROM generate_series(0, {MANY - 1}) n ORDER BY 1, 2""",
    "ANALYZE",
]


def name(kind: str, number: int) -> bytes:
    return hashlib.sha256(f"{kind}{number}".encode()).digest()


def ids(kind: str, count: int = BATCH) -> list[bytes]:
    """Ids of which the repository holds a third, others hold a third, and a third is unknown."""
    numbers = {0: lambda at: 10 * at + 9, 1: lambda at: 10 * at, 2: lambda at: -at - 1}
    return [name(kind, numbers[at % 3](at // 3 % (MANY // 20))) for at in range(count)]


TICKET = PushTicket(PUSH, REPO, uuid.UUID(hashlib.md5(b"u%d" % (PUSH - 1)).hexdigest()), 1)
LINE = LineTicket(1, 1)
ACCEPTED_ID = uuid.UUID(hashlib.md5(b"u%d" % (REPO - 1)).hexdigest())
LATER = PushTicket(PUSH, REPO, TICKET.push_id, 2)
TYPED = Scheme.TYPED


class Explaining:
    """A connection that has every statement explained before it runs it."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection
        self.statements: list[tuple[str, object, dict]] = []

    def execute(self, query: str, arguments: object = None, *, binary: bool = False) -> psycopg.Cursor:
        self.statements.append((query, arguments, explain(self._connection, query, arguments)))
        return self._connection.execute(query, arguments, binary=binary)

    @contextmanager
    def cursor(self) -> Iterator[Explaining]:
        yield self

    def executemany(self, query: str, rows: list[object]) -> None:
        self.execute(query, rows[0])
        with self._connection.cursor() as cursor:
            cursor.executemany(query, rows)

    def rollback(self) -> None:
        """What comes after belongs to the same look."""

    def indexes(self) -> set[str]:
        return {node["Index Name"] for *_, plan in self.statements for node in nodes(plan) if "Index Name" in node}

    def read_whole(self) -> list[str]:
        return [found for *_, plan in self.statements for found in read_whole(plan)]


def explain(connection: psycopg.Connection, query: str, arguments: object) -> dict:
    return connection.execute("EXPLAIN (FORMAT JSON) " + query, arguments).fetchone()[0][0]["Plan"]


def nodes(plan: dict) -> Iterator[dict]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


def read_whole(plan: dict) -> list[str]:
    """Name the tables of which a plan reads more than the rows of some keys."""
    found = []
    for node in nodes(plan):
        table, kind = node.get("Relation Name"), node["Node Type"]
        if table not in KEYS or kind == "ModifyTable":
            continue
        bitmaps = nodes(node) if kind == "Bitmap Heap Scan" else [node]
        conditions = " ".join(part.get("Index Cond", "") for part in bitmaps)
        named = set(re.findall(r"(?:\(|\.)(\w+) = ", conditions))
        named |= set(re.findall(r"\((\w+) >= ", conditions)) & set(re.findall(r"\((\w+) <= ", conditions))
        if not KEYS[table] & named and not OF_FEW & {part.get("Index Name") for part in nodes(node)}:
            found.append(f"{kind} on {table}: {conditions or 'all of it'}")
    return found


def snapshot(number: int) -> SnapshotRef:
    return SnapshotRef(SnapshotRow(name("s", number), name("s", 1), 1, b"changes", None), b"")


def commit(number: int) -> CommitRow:
    return CommitRow(name("c", number), (name("c", 9),), name("s", 9), 11, b"record %d" % number)


def accept(connection: psycopg.Connection, branch: str, old: int | None, outcome: Outcome, new: int = 19) -> None:
    move = BranchMove(branch, None if old is None else name("c", old), name("c", new), False)
    todo = [NewJob("mpack.index", 0, {"a pack": True}), NewJob("mpack.gc")]
    done = pushes.accept_push(connection, TICKET, TYPED, move, {"head": "x"}, NOW, 7, todo)
    assert done.outcome is outcome


def record_blobs(connection: psycopg.Connection) -> object:
    new = [StoredBlob(blob_id, 1, name("p", at % 50), at) for at, blob_id in enumerate(ids("b"))]
    return blobs.record_blobs(connection, TICKET, TYPED, new)


def record_waiting_blobs(connection: psycopg.Connection) -> object:
    new = [StoredBlob(blob_id, 1, content=b"x" if at % 2 else None) for at, blob_id in enumerate(ids("b"))]
    return blobs.record_blobs(connection, TICKET, TYPED, new)


def at_once_blobs(pending: bool = False) -> list[StoredBlob]:
    content = b"x" if pending else None
    return [StoredBlob(blob_id, 1, name("p", 1 + at % 50), at, content) for at, blob_id in enumerate(ids("new b", 64))]


def record_at_once(connection: psycopg.Connection, *, pending: bool) -> None:
    set_quota(connection, None)
    required(at_once.record_at_once(connection, TICKET, TYPED, at_once_blobs(pending)))


def finish_at_once(connection: psycopg.Connection, branch: str, old: bytes | None, *, pending: bool) -> None:
    new = range(10 * SOME, 10 * SOME + 100)
    rows = PushRows(at_once_blobs(pending), [snapshot(at) for at in new], [commit(at) for at in new])
    move = BranchMove(branch, old, rows.commits[-1].commit_id, False)
    set_quota(connection, None)
    done = at_once.finish_at_once(connection, TICKET, TYPED, rows, move, lambda _: {"head": "x"}, NOW, 5, ())
    assert done is not None
    assert done.outcome is Outcome.MOVED


def complete_pack(connection: psycopg.Connection, brought_by: uuid.UUID = ACCEPTED_ID) -> None:
    objects = [StoredBlob(blob_id, 1, name("p", 1), at) for at, blob_id in enumerate(ids("b"))]
    mended = pack_repair.complete_pack(connection, REPO, TYPED, objects, brought_by)
    assert all((mended.rows, mended.ranges, mended.promoted))
    assert bool(mended.refs) is (brought_by == ACCEPTED_ID)


def correct_places(connection: psycopg.Connection) -> None:
    lease = uuid.UUID(int=6)
    collection_leases.take_lease(connection, lease, REPO, NOW, 60)
    numbers = range(SOME + 1, SOME + 601, 2)  # loose ones
    found = [
        (Place(name("b", at), at, None, 0), Place(name("b", at), at, name("p", at % 9) if at % 8 > 1 else None, 1))
        for at in numbers
    ]
    unknown = [(None, Place(blob_id, 1, name("p", 1), 7)) for blob_id in ids("unknown b", 300)]
    assert len(fsck_repairs.correct_places(connection, lease, TYPED, found + unknown)) == 600


PREBUILT = PrebuiltPack((name("c", 9),), name("m", 9), 1, 1, 1, NOW, NOW + dt.timedelta(days=9999))


def required(done: int | None) -> None:
    assert done is not None, "something was in the way"


def finish_push(connection: psycopg.Connection) -> None:
    new = [StoredBlob(blob_id, 1, name("p", at % 50), at) for at, blob_id in enumerate(ids("b"))]
    rows = PushRows(new, [snapshot(at) for at in range(100)], [commit(at) for at in range(100)])
    move = BranchMove("b9", name("c", 9), name("c", 19), False)
    done = finish.finish_push(connection, TICKET, TYPED, rows, move, lambda _: {"head": "x"}, NOW)
    assert done.outcome is Outcome.MOVED


def write_line(connection: psycopg.Connection, count: int) -> None:
    paths = PathChanges({f"{at}": name("c", at) for at in range(count)}, [f"gone {at}" for at in range(count)])
    assert insights.write_line(connection, LINE, LineStanding(name("c", 1)), NOW, paths)


def set_quota(connection: psycopg.Connection, quota: int | None) -> None:
    usage.set_quota(connection, "h10", quota)


def move_branches(connection: psycopg.Connection, outcome: Outcome, at: int) -> None:
    moves = [
        BranchMove("a new one", None, name("c", 1), False), BranchMove("b209", name("c", at), name("c", 2), False),
        BranchMove("b9", name("c", 9), None, False),
    ]  # fmt: skip
    assert branches.move_branches(connection, REPO, moves, "h1", NOW).outcome is outcome


def accept_the_first(connection: psycopg.Connection) -> None:
    connection.execute("UPDATE repositories SET scheme = NULL WHERE repo = %s", (REPO,))
    accept(connection, "new", None, Outcome.MOVED)


NEW = NewRepository(uuid.UUID(int=5), "h5", "y", Visibility.PRIVATE, "main", "code", NOW)
OPERATIONS: dict[str, Callable[[psycopg.Connection], object]] = {
    "find_token": lambda c: identities.find_token(c, name("t", 7)),
    "find_repository": lambda c: repositories.find_repository(c, "h7", "x"),
    "repositories_numbered": lambda c: repositories.repositories_numbered(c, list(range(1, BATCH))),
    "create_repository": lambda c: repositories.create_repository(c, NEW),
    "collaborator_right": lambda c: repositories.collaborator_right(c, REPO, "h11"),
    "branch_heads": lambda c: repositories.branch_heads(c, REPO),
    "move_branches": lambda c: move_branches(c, Outcome.MOVED, 209),
    "move_branches in vain": lambda c: move_branches(c, Outcome.HEAD_DIFFERS, 1),
    "interrupt_push": lambda c: pushes.interrupt_push(c, TICKET, {}, NOW),
    "branch_log": lambda c: repositories.branch_log(c, REPO, "b9"),
    "begin_push": lambda c: pushes.begin_push(c, REPO, uuid.UUID(int=1), "h1", "main", NOW, 60),
    "begin_push again": lambda c: pushes.begin_push(c, REPO, TICKET.push_id, "h1", "main", NOW, 60),
    "begin_push of another": lambda c: pushes.begin_push(c, REPO, TICKET.push_id, "h2", "main", NOW, 60),
    "renew_pushes": lambda c: pushes.renew_pushes(
        c, [PushTicket(100 * at + 100, REPO, TICKET.push_id, 1) for at in range(30)], NOW, 60
    ),
    "known_blobs": lambda c: blobs.known_blobs(c, REPO, TYPED, ids("b")),
    "lacking_blobs": lambda c: blobs.lacking_blobs(c, TICKET, ids("b")),
    "lacking_blobs of a large batch": lambda c: blobs.lacking_blobs(c, TICKET, ids("b", LARGE_BATCH)),
    "record_blobs": record_blobs,
    "stored_blobs": lambda c: held.stored_blobs(c, REPO, TYPED, ids("b"), NOW, (TICKET.push_id, "h1")),
    "stored_blobs that lie close together": lambda c: held.stored_blobs(c, REPO, TYPED, sorted(ids("b"))[:150], NOW),
    "hold_blobs": lambda c: held.hold_blobs(
        c, REPO, TYPED, [StoredBlob(i, 1, name("p", at % 50), at) for at, i in enumerate(ids("b"))], NOW
    ),
    "claim_blobs": lambda c: held.claim_blobs(c, TICKET, TYPED, ids("b"), NOW),
    "lacking_snapshots": lambda c: history.lacking_snapshots(c, TICKET, ids("s")),
    "record_snapshots": lambda c: history.record_snapshots(c, TICKET, TYPED, [snapshot(at) for at in range(100)]),
    "record_snapshots of a later attempt": lambda c: history.insert_snapshots(
        c, LATER, TYPED, [snapshot(at) for at in range(100)]
    ),
    "record_commits of a later attempt": lambda c: history.insert_commits(
        c, LATER, TYPED, [commit(at) for at in range(100)]
    ),
    "lacking_commits": lambda c: history.lacking_commits(c, TICKET, ids("c")),
    "record_commits": lambda c: history.record_commits(c, TICKET, TYPED, [commit(at) for at in range(100)]),
    "find_access": lambda c: access.find_access(c, name("t", 9), "h10", "x"),
    "branch_tip": lambda c: repositories.branch_tip(c, REPO, "b9"),
    "finish_push": finish_push,
    "record_blobs at once": lambda c: record_at_once(c, pending=False),
    "record_blobs at once that wait": lambda c: record_at_once(c, pending=True),
    "record_snapshots at once": lambda c: required(
        at_once.record_snapshots_at_once(c, TICKET, TYPED, [snapshot(at) for at in range(100)])
    ),
    "record_commits at once": lambda c: required(
        at_once.record_commits_at_once(c, TICKET, TYPED, [commit(at) for at in range(100)])
    ),
    "finish_push at once": lambda c: finish_at_once(c, "b9", name("c", 9), pending=False),
    "finish_push at once, some waiting": lambda c: finish_at_once(c, "b9", name("c", 9), pending=True),
    "finish_push of a branch at once": lambda c: finish_at_once(c, "new", None, pending=False),
    "finish_push of a branch at once, some waiting": lambda c: finish_at_once(c, "new", None, pending=True),
    "accept_push": lambda c: accept(c, "b9", 9, Outcome.MOVED),
    "accept_push of a new branch": lambda c: accept(c, "new", None, Outcome.MOVED),
    "accept_push of a branch that is there already": lambda c: accept(c, "b9", 8, Outcome.MOVED, new=9),
    "accept_push of a moved branch": lambda c: accept(c, "b9", 8, Outcome.HEAD_DIFFERS),
    "accept_push of a first push": accept_the_first,
    "accept_push above the quota": lambda c: (set_quota(c, 1), accept(c, "b9", 9, Outcome.QUOTA_EXCEEDED)),
    "record_blobs above the quota": lambda c: (set_quota(c, 1), record_blobs(c)),
    "owner_usage": lambda c: usage.owner_usage(c, "h10", NOW),
    "reserve_bytes": lambda c: usage.reserve_bytes(c, REPO, name("v", 1), 5, NOW, NOW + dt.timedelta(hours=1)),
    "release_bytes": lambda c: usage.release_bytes(c, REPO, name("v", 10)),
    "count_claimed": lambda c: usage.count_claimed(c, TICKET, TYPED, ids("b")),
    "enqueue_jobs": lambda c: jobs.enqueue_jobs(c, REPO, [NewJob("mpack.index", 0, {"a pack": True})], NOW),
    "list_jobs": lambda c: jobs_listing.list_jobs(c, JobFilter(REPO), 1_000),
    "refuse_push": lambda c: pushes.refuse_push(c, TICKET, {"error": "x"}, NOW),
    "find_push": lambda c: pushes.find_push(c, REPO, TICKET.push_id),
    "held_commits": lambda c: history.held_commits(c, REPO, ids("c")),
    "held_commits of a large batch": lambda c: history.held_commits(c, REPO, ids("c", LARGE_BATCH)),
    "ancestry": lambda c: history.ancestry(c, TYPED, [name("c", MANY - 1)], 2_000),
    "ancestry of many": lambda c: history.ancestry(c, TYPED, ids("c"), 2_000),
    "commit_records": lambda c: history.commit_records(c, REPO, ids("c")),
    "snapshot_deltas": lambda c: history.snapshot_deltas(c, TYPED, ids("s")),
    "snapshot_depths": lambda c: history.snapshot_depths(c, TYPED, ids("s")),
    "snapshot_extras": lambda c: history.snapshot_extras(c, REPO, ids("s")),
    "snapshot_chain": lambda c: history.snapshot_chain(c, TYPED, name("s", 79)),
    "places": lambda c: blobs.places(c, TYPED, ids("b", 2_000)),
    "record_blobs that wait in the index": record_waiting_blobs,
    "cached_contents": lambda c: content_cache.cached_contents(c, TYPED, ids("b")),
    "promote_cached": lambda c: content_cache.promote_cached(c, range(1, 200)),
    "complete_pack": complete_pack,
    "complete_pack after a collection": lambda c: complete_pack(c, uuid.UUID(int=1)),
    "correct_places": correct_places,
    "unheld blobs": lambda c: fsck_history.unheld(c, REPO, RefKind.BLOB, ids("b")),
    "unheld snapshots": lambda c: fsck_history.unheld(c, REPO, RefKind.SNAPSHOT, ids("s")),
    "unheld commits": lambda c: fsck_history.unheld(c, REPO, RefKind.COMMIT, ids("c")),
    "mend_snapshot": lambda c: [
        fsck_history.mend_snapshot(c, TYPED, wrong, SnapshotRow(name("s", 7), None, 0, b"right", None))
        for wrong in (None, SnapshotRow(name("s", 7), name("s", 6), 7, b"changes", None))
    ],
    "brought_before": lambda c: fsck_records.brought_before(c, REPO, PUSH, ids("s")),
    "brought_commits": lambda c: fsck_records.brought_commits(c, REPO, PUSH, ids("c", 200)),
    "brought_extras": lambda c: fsck_records.brought_extras(c, REPO, PUSH, ids("s", 200)),
    "name_record_pack": lambda c: fsck_records.name_record_pack(c, PUSH, None, name("p", 1)),
    "add_prebuilt": lambda c: prebuilt.add_prebuilt(c, REPO, [PREBUILT], NOW),
    "note_prebuilt": lambda c: prebuilt.note_prebuilt(c, REPO, PREBUILT),
    "find_prebuilt": lambda c: prebuilt.find_prebuilt(c, REPO, [name("c", 9)], NOW),
    "extend_prebuilt": lambda c: prebuilt.extend_prebuilt(c, REPO, PREBUILT, NOW),
    "drop_prebuilt": lambda c: prebuilt.drop_prebuilt(c, REPO, PREBUILT),
    "kept_prebuilt": lambda c: prebuilt.kept_prebuilt(c, [name("m", at) for at in range(500)]),
    "repository_bytes": lambda c: prebuilt.repository_bytes(c, REPO),
    "begin_line": lambda c: insights.begin_line(c, REPO, "t1", "b1", NOW),
    "write_line": lambda c: write_line(c, 1_000),
    "write_line of many paths": lambda c: write_line(c, 20_000),
    "clear_paths": lambda c: insights.clear_paths(c, LINE, 1_000),
    "copy_paths": lambda c: insights.copy_paths(c, LINE, 2, name("f", 7), 1_000),
    "last_commits": lambda c: insights.last_commits(c, 1, "t0", "b0", [str(at) for at in range(BATCH)]),
    "forget_lines": lambda c: insights.forget_lines(c, REPO, "t1", ["b1", "b5"], 1_000),
    "held_places": lambda c: blobs.held_places(c, REPO, TYPED, ids("b")),
}

ELSEWHERE = {
    "left_behind": {"_q_left_behind"},
    "insights": {"_q_deleted_line"},
    "insights_scrub": {"_q_stored", "_q_packs_after", "_q_record_findings", "_q_forget_findings", "_q_list_findings"},
    "content_cache": {"_q_oldest", "_q_count"},
    "fsck_history": {"_q_held_blobs", "_q_held_snapshots", "_q_held_commits", "_q_moves"},
    "fsck_records": {"_q_pushes", "_q_with_records", "_q_commits", "_q_snapshots"},
    "pack_repair": {"_q_held_packs"},
    "prebuilt": {"_q_forget"},
    "schemes": {"_q_strange"},
    "pushes": {"_q_forget_snapshots", "_q_know_of_collection"},  # of one that was begun again after a collection
    "held": {"_q_forget"},
    "identities": {"_q_insert_token", "_q_revoke_token", "_q_list_tokens", "_q_insert_secret", "_q_find_secret"},
    "repositories": {"_q_list", "_q_update", "_q_delete", "_q_set_collaborator", "_q_remove_collaborator"},
}  # fmt: skip
"""Statements of operators, of pages that list, and of what is small whenever they are asked."""


@pytest.fixture(scope="module")
def filled(module_database_url: str) -> str:
    settings = DatabaseSettings(module_database_url)
    with psycopg.connect(module_database_url, **connection_arguments(settings)) as connection:
        connection.execute("SET session_replication_role = replica")  # foreign keys hold by construction
        connection.execute("SET synchronous_commit = off")
        for statement in FILL:
            connection.execute(statement)
    return module_database_url


@contextmanager
def rolled_back(url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(url, **connection_arguments(DatabaseSettings(url))) as connection:
        yield connection
        connection.rollback()


def scans(connection: psycopg.Connection) -> dict[str, int]:
    """How often each table was read from one end to the other, by the server's own count."""
    query = "SELECT relname, seq_scan FROM pg_stat_xact_user_tables WHERE relname = ANY(%s)"
    return dict(connection.execute(query, (list(KEYS),)).fetchall())


def scanned_by(connection: psycopg.Connection, operation: Callable[[psycopg.Connection], object]) -> list[str]:
    before = scans(connection)
    operation(connection)
    return [table for table, count in scans(connection).items() if count > before[table]]


def drop_index(connection: psycopg.Connection, index: str) -> None:
    found = connection.execute(
        "SELECT conrelid::regclass::text FROM pg_constraint WHERE conname = %s AND contype IN ('p', 'u')", (index,)
    ).fetchone()
    if found is None:
        connection.execute(f"DROP INDEX {index}")
    else:
        connection.execute(f"ALTER TABLE {found[0]} DROP CONSTRAINT {index} CASCADE")


def statements_of(module: ModuleType) -> dict[str, str]:
    return {key: value for key, value in vars(module).items() if key.startswith("_q_")}


def test_every_statement_of_a_push_and_a_fetch_looks_rows_up_by_key(filled: str) -> None:
    read, explained = {}, set()
    for operation, run in OPERATIONS.items():
        with rolled_back(filled) as connection:
            explaining = Explaining(connection)
            run(explaining)
        explained |= {query for query, *_ in explaining.statements}
        if found := explaining.read_whole():
            read[operation] = found
    assert read == {}
    for module in (
        acceptance, access, at_once, blobs, branches, content_cache, finish, fsck_history, fsck_records, fsck_repairs,
        held, history, pushes, repositories, identities, insights, insights_scrub, jobs, pack_repair, prebuilt,
        schemes, usage,
    ):  # fmt: skip
        beside = ELSEWHERE.get(module.__name__.rpartition(".")[2], set())
        left = {key for key, query in statements_of(module).items() if query not in explained}
        assert left == beside, module.__name__


def test_no_operation_of_a_push_and_a_fetch_reads_a_table_from_end_to_end(filled: str) -> None:
    """By what the server counted while it ran them, foreign keys included."""
    read = {}
    for operation, run in OPERATIONS.items():
        with rolled_back(filled) as connection:
            if found := scanned_by(connection, run):
                read[operation] = found
    assert read == {}


def test_the_loss_of_any_index_would_be_noticed(filled: str) -> None:
    unnoticed, tried = [], set()
    for operation, run in OPERATIONS.items():
        with rolled_back(filled) as connection:
            with connection.transaction(force_rollback=True):
                explaining = Explaining(connection)
                run(explaining)
            for index in explaining.indexes():
                tried.add(index)
                with connection.transaction(force_rollback=True):
                    drop_index(connection, index)
                    if not is_noticed(connection, explaining):
                        unnoticed.append((operation, index))
    assert unnoticed == []
    assert tried >= {f"{table}_pkey" for table in KEYS.keys() - {"tokens", "branch_log", "jobs"}}


def test_where_branches_were_is_found_without_reading_all_of_a_repositorys_log(filled: str) -> None:
    """Asked for each blob that is read by its name, of repositories with any number of pushes."""
    with rolled_back(filled) as connection:
        explaining = Explaining(connection)
        left_behind.left_behind(explaining, REPO, BATCH)
    assert explaining.read_whole() == []
    assert "branch_log_left" in explaining.indexes()


def is_noticed(connection: psycopg.Connection, explaining: Explaining) -> bool:
    for query, arguments, _ in explaining.statements:
        try:
            if read_whole(explain(connection, query, arguments)):
                return True
        except psycopg.errors.InvalidColumnReference:  # an ON CONFLICT without its constraint
            return True
    return False


async def test_a_plan_made_while_the_tables_were_small_is_not_kept(database_url: str) -> None:
    """A first large push fills tables that were empty a moment before, on connections that know all its statements."""
    async with PostgresIndex(DatabaseSettings(database_url, pool_size=1)) as index:
        repository = await index.create_repository(NEW)
        assert repository is not None
        ticket = await index.begin_push(repository.number, uuid.UUID(int=1), "ada", "main", NOW, 600)
        assert isinstance(ticket, PushTicket)
        await index.record_blobs(ticket, TYPED, [StoredBlob(name("b", at), 1) for at in range(50)])
        with psycopg.connect(database_url, autocommit=True) as beside:
            beside.execute("VACUUM ANALYZE")
            for _ in range(20):
                await index.known_blobs(repository.number, TYPED, ids("b", 64))
            number = (repository.number, ticket.number)
            more = "FROM generate_series(100, 20000) n"
            beside.execute(f"INSERT INTO blobs SELECT sha256(('b' || n)::bytea), 'typed', 1 {more}")
            beside.execute(f"INSERT INTO blob_refs SELECT %s, sha256(('b' || n)::bytea), %s {more}", number)
        read = await index.database.run(
            scanned_by, lambda c: blobs.known_blobs(c, repository.number, TYPED, ids("b", 64))
        )
    assert set(read) <= {"pushes"}  # it has one row
