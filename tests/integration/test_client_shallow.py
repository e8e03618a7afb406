"""Shallow repositories can be deepened, step by step or at once, and stay provable on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from tests.deployments import with_history
from tests.http_client import push
from tests.muse import Push
from tests.servers import TOKENS, Server, museworkd

pytestmark = pytest.mark.usefixtures("expected_errors")


async def muse(*arguments: str, check: int = 0) -> dict:
    done = await trio.to_thread.run_sync(lambda: museworkd(*arguments, "--json", token=TOKENS["alice"], check=check))
    return json.loads(done.stdout)


def line_of(commits: int) -> Push:
    history = Push()
    for number in range(commits):
        history.commit({"number": str(number).encode(), f"file-{number % 3}": bytes([number])}, message=f"m{number}")
    return history


@pytest.fixture
async def shallow(twin: Server, tmp_path: Path) -> Callable:
    """A server with ten commits, and a clone of the newest."""
    history = await with_history(twin, line_of(10))
    cloned = await muse("clone", f"{twin.url}/alice/x", str(tmp_path / "clone"), "--depth", "1")
    assert (cloned["commits"], cloned["shallow"]) == (1, 1)

    async def run(command: str, *more: str, check: int = 0) -> dict:
        where = [str(tmp_path / "clone")] if command == "verify" else ["-C", str(tmp_path / "clone")]
        return await muse(command, *where, *more, check=check)

    run.history = history
    return run


async def test_a_fetch_of_a_shallow_repository_brings_the_rest(shallow) -> None:
    fetched = await shallow("fetch")
    assert (fetched["commits"], fetched["shallow"]) == (9, 0)
    proved = await shallow("verify")
    assert (proved["commits"], proved["shallow"], proved["problem_count"]) == (10, 0, 0)
    again = await shallow("fetch")
    assert (again["commits"], again["received_bytes"]) == (0, 0)


async def test_a_shallow_repository_is_deepened_step_by_step(shallow) -> None:
    for depth, brought in ((2, 1), (5, 3), (3, 0), (5, 0), (50, 5)):
        fetched = await shallow("fetch", "--depth", str(depth))
        assert fetched["commits"] == brought, depth
        assert fetched["shallow"] == (0 if depth == 50 else 1)
        proved = await shallow("verify")
        assert proved["problem_count"] == 0
    assert proved["commits"] == 10


async def test_what_is_there_already_is_not_counted_or_downloaded_again(shallow) -> None:
    await shallow("fetch", "--depth", "4")
    assert (await shallow("fetch", "--depth", "4"))["received_bytes"] == 0
    assert (await shallow("fetch"))["blobs"] > 0
    assert (await shallow("verify"))["problem_count"] == 0


async def test_new_commits_reach_a_shallow_repository_with_all_they_build_on(twin: Server, shallow) -> None:
    history = shallow.history
    history.commit({"new": b"1"}, message="later")
    assert (await push(twin, history.frames()))["type"] == "R"
    newest = await shallow("fetch", "--depth", "1")
    assert newest["commits"] == 1
    assert (await shallow("verify"))["problem_count"] == 0
    rest = await shallow("fetch")
    assert (rest["commits"], rest["shallow"]) == (9, 0)
    assert (await shallow("verify"))["commits"] == 11


async def test_a_shallow_repository_says_that_it_is(shallow, tmp_path: Path) -> None:
    done = await trio.to_thread.run_sync(lambda: museworkd("verify", str(tmp_path / "clone")))
    assert "shallow: 1 commit without parents" in done.stdout


async def test_a_deepened_repository_can_be_pushed_elsewhere(twin: Server, shallow) -> None:
    await twin.make_repository(slug="y")
    await shallow("fetch")
    pushed = await shallow("push", f"{twin.url}/alice/y")
    assert pushed["pushes"][0]["commits"] == 10
