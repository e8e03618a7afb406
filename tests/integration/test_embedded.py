"""The embedded PostgreSQL: shared, left, killed, interrupted, moved out of reach, and run by root and by others."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from storage.errors import IndexUnavailable, SchemaMismatch
from storage.postgres import binaries, embedded
from storage.postgres.binaries import server_account
from storage.postgres.embedded import EmbeddedPostgres, embedded_postgres
from tests.integration.postgres_user import PostgresUser

AS_ROOT = os.geteuid() == 0
only_root = pytest.mark.skipif(not AS_ROOT, reason="only root runs the server as somebody else")
Make = Callable[..., EmbeddedPostgres]


@pytest.fixture
def state_root(postgres_home: Path) -> Path:
    return postgres_home / "state"


@pytest.fixture
def fresh_dir(postgres_home: Path) -> Path:
    """A directory with a short path that the server's user can reach."""
    path = Path(tempfile.mkdtemp(prefix="d", dir=postgres_home))
    path.chmod(0o755)
    return path


@pytest.fixture
def data_dir(postgres_home: Path) -> Path:
    """The same, with a cluster that tests leave stopped and sound."""
    (postgres_home / "again" / "postgres" / "postgres.log").unlink(missing_ok=True)
    return postgres_home / "again"


@pytest.fixture
def make(data_dir: Path, state_root: Path) -> Iterator[Make]:
    made = []

    def make_one(where: Path = data_dir) -> EmbeddedPostgres:
        made.append(EmbeddedPostgres(where, state_root))
        return made[-1]

    yield make_one
    for server in made:
        server.stop()
    for server in made:
        server.kill()
        if server._process is not None:
            server._process.wait(30)


@pytest.fixture
def users(data_dir: Path, state_root: Path) -> Iterator[Callable[..., PostgresUser]]:
    """Makes other processes that use the cluster."""
    made = []

    def start_one(where: Path = data_dir) -> PostgresUser:
        made.append(PostgresUser(where, state_root))
        return made[-1]

    yield start_one
    for user in made:
        user.kill()


def ask(server: EmbeddedPostgres, query: str) -> object:
    with psycopg.connect(server.conninfo) as connection:
        cursor = connection.execute(query)
        return cursor.fetchone()[0] if cursor.description else None


def keep(server: EmbeddedPostgres) -> None:
    """Commit a row."""
    ask(server, "DROP TABLE IF EXISTS kept")
    ask(server, "CREATE TABLE kept AS SELECT 42 AS answer")


def kept(server: EmbeddedPostgres) -> list[int]:
    return ask(server, "SELECT array_agg(answer) FROM kept")


def log_of(server: EmbeddedPostgres) -> str:
    return (server.home / "postgres.log").read_text()


def user_of(pid: int) -> int:
    return Path(f"/proc/{pid}").stat().st_uid


# ---- alone


def test_it_starts_serves_and_stops(make: Make) -> None:
    server = make()
    assert not server.alive()
    server.start()
    assert server.alive()
    assert ask(server, "SELECT current_database()") == "museworkd"
    server.stop()
    assert not server.alive()
    with pytest.raises(psycopg.OperationalError):
        ask(server, "SELECT 1")


def test_starting_and_stopping_again_changes_nothing(make: Make) -> None:
    server = make()
    server.stop()
    server.start()
    pid = server._postmaster_pid()
    server.start()
    assert server._postmaster_pid() == pid
    server.stop()
    server.stop()
    assert not server.alive()


def test_a_block_uses_it_for_its_length(data_dir: Path, state_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EmbeddedPostgres.__init__, "__defaults__", (state_root,))
    with pytest.raises(psycopg.errors.DivisionByZero), embedded_postgres(data_dir) as server:
        ask(server, "SELECT 1 / 0")
    assert not server.alive()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("fsync", "on"), ("full_page_writes", "on"), ("synchronous_commit", "on"), ("data_checksums", "on"),
        ("listen_addresses", ""), ("server_encoding", "UTF8"),
    ],
)  # fmt: skip
def test_what_is_acknowledged_is_durable_and_nobody_gets_in_by_network(
    running: EmbeddedPostgres, setting: str, value: str
) -> None:
    assert ask(running, f"SHOW {setting}") == value


@pytest.fixture(scope="module")
def running(postgres_home: Path) -> Iterator[EmbeddedPostgres]:
    """A server nobody does anything to."""
    server = EmbeddedPostgres(postgres_home / "running", postgres_home / "state")
    server.start()
    yield server
    server.stop()


def test_the_socket_is_in_a_directory_only_its_user_can_enter(running: EmbeddedPostgres) -> None:
    directory = Path(ask(running, "SHOW unix_socket_directories"))
    facts = directory.stat()
    assert stat.S_IMODE(facts.st_mode) == 0o700
    assert facts.st_uid == user_of(running._postmaster_pid())
    assert stat.S_IMODE(running.home.stat().st_mode) == 0o700


