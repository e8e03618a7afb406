"""A process that uses an embedded PostgreSQL until it is told to leave.

    python -m tests.integration.postgres_user DATA_DIR STATE_ROOT [UID]

Having started it, it writes one line of JSON and waits for a line. With a uid it becomes that user first.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from storage.errors import StorageError
from storage.postgres.embedded import EmbeddedPostgres


class PostgresUser:
    """The other end."""

    def __init__(self, data_dir: Path, state_root: Path, uid: int | None = None) -> None:
        arguments = [str(data_dir), str(state_root), *([] if uid is None else [str(uid)])]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.postgres_user", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
        )  # fmt: skip

    def started(self) -> dict[str, object]:
        """Wait until it uses the server; gives what it says about it."""
        found = json.loads(self._process.stdout.readline())
        assert "error" not in found, found
        return found

    def leave(self) -> None:
        self._process.stdin.write("\n")
        self.join()

    def kill(self) -> None:
        self._process.kill()
        self.join()

    def join(self) -> None:
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()


def main(data_dir: str, state_root: str, uid: str | None = None) -> None:
    if uid is not None:
        os.setgroups([])
        os.setgid(int(uid))
        os.setuid(int(uid))
    try:
        server = EmbeddedPostgres(Path(data_dir), Path(state_root))
        server.start()
    except StorageError as error:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}), flush=True)
        return
    found = {"conninfo": server.conninfo, "home": str(server.home), "pid": server._postmaster_pid()}
    print(json.dumps(found), flush=True)
    sys.stdin.readline()
    server.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
