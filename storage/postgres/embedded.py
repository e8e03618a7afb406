"""A PostgreSQL of our own: started, shared, stopped and recovered by whoever needs it.

The server is an ordinary PostgreSQL with durable defaults, reachable only through a Unix socket in a directory that
only its user can enter. Several processes may use one cluster (a daemon, a command line beside it): each
holds a shared lock on ``users.lock``; starting and stopping happen under ``control.lock``; whoever leaves last
stops the server. Locks are the kernel's, so a process that is killed leaves none behind, and a server that
outlives its daemon is found and used by the next one.

PostgreSQL refuses to run as root. As root the server runs as an unprivileged system user, with data and binaries
where that user can reach them; nobody's directories are opened up for it. A cluster kept apart is found by a link in
the data directory, so that it goes wherever the directory goes and never serves another one made in its place.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from storage.errors import IndexUnavailable, SchemaMismatch
from storage.objects.durability import sync_directory
from storage.postgres.binaries import (
    Account,
    find_binaries,
    major_version,
    make_public_directory,
    owner_account,
    reachable,
    server_account,
)

START_TIMEOUT_S = 120.0
"""Crash recovery replays the write-ahead log since the last checkpoint: seconds, rarely more."""
STOP_TIMEOUT_S = 30.0
_START_ATTEMPTS = 5
_RESTART_PAUSE_S = 0.5
_POLL_S = 0.02
_LOCK_TIMEOUT_S = 180.0
_LOG_MOST_BYTES = 10 * 1024 * 1024
_SOCKET_MOST_BYTES = 100
"""sockaddr_un has 108 bytes; PostgreSQL appends ``/.s.PGSQL.5432``."""
_SETTINGS = {
    "listen_addresses": "", "max_connections": "64", "shared_buffers": "128MB", "jit": "off",
    "log_line_prefix": "%m [%p] ", "wal_compression": "on", "max_wal_size": "2GB",
}  # fmt: skip
STATE_ROOT = Path("/var/lib/museworkd")
"""Where root keeps what its own data directory cannot hold for the server's user."""


