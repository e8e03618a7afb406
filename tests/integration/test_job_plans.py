"""The statements of the queue stay quick over a million jobs that have ended and many that wait."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import psycopg

from storage.job_rows import COUNTED_JOBS, Claim, CronEntry, JobFilter, JobState, NewJob
from storage.postgres import jobs, jobs_claims, jobs_cron, jobs_endings, jobs_listing, jobs_operations
from storage.postgres.database import DatabaseSettings, connection_arguments

HISTORY, WAITING, CLAIMS = 1_000_000, 20_000, 2_000
TYPES = 9
NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
LATER = NOW + dt.timedelta(hours=1)
GC = "gc"
ROOM = {f"t{number}": 4 for number in range(TYPES)}
OLD = [
    "ALTER TABLE jobs SET UNLOGGED", "ALTER TABLE jobs SET (autovacuum_enabled = off)",
    "ALTER TABLE job_claims SET (autovacuum_enabled = off)",
    *(f"DROP INDEX {name}" for name in ("jobs_ended", "jobs_by_type", "jobs_by_repository")),
    f"""INSERT INTO jobs (repo, type, state, priority, payload, run_at, created_at, finished_at)
        SELECT n % 5000, 't' || n % {TYPES}, CASE WHEN n % 50 = 0 THEN 3 ELSE 2 END, 0, '{{}}', at, at, at
        FROM (SELECT n, timestamptz '{NOW}' - n * interval '1 s' AS at FROM generate_series(1, {HISTORY}) n) AS h""",
    "CREATE INDEX jobs_ended ON jobs (finished_at, job) WHERE state >= 2",
    "CREATE INDEX jobs_by_type ON jobs (type, (state::int), job)",
    "CREATE INDEX jobs_by_repository ON jobs (repo, job)",
    "ANALYZE jobs", "ANALYZE job_claims",
]  # fmt: skip
"""What ended long ago: all that statistics know of."""
NEW = [
    f"""INSERT INTO jobs (repo, type, state, priority, payload, run_at, created_at)
        SELECT n / {TYPES}, 't' || n % {TYPES}, 0, n % 7, '{{}}', '{NOW}', '{NOW}'
        FROM generate_series(1, {WAITING}) n""",
    f"""INSERT INTO jobs (repo, type, state, priority, payload, run_at, created_at)
        SELECT 4000 - n, 't' || n % {TYPES}, 1, 0, '{{}}', '{NOW}', '{NOW}' FROM generate_series(1, {CLAIMS}) n""",
    f"""INSERT INTO job_claims SELECT job, gen_random_uuid(), 'w', '{NOW}', timestamptz '{NOW}' + job * interval '1 us'
        FROM jobs WHERE state = 1""",
]  # fmt: skip
ANALYSE = ["ANALYZE jobs", "ANALYZE job_claims"]


def carry_out(url: str, statements: list[str]) -> None:
    with connected(url) as connection:
        connection.execute("SET synchronous_commit = off")
        connection.execute("SET maintenance_work_mem = '256MB'")
        for statement in statements:
            connection.execute(statement)


def indexes(connection: psycopg.Connection) -> list[tuple[str]]:
    query = "SELECT indexdef FROM pg_indexes WHERE tablename IN ('jobs', 'job_claims') ORDER BY 1"
    return connection.execute(query).fetchall()


@contextmanager
def connected(url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(url, **connection_arguments(DatabaseSettings(url))) as connection:
        yield connection


class Measuring:
    """A connection that says of each statement how many pages it touched and which tables it read whole."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection
        self.pages: list[int] = []
        self.queries: set[str] = set()
        self.read_whole: set[str] = set()

    def execute(self, query: str, arguments: object = None) -> psycopg.Cursor:
        with self._connection.transaction(force_rollback=True):
            explained = self._connection.execute("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + query, arguments)
            (((found,),)) = explained.fetchall()
        plan = found[0]["Plan"]
        self.queries.add(query)
        self.pages.append(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])
        self.read_whole |= {node["Relation Name"] for node in nodes(plan) if node["Node Type"] == "Seq Scan"}
        return self._connection.execute(query, arguments)

    def transaction(self) -> AbstractContextManager[object]:
        return self._connection.transaction()


def nodes(plan: dict) -> Iterator[dict]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


def some_claims(connection: psycopg.Connection, count: int = 10) -> list[Claim]:
    found = connection.execute("SELECT job, token FROM job_claims ORDER BY job LIMIT %s", (count,))
    return [Claim(*row) for row in found]


def complete(connection: psycopg.Connection, claims: list[Claim]) -> set[Claim]:
    return jobs_endings.complete_jobs(connection, [jobs_endings.completion(claim, {}, LATER) for claim in claims])


