"""Bringing a database's schema up to date: numbered SQL files under an advisory lock.

Each migration is one transaction together with the row that says it was applied. A database that knows a
migration this version does not is newer than the program: it is refused, never guessed at.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import re
from dataclasses import dataclass

import psycopg

from storage.errors import IndexUnavailable, SchemaMismatch
from storage.postgres.database import DatabaseSettings, connection_arguments

_LOCK_KEY = 0x6D757365  # "muse"
_LOCK_TIMEOUT_S = 120
_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
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
        SchemaMismatch: the database is newer than this version, or an applied migration differs.
        IndexUnavailable: the database cannot be reached.
    """
    wanted = known_migrations() if migrations is None else migrations
    with _connect(settings) as connection:
        connection.execute("SELECT set_config('lock_timeout', %s, false)", (f"{_LOCK_TIMEOUT_S}s",))
        connection.execute("SELECT pg_advisory_lock(%s)", (_LOCK_KEY,))
        try:
            connection.execute(_q_table)
            connection.commit()
            missing = _missing(connection, wanted)
            for migration in missing:
                with connection.transaction():
                    connection.execute(migration.sql.encode())
                    connection.execute(_q_record, (migration.version, migration.name, migration.checksum))
            return missing
        finally:
            connection.rollback()
            connection.execute("SELECT pg_advisory_unlock(%s)", (_LOCK_KEY,))
            connection.commit()


def check_schema(settings: DatabaseSettings) -> None:
    """Check that the schema is exactly what this version needs.

    Raises:
        SchemaMismatch: it is older or newer; the message says what to do.
    """
    with _connect(settings) as connection:
        row = connection.execute(_q_exists).fetchone()
        missing = _missing(connection, known_migrations()) if row == (True,) else known_migrations()
    if missing:
        raise SchemaMismatch(
            f"the database's schema lacks {missing[0].name}: run `museworkd migrate` with this version first"
        )


def _missing(connection: psycopg.Connection[tuple[object, ...]], wanted: list[Migration]) -> list[Migration]:
    applied = {version: (name, checksum) for version, name, checksum in connection.execute(_q_applied)}
    connection.commit()
    by_version = {m.version: m for m in wanted}
    for version, (name, checksum) in applied.items():
        known = by_version.get(version)  # type: ignore[call-overload]
        if known is None:
            raise SchemaMismatch(
                f"the database's schema has {name}, which this version does not know: it was made by a newer "
                "museworkd; run that one, or restore an older database"
            )
        if bytes(checksum) != known.checksum:  # type: ignore[call-overload]
            raise SchemaMismatch(f"{name} was applied with other content than this version has: do not edit migrations")
    return [m for m in wanted if m.version not in applied]


def _connect(settings: DatabaseSettings) -> psycopg.Connection[tuple[object, ...]]:
    try:
        return psycopg.connect(settings.conninfo, **connection_arguments(settings))
    except psycopg.OperationalError as error:
        raise IndexUnavailable(str(error).strip()) from error