class EmbeddedPostgres:
    """One cluster under ``data_dir/postgres`` (or below :data:`STATE_ROOT` for root, see the module).

    Raises:
        IndexUnavailable: the cluster is where its user cannot get any more.
    """

    def __init__(self, data_dir: Path, state_root: Path = STATE_ROOT) -> None:
        self._beside = data_dir.resolve() / "postgres"
        self._account = _account_for(self._beside)
        self._home = _home(self._beside, self._account, state_root)
        self._data = self._home / "data"
        self._state_root = state_root
        self._users_lock: int | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def conninfo(self) -> str:
        """How to connect; sound once :meth:`start` has returned."""
        return f"host={self._socket_directory()} user=postgres dbname=museworkd"

    @property
    def home(self) -> Path:
        """The directory that holds the cluster, its locks and its log."""
        return self._home

    def start(self) -> None:
        """Make sure the server runs and count this process among its users. Blocking.

        Raises:
            IndexUnavailable: it cannot be started; the message quotes its log.
            SchemaMismatch: the cluster was made by another major version.
        """
        self._account.make_directory(self._home)
        with _locked(self._home / "control.lock"):
            if self._users_lock is None:
                self._users_lock = _open_lock(self._home / "users.lock")
                fcntl.flock(self._users_lock, fcntl.LOCK_SH)
            try:
                self._ensure_running()
            except BaseException:
                self._leave()
                raise

    def stop(self) -> None:
        """Leave; stop the server when nobody else uses it. Blocking."""
        if self._users_lock is None:
            return
        with _locked(self._home / "control.lock"):
            try:
                fcntl.flock(self._users_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass  # somebody else still uses it
            else:
                self._shut_down()
            self._leave()

    def alive(self) -> bool:
        """Tell whether the server process is there."""
        pid = self._postmaster_pid()
        return pid is not None and self._exists(pid)

    def kill(self) -> None:
        """Kill the server like a crash would; for tests of recovery."""
        pid = self._postmaster_pid()
        if pid is not None and self._exists(pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            self._wait_gone(pid)

    def destroy(self) -> None:
        """Kill the server and remove the cluster and all that is in it. Blocking."""
        sockets = self._socket_directory()
        self.kill()
        for directory in (sockets, self._home):
            shutil.rmtree(directory, ignore_errors=True)
        self._leave()
        if self._beside.is_symlink():
            self._beside.unlink()

    def _ensure_running(self) -> None:
        if self.alive():
            self._wait_ready(self._postmaster_pid())
            return
        binaries = find_binaries(self._account, self._state_root)
        if not _has_cluster(self._home):
            self._make_cluster(binaries)
        made_by, ours = (self._data / "PG_VERSION").read_text().strip(), major_version(binaries)
        if made_by != ours:
            raise SchemaMismatch(
                f"the cluster in {self._data} was made by PostgreSQL {made_by}, the binaries here are {ours}: "
                "install the matching ones, or dump and restore"
            )
        log = self._home / "postgres.log"
        if log.exists() and log.stat().st_size > _LOG_MOST_BYTES:
            log.replace(log.with_suffix(".log.1"))
        arguments = [str(binaries / "postgres"), "-D", str(self._data), "-k", str(self._socket_directory())]
        for name, value in _SETTINGS.items():
            arguments += ["-c", f"{name}={value}"]
        for attempt in range(1, _START_ATTEMPTS + 1):
            with log.open("ab") as output:
                _give_to_owner(output.fileno(), self._home)
                self._process = subprocess.Popen(
                    arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=self._home,
                    env=_environment(), start_new_session=True, **self._account.process_arguments(),
                )  # fmt: skip
            try:
                self._wait_ready(self._process.pid)
            except IndexUnavailable:
                # the children of a killed server keep its shared memory for a moment
                if attempt == _START_ATTEMPTS or self.alive():
                    raise
                time.sleep(_RESTART_PAUSE_S)
            else:
                return

    def _make_cluster(self, binaries: Path) -> None:
        fresh = self._home / "data.new"
        shutil.rmtree(fresh, ignore_errors=True)
        done = subprocess.run(
            [
                str(binaries / "initdb"), "-D", str(fresh), "-U", "postgres", "-A", "trust", "-E", "UTF8",
                "--locale=C.UTF-8", "--data-checksums", "--no-instructions",
            ],
            capture_output=True, timeout=START_TIMEOUT_S, cwd=self._home, env=_environment(), check=False,
            **self._account.process_arguments(),
        )  # fmt: skip
        if done.returncode != 0:
            raise IndexUnavailable(f"initdb failed: {done.stderr.decode(errors='replace').strip()[-500:]}")
        shutil.rmtree(self._data, ignore_errors=True)  # what an interrupted initdb of old left
        fresh.rename(self._data)
        sync_directory(self._home)  # or a power cut might leave ``data.new``, which is thrown away

    def _wait_ready(self, pid: int | None) -> None:
        give_up_at = time.monotonic() + START_TIMEOUT_S
        host = self._socket_directory()
        while True:
            try:
                with psycopg.connect(f"host={host} user=postgres dbname=postgres", autocommit=True) as connection:
                    row = connection.execute("SELECT 1 FROM pg_database WHERE datname = 'museworkd'").fetchone()
                    if row is None:
                        connection.execute("CREATE DATABASE museworkd")
                    return
            except psycopg.OperationalError as error:
                gone = pid is None or not self._exists(pid)
                if gone or time.monotonic() > give_up_at:
                    raise IndexUnavailable(
                        f"the embedded PostgreSQL did not start ({str(error).strip()}); {self._log_tail()}"
                    ) from error
            time.sleep(_POLL_S)

    def _shut_down(self) -> None:
        pid = self._postmaster_pid()
        if pid is None or not self._exists(pid):
            return
        for how in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):  # fast, immediate, and then no more asking
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, how)
            if self._wait_gone(pid):
                return

    def _exists(self, pid: int) -> bool:
        if self._process is not None and self._process.pid == pid:
            return self._process.poll() is None
        try:
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            return False
        return os.fsencode(self._data) in arguments  # the pid may be another process's by now

    def _wait_gone(self, pid: int) -> bool:
        give_up_at = time.monotonic() + STOP_TIMEOUT_S
        while time.monotonic() < give_up_at:
            if not self._exists(pid):
                return True
            time.sleep(_POLL_S)
        return False

    def _leave(self) -> None:
        if self._users_lock is not None:
            os.close(self._users_lock)
            self._users_lock = None

    def _postmaster_pid(self) -> int | None:
        try:
            first = (self._data / "postmaster.pid").read_text().partition("\n")[0]
        except FileNotFoundError:
            return None
        return int(first) if first.isdigit() else None

    def _socket_directory(self) -> Path:
        directory = self._home / "run"
        if len(os.fsencode(directory)) > _SOCKET_MOST_BYTES - len("/.s.PGSQL.5432"):
            name = hashlib.sha256(os.fsencode(self._home)).hexdigest()[:16]
            directory = Path(tempfile.gettempdir()) / f"museworkd-{self._account.uid}-{name}"
        self._account.make_directory(directory)
        facts = directory.lstat()
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != self._account.uid or facts.st_mode & 0o077:
            raise IndexUnavailable(f"{directory} is not a private directory of the database's user")
        return directory

    def _log_tail(self) -> str:
        try:
            lines = (self._home / "postgres.log").read_text(errors="replace").splitlines()[-5:]
        except FileNotFoundError:
            return "it wrote no log"
        return "its log ends: " + " | ".join(lines)


