"""Bringing a database's schema up to date: numbered SQL files, in order, each once.

Each migration is one transaction together with the row that says it was applied, under a lock that all who migrate
take; so of several at once each applies what the others have not. A database that knows a migration this version
does not is newer than the program: it is refused, never guessed at. A schema that is up to date is only read, so a
server whose role may not change it starts all the same.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import errors as pg_errors

from storage.errors import IndexUnavailable, SchemaMismatch
from storage.postgres.database import DatabaseSettings, connection_arguments

Connection = psycopg.Connection[tuple[Any, ...]]

LOCK_WAIT_S = 120.0
"""How long to wait for another process that migrates."""
_LOCK_KEY = 0x6D757365  # "muse"
_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
_q_limit = "SELECT set_config('lock_timeout', %s, true), set_config('statement_timeout', '0', true)"
_q_lock = "SELECT pg_advisory_xact_lock(%s)"
_q_table = """
    CREATE TABLE IF NOT EXISTS schema_migrations (
        version     integer PRIMARY KEY,
        name        text NOT NULL,
        checksum    bytea NOT NULL,
        applied_at  timestamptz NOT NULL DEFAULT now()
    )
"""
_q_exists = "SELECT to_regclass('schema_migrations') IS NOT NULL"
_q_applied = "SELECT version, name, checksum FROM schema_migrations ORDER BY version"
_q_record = "INSERT INTO schema_migrations (version, name, checksum) VALUES (%s, %s, %s)"


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered file."""

    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> bytes:
        """SHA-256 of the text: an applied migration is never edited."""
        return hashlib.sha256(self.sql.encode()).digest()


def known_migrations(package: str = "migrations") -> list[Migration]:
    """Read the numbered files of this version, in order."""
    found = []
    for entry in importlib.resources.files(package).iterdir():
        match = _NAME.fullmatch(entry.name)
        if match:
            found.append(Migration(int(match.group(1)), entry.name, entry.read_text("utf-8")))
    return sorted(found, key=lambda m: m.version)


def migrate(settings: DatabaseSettings, migrations: list[Migration] | None = None) -> list[Migration]:
    """Apply what is missing; gives what was applied. Blocking: for a worker thread or the command line.

    Raises:
        SchemaMismatch: the database is newer than this version, was migrated with other files, or does not let
            this role or this migration in.
        IndexUnavailable: the database cannot be reached, or another process has been migrating it for long.
    """
    wanted = known_migrations() if migrations is None else migrations
    applied = []
    with _connected(settings) as connection:
        while (migration := _apply_next(connection, wanted, settings)) is not None:
            applied.append(migration)
    return applied


def check_schema(settings: DatabaseSettings, migrations: list[Migration] | None = None) -> None:
    """Check that the schema is exactly what this version needs.

    Raises:
        SchemaMismatch: it is older or newer; the message says what to do.
        IndexUnavailable: the database cannot be reached.
    """
    with _connected(settings) as connection:
        missing = _missing(connection, known_migrations() if migrations is None else migrations)
    if missing:
        raise SchemaMismatch(
            f"the database's schema lacks {missing[0].name}: run `museworkd migrate` with this version first"
        )


def _apply_next(connection: Connection, wanted: list[Migration], settings: DatabaseSettings) -> Migration | None:
    """Apply the first missing migration in one transaction; ``None`` when there is none."""
    with connection.transaction():
        connection.execute(_q_limit, (f"{int(LOCK_WAIT_S * 1000)}ms",))
        connection.execute(_q_lock, (_LOCK_KEY,))
        missing = _missing(connection, wanted)
        if not missing:
            return None
        # a migration that waits for a table makes everybody else wait for it too
        connection.execute(_q_limit, (f"{int(settings.lock_timeout_s * 1000)}ms",))
        migration = missing[0]
        try:
            connection.execute(migration.sql.encode())
            connection.execute(_q_table)
            connection.execute(_q_record, (migration.version, migration.name, migration.checksum))
        except (pg_errors.InsufficientPrivilege, psycopg.OperationalError, psycopg.InternalError):
            raise
        except psycopg.Error as error:
            raise SchemaMismatch(
                f"{migration.name} cannot be applied to this database, and nothing of it was: {_first_line(error)}"
            ) from error
        return migration


def _missing(connection: Connection, wanted: list[Migration]) -> list[Migration]:
    if connection.execute(_q_exists).fetchone() == (False,):
        return wanted
    applied: dict[int, tuple[str, bytes]] = {
        version: (name, bytes(checksum)) for version, name, checksum in connection.execute(_q_applied)
    }
    by_version = {m.version: m for m in wanted}
    for version, (name, checksum) in applied.items():
        known = by_version.get(version)
        if known is None:
            raise SchemaMismatch(
                f"the database's schema has {name}, which this version does not know: it was made by a newer "
                "museworkd; run that one, or restore an older database"
            )
        if checksum != known.checksum:
            raise SchemaMismatch(f"{name} was applied with other content than this version has: do not edit migrations")
    missing = [m for m in wanted if m.version not in applied]
    if missing and applied and missing[0].version < max(applied):
        raise SchemaMismatch(
            f"the database's schema has {applied[max(applied)][0]} and lacks {missing[0].name}, which comes before: "
            "it was migrated with other files than this version has; restore a database made by a released museworkd"
        )
    return missing


@contextmanager
def _connected(settings: DatabaseSettings) -> Iterator[Connection]:
    try:
        with psycopg.connect(settings.conninfo, **connection_arguments(settings)) as connection:
            yield connection
    except pg_errors.InsufficientPrivilege as error:
        raise SchemaMismatch(
            f"the database's role may not do this: {_first_line(error)}; run `museworkd migrate` as the owner of the "
            "database, and let the server's role read and write its tables"
        ) from error
    except pg_errors.LockNotAvailable as error:
        raise IndexUnavailable(f"another process holds the schema, try again later: {_first_line(error)}") from error
    except psycopg.Error as error:
        raise IndexUnavailable(str(error).strip()) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
