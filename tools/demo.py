"""The demo behind ``make demo``: a real git history through a real daemon and back, proved against git.

Everything is done with the commands a user has. Nothing is left running; what was made stays under ``var/demo``. With
``--store s3`` the bytes lie in a real S3 server that is started for it and keeps them in memory: Ceph's gateway where
it is installed, moto's server otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from storage.errors import IndexUnavailable
from storage.postgres.embedded import EmbeddedPostgres

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests import s3_server  # noqa: E402 - the tests are not installed

DEMO = ROOT / "var" / "demo"
START_S = 180
STOP_S = 90
console = Console(stderr=True)


class Demo:
    """One run."""

    def __init__(self, source: Path, store: str) -> None:
        self.source = source
        self.store = store
        self.place = "object store"
        self.way = "stream" if store == "files" else "mpack"  # which goes to the store itself
        self.command = [sys.executable, "-m", "museworkd.cli.main"]
        self.config = ["--data-dir", str(DEMO / "data")]
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("MUSEWORKD_")}
        self.seconds: dict[str, float] = {}
        self.daemon: subprocess.Popen[str] | None = None

    def run(self) -> int:
        if (DEMO / "data").is_dir():
            with contextlib.suppress(IndexUnavailable):  # what is gone already
                EmbeddedPostgres(DEMO / "data").destroy()
        shutil.rmtree(DEMO, ignore_errors=True)
        DEMO.mkdir(parents=True)
        with contextlib.ExitStack() as stack:
            if self.store == "s3":
                self.use_s3(stack)
            self.go_through()
        return 0

    def use_s3(self, stack: contextlib.ExitStack) -> None:
        """Start an S3 server, and let the daemon keep its bytes there."""
        with self.timed("S3"):
            server = stack.enter_context(s3_server.shared_server(DEMO / "s3-server"))
            bucket = server.new_bucket()
        if server.kind != "ceph":
            console.print("demo: Ceph's gateway is not installed; moto's server stands in, which checks no signatures")
        self.place = f"{'a Ceph' if server.kind == 'ceph' else 'a moto'} S3 store at {server.endpoint}"
        self.environment |= {f"MUSEWORKD_{k.upper().replace('.', '_')}": v for k, v in server.settings(bucket).items()}
        self.environment |= server.variables

    def go_through(self) -> None:
        """From a git history to a verified clone of it."""
        try:
            with self.timed("start"):
                url = self.start_daemon()
            self.muse("repo", "create", "demo/history", "--relaxed-paths", *self.config)
            token = self.muse("token", "create", "demo", "--scope", "write", "--expires", "1d", *self.config)
            self.environment["MUSEWORKD_TOKEN"] = str(token["token"])
            with self.timed("import"):
                imported = self.muse("git-import", str(self.source), str(DEMO / "work"))
            with self.timed("push"):
                sent = ["--all", "--way", self.way, "-C", str(DEMO / "work")]
                pushed = self.muse("push", f"{url}/demo/history", *sent)["pushes"]
            with self.timed("clone"):
                cloned = self.muse("clone", f"{url}/demo/history", str(DEMO / "clone"))
            with self.timed("verify"):
                verified = self.muse("verify", str(DEMO / "clone"), "--git", str(self.source))
        finally:
            with self.timed("stop"):
                self.stop_daemon()
        self.show(imported, pushed, cloned, verified)

    def start_daemon(self) -> str:
        with (DEMO / "daemon.log").open("w") as log:
            self.daemon = subprocess.Popen(
                [*self.command, "serve", *self.config, "--bind", "127.0.0.1:0", "--json"],
                stdout=subprocess.PIPE, stderr=log, text=True, env=self.environment, start_new_session=True,
            )  # fmt: skip
        assert self.daemon.stdout is not None
        signal.signal(signal.SIGALRM, lambda *_: self.fail("the daemon did not start in time"))
        signal.alarm(START_S)
        line = self.daemon.stdout.readline()
        signal.alarm(0)
        if not line:
            self.fail("the daemon did not start")
        return str(json.loads(line)["url"])

    def stop_daemon(self) -> None:
        if self.daemon is None:
            return
        self.daemon.terminate()
        try:
            code = self.daemon.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.daemon.kill()
            self.daemon.wait()
            raise
        if code != 0:
            console.print(f"the daemon ended with {code}; see {DEMO / 'daemon.log'}")

    def muse(self, *arguments: str) -> dict[str, object]:
        done = subprocess.run(
            [*self.command, *arguments, "--json"], stdout=subprocess.PIPE, text=True, env=self.environment, check=False
        )
        if done.returncode != 0:
            self.fail(f"`museworkd {arguments[0]}` failed with exit code {done.returncode}")
        return dict(json.loads(done.stdout))

    def timed(self, phase: str) -> Timed:
        return Timed(self.seconds, phase)

    def show(self, imported: dict, pushed: list, cloned: dict, verified: dict) -> None:
        table = Table(title=f"{self.source} through museworkd and back", title_justify="left")
        for column in ("phase", "seconds", "what"):
            table.add_column(column, justify="right" if column == "seconds" else "left")
        sent = sum(push["sent_bytes"] for push in pushed)
        branches = ", ".join(push["branch"] for push in pushed[:4]) + ("…" if len(pushed) > 4 else "")
        rows = {
            **({"S3": "a store for the bytes, started for this"} if self.store == "s3" else {}),
            "start": f"daemon with its own PostgreSQL and {self.place}",
            "import": f"{imported['commits']} commits, {imported['snapshots']} snapshots, {imported['blobs']} blobs, "
            f"{imported['blob_bytes'] / 1e6:.1f} MB from git",
            "push": f"{sum(p['commits'] for p in pushed)} commits, {sum(p['blobs'] for p in pushed)} blobs, "
            f"{sent / 1e6:.1f} MB sent by {self.way} ({len(pushed)} branches: {branches})",
            "clone": f"{cloned['commits']} commits, {cloned['blobs']} blobs, "
            f"{cloned['received_bytes'] / 1e6:.1f} MB received, {cloned['files']} files checked out",
            "verify": f"{verified['git_files']} files of {verified['git_commits']} commits byte-identical with git's",
            "stop": "drained, nothing is left running",
        }
        for phase, what in rows.items():
            table.add_row(phase, f"{self.seconds[phase]:.2f}", what)
        Console(width=None if sys.stdout.isatty() else 140).print(table)

    def fail(self, why: str) -> None:
        log = DEMO / "daemon.log"
        tail = log.read_text(errors="replace").splitlines()[-10:] if log.exists() else []
        console.print(f"demo: {why}", *tail, sep="\n")
        raise SystemExit(1)


class Timed:
    def __init__(self, seconds: dict[str, float], phase: str) -> None:
        self.seconds, self.phase = seconds, phase

    def __enter__(self) -> None:
        self.began = time.monotonic()

    def __exit__(self, *exc: object) -> None:
        self.seconds[self.phase] = time.monotonic() - self.began


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Push a git history in and clone it back, verified.")
    parser.add_argument("source", type=Path)
    parser.add_argument("--store", choices=["files", "s3"], default="files")
    given = parser.parse_args()
    raise SystemExit(Demo(given.source.resolve(), given.store).run())
