"""Shared fixtures: a real PostgreSQL for each test worker, a fresh database for each test."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest
import structlog

from storage.memory.index import MemoryIndex
from storage.migrate import migrate
from storage.objects.filesystem import FilesystemStore
from storage.objects.memory import MemoryStore
from storage.postgres.database import DatabaseSettings
from storage.postgres.embedded import EmbeddedPostgres
from storage.postgres.index import PostgresIndex

_numbers = itertools.count(1)


@pytest.fixture(autouse=True)
def _quiet_logs() -> Iterator[list[dict]]:
    """Keep logs off the terminal; a test that looks at them asks for ``logs``."""
    with structlog.testing.capture_logs() as captured:
        yield captured


@pytest.fixture
def logs(_quiet_logs: list[dict]) -> list[dict]:
    return _quiet_logs


@pytest.fixture(scope="session")
def postgres_home() -> Iterator[Path]:
    """A directory for clusters that the database's user can reach, with a short path."""
    home = Path(tempfile.mkdtemp(prefix="mw-pg-"))
    home.chmod(0o755)
    yield home
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres(postgres_home: Path) -> Iterator[EmbeddedPostgres]:
    """One server for all tests of this worker."""
    server = EmbeddedPostgres(postgres_home / "shared", state_root=postgres_home / "state")
    server.start()
    host = server.conninfo.split()[0]
    with psycopg.connect(f"{host} user=postgres dbname=postgres", autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET fsync = off")  # tests kill processes, not machines
        connection.execute("SELECT pg_reload_conf()")
        connection.execute("CREATE DATABASE template_museworkd")
    migrate(DatabaseSettings(f"{host} user=postgres dbname=template_museworkd"))
    yield server
    server.stop()


@pytest.fixture
def empty_database(postgres: EmbeddedPostgres) -> Iterator[str]:
    """A connection string of a fresh database without a schema."""
    yield from _database(postgres, "template0")


@pytest.fixture
def database_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """A connection string of a fresh, migrated database."""
    yield from _database(postgres, "template_museworkd")


@pytest.fixture(scope="module")
def module_database_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """A connection string of a migrated database for a module whose tests empty it themselves."""
    yield from _database(postgres, "template_museworkd")


def _database(postgres: EmbeddedPostgres, template: str) -> Iterator[str]:
    host = postgres.conninfo.split()[0]
    name = f"test_{next(_numbers)}"
    with psycopg.connect(f"{host} user=postgres dbname=postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
    yield f"{host} user=postgres dbname={name}"
    with psycopg.connect(f"{host} user=postgres dbname=postgres", autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture
async def postgres_index(database_url: str) -> AsyncIterator[PostgresIndex]:
    async with PostgresIndex(DatabaseSettings(database_url)) as index:
        yield index


@pytest.fixture
def memory_index() -> MemoryIndex:
    return MemoryIndex()


@pytest.fixture
def memory_store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
async def file_store(tmp_path: Path) -> FilesystemStore:
    return await FilesystemStore.open(tmp_path / "store")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A directory for repositories and clones."""
    path = tmp_path / "work"
    path.mkdir()
    return path
