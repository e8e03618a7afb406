"""A real S3 server for tests: Ceph's gateway over one monitor and one storage daemon, all on the loopback.

One server serves all workers of a test run. It is started by a keeper process when the first test asks for it, and
stopped by the keeper when the last user is gone, however that one ended: a user holds a lock on a file, and the system
releases it with the process. Objects are kept in memory.

Where Ceph is not installed, moto's server stands in. It checks no signatures, so tests that need a store that does ask
for ``ceph_server`` and are skipped there; the end of the run says so.

``python -m tests.s3_server DIRECTORY`` runs one in the foreground until end of file on its standard input.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import botocore.session
from botocore.config import Config as ClientConfig

PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "ceph", "ceph-authtool", "monmaptool", "setpriv")
START_S = 90
STEP_S = 40
_POLL_S = 0.05
_READY = "ready.json"
_keepers: list[subprocess.Popen] = []
"""Started by this process; they end when nobody uses them any more, which may be after it."""

_CONFIGURATION = """\
[global]
fsid = {fsid}
mon_host = [v2:127.0.0.1:{mon},v1:127.0.0.1:{mon_v1}]
mon_initial_members = a
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
keyring = {home}/keyring
mon_data = {home}/mon
osd_data = {home}/osd
run_dir = {home}
admin_socket =
log_file = {home}/$name.log
log_to_stderr = false
mon_cluster_log_file = {home}/cluster.log
mon_allow_pool_size_one = true
mon_warn_on_pool_no_redundancy = false
mon_data_avail_crit = 1
mon_osd_full_ratio = 0.99
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 2
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
osd_objectstore = memstore
memstore_device_bytes = 8G
osd_op_num_shards = 2
osd_op_num_threads_per_shard = 1
osd_scrub_begin_week_day = 0
osd_max_object_name_len = 1024
mon_tick_interval = 1
paxos_propose_interval = 0.05
paxos_min_wait = 0.01
[client.admin]
rgw_data = {home}/rgw
rgw_frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw_thread_pool_size = 64
rgw_zone = default
rgw_enable_gc_threads = false
rgw_enable_lc_threads = false
rgw_enable_quota_threads = false
rgw_run_sync_thread = false
rgw_enable_usage_log = false
rgw_bucket_default_quota_max_objects = -1
"""


@dataclass(frozen=True)
class S3Server:
    """A running server, and what a client needs to use it."""

    endpoint: str
    access_key: str
    secret_key: str
    kind: str
    """``ceph`` or ``moto``."""
    region: str = "us-east-1"
    _client: list = field(default_factory=list, repr=False, compare=False)

    @property
    def checks_signatures(self) -> bool:
        return self.kind == "ceph"

    def settings(self, bucket: str) -> dict[str, str]:
        """The settings by which a daemon keeps its objects in a bucket."""
        return {"store.url": f"s3://{bucket}/museworkd", "store.endpoint": self.endpoint, "store.region": self.region}

    @property
    def variables(self) -> dict[str, str]:
        """The credentials, as the environment of a process has them."""
        return {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key}

    @property
    def credentials_file(self) -> str:
        """The credentials, as they stand in a file."""
        return "\n".join(["[default]", *(f"{name.lower()} = {value}" for name, value in self.variables.items()), ""])

    def client(self) -> object:
        """A plain client of the server's, for what a test prepares or looks at; blocking."""
        if not self._client:
            self._client.append(
                botocore.session.get_session().create_client(
                    "s3",
                    endpoint_url=self.endpoint,
                    region_name=self.region,
                    aws_access_key_id=self.access_key,
                    aws_secret_access_key=self.secret_key,
                    config=ClientConfig(signature_version="s3v4", s3={"addressing_style": "path"}),
                )
            )
        return self._client[0]

    def new_bucket(self) -> str:
        """Make an empty bucket with a name nobody else has."""
        name = f"t-{uuid.uuid4().hex[:20]}"
        self.client().create_bucket(Bucket=name)
        return name

    def keys(self, bucket: str, prefix: str = "") -> dict[str, int]:
        """What lies in the store of a bucket, with sizes."""
        store = "museworkd/"
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=store + prefix)
        return {row["Key"].removeprefix(store): row["Size"] for page in pages for row in page.get("Contents", [])}


