"""What ``storage.postgres.database`` promises, held against a real server: cancelled, cut off, killed, contended."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
import trio
from psycopg import errors as pg_errors
from trio.testing import wait_all_tasks_blocked

from storage.environment import SeededEnvironment
from storage.errors import IndexUnavailable, StaleTicket
from storage.index import UNREAD_NOTIFICATIONS
from storage.postgres import database as database_module
from storage.postgres.database import ATTEMPTS, Connection, Database, DatabaseSettings, one_statement
from storage.postgres.embedded import EmbeddedPostgres
from storage.postgres.index import PostgresIndex
from tests.integration.lossy_proxy import lossy_proxy

POOL = 4


@pytest.fixture
def settings(empty_database: str) -> DatabaseSettings:
    with psycopg.connect(empty_database) as connection:
        connection.execute("CREATE TABLE parts (task integer, part integer, PRIMARY KEY (task, part))")
    return DatabaseSettings(empty_database, pool_size=POOL, turns=POOL)


@pytest.fixture
async def database(settings: DatabaseSettings) -> AsyncIterator[Database]:
    async with opened(settings) as made:
        yield made


@asynccontextmanager
async def opened(settings: DatabaseSettings) -> AsyncIterator[Database]:
    database = Database(settings, SeededEnvironment(1))
    await database.open()
    try:
        yield database
    finally:
        await database.aclose()


@pytest.fixture
def beside(settings: DatabaseSettings) -> Iterator[psycopg.Connection]:
    """A connection that has nothing to do with the pool."""
    with psycopg.connect(settings.conninfo, autocommit=True) as connection:
        yield connection


def one(connection: Connection) -> int:
    return connection.execute("SELECT 1").fetchone()[0]


@one_statement
def single(connection: Connection) -> int:
    return one(connection)


def sleep(connection: Connection) -> None:
    connection.execute("SELECT pg_sleep(60)")


def insert(connection: Connection, task: int, part: int = 1) -> None:
    connection.execute("INSERT INTO parts VALUES (%s, %s) ON CONFLICT DO NOTHING", (task, part))


def tasks(connection: Connection) -> list[tuple[int, int]]:
    return connection.execute("SELECT task, count(*) FROM parts GROUP BY task ORDER BY task").fetchall()


def pid(connection: Connection) -> int:
    return connection.execute("SELECT pg_backend_pid()").fetchone()[0]


def sessions(beside: psycopg.Connection, state: str = "%") -> list[int]:
    found = beside.execute(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND state LIKE %s AND application_name = 'museworkd'",
        (state,),
    )
    return [pid for (pid,) in found]


async def together(database: Database, count: int, function: Callable[[Connection], object]) -> list[object]:
    """Run a function on so many connections at once."""
    barrier = threading.Barrier(count)
    results = []

    def wait_and_run(connection: Connection) -> object:
        barrier.wait(30)
        return function(connection)

    async def run() -> None:
        results.append(await database.run(wait_and_run))

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(run)
    return results


async def check_sound(database: Database, beside: psycopg.Connection) -> None:
    """Nothing is left open, and every connection works."""
    assert sessions(beside, "idle in transaction%") == []
    assert any(sessions(beside, "active") == [] for _ in range(1000))  # the pool may be making a connection more
    assert await together(database, POOL, one) == [1] * POOL
    figures = database.statistics()
    assert (figures.running, figures.waiting) == (0, 0)
    assert len(sessions(beside)) <= POOL


# ---- a transaction


async def test_what_a_function_returns_is_returned(database: Database) -> None:
    assert await database.run(lambda connection, a, b: (a, b, one(connection)), "x", 2) == ("x", 2, 1)


async def test_a_function_is_one_transaction(database: Database, beside: psycopg.Connection) -> None:
    def insert_two(connection: Connection) -> None:
        insert(connection, 1, 1)
        assert tasks(beside) == []
        insert(connection, 1, 2)

    await database.run(insert_two)
    assert tasks(beside) == [(1, 2)]


async def test_what_a_function_raises_is_raised_after_a_rollback(
    database: Database, beside: psycopg.Connection
) -> None:
    calls = []

    def fail(connection: Connection, error: Exception) -> None:
        calls.append(error)
        insert(connection, 1)
        raise error

    for error in (StaleTicket("late"), ValueError("wrong"), pg_errors.UniqueViolation("twice")):
        with pytest.raises(type(error)) as caught:
            await database.run(fail, error)
        assert caught.value is error
    with pytest.raises(pg_errors.SyntaxError):
        await database.run(lambda connection: connection.execute("SELEKT 1"))
    assert len(calls) == 3
    assert tasks(beside) == []
    await check_sound(database, beside)


async def test_rows_are_copied_in_inside_a_function(database: Database, beside: psycopg.Connection) -> None:
    def copy(connection: Connection, fail: bool) -> None:
        connection.execute("CREATE TEMPORARY TABLE incoming (LIKE parts) ON COMMIT DROP")
        with connection.cursor().copy("COPY incoming FROM STDIN (FORMAT binary)") as rows:
            rows.set_types(["int4", "int4"])
            for task in range(1000):
                rows.write_row((task, 1))
        connection.execute("INSERT INTO parts SELECT * FROM incoming")
        if fail:
            raise StaleTicket

    with pytest.raises(StaleTicket):
        await database.run(copy, True)
    assert tasks(beside) == []
    for _ in range(2):
        beside.execute("TRUNCATE parts")
        await database.run(copy, False)
    assert len(tasks(beside)) == 1000
    await check_sound(database, beside)


async def test_time_limits_are_the_servers_own(settings: DatabaseSettings) -> None:
    limited = replace(settings, statement_timeout_s=7, lock_timeout_s=1.5, idle_in_transaction_timeout_s=2)

    def show(connection: Connection) -> list[str]:
        wanted = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "application_name")
        return [connection.execute(f"SHOW {name}").fetchone()[0] for name in wanted]

    async with opened(limited) as database:
        assert await together(database, POOL, show) == [["7s", "1500ms", "2s", "museworkd"]] * POOL


async def test_a_transaction_is_written_through_before_it_is_acknowledged(database: Database) -> None:
    assert await database.run(lambda c: c.execute("SHOW synchronous_commit").fetchone()) == ("on",)


@pytest.mark.parametrize(("default", "used"), [("off", "on"), ("on", "on"), ("remote_apply", "remote_apply")])
async def test_a_default_that_would_acknowledge_too_early_is_not_taken(
    settings: DatabaseSettings, beside: psycopg.Connection, default: str, used: str
) -> None:
    beside.execute(f"ALTER DATABASE {beside.info.dbname} SET synchronous_commit = {default}")
    async with opened(settings) as database:
        assert await database.run(lambda c: c.execute("SHOW synchronous_commit").fetchone()) == (used,)


async def test_who_waited_for_a_lock_sees_what_it_was_for_whatever_the_default(
    settings: DatabaseSettings, beside: psycopg.Connection
) -> None:
    beside.execute(f"ALTER DATABASE {beside.info.dbname} SET default_transaction_isolation = 'repeatable read'")

    def look_twice(connection: Connection) -> list[tuple[int, int]]:
        assert tasks(connection) == []
        insert(beside, 1)
        return tasks(connection)

    async with opened(settings) as database:
        assert await database.run(look_twice) == [(1, 1)]


# ---- cancellation


@pytest.mark.parametrize("seed", range(3))
async def test_F25_a_storm_of_cancellations_leaves_whole_transactions_and_sound_connections(
    database: Database, beside: psycopg.Connection, seed: int
) -> None:
    rng = random.Random(seed)
    finished = set()

    def insert_three(connection: Connection, task: int, pause_s: float) -> None:
        for part in range(3):
            insert(connection, task, part)
            connection.execute("SELECT pg_sleep(%s)", (pause_s,))

    async def attempt(task: int) -> None:
        with trio.move_on_after(rng.uniform(0.0, 0.25)):
            await database.run(insert_three, task, rng.choice([0.0, 0.001, 0.02]))
            finished.add(task)

    async with trio.open_nursery() as nursery:
        for task in range(32):
            nursery.start_soon(attempt, task)
    found = dict(tasks(beside))
    assert set(found.values()) <= {3}
    assert finished <= set(found)
    await check_sound(database, beside)


@pytest.mark.parametrize("seed", range(2))
async def test_a_cancellation_never_hits_another_tasks_query(
    database: Database, beside: psycopg.Connection, seed: int
) -> None:
    rng = random.Random(seed)
    answers = []

    async def ask() -> None:
        for _ in range(25):
            answer = await database.run(lambda c: c.execute("SELECT 7 FROM pg_sleep(0.002)").fetchone())
            answers.append(answer)

    async def give_up_again_and_again() -> None:
        while True:
            with trio.move_on_after(rng.uniform(0.0, 0.012)):
                await database.run(lambda connection: connection.execute("SELECT pg_sleep(0.004)"))

    async with trio.open_nursery() as impatient:
        for _ in range(12):
            impatient.start_soon(give_up_again_and_again)
        async with trio.open_nursery() as patient:
            for _ in range(6):
                patient.start_soon(ask)
        impatient.cancel_scope.cancel()
    assert answers == [(7,)] * 150
    assert database.statistics().failures == 0
    await check_sound(database, beside)


async def test_a_cancelled_query_ends_at_once(database: Database, beside: psycopg.Connection) -> None:
    started = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def dawdle(connection: Connection) -> None:
        insert(connection, 1)
        token.run_sync_soon(started.set)
        connection.execute("SELECT pg_sleep(50)")

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(database.run, dawdle)
            await started.wait()
            nursery.cancel_scope.cancel()
    assert tasks(beside) == []
    await check_sound(database, beside)


async def test_a_cancelled_caller_waits_until_its_function_is_done(database: Database) -> None:
    started, may_end, ended = trio.Event(), threading.Event(), threading.Event()
    token = trio.lowlevel.current_trio_token()

    def compute(connection: Connection) -> None:
        token.run_sync_soon(started.set)
        may_end.wait(30)
        ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(database.run, compute)
        await started.wait()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await wait_all_tasks_blocked()
        assert database.statistics().running == 1
        may_end.set()
    assert ended.is_set()
    assert database.statistics().running == 0


async def test_who_waits_in_line_can_leave_it(database: Database) -> None:
    may_end = threading.Event()
    calls = []
    async with trio.open_nursery() as nursery:
        for _ in range(POOL):
            nursery.start_soon(database.run, lambda connection: may_end.wait(30))
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as waiting:
            for _ in range(3):
                waiting.start_soon(database.run, calls.append)
            await wait_all_tasks_blocked()
            assert database.statistics().waiting == 3
            waiting.cancel_scope.cancel()
        assert database.statistics().waiting == 0
        may_end.set()
    assert calls == []


async def test_closing_under_cancellation_closes_everything(
    settings: DatabaseSettings, beside: psycopg.Connection
) -> None:
    with trio.CancelScope() as scope:
        async with opened(settings) as database:
            await together(database, POOL, one)
            scope.cancel()
    assert await trio.to_thread.run_sync(_sessions_end, beside)


def _sessions_end(beside: psycopg.Connection) -> bool:
    """Wait for the server to notice that its clients have gone."""
    return any(sessions(beside) == [] for _ in range(10_000))


# ---- the line


async def test_F15_who_finds_no_connection_waits_in_line(database: Database) -> None:
    may_end = threading.Event()
    begun, order = trio.open_memory_channel[int](POOL + 3)
    token = trio.lowlevel.current_trio_token()

    def take_turn(connection: Connection, at: int) -> None:
        token.run_sync_soon(begun.send_nowait, at)
        may_end.wait(30)

    async with trio.open_nursery() as nursery:
        for at in range(POOL + 3):
            nursery.start_soon(database.run, take_turn, at)
            await wait_all_tasks_blocked()
        assert {await order.receive() for _ in range(POOL)} == set(range(POOL))
        figures = database.statistics()
        assert (figures.running, figures.waiting) == (POOL, 3)
        may_end.set()
    assert {await order.receive() for _ in range(3)} == set(range(POOL, POOL + 3))


async def test_transactions_take_turns_and_single_statements_pass_them(settings: DatabaseSettings) -> None:
    """However many connections there are: their threads would only wait for each other's interpreter."""
    go_on = threading.Event()

    def blocking(_: Connection) -> None:
        assert go_on.wait(10)

    async with opened(replace(settings, turns=1)) as database, trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(database.run, blocking)
        await wait_all_tasks_blocked()
        assert (database.statistics().running, database.statistics().waiting) == (1, 2)
        assert await database.run(single) == 1
        go_on.set()


