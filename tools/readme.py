"""Run every command of README.md, in order, in this checkout; what CI has run already can be left out.

A block's line with ``# in the background`` is started, waited for until the server answers, and stopped with Ctrl-C at
the end.

    tools/readme.py [--without COMMAND]…
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SERVER = "http://127.0.0.1:1337/readyz"
START_S = 180
BLOCK_S = 1800


def blocks() -> list[str]:
    """Give the shell blocks of the README."""
    return re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)


def wait_ready(process: subprocess.Popen[bytes]) -> None:
    """Wait until the server answers; a process that ends is a failure."""
    give_up_at = time.monotonic() + START_S
    while time.monotonic() < give_up_at:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(SERVER, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise SystemExit("readme: the server did not come up")


def main(without: set[str]) -> int:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MUSEWORKD_")}
    background: list[subprocess.Popen[bytes]] = []
    try:
        for block in blocks():
            lines = [line for line in block.splitlines() if line.split("#")[0].strip() not in without]
            script = "\n".join(line for line in lines if "# in the background" not in line)
            for line in lines:
                if "# in the background" in line:
                    print(f"readme: starting {line}", flush=True)
                    background.append(
                        subprocess.Popen(
                            ["sh", "-c", f"exec {line}"], cwd=ROOT, env=environment, start_new_session=True
                        )
                    )
                    wait_ready(background[-1])
            if script.strip():
                print(f"readme: running\n{script}", flush=True)
                done = subprocess.run(
                    ["sh", "-eu", "-c", script], cwd=ROOT, env=environment, check=False, timeout=BLOCK_S
                )
                if done.returncode != 0:
                    print(f"readme: exit code {done.returncode}", file=sys.stderr)
                    return 1
    finally:
        for process in background:
            os.killpg(process.pid, signal.SIGINT)
        codes = [process.wait(120) for process in background]
    if not set(codes) <= {0, -signal.SIGINT}:  # make itself dies of the Ctrl-C it passes on
        print(f"readme: what ran in the background ended with {codes}", file=sys.stderr)
        return 1
    print("readme: every command ran")
    return 0


if __name__ == "__main__":
    arguments = sys.argv[1:]
    raise SystemExit(main({arguments[i + 1] for i, word in enumerate(arguments) if word == "--without"}))