def test_the_server_sees_nothing_of_our_environment(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSEWORKD_TOKEN", "secret")
    server = make()
    server.start()
    environment = Path(f"/proc/{server._postmaster_pid()}/environ").read_bytes()
    assert b"secret" not in environment
    assert b"LC_ALL=C.UTF-8" in environment


def test_a_long_log_is_put_aside(make: Make) -> None:
    server = make()
    server.start()
    server.stop()
    with (server.home / "postgres.log").open("ab") as log:
        log.truncate(11 * 1024 * 1024)
    server.start()
    assert (server.home / "postgres.log.1").stat().st_size == 11 * 1024 * 1024
    assert (server.home / "postgres.log").stat().st_size < 100_000


def test_a_server_that_does_not_start_is_unavailable_and_its_log_is_quoted(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_RESTART_PAUSE_S", 0)
    server = make()
    server.start()
    server.stop()
    settings = server.home / "data" / "postgresql.auto.conf"
    before = settings.read_bytes()
    settings.write_text("this is no setting\n")
    with pytest.raises(IndexUnavailable, match=r"(?s)did not start .* syntax error in file"):
        server.start()
    settings.write_bytes(before)
    server.start()
    assert ask(server, "SELECT 1") == 1


# ---- several users


def test_a_second_process_uses_the_server_of_the_first_and_the_last_one_stops_it(
    make: Make, users: Callable[[], PostgresUser]
) -> None:
    first, second = users(), users()
    pid = first.started()["pid"]
    assert second.started()["pid"] == pid
    first.leave()
    watching = make()
    assert watching.alive()
    assert ask(watching, "SELECT 1") == 1
    second.leave()
    assert not watching.alive()


def test_several_processes_may_make_and_start_it_at_once(
    make: Make, users: Callable[..., PostgresUser], fresh_dir: Path
) -> None:
    everybody = [users(fresh_dir) for _ in range(4)]
    assert len({user.started()["pid"] for user in everybody}) == 1
    for user in everybody:
        user.leave()
    assert not make(fresh_dir).alive()


def test_two_users_in_one_process_count_as_two(make: Make) -> None:
    first, second = make(), make()
    first.start()
    second.start()
    first.stop()
    assert ask(second, "SELECT 1") == 1
    second.stop()
    assert not second.alive()


def test_the_server_outlives_a_killed_owner_and_is_found_by_the_next_one(
    make: Make, users: Callable[[], PostgresUser]
) -> None:
    owner = users()
    pid = owner.started()["pid"]
    owner.kill()
    server = make()
    assert server.alive()
    server.start()
    assert server._postmaster_pid() == pid
    assert ask(server, "SELECT 1") == 1
    server.stop()
    assert not server.alive()


def test_a_killed_user_does_not_keep_the_server(make: Make, users: Callable[[], PostgresUser]) -> None:
    server = make()
    server.start()
    other = users()
    other.started()
    other.kill()
    server.stop()
    assert not server.alive()


# ---- crashes


def test_a_stop_is_clean(make: Make) -> None:
    server = make()
    server.start()
    keep(server)
    server.stop()
    assert "database system is shut down" in log_of(server)
    server.start()
    assert kept(server) == [42]
    assert "was not properly shut down" not in log_of(server)


def test_a_killed_server_recovers_what_was_committed(make: Make) -> None:
    server = make()
    server.start()
    keep(server)
    unfinished = psycopg.connect(server.conninfo)
    unfinished.execute("INSERT INTO kept VALUES (43)")
    server.kill()
    unfinished.close()
    assert not server.alive()
    server.start()
    assert kept(server) == [42]
    assert "was not properly shut down; automatic recovery in progress" in log_of(server)


def test_a_server_killed_under_two_users_is_started_again_by_either(make: Make) -> None:
    first, second = make(), make()
    first.start()
    second.start()
    first.kill()
    second.start()
    first.start()
    assert ask(first, "SELECT 1") == ask(second, "SELECT 1") == 1
    second.stop()
    assert ask(first, "SELECT 1") == 1


def test_a_pid_file_that_names_another_process_does_not_pass_for_a_server(make: Make) -> None:
    server = make()
    server.start()
    server.stop()
    (server.home / "data" / "postmaster.pid").write_text("1\n")
    assert not server.alive()
    server.kill()  # would be init otherwise
    server.start()
    assert ask(server, "SELECT 1") == 1


@pytest.mark.parametrize("left", ["", "garbage", "-12\n"])
def test_a_damaged_pid_file_is_no_server(make: Make, fresh_dir: Path, left: str) -> None:
    server = make(fresh_dir)
    (server.home / "data").mkdir(parents=True)
    (server.home / "data" / "postmaster.pid").write_text(left)
    assert not server.alive()


@pytest.mark.parametrize("left", ["data.new", "data"])
def test_an_interrupted_initdb_is_begun_again(make: Make, fresh_dir: Path, left: str) -> None:
    server = make(fresh_dir)
    server._account.make_directory(server.home)
    unfinished = server.home / left
    server._account.make_directory(unfinished)
    (unfinished / "base").mkdir()
    (unfinished / "base" / "1").write_text("half a cluster")
    server.start()
    assert ask(server, "SELECT 1") == 1
    assert not (server.home / "data.new").exists()
    assert not (server.home / "data" / "base" / "1").is_file()


def test_a_new_cluster_is_in_its_place_durably_before_it_is_used(
    make: Make, fresh_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []

    def sync(directory: Path) -> None:
        synced.append((directory, (directory / "data" / "PG_VERSION").exists()))

    monkeypatch.setattr(embedded, "sync_directory", sync)
    server = make(fresh_dir)
    server.start()
    assert synced == [(server.home, True)]


def test_a_cluster_of_another_major_version_is_refused_and_left_alone(make: Make) -> None:
    server = make()
    server.start()
    keep(server)
    server.stop()
    version = server.home / "data" / "PG_VERSION"
    ours = version.read_text()
    version.write_text("9\n")
    with pytest.raises(SchemaMismatch, match=f"made by PostgreSQL 9, the binaries here are {ours.strip()}"):
        server.start()
    assert not server.alive()
    version.write_text(ours)
    server.start()
    assert kept(server) == [42]


# ---- where it lives


@pytest.fixture
def long_dir(fresh_dir: Path) -> Path:
    path = fresh_dir / ("a-name-of-fifty-characters-which-is-a-lot-of-them/" * 3)
    path.mkdir(parents=True)
    return path


@pytest.fixture
def short_directory(make: Make, long_dir: Path) -> Iterator[Path]:
    """Where the socket of a cluster with a long path goes."""
    server = make(long_dir)
    path = server._socket_directory()
    path.rmdir()
    yield path
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        for left in path.iterdir():
            left.unlink()
        path.rmdir()


def test_a_long_path_has_its_socket_in_a_short_private_directory(
    make: Make, long_dir: Path, short_directory: Path
) -> None:
    server = make(long_dir)
    server.start()
    assert ask(server, "SELECT 1") == 1
    assert server.conninfo.startswith(f"host={short_directory} ")
    facts = short_directory.stat()
    assert stat.S_IMODE(facts.st_mode) == 0o700
    assert facts.st_uid == user_of(server._postmaster_pid())
    assert make(long_dir).conninfo == server.conninfo


@pytest.mark.parametrize("mode", [0o777, 0o710, 0o701])
def test_a_socket_directory_others_can_enter_is_refused(
    make: Make, long_dir: Path, short_directory: Path, mode: int
) -> None:
    make(long_dir)._account.make_directory(short_directory)
    short_directory.chmod(mode)
    with pytest.raises(IndexUnavailable, match="not a private directory"):
        make(long_dir).start()


def test_a_socket_directory_beside_the_cluster_that_others_can_enter_is_refused(make: Make, fresh_dir: Path) -> None:
    server = make(fresh_dir)
    server._account.make_directory(server.home)
    server._account.make_directory(server.home / "run")
    (server.home / "run").chmod(0o755)
    with pytest.raises(IndexUnavailable, match="not a private directory"):
        server.start()


@only_root
def test_a_socket_directory_of_somebody_else_is_refused(make: Make, long_dir: Path, short_directory: Path) -> None:
    short_directory.mkdir(mode=0o700)
    os.chown(short_directory, 12345, 12345)
    with pytest.raises(IndexUnavailable, match="not a private directory"):
        make(long_dir).start()


def test_a_link_in_the_socket_directorys_place_is_refused(
    make: Make, long_dir: Path, short_directory: Path, tmp_path: Path
) -> None:
    short_directory.symlink_to(tmp_path)
    with pytest.raises(IndexUnavailable, match="not a private directory"):
        make(long_dir).start()


@pytest.fixture
def closed_dir(fresh_dir: Path) -> Path:
    """A data directory nobody but us can enter."""
    path = fresh_dir / "closed"
    path.mkdir(mode=0o700)
    return path


@only_root
def test_root_runs_the_server_as_an_unprivileged_user(running: EmbeddedPostgres) -> None:
    account = server_account()
    assert account.foreign
    assert account.uid != 0
    assert user_of(running._postmaster_pid()) == account.uid
    assert (running.home / "data").stat().st_uid == account.uid


@only_root
def test_roots_closed_data_directory_stays_closed_and_the_cluster_is_kept_apart(
    make: Make, closed_dir: Path, state_root: Path
) -> None:
    server = make(closed_dir)
    server.start()
    keep(server)
    assert server.home.parent == state_root
    assert {path.name: path.readlink() for path in closed_dir.iterdir()} == {"postgres": server.home}
    facts = closed_dir.stat()
    assert (stat.S_IMODE(facts.st_mode), facts.st_uid) == (0o700, 0)
    assert kept(make(closed_dir)) == [42]


@only_root
def test_two_closed_data_directories_have_two_clusters(make: Make, closed_dir: Path, fresh_dir: Path) -> None:
    other = fresh_dir / "other"
    other.mkdir(mode=0o700)
    assert make(closed_dir).home != make(other).home


@only_root
def test_a_data_directory_made_anew_has_a_new_cluster(make: Make, closed_dir: Path) -> None:
    server = make(closed_dir)
    server.start()
    keep(server)
    moved = closed_dir.with_name("moved")
    closed_dir.rename(moved)
    closed_dir.mkdir(mode=0o700)
    other = make(closed_dir)
    assert other.home != server.home
    assert make(moved).home == server.home
    assert kept(make(moved)) == [42]


@only_root
def test_a_link_to_a_cluster_that_is_gone_is_told_and_not_followed_by_an_empty_one(
    make: Make, closed_dir: Path
) -> None:
    home = make(closed_dir).home
    home.rename(home.with_name("lost"))
    with pytest.raises(IndexUnavailable, match="leads to a cluster that is gone"):
        make(closed_dir)
    home.with_name("lost").rename(home)
    assert make(closed_dir).home == home


@pytest.mark.parametrize("kept_apart", [False, pytest.param(True, marks=only_root)])
def test_what_is_destroyed_is_gone_with_its_server(make: Make, fresh_dir: Path, kept_apart: bool) -> None:
    where = fresh_dir / "d"
    where.mkdir(mode=0o700 if kept_apart else 0o755)
    server = make(where)
    server.start()
    pid = server._postmaster_pid()
    server.destroy()
    assert not Path(f"/proc/{pid}").exists()
    assert not server.home.exists()
    assert list(where.iterdir()) == []


@only_root
def test_a_cluster_kept_apart_stays_so_when_its_data_directory_is_opened(make: Make, closed_dir: Path) -> None:
    server = make(closed_dir)
    server.start()
    keep(server)
    closed_dir.chmod(0o755)
    again = make(closed_dir)
    again.start()
    assert kept(again) == [42]


@only_root
def test_a_cluster_that_can_no_longer_be_reached_is_told_and_not_replaced_by_an_empty_one(
    make: Make, fresh_dir: Path
) -> None:
    server = make(fresh_dir)
    server.start()
    keep(server)
    server.stop()
    fresh_dir.chmod(0o700)
    with pytest.raises(IndexUnavailable, match="cannot enter"):
        make(fresh_dir)
    fresh_dir.chmod(0o755)
    server.start()
    assert kept(make(fresh_dir)) == [42]


@only_root
def test_programs_that_only_root_can_reach_are_copied_with_their_libraries(
    make: Make, fresh_dir: Path, state_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = server_account()
    shared = binaries.find_binaries(account, state_root).parent
    package, libraries = shared.parent, shared.parent.with_name(f"{shared.parent.name}.libs")
    assert libraries.is_dir(), "the wheel of the embedded extra is what most people have"
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    shutil.copytree(shared, closed / package.name / shared.name, symlinks=True)
    shutil.copytree(libraries, closed / libraries.name, symlinks=True)
    monkeypatch.setattr(binaries, "_candidates", lambda: [closed / package.name / shared.name / "bin"])
    server = make(fresh_dir)
    server.start()
    assert ask(server, "SELECT 1") == 1
    assert Path(f"/proc/{server._postmaster_pid()}/exe").resolve().is_relative_to(state_root)


@only_root
def test_an_ordinary_user_runs_it_in_a_directory_of_his_own(fresh_dir: Path, state_root: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    own = fresh_dir / "own"
    own.mkdir(mode=0o700)
    os.chown(own, nobody.pw_uid, nobody.pw_gid)
    user = PostgresUser(own, state_root, nobody.pw_uid)
    try:
        found = user.started()
        assert found["home"] == str(own / "postgres")
        assert user_of(found["pid"]) == nobody.pw_uid
        with psycopg.connect(found["conninfo"]) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        os.kill(found["pid"], 0)
        user.leave()
        with pytest.raises(ProcessLookupError):
            os.kill(found["pid"], signal.SIGKILL)
    finally:
        user.kill()