async def test_a_transaction_that_waits_for_another_does_not_keep_everybody_waiting(
    settings: DatabaseSettings, beside: psycopg.Connection
) -> None:
    with beside.transaction():
        beside.execute("LOCK TABLE parts")
        async with opened(replace(settings, turns=1)) as database, trio.open_nursery() as nursery:
            nursery.start_soon(database.run, insert, 1)
            await wait_all_tasks_blocked()
            with trio.fail_after(5):
                assert await database.run(one) == 1
            assert database.statistics().running == 1
            nursery.cancel_scope.cancel()
    assert tasks(beside) == []


async def test_a_caller_cancelled_during_its_turn_gives_it_back(settings: DatabaseSettings) -> None:
    async with opened(replace(settings, turns=1)) as database:
        for _ in range(3):
            with trio.move_on_after(0.01):
                await database.run(sleep)
        with trio.fail_after(5):
            assert await database.run(one) == 1


async def test_holds_are_measured_from_check_out_to_return(database: Database) -> None:
    assert database.statistics().hold_max_ms == 0
    async with trio.open_nursery() as nursery:
        for _ in range(2 * POOL):  # half of them wait in line, which is not a hold
            nursery.start_soon(database.run, lambda connection: connection.execute("SELECT pg_sleep(0.1)"))
    figures = database.statistics()
    assert figures.transactions == 2 * POOL
    assert 100 <= figures.hold_p50_ms <= figures.hold_p99_ms <= figures.hold_max_ms
    assert figures.hold_p50_ms < 190
    database.reset_statistics()
    await database.run(one)
    assert 0 < database.statistics().hold_max_ms < 100