STALE = [NOW + dt.timedelta(seconds=400), 300, 5, 50]
"""What is asked of a look for stale claims, at which all of them are stale."""
HOT: dict[str, tuple[int, Callable[[psycopg.Connection, list[Claim]], object]]] = {
    "claim of many": (1_500, lambda c, _: jobs_claims.claim_jobs(c, ROOM, 20, "w", LATER)),
    "claim of one": (500, lambda c, _: jobs_claims.claim_jobs(c, ROOM, 1, "w", LATER)),
    "claim of one type": (150, lambda c, _: jobs_claims.claim_jobs(c, {"t1": 1}, 1, "w", LATER)),
    "claim of nothing due": (60, lambda c, _: jobs_claims.claim_jobs(c, {"none": 9}, 9, "w", LATER)),
    "beat": (200, lambda c, found: jobs_claims.beat_claims(c, dict.fromkeys(found), LATER)),
    "keep": (80, lambda c, found: jobs_claims.keep_state(c, found[0], {}, LATER)),
    "complete": (80, lambda c, found: complete(c, found[:1])),
    "complete several": (400, complete),
    "complete again": (20, lambda c, _: complete(c, [Claim(5, uuid.uuid4())])),
    "fail": (80, lambda c, found: jobs_endings.fail_job(c, found[0], "x", LATER, LATER)),
    "fail again": (20, lambda c, _: jobs_endings.fail_job(c, Claim(5, uuid.uuid4()), "x", LATER, LATER)),
    "return": (200, lambda c, found: jobs_endings.return_jobs(c, found, LATER)),
    "recover": (700, lambda c, _: jobs_endings.recover_stale(c, *STALE)),
    "recover nothing": (10, lambda c, _: jobs_endings.recover_stale(c, NOW, *STALE[1:])),
    "prune": (500, lambda c, _: jobs_operations.prune_jobs(c, NOW, 100)),
    "enqueue": (50, lambda c, _: jobs.enqueue_jobs(c, 10**6, [NewJob("t1"), NewJob("t2")], LATER)),
    "retry": (80, lambda c, _: jobs_operations.retry_job(c, 50, LATER)),
    "cancel": (80, lambda c, found: jobs_operations.cancel_job(c, found[0].job, LATER)),
    "list": (600, lambda c, _: jobs_listing.list_jobs(c, JobFilter(), 100)),
    "list of failed": (
        3_000, lambda c, _: jobs_listing.list_jobs(c, JobFilter(states=frozenset({JobState.FAILED})), 100)
    ),
    "list of a type": (1_800, lambda c, _: jobs_listing.list_jobs(c, JobFilter(type="t3"), 100)),
    "enqueue again": (50, lambda c, _: jobs.enqueue_jobs(c, 1, [NewJob("t1", 0, {"x": 1})], LATER)),
    "fail for good": (80, lambda c, found: jobs_endings.fail_job(c, found[0], "x", LATER, None)),
    "retry where none waits": (80, lambda c, _: jobs_operations.retry_job(c, 3_000, LATER)),
    "retry one that waits": (80, lambda c, _: jobs_operations.retry_job(c, HISTORY + 50, LATER)),
    "hold": (60, lambda c, _: jobs_operations.hold_job(c, HISTORY + 50, True)),
    "pause": (20, lambda c, _: (jobs_operations.pause_type(c, "t1", True), jobs_operations.paused_types(c))),
    "set cron": (40, lambda c, _: jobs_cron.set_cron(c, [CronEntry("e", GC, 1.0)], NOW)),
    "run cron": (
        60, lambda c, _: (jobs_cron.set_cron(c, [CronEntry("e", GC, 1.0)], NOW), jobs_cron.run_cron(c, LATER))
    ),
    "find": (30, lambda c, found: jobs_listing.find_job(c, found[0].job)),
    "claims of a worker": (60, lambda c, _: jobs_claims.claims_of(c, "somebody")),
    "count": (40_000, lambda c, _: jobs_listing.count_jobs(c)),  # of 1,000,000 rows, in pages never vacuumed
    "list of a repository": (600, lambda c, _: jobs_listing.list_jobs(c, JobFilter(repo=7), 100)),
}  # fmt: skip
"""By pages touched at most in one statement, of the more than 30,000 the tables and their indexes have."""
SMALL = {"job_types", "cron"}
"""They have a row for each type that was ever paused, and for each entry."""


MODULES = (jobs, jobs_claims, jobs_cron, jobs_endings, jobs_listing, jobs_operations)


def test_no_statement_reads_more_for_a_long_history(database_url: str) -> None:
    """A million jobs that ended and thousands that wait cost a claim and a look for stale claims nothing.

    Neither while statistics know only of what ended, as they do after every wave of pushes, nor afterwards.
    """
    with connected(database_url) as connection:
        defined = indexes(connection)
    carry_out(database_url, OLD)
    carry_out(database_url, NEW)
    with connected(database_url) as connection:
        assert indexes(connection) == defined
    stale = read_too_much(database_url)
    carry_out(database_url, ANALYSE)
    assert {"late statistics": stale, "current ones": read_too_much(database_url)} == {
        "late statistics": {},
        "current ones": {},
    }
    with connected(database_url) as connection:
        counts = {entry.state: entry.count for entry in jobs_listing.count_jobs(connection) if entry.type == "t1"}
    assert counts == {
        JobState.PENDING: WAITING // TYPES + 1, JobState.RUNNING: CLAIMS // TYPES + 1, JobState.DONE: COUNTED_JOBS,
        JobState.FAILED: HISTORY // TYPES // 50 + 1,
    }  # fmt: skip


def read_too_much(url: str) -> dict[str, object]:
    """Run everything; gives what touched more pages than it may, or read a table whole."""
    read: dict[str, object] = {}
    queries = set()
    with connected(url) as connection:
        for operation, (most, run) in HOT.items():
            measuring = Measuring(connection)
            run(measuring, some_claims(connection))  # type: ignore[arg-type]
            connection.rollback()
            queries |= measuring.queries
            if max(measuring.pages) > most or measuring.read_whole - SMALL:
                read[operation] = (measuring.pages, measuring.read_whole)
    for module in MODULES:
        left = {name for name, query in vars(module).items() if name.startswith("_q_") and query not in queries}
        assert left == set(), module.__name__
    return read
