"""Shared fixtures: a real PostgreSQL for each test worker, a fresh database for each test.

What tests write goes to a file system in memory if there is a roomy one: a store is hundreds of directories, and a
disk takes longer to make and remove them than most tests take. Tests marked ``slow`` stay on the disk, and so does
everything when ``TMPDIR`` is set. Where durability itself is tested, the calls are watched, not the disk.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import shutil
import tempfile
import time
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
from tests import s3_server as s3
from tests import stores

_numbers = itertools.count(1)
_MEMORY = Path("/dev/shm")
_ROOM_BYTES = 8 * 1024**3
_LEFT_OVER_S = 6 * 3600.0


def _roomy() -> Path | None:
    """Give the file system in memory, if there is one with room whose programs may be run."""
    if "TMPDIR" in os.environ or not _MEMORY.is_dir():
        return None
    facts = os.statvfs(_MEMORY)
    usable = os.access(_MEMORY, os.W_OK) and not facts.f_flag & os.ST_NOEXEC
    return _MEMORY if usable and facts.f_bavail * facts.f_frsize >= _ROOM_BYTES else None


def pytest_collection_finish() -> None:
    """Have the collector of garbage look at what tests make, seldom, and not at thousands of tests each time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


@pytest.fixture(autouse=True)
def _quiet_logs() -> Iterator[list[dict]]:
    """Keep logs off the terminal; a test that looks at them asks for ``logs``."""
    with structlog.testing.capture_logs() as captured:
        yield captured


@pytest.fixture
def logs(_quiet_logs: list[dict]) -> list[dict]:
    return _quiet_logs


@pytest.fixture(scope="session", autouse=True)
def _left_over() -> None:
    """Remove from memory what killed runs have left there."""
    for path in _MEMORY.glob("mw-*-*") if _roomy() else ():
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < time.time() - _LEFT_OVER_S:
                shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory of the test's own; one in memory is removed after it."""
    roomy = _roomy()
    if roomy is None or request.node.get_closest_marker("slow"):
        yield tmp_path_factory.mktemp("test")
        return
    path = Path(tempfile.mkdtemp(prefix="mw-test-", dir=roomy))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_home() -> Iterator[Path]:
    """A directory for clusters that the database's user can reach, with a short path."""
    home = Path(tempfile.mkdtemp(prefix="mw-pg-", dir=_roomy()))
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


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.S3Server]:
    """One S3 server for all workers of the run, started when the first test asks for it."""
    base = tmp_path_factory.getbasetemp()
    run = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with s3.shared_server(run / "s3-server", _roomy()) as server:
        yield server


@pytest.fixture(autouse=stores.wanted())
def _all_on_s3(s3_server: s3.S3Server) -> None:
    """Put the servers of the test on S3, if the whole run is to stand there."""
    stores.on_s3.begin(s3_server)


@pytest.fixture
def ceph_server(s3_server: s3.S3Server) -> s3.S3Server:
    """The S3 server for what moto's does not do: check signatures, and refuse what they do not cover."""
    if not s3_server.checks_signatures:
        pytest.skip("Ceph is not installed, and moto checks no signatures")
    return s3_server


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which part did not run."""
    if not s3.installed():
        terminalreporter.write_line(
            "S3: Ceph's gateway is not installed (Debian: radosgw ceph-mon ceph-osd ceph-common). Its tests ran over "
            "moto's server; those of signatures and signed URLs did not run.",
            yellow=True,
        )


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
