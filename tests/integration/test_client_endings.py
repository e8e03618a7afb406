"""A client command that is cut off: by a signal with the documented exit code and one line, or killed and run again."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from museworkd.client.repository import LocalRepository
from tests.git_histories import ordinary
from tests.servers import clean_environment, museworkd

SIGNALS = [(signal.SIGINT, 130, "interrupted\n"), (signal.SIGTERM, 143, "terminated\n")]
GIT = """#!/bin/sh
case " $* " in *" diff-tree "*) echo here > "$REACHED"; read line < "$GO_ON";; esac
exec "$REAL_GIT" "$@"
"""
SIGNALLING = """
import os, sys

class Signalling:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["SIGNAL_AT"]:
            os.kill(os.getpid(), int(os.environ["SIGNAL"]))

sys.meta_path.insert(0, Signalling())
"""


@contextmanager
def importing(source: Path, target: Path, work: Path) -> Iterator[subprocess.Popen]:
    """An import that is in the middle, and stays there."""
    programs = work / "programs"
    programs.mkdir()
    (programs / "git").write_text(GIT)
    (programs / "git").chmod(0o755)
    reached, go_on = work / "reached", work / "go-on"
    os.mkfifo(reached)
    os.mkfifo(go_on)
    environment = clean_environment(
        PATH=f"{programs}:{os.environ['PATH']}", REAL_GIT=shutil.which("git"), REACHED=str(reached), GO_ON=str(go_on)
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "museworkd.cli.main", "git-import", str(source), str(target)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True,
    )  # fmt: skip
    try:
        with reached.open() as stream:
            assert stream.read() == "here\n"
        yield process
    finally:
        process.kill()
        os.close(os.open(go_on, os.O_RDWR))  # git may be gone already: nobody needs to be there to read
        process.communicate()


def test_a_killed_import_is_no_repository_and_can_be_run_again(tmp_path: Path, work: Path) -> None:
    source, target = ordinary(tmp_path / "git", commits=5), work / "here"
    with importing(source, target, work) as process:
        busy = museworkd("git-import", str(source), str(target), check=1)
        process.kill()
        process.wait()
    assert "another command is filling" in busy.stderr
    assert "was not finished; run that command again" in museworkd("verify", str(target), check=1).stderr
    museworkd("git-import", str(source), str(target))
    museworkd("verify", str(target), "--git", str(source))
    assert [path.name for path in target.iterdir()] == [".muse"]


def test_what_a_killed_import_left_gives_way_to_a_clone_or_to_nothing(work: Path) -> None:
    (work / "here" / ".muse.incomplete" / "packs").mkdir(parents=True)
    (work / "here" / ".muse.incomplete" / "repo.json").write_text("{}")
    failed = museworkd("git-import", str(work / "nothing"), str(work / "here"), check=1)
    assert "does not exist" in failed.stderr
    assert not (work / "here").exists()


def test_a_directory_of_the_user_stays_when_an_import_fails(work: Path) -> None:
    (work / "here").mkdir()
    museworkd("git-import", str(work / "nothing"), str(work / "here"), check=1)
    assert list((work / "here").iterdir()) == []


@pytest.mark.parametrize(("number", "code", "line"), SIGNALS)
def test_a_signal_ends_an_import_and_leaves_nothing(
    tmp_path: Path, work: Path, number: signal.Signals, code: int, line: str
) -> None:
    with importing(ordinary(tmp_path / "git", commits=5), work / "here", work) as process:
        process.send_signal(number)
        process.wait(60)
        err = process.stderr.readline()
    assert (process.returncode, err) == (code, line)
    assert not (work / "here").exists()


@pytest.mark.parametrize(("number", "code", "line"), SIGNALS)
def test_a_signal_ends_a_push_that_waits_for_its_server(
    tmp_path: Path, work: Path, number: signal.Signals, code: int, line: str
) -> None:
    museworkd("git-import", str(ordinary(tmp_path / "git", commits=3)), str(work / "here"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/ada/engine"
        process = subprocess.Popen(
            [sys.executable, "-m", "museworkd.cli.main", "push", url, "-C", str(work / "here")],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment(), text=True,
        )  # fmt: skip
        connection, _ = server.accept()
        with connection:
            assert connection.recv(4)
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (code, "", line)


@pytest.mark.parametrize(("number", "code", "line"), SIGNALS)
@pytest.mark.parametrize("moment", ["click", "museworkd.cli.client_commands", "msgpack", "museworkd.client.verify"])
def test_a_signal_while_a_command_starts_ends_it_the_same_way(
    work: Path, moment: str, number: signal.Signals, code: int, line: str
) -> None:
    (work / "sitecustomize.py").write_text(SIGNALLING)
    environment = clean_environment(PYTHONPATH=str(work), SIGNAL_AT=moment, SIGNAL=str(int(number)))
    done = subprocess.run(
        [sys.executable, "-m", "museworkd.cli.main", "verify", str(work)],
        capture_output=True, text=True, env=environment, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (code, "", line)


def test_a_block_that_fails_leaves_no_repository(work: Path) -> None:
    with pytest.raises(RuntimeError), LocalRepository.fresh(work / "here"):
        raise RuntimeError
    assert not (work / "here").exists()
