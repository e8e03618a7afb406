"""Pushing several branches: each is tried, each is told of, and a dry run counts as the push then does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio

from museworkd.client.errors import ClientError
from museworkd.client.fetch import clone
from museworkd.client.progress import Quiet
from museworkd.client.push import Lease, push
from museworkd.client.repository import LocalRepository
from museworkd.client.transport import Remote
from tests.deployments import with_history
from tests.http_client import push as push_frames
from tests.integration.cutting import cutting
from tests.muse import Push
from tests.servers import TOKENS, Server, museworkd

pytestmark = pytest.mark.usefixtures("expected_errors")
SAME = ("branch", "head", "up_to_date", "move", "way", "commits", "blobs", "blob_bytes")


def grown(base: Push, branch: str, *contents: bytes) -> Push:
    made = Push(branch, dict(base.blobs), list(base.commits), list(base.snapshots))
    for content in contents:
        made.commit({"a": b"first", branch: content}, message=content.decode())
    return made


def first() -> Push:
    made = Push()
    made.commit({"a": b"first"})
    return made


@pytest.fixture
async def work(twin: Server, tmp_path: Path) -> Path:
    """A local repository with the branches ``b``, ``main`` and ``side``, the last on top of ``main``."""
    main = grown(first(), "main", b"two", b"three")
    await with_history(twin, main, slug="from")
    for made in (grown(first(), "b", b"on b"), grown(main, "side", b"on the side")):
        assert (await push_frames(twin, made.frames(), repository="alice/from"))["type"] == "R"
    await clone(Remote(f"{twin.url}/alice/from", TOKENS["alice"]), tmp_path / "work", Quiet())
    return tmp_path / "work"


async def muse(work: Path, *arguments: str, check: int = 0):
    def run():
        return museworkd("push", *arguments, "-C", str(work), token=TOKENS["alice"], check=check)

    return await trio.to_thread.run_sync(run)


async def test_a_dry_run_of_all_branches_counts_each_as_if_those_before_it_were_there(twin, work):
    """Nothing is foretold twice: what the first branch brings, the next ones need not."""
    await twin.make_repository(slug="y")
    url = f"{twin.url}/alice/y"
    dry = json.loads((await muse(work, url, "--all", "--dry-run", "--json")).stdout)["pushes"]
    real = json.loads((await muse(work, url, "--all", "--json")).stdout)["pushes"]
    assert [{name: entry[name] for name in SAME} for entry in dry] == [
        {name: entry[name] for name in SAME} for entry in real
    ]
    assert [(entry["branch"], entry["commits"]) for entry in real] == [("b", 2), ("main", 2), ("side", 1)]


async def test_a_refused_branch_does_not_stop_the_others(twin, work):
    """The report has one entry a branch, a refused one with the code; what could be pushed is there."""
    await with_history(twin, grown(first(), "b", b"somebody else's"), slug="x")
    done = await muse(work, f"{twin.url}/alice/x", "--all", "--json", check=1)
    refused, *others = json.loads(done.stdout)["pushes"]
    assert (refused["branch"], refused["error"], refused["dry_run"]) == ("b", "non_fast_forward", False)
    assert "fetch and merge" in refused["detail"]
    assert [(entry["branch"], entry["result"]["commits_written"]) for entry in others] == [("main", 2), ("side", 1)]
    assert f"error: b: {refused['detail']}\n" in done.stderr


async def test_one_branch_that_fails_is_told_as_json_too(work):
    """Whoever reads stdout learns why, with the exit code of the failure and a sentence that says what it was."""
    done = await muse(work, "http://127.0.0.1:9/alice/x", "--json", "-b", "main", "-b", "nosuch", check=3)
    lost, unknown = json.loads(done.stdout)["pushes"]
    assert (lost["branch"], lost["error"], lost["detail"]) == (
        "main", "transfer_failed", "cannot reach 127.0.0.1:9: connection refused"
    )  # fmt: skip
    assert (unknown["head"], unknown["error"]) == (None, "failed_here")


@pytest.mark.parametrize(
    ("branch", "options", "code", "says"),
    [
        ("b", {}, "non_fast_forward", "fetch and merge them, or force"),
        ("main", {"lease": Lease(bytes(32))}, "head_moved", "does not exist there, which is not what --expect says"),
        ("b", {"force": True, "lease": Lease(None)}, "head_moved", "which is not what --expect says: fetch"),
    ],
)
async def test_what_the_branches_decide_is_refused_before_anything_is_sent(twin, work, branch, options, code, says):
    """A refusal that is certain costs one small request."""
    await with_history(twin, grown(first(), "b", b"somebody else's"), slug="x")
    async with cutting(twin) as proxy:
        with LocalRepository(work) as repository, pytest.raises(ClientError, match=says) as refused:
            await push(repository, Remote(f"{proxy.url}/alice/x", TOKENS["alice"]), branch, Quiet(), **options)
    assert (refused.value.code, proxy.requests) == (code, ["GET refs"])


async def test_a_shallow_repository_leaves_it_to_the_server(twin, work, tmp_path):
    """What the local history cannot tell, the server does: here it knows that the branch moves forward."""
    await with_history(twin, grown(first(), "main", b"two"), slug="x")
    await clone(Remote(f"{twin.url}/alice/from", TOKENS["alice"]), tmp_path / "shallow", Quiet(), depth=1)
    with LocalRepository(tmp_path / "shallow") as repository:
        report = await push(repository, Remote(f"{twin.url}/alice/x", TOKENS["alice"]), "main", Quiet())
    assert (report.move, report.result["commits_written"]) == ("unknown", 1)