def installed() -> bool:
    """Tell whether Ceph's programs are there; ``MUSEWORKD_TEST_S3=moto`` does as if they were not."""
    return os.environ.get("MUSEWORKD_TEST_S3") != "moto" and all(shutil.which(program) for program in PROGRAMS)


@contextlib.contextmanager
def shared_server(place: Path, keep_in: Path | None = None) -> Iterator[S3Server]:
    """Use the server of a test run, whose processes all name the same ``place``; it is started if there is none."""
    place.mkdir(parents=True, exist_ok=True)
    with (place / "users").open("a+b") as users, (place / "starting").open("a+b") as starting:
        fcntl.lockf(starting, fcntl.LOCK_EX)  # one starts it, the others wait
        fcntl.lockf(users, fcntl.LOCK_SH)  # after a keeper that is just ending
        if not (place / _READY).exists():
            _start_keeper(place, keep_in)
        fcntl.lockf(starting, fcntl.LOCK_UN)
        server = S3Server(**json.loads((place / _READY).read_text()))
        server.client()
        try:
            yield server
        finally:
            server.client().close()


def _start_keeper(place: Path, keep_in: Path | None) -> None:
    with (place / "keeper.log").open("wb") as log:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "tests.s3_server", str(place), "--shared", *([str(keep_in)] if keep_in else [])],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            cwd=Path(__file__).resolve().parent.parent,
        )  # fmt: skip
    _keepers.append(keeper)
    ends = time.monotonic() + START_S
    while not (place / _READY).exists():
        if keeper.poll() is not None or time.monotonic() > ends:
            if keeper.poll() is None:
                keeper.terminate()
                keeper.wait(STEP_S)
            raise AssertionError(f"the S3 server did not start:\n{(place / 'keeper.log').read_text()[-6000:]}")
        time.sleep(_POLL_S)


@contextlib.contextmanager
def running_server(home: Path) -> Iterator[S3Server]:
    """Run a server of one's own with its files under ``home``."""
    with contextlib.ExitStack() as stack:
        try:
            yield _start_ceph(home, stack) if installed() else _start_moto(home, stack)
        except BaseException:
            for path in sorted(home.glob("*.out")) + sorted(home.glob("*.log")):
                print(f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}", file=sys.stderr, flush=True)
            raise


def _start_ceph(home: Path, stack: contextlib.ExitStack) -> S3Server:
    """Make a cluster of one monitor and one storage daemon, and a gateway to it."""
    mon, mon_v1, port = _free_ports(3)
    configuration, keyring, fsid = home / "ceph.conf", str(home / "keyring"), str(uuid.uuid4())
    configuration.write_text(_CONFIGURATION.format(home=home, fsid=fsid, mon=mon, mon_v1=mon_v1, port=port))
    for name in ("mon", "osd", "rgw"):
        (home / name).mkdir()
    named = ["-c", str(configuration)]
    monitors = f"[v2:127.0.0.1:{mon},v1:127.0.0.1:{mon_v1}]"
    _do(home, "monmaptool", "--create", "--addv", "a", monitors, "--fsid", fsid, str(home / "monmap"))
    _key(home, "mon.", "--create-keyring", mon="allow *")
    _key(home, "client.admin", mon="allow *", osd="allow *", mgr="allow *")
    _key(home, "osd.0", mon="allow profile osd", osd="allow *")
    _do(home, "ceph-mon", *named, "--mkfs", "-i", "a", "--monmap", str(home / "monmap"), "--keyring", keyring)
    _run(home, stack, "ceph-mon", *named, "-i", "a", "-f")
    osd = str(uuid.uuid4())
    _do(home, "ceph", *named, "osd", "new", osd)
    _do(home, "ceph", *named, "auth", "import", "-i", keyring)
    _do(home, "ceph-osd", *named, "-i", "0", "--mkfs", "--osd-uuid", osd)
    _do(home, "ceph", *named, "osd", "crush", "add", "osd.0", "1.0", "host=h", "root=default")
    _run(home, stack, "ceph-osd", *named, "-i", "0", "-f")
    access, secret = "museworkd-tests", uuid.uuid4().hex
    _do(
        home, "radosgw-admin", *named, "-n", "client.admin", "user", "create", "--uid=tests",
        "--display-name=tests", f"--access-key={access}", f"--secret={secret}", "--max-buckets=100000",
    )  # fmt: skip
    gateway = _run(home, stack, "radosgw", *named, "-n", "client.admin", "-f")
    _wait_for_port(port, gateway)
    return S3Server(f"http://127.0.0.1:{port}", access, secret, "ceph")


