"""A dry run tells what the push then does, in the same numbers, and sends nothing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import trio

from museworkd.client import push as pushing
from museworkd.client.errors import ClientError
from museworkd.client.fetch import clone, fetch
from museworkd.client.progress import Quiet
from museworkd.client.push import Lease, Move, PushReport, push
from museworkd.client.repository import LocalRepository
from museworkd.client.transport import Remote
from tests.deployments import with_history
from tests.http_client import ask
from tests.http_client import push as push_frames
from tests.integration.cutting import cutting
from tests.muse import Push, make_commit
from tests.servers import TOKENS, Server, museworkd

pytestmark = pytest.mark.usefixtures("expected_errors")
SAME = ("branch", "head", "up_to_date", "move", "way", "commits", "blobs", "blob_bytes")
SENT = ("sent_bytes", "attempts", "blobs_spared")


def grown(history: Push, *contents: bytes, branch: str = "main", base: str | None = None) -> Push:
    """A history with commits on top of another one's, each of one more file."""
    made = Push(branch, dict(history.blobs), list(history.commits), list(history.snapshots))
    for content in contents:
        made.commit({"a": b"first", "more": content}, [base or made.head], message=content.decode())
        base = None
    return made


def first() -> Push:
    made = Push()
    made.commit({"a": b"first", "empty": b""})
    return made


class Shapes:
    """A server's repository ``x`` to push to, and a local repository that has everything."""

    def __init__(self, server: Server, work: Path) -> None:
        self.server = server
        self.work = work
        self.base = first()
        self.ours = grown(self.base, b"two", b"three")
        self.theirs = grown(self.base, b"somebody else's")

    async def local(self) -> None:
        """Get every commit by way of another repository, the branches as ``main``, ``side`` and ``theirs``."""
        await with_history(self.server, self.ours, slug="from")
        side = grown(self.ours, b"on the side", branch="side")
        for branch, made in (("side", side), ("theirs", dataclasses.replace(self.theirs, branch="theirs"))):
            made.branch = branch
            assert (await push_frames(self.server, made.frames(), repository="alice/from"))["type"] == "R"
        await clone(Remote(f"{self.server.url}/alice/from", TOKENS["alice"]), self.work, Quiet())

    async def remote(self, history: Push | None) -> None:
        """Make the repository to push to, with a history."""
        if history is None:
            await self.server.make_repository(slug="x")
        else:
            await with_history(self.server, history, slug="x")

    async def push(self, branch: str = "main", **options: object) -> PushReport:
        with LocalRepository(self.work) as repository:
            remote = Remote(f"{self.server.url}/alice/x", TOKENS["alice"])
            return await push(repository, remote, branch, Quiet(), **options)

    async def state(self) -> object:
        return (await ask(self.server, "GET", "/alice/x/refs", token="alice")).value["branch_heads"]


@pytest.fixture
async def shapes(twin: Server, tmp_path: Path) -> Shapes:
    made = Shapes(twin, tmp_path / "work")
    await made.local()
    return made


CASES = {
    "first push": (None, "main", {}, Move.CREATE, (3, 4)),
    "increment": ("base", "main", {}, Move.FAST_FORWARD, (2, 2)),
    "second branch": ("ours", "side", {}, Move.CREATE, (1, 1)),
    "a branch that is an ancestor": ("ours", "old", {}, Move.CREATE, (0, 0)),
    "up to date": ("ours", "main", {}, Move.NONE, (0, 0)),
    "forced": ("theirs", "main", {"force": True}, Move.FORCE, (2, 2)),
    "force that is not needed": ("base", "main", {"force": True}, Move.FAST_FORWARD, (2, 2)),
    "a lease that holds": ("base", "main", {"lease": "base"}, Move.FAST_FORWARD, (2, 2)),
}


@pytest.mark.parametrize("case", CASES)
async def test_a_dry_run_and_the_push_report_the_same(shapes, case):
    there, branch, options, move, (commits, blobs) = CASES[case]
    await shapes.remote(None if there is None else getattr(shapes, there))
    if branch == "old":
        with LocalRepository(shapes.work) as repository:
            repository.set_branch("old", bytes.fromhex(shapes.base.head[7:]))
    if "lease" in options:
        options = {"lease": Lease(bytes.fromhex(getattr(shapes, options["lease"]).head[7:]))}
    before = await shapes.state()
    dry = await shapes.push(branch, dry_run=True, **options)
    assert await shapes.state() == before
    real = await shapes.push(branch, **options)
    assert {name: getattr(dry, name) for name in SAME} == {name: getattr(real, name) for name in SAME}
    assert (dry.dry_run, real.dry_run) == (True, False)
    assert [getattr(dry, name) for name in SENT] == [0, 0, 0]
    assert dry.result == {}
    assert (dry.move, dry.commits, dry.blobs) == (move.value, commits, blobs)
    if not real.up_to_date:
        assert (real.result["commits_written"], real.result["blobs_written"]) == (commits, blobs)


