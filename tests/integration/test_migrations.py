"""Migrations against a real server: in order, once, whole or not at all, and never by guessing."""

from __future__ import annotations

import importlib.resources
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from storage import migrate as migrate_module
from storage.errors import IndexUnavailable, SchemaMismatch
from storage.migrate import Migration, check_schema, known_migrations, migrate
from storage.postgres.database import DatabaseSettings
from storage.postgres.embedded import EmbeddedPostgres
from tests.servers import clean_environment, museworkd

ONE = Migration(1, "0001_one.sql", "CREATE TABLE steps (step integer); INSERT INTO steps VALUES (1);")
TWO = Migration(2, "0002_two.sql", "ALTER TABLE steps ADD COLUMN more text; INSERT INTO steps VALUES (2, 'two');")
THREE = Migration(3, "0003_three.sql", "INSERT INTO steps VALUES (3);")
FAILING = Migration(2, "0002_failing.sql", "INSERT INTO steps VALUES (7); CREATE TABLE remains (); SELECT 1/0;")
PROCESSES = 4
DIGESTS = {
    "blob_id", "body_id", "commit_id", "snapshot_id", "base_id", "record_id", "pack_id", "head", "old", "new",
    "token_hash",
}  # fmt: skip


@pytest.fixture
def settings(empty_database: str) -> DatabaseSettings:
    return DatabaseSettings(empty_database)