def _key(home: Path, name: str, *options: str, **rights: str) -> None:
    caps = [word for right in rights.items() for word in ("--cap", *right)]
    _do(home, "ceph-authtool", str(home / "keyring"), *options, "--gen-key", "-n", name, *caps)


def _start_moto(home: Path, stack: contextlib.ExitStack) -> S3Server:
    (port,) = _free_ports(1)
    program = "from moto.server import main; main()"
    process = _run(home, stack, sys.executable, "-c", program, "-H", "127.0.0.1", "-p", str(port))
    _wait_for_port(port, process)
    return S3Server(f"http://127.0.0.1:{port}", "museworkd-tests", "no-secret", "moto")


def _do(home: Path, *arguments: str) -> None:
    """Run one step to its end."""
    began = time.monotonic()
    done = subprocess.run(arguments, stdin=subprocess.DEVNULL, capture_output=True, timeout=STEP_S, check=False)
    print(f"{time.monotonic() - began:6.2f} s {done.returncode} {arguments[0]} {arguments[-1]}", flush=True)
    if done.returncode != 0:
        raise RuntimeError(f"{arguments}: {done.stdout[-500:]!r} {done.stderr[-1500:]!r}")


def _run(home: Path, stack: contextlib.ExitStack, *arguments: str) -> subprocess.Popen:
    """Run a daemon until the stack is left; it does not outlive this process, however that ends."""
    with (home / f"{Path(arguments[0]).name}.out").open("wb") as output:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *arguments],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=home,
        )  # fmt: skip
    stack.callback(process.wait)
    stack.callback(process.kill)
    return process


def _free_ports(count: int) -> list[int]:
    """Give ports nobody listens on, below those the system gives to whoever asks for any."""
    found: list[int] = []
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with contextlib.suppress(OSError), socket.socket() as tried:
            tried.bind(("127.0.0.1", port))
            found.append(port)
            if len(found) == count:
                return found
    raise RuntimeError("no free ports")


def _wait_for_port(port: int, process: subprocess.Popen) -> None:
    ends = time.monotonic() + STEP_S
    while time.monotonic() < ends:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(_POLL_S)
    raise RuntimeError("the server does not listen")


def _keep(place: Path, shared: bool, keep_in: Path | None) -> None:
    """Run a server until nobody uses it."""
    home = Path(tempfile.mkdtemp(prefix="mw-s3-", dir=keep_in))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        with running_server(home) as server, (place / "users").open("a+b") as users:
            facts = {name: getattr(server, name) for name in ("endpoint", "access_key", "secret_key", "kind")}
            (place / "ready.new").write_text(json.dumps(facts))
            (place / "ready.new").rename(place / _READY)
            print(json.dumps(facts), flush=True)
            if shared:
                fcntl.lockf(users, fcntl.LOCK_EX)  # waits for the last user; a new one waits for our end
            else:
                sys.stdin.read()
            (place / _READY).unlink(missing_ok=True)
    finally:
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    _keep(Path(sys.argv[1]), "--shared" in sys.argv, Path(sys.argv[3]) if len(sys.argv) > 3 else None)