@contextmanager
def embedded_postgres(data_dir: Path) -> Iterator[EmbeddedPostgres]:
    """Use the embedded PostgreSQL for the length of a block."""
    server = EmbeddedPostgres(data_dir)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _open_lock(path: Path) -> int:
    """Open a lock's file; one that root makes belongs to whom the directory belongs to, who has to open it too."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    _give_to_owner(fd, path.parent)
    return fd


def _give_to_owner(fd: int, directory: Path) -> None:
    if os.geteuid() == 0:
        facts = directory.stat()
        os.fchown(fd, facts.st_uid, facts.st_gid)


def _account_for(beside: Path) -> Account:
    """Choose who runs the server: of a cluster that is there its owner, else of a data directory its owner."""
    chosen = server_account()
    if chosen.foreign:
        for path in (beside / "data", beside.parent):
            if path.is_dir() and path.stat().st_uid != 0:
                return owner_account(path)
    return chosen


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    fd = _open_lock(path)
    try:
        give_up_at = time.monotonic() + _LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up_at:
                    raise IndexUnavailable(f"{path} is held by another process") from None
                time.sleep(_POLL_S)
        yield
    finally:
        os.close(fd)


def _home(beside: Path, account: Account, state_root: Path) -> Path:
    if not account.foreign:
        return beside
    data_dir = beside.parent
    missing = [path for path in (data_dir, *data_dir.parents) if not path.exists()]
    data_dir.mkdir(parents=True, exist_ok=True)
    for path in missing:  # who runs the server passes through what is made here, and nobody looks around in it
        path.chmod(0o711)
    if beside.is_symlink():  # it stays where it was made, whoever may enter the data directory by now
        if not beside.is_dir():
            raise IndexUnavailable(
                f"{beside} leads to a cluster that is gone: bring it back, or remove the link to begin anew"
            )
        return beside.resolve()
    if reachable(data_dir, account):
        return beside
    if _has_cluster(beside):
        raise IndexUnavailable(
            f"{beside} holds a cluster, and its user {account.name} cannot enter {data_dir} any more: give it the "
            "right to, or move the cluster"
        )
    return _make_home_apart(beside, account, state_root)


def _make_home_apart(link: Path, account: Account, state_root: Path) -> Path:
    """Make a home that only this link leads to: a data directory made anew must not find the cluster of the old one."""
    make_public_directory(state_root)
    home = Path(tempfile.mkdtemp(prefix="cluster-", dir=state_root))
    os.chown(home, account.uid, account.gid)
    try:
        link.symlink_to(home)
    except FileExistsError:  # another process was first
        home.rmdir()
    return link.resolve()


def _has_cluster(home: Path) -> bool:
    return (home / "data" / "PG_VERSION").exists()


def _environment() -> dict[str, str]:
    """Give what the server sees of our environment: no secrets, a fixed locale."""
    return {"PATH": os.defpath, "LC_ALL": "C.UTF-8", "TZ": "UTC"}
