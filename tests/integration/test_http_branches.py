"""``POST refs``: branches move, appear and go together or not at all, by compare-and-swap and the server's history."""

from __future__ import annotations

import itertools

import pytest
import trio

from storage.rows import Right
from tests.deployments import two_commits, with_history
from tests.http_client import ask, push

pytestmark = pytest.mark.usefixtures("expected_errors")
ZEROS = "sha256:" + "0" * 64


async def update(server, *updates: dict, token: str | None = "alice", slug: str = "x", **more):
    return await ask(server, "POST", f"/alice/{slug}/refs", token=token, json={"updates": list(updates), **more})


async def heads(server) -> dict:
    return (await ask(server, "GET", "/alice/x/refs", token="alice")).value["branch_heads"]


def change(branch: str, old: str | None, new: str | None, **more) -> dict:
    return {"branch": branch, "old": old, "new": new, **more}


async def test_branches_are_made_moved_and_deleted_at_once(server):
    history = await with_history(server)
    first, second = (commit["commit_id"] for commit in history.commits)
    made = await update(server, change("a", None, first), change("b", None, second))
    assert (made.status, made.value["branch_heads"]) == (200, {"a": first, "b": second, "main": second})
    moved = await update(server, change("a", first, second), change("b", second, None))
    assert moved.value["branch_heads"] == {"a": second, "main": second} == await heads(server)


async def test_one_that_cannot_be_keeps_all_from_happening(server):
    history = await with_history(server)
    first, second = (commit["commit_id"] for commit in history.commits)
    good = change("new", None, first)
    for wrong, error in [
        (change("main", first, second, force=True), None),  # it is there already: no conflict
        (change("main", second, first), "non_fast_forward"),
        (change("main", ZEROS, first), "head_moved"),
        (change("other", first, second), "head_moved"),
        (change("other", None, ZEROS), "missing_parents"),
        (change("main", second, None), "protected_branch"),
        (change("new", None, second), "malformed"),
        (change("a..b", None, second), "malformed"),
        (change("c", None, None), "malformed"),
        (change("c", None, "nonsense"), "malformed"),
        ({"branch": "c", "new": first}, "malformed"),
    ]:  # fmt: skip
        if error is None:
            continue
        answer = await update(server, good, wrong)
        assert answer.error == error, wrong
        assert await heads(server) == {"main": second}
    assert (await update(server, good, change("main", first, second))).status == 200


async def test_a_repetition_says_the_same(server):
    history = await with_history(server)
    changes = [change("a", None, history.head), change("b", None, history.commits[0]["commit_id"])]
    assert (await update(server, *changes)).value == (await update(server, *changes)).value


async def test_R7_force_is_judged_by_the_servers_history(server):
    history = await with_history(server)
    first, second = (commit["commit_id"] for commit in history.commits)
    answer = await update(server, change("main", second, first))
    assert (answer.status, answer.error, answer.value["remote_head"]) == (409, "non_fast_forward", second)
    assert (await update(server, change("main", second, first), force=True)).status == 200
    assert await heads(server) == {"main": first}


async def test_a_protected_branch_is_forced_and_deleted_by_admins_only(server):
    made = await server.make_repository(protected_branches=("kept",))
    history = two_commits()
    assert (await push(server, history.frames()))["type"] == "R"
    first, second = (commit["commit_id"] for commit in history.commits)
    await server.services.index.set_collaborator(made.number, "bob", Right.WRITE)
    assert (await update(server, change("kept", None, second), token="bob")).status == 200
    for wanted in (first, None):
        answer = await update(server, change("kept", second, wanted, force=True), token="bob")
        assert answer.error == "protected_branch"
    assert (await update(server, change("kept", second, first, force=True))).status == 200
    assert (await update(server, change("kept", first, second), token="bob")).status == 200
    assert (await update(server, change("kept", second, None))).status == 200


async def test_a_commit_of_another_repository_is_not_here(server):
    history = await with_history(server, slug="other")
    await server.make_repository()
    answer = await update(server, change("main", None, history.head))
    assert answer.error == "missing_parents"


async def test_only_writers_may(server):
    await with_history(server, public=True)
    for token, error in [(None, "unauthenticated"), ("bob", "forbidden")]:
        assert (await update(server, change("a", None, ZEROS), token=token)).error == error


async def test_R6_of_many_at_once_one_moves_each_branch(server):
    history = await with_history(server)
    first, second = (commit["commit_id"] for commit in history.commits)
    await update(server, change("a", None, first), change("b", None, first))
    answers = []

    async def one(branches: str) -> None:
        answers.append(await update(server, *[change(name, first, None) for name in branches]))
        answers.append(await update(server, *[change(name, None, second) for name in branches]))

    async with trio.open_nursery() as nursery:
        for order in ("ab", "ba") * 6:
            nursery.start_soon(one, order)
    assert {answer.status for answer in answers} <= {200, 409}
    for branch in "ab":
        log = await server.services.index.branch_log(1, branch)
        assert all(before.new == after.old for before, after in itertools.pairwise(log))