# ---- lost connections


async def test_a_connection_lost_in_the_middle_is_replaced_and_the_function_runs_again(
    database: Database, beside: psycopg.Connection
) -> None:
    pids = []

    def lose_once(connection: Connection) -> str:
        pids.append(pid(connection))
        insert(connection, 1, len(pids))
        if len(pids) == 1:
            connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        return "done"

    assert await database.run(lose_once) == "done"
    assert len(set(pids)) == 2
    assert beside.execute("SELECT * FROM parts").fetchall() == [(1, 2)]
    assert database.statistics().retries == 1
    await check_sound(database, beside)


async def test_F12_a_connection_lost_before_the_commit_is_replaced_and_the_function_runs_again(
    database: Database, beside: psycopg.Connection
) -> None:
    calls = []

    def lose_at_the_end(connection: Connection) -> None:
        calls.append(pid(connection))
        insert(connection, 1, len(calls))
        if len(calls) == 1:
            beside.execute("SELECT pg_terminate_backend(%s, 10000)", (pid(connection),))

    await database.run(lose_at_the_end)
    assert beside.execute("SELECT * FROM parts").fetchall() == [(1, 2)]
    await check_sound(database, beside)


async def test_F12_a_commit_whose_answer_is_lost_is_repeated_to_the_same_effect(
    settings: DatabaseSettings, beside: psycopg.Connection, postgres: EmbeddedPostgres, postgres_home: Path
) -> None:
    calls = []

    def insert_again(connection: Connection) -> None:
        calls.append(tasks(connection))
        insert(connection, 1)

    server = Path(postgres.conninfo.split()[0].removeprefix("host="))
    directory = postgres_home / "proxy"
    directory.mkdir()
    through = settings.conninfo.replace(str(server), str(directory))
    async with lossy_proxy(server, directory) as proxy, opened(replace(settings, conninfo=through)) as database:
        await database.run(one)
        proxy.losses = 1
        await database.run(insert_again)
        assert calls == [[], [(1, 1)]]  # the first one had been committed
        assert tasks(beside) == [(1, 1)]


