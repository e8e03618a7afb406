"""What others write reaches a terminal as text: sentences of errors, progress, names, and the operator's log."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from museworkd.client.fetch import clone as client_clone
from museworkd.client.progress import Lines, Phase, Quiet
from museworkd.client.push import push as client_push
from museworkd.client.repository import LocalRepository
from museworkd.client.transport import Remote, refusal_error
from museworkd.telemetry.logs import configure
from storage.memory.index import MemoryIndex
from storage.objects.memory import MemoryStore
from tests.deployments import with_history
from tests.http_client import PACKSTREAM, ask, push
from tests.muse import Push, frame, make_commit, make_snapshot
from tests.refused_pushes import X, around, member
from tests.scripted import scripted
from tests.servers import TOKENS, museworkd, serving

CLEAR = "\x1b[2J\x1b]0;owned\x07"
"""Clears a terminal and renames its window."""
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e]")


@pytest.mark.parametrize("style", ["json", "console"])
async def test_T26_what_a_client_sends_is_text_in_the_log_of_an_operator(tmp_path, capsys, restored_logging, style):
    async with serving(MemoryIndex(), MemoryStore(), tmp_path) as server:
        await server.make_repository()
        configure("info", style)
        await ask(server, "GET", "/alice/%1b%5b2J%1b%5d0;owned%07")
        unsafe = make_snapshot({CLEAR: X})
        history = Push(snapshots=[unsafe], commits=[make_commit(unsafe["snapshot_id"])], blobs={X: b"x"})
        assert (await push(server, history.frames()))["error"] == "unsafe_path"
    shown = capsys.readouterr().err
    assert "owned" in shown
    assert "\x1b[2J" not in shown
    assert "\x1b]" not in shown


@pytest.mark.usefixtures("expected_errors")
async def test_T26_an_error_of_the_server_is_one_line_of_plain_text(twin):
    await twin.make_repository()
    oid = make_snapshot({CLEAR: X})
    pushes = [
        frame("H", version=2, branch=CLEAR, head=X, force=False), frame("H", version=2, branch="main", head=CLEAR),
        frame(CLEAR), frame("H", version=CLEAR, branch="main", head=X), around([member(encoding=CLEAR)], 1),
        around([member(object_id=CLEAR)], 1), around([frame("C", **{CLEAR: [1], "commits": [{CLEAR: 1}]})], 0),
        Push(snapshots=[oid], commits=[make_commit(oid["snapshot_id"])], blobs={X: b"x"}).frames(),
        around([frame("C", commits=[{"commit_id": X, "snapshot_id": CLEAR}])], 0, 1),
    ]  # fmt: skip
    details = [(await push(twin, frames))["detail"] for frames in pushes]
    bodies = [
        ("POST", "/alice/x/fetch", {"want": [CLEAR]}), ("POST", "/alice/x/fetch", {CLEAR: 1, "want": CLEAR}),
        ("POST", "/api/repos", {"slug": CLEAR}), ("PATCH", "/api/repos/alice/x", {"settings": {CLEAR: 1}}),
        ("PATCH", "/api/repos/alice/x", {"default_branch": CLEAR}),
        ("POST", "/alice/x/negotiate", {"want": {CLEAR: 1}}),
    ]  # fmt: skip
    for method, target, body in bodies:
        details.append((await ask(twin, method, target, token="alice", msgpack=body)).value["detail"])
    kind = {"content-type": "text/\x1b[2J"}
    details.append((await ask(twin, "POST", "/alice/x/fetch", token="alice", headers=kind, body=b"x")).value["detail"])
    details.append((await ask(twin, "GET", "/alice/x/o/%1b%5b2J", token="alice")).value["detail"])
    for detail in details:
        assert detail.isprintable(), repr(detail)
        assert len(detail) < 1000


def test_T26_a_refusals_sentence_is_shown_as_text():
    for text in (CLEAR, "two\nlines", "\u202etxt.exe", "\x9b2J", "\r overwritten"):
        shown = str(refusal_error({"error": "malformed", "detail": text}))
        assert shown.isprintable(), repr(shown)
    assert "ü 音" in str(refusal_error({"error": "malformed", "detail": "ü 音"}))


def test_T26_a_refusals_code_is_shown_as_text():
    assert str(refusal_error({"error": CLEAR, "detail": ""})).isprintable()


class Remarks(Lines):
    """Keeps the remarks that a phase was given."""

    def __init__(self) -> None:
        self.remarks: list[str] = []

    @contextmanager
    def phase(self, name: str, total: int | None = None) -> Iterator[Phase]:
        with super().phase(name, total) as phase:
            note = phase.note
            phase.note = lambda text: (self.remarks.append(text), note(text))
            yield phase


async def cloned(server_url: str, target: Path) -> None:
    await client_clone(Remote(f"{server_url}/alice/x", TOKENS["alice"]), target, Quiet())


@pytest.mark.usefixtures("expected_errors")
async def test_T26_progress_of_a_server_is_shown_as_text(twin, tmp_path, capsys):
    history = await with_history(twin)
    await cloned(twin.url, tmp_path / "clone")
    async with scripted() as server:
        server.say({"branch_heads": {}})
        progress = frame("P", stage=CLEAR, done=1, total=None, message=CLEAR)
        meter = Remarks()
        result = frame("R", push_id="x", branch="main", head=history.head, commits_written=0, snapshots_written=0,
                       blobs_written=0, blobs_skipped=0, timings_ms={})  # fmt: skip
        server.say(progress + result, content_type=PACKSTREAM)
        with LocalRepository(tmp_path / "clone") as repository:
            await client_push(repository, Remote(f"{server.url}/alice/x", None), "main", meter)
    shown = " ".join(meter.remarks)
    assert "owned" in shown
    assert not _CONTROL.search(shown), repr(shown)
    assert "owned" not in capsys.readouterr().err  # a remark is about what goes on, and is gone with it


@pytest.mark.usefixtures("expected_errors")
async def test_T26_a_branch_name_of_a_server_is_shown_as_text(twin, tmp_path):
    history = await with_history(twin)
    await cloned(twin.url, tmp_path / "clone")
    async with scripted() as server:
        server.say({"branch_heads": {f"a{CLEAR}b": history.head}})
        arguments = ["fetch", f"{server.url}/alice/x", "-C", str(tmp_path / "clone")]
        done = await trio.to_thread.run_sync(lambda: museworkd(*arguments, check=None))
    shown = done.stdout + done.stderr
    assert "owned" in shown
    assert not _CONTROL.search(shown), repr(shown)