@pytest.mark.parametrize(
    ("there", "options", "move", "code"),
    [
        ("theirs", {}, Move.NON_FAST_FORWARD, "non_fast_forward"),
        ("base", {"lease": Lease(None)}, Move.HEAD_MOVED, "head_moved"),
        ("theirs", {"force": True, "lease": Lease(bytes(32))}, Move.HEAD_MOVED, "head_moved"),
    ],
)
async def test_a_dry_run_foretells_a_refusal(shapes, there, options, move, code):
    await shapes.remote(getattr(shapes, there))
    dry = await shapes.push(dry_run=True, **options)
    assert (dry.move, Move(dry.move).refused) == (move.value, True)
    with pytest.raises(ClientError) as refused:
        await shapes.push(**options)
    assert refused.value.code == code


async def test_commits_that_are_not_here_are_in_the_way(shapes):
    """What the server has and this repository lacks cannot be below its own head."""
    await shapes.remote(grown(shapes.ours, b"somebody else's work on ours"))
    dry = await shapes.push(dry_run=True)
    assert Move(dry.move) is Move.NON_FAST_FORWARD
    assert Move((await shapes.push(dry_run=True, force=True)).move) is Move.FORCE


async def test_a_shallow_repository_does_not_foretell_what_it_cannot_know(shapes, tmp_path):
    await shapes.remote(shapes.base)
    shapes.work = tmp_path / "shallow"
    await clone(Remote(f"{shapes.server.url}/alice/from", TOKENS["alice"]), shapes.work, Quiet(), depth=1)
    assert Move((await shapes.push(dry_run=True)).move) is Move.UNKNOWN


async def test_a_dry_run_says_which_way_would_be_chosen(shapes, monkeypatch):
    await shapes.remote(None)
    assert (await shapes.push(dry_run=True)).way == "stream"
    monkeypatch.setattr(pushing, "MPACK_FROM_OBJECTS", 3)
    dry, real = await shapes.push(dry_run=True), await shapes.push()
    assert dry.way == real.way == "mpack"


async def test_a_push_sends_nothing_that_another_branch_of_the_server_leads_to(shapes, tmp_path):
    """R16: whichever branches the server has, and whether we have them as branches or only as commits."""
    await shapes.remote(shapes.theirs)
    shapes.theirs.branch = "other"
    with LocalRepository(shapes.work) as repository:
        theirs = bytes.fromhex(shapes.theirs.head[7:])
        repository.set_branch("copy", theirs)
        repository._set_ref("heads", "theirs", None)
    copy = await shapes.push("copy")
    assert (copy.commits, copy.blobs, copy.result["commits_written"]) == (0, 0, 0)
    ours = await shapes.push("main", force=True)
    assert (ours.commits, ours.blobs) == (2, 2)  # the first commit and its blobs are below the other head
    assert (await shapes.push("side")).commits == 1


async def test_a_push_sends_no_blob_that_a_head_of_another_branch_has(shapes, tmp_path):
    """R16: also where the pushed commits do not build on that branch."""
    await shapes.remote(shapes.theirs)
    alike = grown(shapes.base, b"somebody else's", b"and ours", branch="alike")
    alike.commits[-2] = make_commit(alike.commits[-2]["snapshot_id"], [shapes.base.head], message="the same by chance")
    alike.commits[-1] = make_commit(alike.commits[-1]["snapshot_id"], [alike.commits[-2]["commit_id"]], message="more")
    assert (await push_frames(shapes.server, alike.frames(), repository="alice/from"))["type"] == "R"
    shapes.work = tmp_path / "again"
    await clone(Remote(f"{shapes.server.url}/alice/from", TOKENS["alice"]), shapes.work, Quiet())
    report = await shapes.push("alike")
    assert (report.commits, report.blobs, report.result["blobs_written"]) == (2, 1, 1)


async def test_a_dry_run_asks_for_the_branches_and_for_nothing_else(shapes):
    await shapes.remote(None)
    async with cutting(shapes.server) as proxy:
        with LocalRepository(shapes.work) as repository:
            remote = Remote(f"{proxy.url}/alice/x", TOKENS["alice"])
            files = sorted(repository.directory.rglob("*"))
            await push(repository, remote, "main", Quiet(), dry_run=True)
            assert sorted(repository.directory.rglob("*")) == files
    assert proxy.requests == ["GET refs"]


async def test_the_command_line_tells_the_same_and_fails_when_the_push_would(shapes):
    await shapes.remote(shapes.theirs)
    url, here = f"{shapes.server.url}/alice/x", ["-C", str(shapes.work)]

    async def muse(*arguments: str, check: int):
        return await trio.to_thread.run_sync(lambda: museworkd(*arguments, *here, token=TOKENS["alice"], check=check))

    refused = await muse("push", url, "--dry-run", "--json", check=1)
    [dry] = json.loads(refused.stdout)["pushes"]
    assert (dry["move"], dry["dry_run"], dry["commits"]) == ("non-fast-forward", True, 2)
    assert "would be refused (non_fast_forward)" in (await muse("push", url, "-n", check=1)).stdout
    [real] = json.loads((await muse("push", url, "--force", "--json", check=0)).stdout)["pushes"]
    assert real.keys() == dry.keys()
    assert (real["commits"], real["blobs"], real["blob_bytes"]) == (dry["commits"], dry["blobs"], dry["blob_bytes"])


async def test_a_fetch_after_a_push_brings_nothing(shapes):
    await shapes.remote(None)
    await shapes.push()
    with LocalRepository(shapes.work) as repository:
        report = await fetch(repository, Remote(f"{shapes.server.url}/alice/x", TOKENS["alice"]), Quiet(), name="x")
    assert (report.commits, report.blobs) == (0, 0)