async def test_idle_connections_that_all_died_are_nobodys_failure(
    database: Database, beside: psycopg.Connection
) -> None:
    before = await together(database, POOL, pid)
    for dead in before:
        beside.execute("SELECT pg_terminate_backend(%s, 10000)", (dead,))
    after = await together(database, POOL, pid)
    assert len(set(after)) == POOL
    assert not set(before) & set(after)
    await check_sound(database, beside)


async def test_a_function_that_loses_every_connection_is_given_up(
    database: Database, beside: psycopg.Connection
) -> None:
    calls = []

    def lose(connection: Connection) -> None:
        calls.append(1)
        connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    with pytest.raises(IndexUnavailable, match="AdminShutdown"):
        await database.run(lose)
    assert len(calls) == ATTEMPTS
    figures = database.statistics()
    assert (figures.failures, figures.retries) == (ATTEMPTS, ATTEMPTS - 1)
    await check_sound(database, beside)


async def test_F14_a_demoted_server_is_left_for_the_new_primary(database: Database, beside: psycopg.Connection) -> None:
    pids = []

    def write(connection: Connection) -> None:
        pids.append(pid(connection))
        if len(pids) == 1:  # as a standby would
            connection.execute("SET TRANSACTION READ ONLY")
        insert(connection, 1)

    await database.run(write)
    assert len(set(pids)) == 2
    assert pids[0] not in sessions(beside)
    assert tasks(beside) == [(1, 1)]