@pytest.fixture
def beside(empty_database: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(empty_database, autocommit=True) as connection:
        yield connection


def records(connection: psycopg.Connection) -> list[tuple[int, str]]:
    found = connection.execute("SELECT version, name, checksum FROM schema_migrations ORDER BY version").fetchall()
    return [(version, name) for version, name, _ in found]


def steps(connection: psycopg.Connection) -> list[int]:
    return [step for (step,) in connection.execute("SELECT step FROM steps ORDER BY step")]


def tables(connection: psycopg.Connection) -> list[str]:
    found = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")
    return [name for (name,) in found]


def everything(connection: psycopg.Connection) -> object:
    """Columns, constraints and indexes, and what was applied when."""
    queries = [
        "SELECT table_name, column_name, data_type, is_nullable, column_default FROM information_schema.columns"
        " WHERE table_schema = 'public' ORDER BY 1, 2",
        "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = 'public'::regnamespace"
        " ORDER BY 1, 2",
        "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1",
        "SELECT * FROM schema_migrations ORDER BY 1",
    ]
    return [connection.execute(query).fetchall() for query in queries]


# ---- the files


def test_the_files_are_numbered_without_gaps_and_none_is_overlooked() -> None:
    found = known_migrations()
    assert [m.version for m in found] == list(range(1, len(found) + 1))
    files = {entry.name for entry in importlib.resources.files("migrations").iterdir() if entry.name.endswith(".sql")}
    assert {m.name for m in found} == files


def test_every_id_is_32_raw_bytes_and_nothing_else(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        found = connection.execute(
            "SELECT attrelid::regclass::text, attname, atttypid::regtype::text FROM pg_attribute"
            " JOIN pg_class ON pg_class.oid = attrelid WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
        ).fetchall()
        kinds = {f"{table}.{column}": kind for table, column, kind in found}
        digests = {key: kind for key, kind in kinds.items() if key.rpartition(".")[2] in DIGESTS}
        assert {column for key in digests for column in [key.rpartition(".")[2]]} == DIGESTS
        assert set(digests.values()) == {"bytea"}
        assert kinds["commits.parents"] == "bytea[]"
        others = {key: kind for key, kind in kinds.items() if key.endswith("_id") and key not in digests}
        assert set(others.values()) == {"uuid"}
        for length in (31, 33):
            with pytest.raises(psycopg.errors.CheckViolation), connection.transaction():
                connection.execute("INSERT INTO packs (pack_id) VALUES (%s)", (bytes(length),))
        connection.execute("INSERT INTO packs (pack_id) VALUES (%s)", (bytes(32),))


# ---- applying


def test_migrations_are_applied_in_order_each_with_its_record(
    settings: DatabaseSettings, beside: psycopg.Connection
) -> None:
    assert migrate(settings, [ONE, TWO, THREE]) == [ONE, TWO, THREE]
    assert steps(beside) == [1, 2, 3]
    found = beside.execute("SELECT version, name, checksum FROM schema_migrations ORDER BY applied_at").fetchall()
    assert found == [(m.version, m.name, m.checksum) for m in (ONE, TWO, THREE)]


def test_only_what_is_missing_is_applied(settings: DatabaseSettings, beside: psycopg.Connection) -> None:
    assert migrate(settings, [ONE]) == [ONE]
    assert migrate(settings, [ONE, TWO, THREE]) == [TWO, THREE]
    assert steps(beside) == [1, 2, 3]


def test_applying_again_changes_nothing(settings: DatabaseSettings, beside: psycopg.Connection) -> None:
    assert migrate(settings) == known_migrations()
    before = everything(beside)
    assert migrate(settings) == []
    check_schema(settings)
    assert everything(beside) == before


def test_a_migration_that_fails_leaves_nothing_of_itself(
    settings: DatabaseSettings, beside: psycopg.Connection
) -> None:
    for _ in range(2):
        with pytest.raises(SchemaMismatch, match=r"0002_failing.sql cannot be applied .* division by zero"):
            migrate(settings, [ONE, FAILING, THREE])
        assert records(beside) == [(1, "0001_one.sql")]  # what came before stays
        assert tables(beside) == ["schema_migrations", "steps"]
        assert steps(beside) == [1]
    assert migrate(settings, [ONE, TWO, THREE]) == [TWO, THREE]


def test_a_first_migration_that_fails_leaves_the_database_empty(
    settings: DatabaseSettings, beside: psycopg.Connection
) -> None:
    failing = Migration(1, "0001_failing.sql", "CREATE TABLE steps (); SELECT 1/0;")
    with pytest.raises(SchemaMismatch, match="division by zero"):
        migrate(settings, [failing])
    assert tables(beside) == []


def test_a_database_in_which_somebody_else_lives_is_refused_and_left_as_it_is(
    settings: DatabaseSettings, beside: psycopg.Connection
) -> None:
    beside.execute("CREATE TABLE branches (of_a_bank text)")
    with pytest.raises(SchemaMismatch, match='"branches" already exists'):
        migrate(settings)
    assert tables(beside) == ["branches"]


def test_a_migration_whose_connection_is_lost_leaves_nothing_of_itself(
    settings: DatabaseSettings, beside: psycopg.Connection
) -> None:
    lost = replace(TWO, sql=TWO.sql + "SELECT pg_terminate_backend(pg_backend_pid());")
    with pytest.raises(IndexUnavailable):
        migrate(settings, [ONE, lost])
    assert records(beside) == [(1, "0001_one.sql")]
    assert steps(beside) == [1]
    assert migrate(settings, [ONE, TWO]) == [TWO]  # and no lock


def test_a_migration_may_take_longer_than_a_statement(settings: DatabaseSettings) -> None:
    slow = Migration(1, "0001_slow.sql", "SELECT pg_sleep(0.2);")
    assert migrate(replace(settings, statement_timeout_s=0.05), [slow]) == [slow]


def test_a_migration_that_waits_for_a_table_gives_up_like_everybody_else(
    settings: DatabaseSettings, beside: psycopg.Connection
) -> None:
    migrate(settings, [ONE])
    with beside.transaction():
        beside.execute("SELECT * FROM steps")
        with pytest.raises(IndexUnavailable, match="lock timeout"):
            migrate(replace(settings, lock_timeout_s=0.1), [ONE, TWO])
    assert migrate(settings, [ONE, TWO]) == [TWO]


# ---- several at once


def test_several_who_migrate_at_once_apply_each_migration_once(
    settings: DatabaseSettings, beside: psycopg.Connection
) -> None:
    barrier = threading.Barrier(PROCESSES)
    many = [ONE, *[Migration(at, f"{at:04}_x.sql", f"INSERT INTO steps VALUES ({at});") for at in range(2, 30)]]

    def run(_: int) -> list[Migration]:
        barrier.wait(30)
        return migrate(settings, many)

    with ThreadPoolExecutor(PROCESSES) as threads:
        applied = [m for part in threads.map(run, range(PROCESSES)) for m in part]
    assert sorted(m.version for m in applied) == [m.version for m in many]
    assert steps(beside) == [m.version for m in many]


def test_several_processes_that_migrate_an_empty_database_all_end_well(
    empty_database: str, beside: psycopg.Connection, tmp_path: Path
) -> None:
    """They are held at the lock until all of them stand there."""
    command = [sys.executable, "-m", "museworkd.cli.main", "migrate", "--data-dir", str(tmp_path)]
    command += ["--database-url", empty_database]
    with beside.transaction():
        beside.execute("SELECT pg_advisory_xact_lock(%s)", (migrate_module._LOCK_KEY,))
        running = [
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean_environment()
            )
            for _ in range(PROCESSES)
        ]
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database ="
        waiting += " (SELECT oid FROM pg_database WHERE datname = current_database())"
        while beside.execute(waiting).fetchone() != (PROCESSES,):
            assert all(process.poll() is None for process in running)
        assert tables(beside) == []
    outcomes = [(*process.communicate(timeout=60), process.returncode) for process in running]
    assert [code for *_, code in outcomes] == [0] * PROCESSES, outcomes
    applied = [line for out, *_ in outcomes for line in out.splitlines() if line.endswith(".sql")]
    assert sorted(applied) == [m.name for m in known_migrations()]
    assert records(beside) == [(m.version, m.name) for m in known_migrations()]


def test_who_waits_too_long_for_another_is_told_so(
    settings: DatabaseSettings, beside: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate_module, "LOCK_WAIT_S", 0.1)
    with beside.transaction():
        beside.execute("SELECT pg_advisory_xact_lock(%s)", (migrate_module._LOCK_KEY,))
        with pytest.raises(IndexUnavailable, match="try again later"):
            migrate(settings, [ONE])
    assert migrate(settings, [ONE]) == [ONE]


def test_the_wait_for_another_is_not_cut_by_the_limit_of_a_statement(
    settings: DatabaseSettings, beside: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate_module, "LOCK_WAIT_S", 0.3)
    with beside.transaction():
        beside.execute("SELECT pg_advisory_xact_lock(%s)", (migrate_module._LOCK_KEY,))
        with pytest.raises(IndexUnavailable, match="lock timeout"):
            migrate(replace(settings, statement_timeout_s=0.1, lock_timeout_s=0.1), [ONE])


# ---- what is refused


@pytest.mark.parametrize("command", ["migrate", "serve", "serve without auto_migrate"])
def test_a_newer_schema_is_refused_with_exit_code_4_and_left_as_it_is(
    command: str, database_url: str, tmp_path: Path
) -> None:
    with psycopg.connect(database_url, autocommit=True) as beside:
        beside.execute("INSERT INTO schema_migrations VALUES (9999, '9999_future.sql', 'x')")
        before = everything(beside)
        words = command.split()[:1] + (["--set", "database.auto_migrate=false"] if "without" in command else [])
        refused = museworkd(*words, "--data-dir", str(tmp_path), "--database-url", database_url, check=4)
        assert refused.stderr.splitlines()[-1] == (
            "error: the database's schema has 9999_future.sql, which this version does not know: it was made by a "
            "newer museworkd; run that one, or restore an older database"
        )
        assert "Traceback" not in refused.stderr
        assert refused.stdout == ""
        assert everything(beside) == before


def test_a_newer_schema_gets_nothing_that_is_missing_either(
    settings: DatabaseSettings, beside: psycopg.Connection
) -> None:
    migrate(settings, [ONE, THREE])
    for refusing in (migrate, check_schema):
        with pytest.raises(SchemaMismatch, match=r"0003_three.sql, which this version does not know"):
            refusing(settings, [ONE, TWO])
    assert steps(beside) == [1, 3]


def test_a_schema_with_a_gap_is_refused(settings: DatabaseSettings, beside: psycopg.Connection) -> None:
    """A migration is written for the schema the ones before it made, not for one of a later version."""
    migrate(settings, [ONE, THREE])
    for refusing in (migrate, check_schema):
        with pytest.raises(SchemaMismatch, match=r"has 0003_three.sql and lacks 0002_two.sql"):
            refusing(settings, [ONE, TWO, THREE])
    assert records(beside) == [(1, "0001_one.sql"), (3, "0003_three.sql")]
    assert steps(beside) == [1, 3]


def test_a_migration_that_was_edited_afterwards_is_refused(
    settings: DatabaseSettings, beside: psycopg.Connection
) -> None:
    migrate(settings, [ONE])
    edited = replace(ONE, sql=ONE.sql + " ")
    for refusing in (migrate, check_schema):
        with pytest.raises(SchemaMismatch, match=r"0001_one.sql was applied with other content"):
            refusing(settings, [edited, TWO])
    assert steps(beside) == [1]


def test_an_older_schema_is_refused_where_it_may_not_be_changed(
    settings: DatabaseSettings, beside: psycopg.Connection
) -> None:
    with pytest.raises(SchemaMismatch, match=r"lacks 0001_one.sql: run `museworkd migrate`"):
        check_schema(settings, [ONE, TWO])
    assert tables(beside) == []
    migrate(settings, [ONE])
    with pytest.raises(SchemaMismatch, match=r"lacks 0002_two.sql"):
        check_schema(settings, [ONE, TWO])


# ---- rights


@pytest.fixture
def guest(empty_database: str, beside: psycopg.Connection, postgres: EmbeddedPostgres) -> Iterator[str]:
    """A connection string of a role that may connect and nothing else."""
    role = "guest_of_" + beside.info.dbname
    beside.execute(f"CREATE ROLE {role} LOGIN")
    yield make_conninfo(empty_database, user=role)
    beside.execute(f"DROP OWNED BY {role}")
    beside.execute(f"DROP ROLE {role}")


def test_a_role_without_rights_is_told_so_with_exit_code_4(
    guest: str, beside: psycopg.Connection, tmp_path: Path
) -> None:
    options = ["--data-dir", str(tmp_path), "--database-url", guest]
    for command in ("migrate", "serve"):
        refused = museworkd(command, *options, check=4)
        assert refused.stderr.splitlines()[-1].startswith("error: the database's role may not do this: permission")
        assert "owner" in refused.stderr
        assert "Traceback" not in refused.stderr
    assert tables(beside) == []


def test_a_role_that_may_not_even_look_is_told_so(
    guest: str, settings: DatabaseSettings, beside: psycopg.Connection
) -> None:
    migrate(settings)
    for refusing in (migrate, check_schema):
        with pytest.raises(SchemaMismatch, match="permission denied for table schema_migrations"):
            refusing(DatabaseSettings(guest))


def test_a_role_that_may_only_use_the_tables_finds_an_up_to_date_schema_good(
    guest: str, settings: DatabaseSettings, beside: psycopg.Connection, tmp_path: Path
) -> None:
    """So that a server need not run as the owner of its database."""
    migrate(settings)
    beside.execute(f"GRANT SELECT ON schema_migrations TO guest_of_{beside.info.dbname}")
    assert migrate(DatabaseSettings(guest)) == []
    check_schema(DatabaseSettings(guest))
    listed = museworkd("repo", "list", "--data-dir", str(tmp_path), "--database-url", guest, check=3)
    assert "permission denied for table repositories" in listed.stderr
    assert "Traceback" not in listed.stderr


def test_a_server_that_may_only_be_read_finds_an_up_to_date_schema_good(
    settings: DatabaseSettings, beside: psycopg.Connection
) -> None:
    migrate(settings, [ONE])
    beside.execute(f"ALTER DATABASE {beside.info.dbname} SET default_transaction_read_only = on")
    assert migrate(settings, [ONE]) == []
    with pytest.raises(IndexUnavailable, match="read-only"):
        migrate(settings, [ONE, TWO])


@pytest.mark.parametrize("conninfo", ["no such thing", "host=/nowhere dbname=x"])
def test_a_database_that_cannot_be_reached_is_unavailable(conninfo: str) -> None:
    for refusing in (migrate, check_schema):
        with pytest.raises(IndexUnavailable):
            refusing(DatabaseSettings(conninfo))