async def test_a_server_that_stays_read_only_is_unavailable(database: Database) -> None:
    def write(connection: Connection) -> None:
        connection.execute("SET TRANSACTION READ ONLY")
        insert(connection, 1)

    with pytest.raises(IndexUnavailable, match="ReadOnly"):
        await database.run(write)


async def test_a_database_that_is_not_there_is_unavailable(
    settings: DatabaseSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "POOL_WAIT_S", 0.3)
    async with opened(replace(settings, conninfo=f"host={tmp_path} user=postgres dbname=x")) as database:
        with pytest.raises(IndexUnavailable, match="no connection"):
            await database.run(one)


async def test_who_waits_for_a_lost_database_can_be_cancelled(settings: DatabaseSettings, tmp_path: Path) -> None:
    async with opened(replace(settings, conninfo=f"host={tmp_path} user=postgres dbname=x")) as database:
        calls = []
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                for _ in range(3 * POOL):
                    nursery.start_soon(database.run, calls.append)
                await wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
        assert calls == []
        assert database.statistics().running == 0


async def test_a_closed_database_is_unavailable(settings: DatabaseSettings) -> None:
    async with opened(settings) as database:
        pass
    with pytest.raises(IndexUnavailable):
        await database.run(one)


@pytest.fixture
def own_server(postgres_home: Path) -> Iterator[EmbeddedPostgres]:
    """A server that may be killed."""
    server = EmbeddedPostgres(postgres_home / "own", state_root=postgres_home / "state")
    server.start()
    yield server
    server.stop()


async def test_a_server_that_says_nothing_any_more_is_hung_up_on(
    own_server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped machine keeps no time limits: who waits for it, or was cancelled meanwhile, goes on all the same."""
    monkeypatch.setattr(database_module, "ANSWER_GRACE_S", 0.5)
    monkeypatch.setattr(database_module, "CANCEL_ANSWER_S", 0.1)
    monkeypatch.setattr(database_module, "_CANCEL_TIMEOUT_S", 0.1)
    settings = DatabaseSettings(own_server.conninfo, pool_size=2, statement_timeout_s=1.0)
    async with opened(settings) as database:
        backends: list[int] = []

        def stopped(connection: Connection) -> None:
            pid = connection.info.backend_pid
            os.kill(pid, signal.SIGSTOP)
            backends.append(pid)
            connection.execute("SELECT 1")

        try:
            with trio.fail_after(20), pytest.raises(IndexUnavailable, match="does not answer"):
                await database.run(stopped)
            with trio.fail_after(20), trio.move_on_after(0.1) as scope:
                await database.run(stopped)
            assert scope.cancelled_caught
        finally:
            for pid in backends:
                os.kill(pid, signal.SIGCONT)
        assert await database.run(one) == 1


async def test_a_killed_server_is_unavailable_until_it_is_back_and_has_what_was_acknowledged(
    own_server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "POOL_WAIT_S", 3.5)
    started = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def dawdle(connection: Connection) -> None:
        insert(connection, -1)
        token.run_sync_soon(started.set)
        connection.execute("SELECT pg_sleep(50)")

    async def fails() -> None:
        with pytest.raises(IndexUnavailable):
            await database.run(dawdle)

    async with opened(DatabaseSettings(own_server.conninfo, pool_size=POOL)) as database:
        await database.run(lambda c: c.execute("CREATE TABLE parts (task int, part int, PRIMARY KEY (task, part))"))
        for task in range(20):
            await database.run(insert, task)
        await together(database, POOL, one)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails)
            await started.wait()
            await trio.to_thread.run_sync(own_server.kill)
        with pytest.raises(IndexUnavailable):
            await database.run(one)
        await trio.to_thread.run_sync(own_server.start)
        with trio.fail_after(3):  # the pool's pauses have not grown with the length of the outage
            assert await database.run(tasks) == [(task, 1) for task in range(20)]
        assert await together(database, POOL, one) == [1] * POOL


# ---- contention


async def test_F13_a_serialization_failure_is_run_again(database: Database, beside: psycopg.Connection) -> None:
    barrier = threading.Barrier(2)
    calls = []

    def count_and_insert(connection: Connection, task: int) -> int:
        connection.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        seen = len(tasks(connection))
        calls.append(task)
        if len(calls) <= 2:
            barrier.wait(30)
        insert(connection, task)
        return seen

    results = {}

    async def run(task: int) -> None:
        results[task] = await database.run(count_and_insert, task)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, 1)
        nursery.start_soon(run, 2)
    assert sorted(results.values()) == [0, 1]  # as if one had come after the other
    assert len(calls) == 3
    assert database.statistics().retries == 1
    await check_sound(database, beside)


async def test_F13_a_deadlock_is_run_again(database: Database, beside: psycopg.Connection) -> None:
    for task in (1, 2):
        insert(beside, task)
    barrier = threading.Barrier(2)
    calls = []

    def lock_both(connection: Connection, first: int, second: int) -> None:
        connection.execute("SET LOCAL deadlock_timeout = '20ms'")
        calls.append(first)
        connection.execute("UPDATE parts SET part = part + 1 WHERE task = %s", (first,))
        if len(calls) <= 2:
            barrier.wait(30)
        connection.execute("UPDATE parts SET part = part + 1 WHERE task = %s", (second,))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(database.run, lock_both, 1, 2)
        nursery.start_soon(database.run, lock_both, 2, 1)
    assert beside.execute("SELECT * FROM parts ORDER BY task").fetchall() == [(1, 3), (2, 3)]
    assert len(calls) == 3
    await check_sound(database, beside)


async def test_conflicts_without_end_are_given_up(database: Database) -> None:
    calls = []

    def conflict(connection: Connection) -> None:
        calls.append(1)
        connection.execute("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$")

    with pytest.raises(IndexUnavailable, match="SerializationFailure"):
        await database.run(conflict)
    assert len(calls) == ATTEMPTS


async def test_F17_a_statement_over_its_time_is_unavailable_and_not_tried_again(
    settings: DatabaseSettings, beside: psycopg.Connection
) -> None:
    calls = []

    def dawdle(connection: Connection) -> None:
        calls.append(1)
        insert(connection, 1)
        connection.execute("SELECT pg_sleep(50)")

    async with opened(replace(settings, statement_timeout_s=0.2)) as database:
        with pytest.raises(IndexUnavailable, match="statement timeout"):
            await database.run(dawdle)
        assert len(calls) == 1
        assert tasks(beside) == []
        await check_sound(database, beside)


async def test_a_lock_not_had_in_time_is_unavailable_and_not_tried_again(
    settings: DatabaseSettings, beside: psycopg.Connection
) -> None:
    calls = []

    def lock(connection: Connection) -> None:
        calls.append(1)
        connection.execute("LOCK TABLE parts")

    async with opened(replace(settings, lock_timeout_s=0.2)) as database:
        with beside.transaction():
            beside.execute("LOCK TABLE parts")
            with pytest.raises(IndexUnavailable, match="lock timeout"):
                await database.run(lock)
        assert len(calls) == 1
        await check_sound(database, beside)


async def test_F18_a_full_disk_is_unavailable_and_not_tried_again(database: Database) -> None:
    calls = []

    def fill(connection: Connection) -> None:
        calls.append(1)
        connection.execute("DO $$ BEGIN RAISE SQLSTATE '53100'; END $$")

    with pytest.raises(IndexUnavailable, match="DiskFull"):
        await database.run(fill)
    assert len(calls) == 1


async def test_a_pause_between_attempts_can_be_cancelled(database: Database) -> None:
    token = trio.lowlevel.current_trio_token()
    async with trio.open_nursery() as nursery:

        def conflict(connection: Connection) -> None:
            trio.from_thread.run_sync(nursery.cancel_scope.cancel, trio_token=token)
            raise pg_errors.SerializationFailure

        nursery.start_soon(database.run, conflict)
    assert database.statistics().running == 0


# ---- LISTEN


@pytest.fixture
async def index(settings: DatabaseSettings) -> AsyncIterator[PostgresIndex]:
    async with PostgresIndex(settings) as made:
        yield made


def end_listeners(beside: psycopg.Connection) -> int:
    found = beside.execute(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND query LIKE 'LISTEN%%'"
    )
    return len(found.fetchall())


async def test_F16_a_lost_listening_connection_is_told_after_what_it_had_brought(
    index: PostgresIndex, beside: psycopg.Connection
) -> None:
    with trio.fail_after(10):
        async with index.listen("jobs") as listener:
            await index.notify("jobs", "before")
            assert await anext(aiter(listener)) == "before"
            assert await trio.to_thread.run_sync(end_listeners, beside) == 1
            with pytest.raises(IndexUnavailable, match="lost"):
                await anext(aiter(listener))
        async with index.listen("jobs") as listener:
            await index.notify("jobs", "after")
            assert await anext(aiter(listener)) == "after"


async def test_a_lost_listening_connection_ends_the_block_with_index_unavailable_itself(
    index: PostgresIndex, beside: psycopg.Connection
) -> None:
    with pytest.raises(IndexUnavailable):  # noqa: PT012 - it is raised inside, and must not come out in a group
        async with index.listen("jobs") as listener:
            await trio.to_thread.run_sync(end_listeners, beside)
            async for _ in listener:
                pass


async def test_a_notification_of_a_transaction_that_failed_is_not_sent(index: PostgresIndex) -> None:
    def notify(connection: Connection, payload: str) -> None:
        connection.execute("SELECT pg_notify('jobs', %s)", (payload,))
        if payload == "rolled back":
            raise StaleTicket

    async with index.listen("jobs") as listener:
        with pytest.raises(StaleTicket):
            await index.database.run(notify, "rolled back")
        await index.database.run(notify, "committed")
        with trio.fail_after(10):
            assert await anext(aiter(listener)) == "committed"


async def test_a_listener_that_leaves_closes_its_connection(index: PostgresIndex, beside: psycopg.Connection) -> None:
    async with index.listen("jobs"):
        pass
    await index.database.aclose()
    assert await trio.to_thread.run_sync(_sessions_end, beside)


async def test_listening_to_a_database_that_is_not_there_is_unavailable(
    settings: DatabaseSettings, tmp_path: Path
) -> None:
    index = PostgresIndex(replace(settings, conninfo=f"host={tmp_path} user=postgres dbname=x"))
    with pytest.raises(IndexUnavailable):
        async with index.listen("jobs"):
            pass


class Counted:
    """The sending end of a channel that tells when it was tried so many times."""

    def __init__(self, send: trio.MemorySendChannel[str], count: int) -> None:
        self._send = send
        self._left = count
        self.close = send.close
        self.tried = trio.Event()

    def send_nowait(self, payload: str) -> None:
        self._left -= 1
        if self._left == 0:
            self.tried.set()
        self._send.send_nowait(payload)


async def test_what_nobody_reads_is_kept_up_to_a_limit(index: PostgresIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    send, receive = trio.open_memory_channel[str](UNREAD_NOTIFICATIONS)
    counted = Counted(send, UNREAD_NOTIFICATIONS + 10)

    class Opening:
        def __getitem__(self, _: type) -> Callable[[int], tuple[Counted, trio.MemoryReceiveChannel[str]]]:
            return self.open

        def open(self, size: int) -> tuple[Counted, trio.MemoryReceiveChannel[str]]:
            assert size == UNREAD_NOTIFICATIONS
            return counted, receive

    def notify(connection: Connection) -> None:
        query = "SELECT pg_notify('jobs', n::text) FROM generate_series(1, %s) n"
        connection.execute(query, (UNREAD_NOTIFICATIONS + 10,))

    with trio.fail_after(10):
        with monkeypatch.context() as patched:
            patched.setattr(trio, "open_memory_channel", Opening())
            async with index.listen("jobs") as listener:
                patched.undo()
                await index.database.run(notify)
                await counted.tried.wait()
                notifications = aiter(listener)
                kept = [await anext(notifications) for _ in range(UNREAD_NOTIFICATIONS)]
                await index.notify("jobs", "after")
                assert await anext(notifications) == "after"
    assert kept == [str(at) for at in range(1, UNREAD_NOTIFICATIONS + 1)]


# ---- rights


async def test_what_the_role_may_not_do_is_unavailable_and_not_tried_again(
    database: Database, beside: psycopg.Connection
) -> None:
    calls = []

    def write_as_a_guest(connection: Connection) -> None:
        calls.append(1)
        connection.execute("SET LOCAL ROLE pg_monitor")
        insert(connection, 1)

    with pytest.raises(IndexUnavailable, match="permission denied for table parts"):
        await database.run(write_as_a_guest)
    assert len(calls) == 1
    await check_sound(database, beside)
