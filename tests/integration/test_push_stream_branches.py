"""Where a push may move its branch, and what becomes of the same push sent again (protocol §5).

Most tests run twice: over the memory twins, and over PostgreSQL and a directory.
"""

from __future__ import annotations

import uuid

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from storage.memory.index import MemoryIndex
from storage.rows import Right
from tests.deployments import two_commits, with_history
from tests.http_client import PATIENCE_S, Answer, ask, connected, head_bytes, push, request_bytes
from tests.muse import (
    Push,
    blob_id,
    frame,
    last_frame,
)
from tests.servers import Server, serving
from tests.surviving import GatedStore

pytestmark = pytest.mark.usefixtures("expected_errors")

PUSH = "/alice/x/push/stream"


async def heads(server: Server, slug: str = "x") -> dict[str, str]:
    return (await ask(server, "GET", f"/alice/{slug}/refs", token="alice")).value["branch_heads"]


async def get_blob(server: Server, oid: str, slug: str = "x") -> Answer:
    return await ask(server, "GET", f"/alice/{slug}/o/{oid}", token="alice")


async def next_commit(server: Server, parents: list[str], text: str, *, token: str = "alice", **header: object) -> dict:
    history = Push()
    history.commit({"f": text.encode()}, parents, message=text)
    said = await push(server, history.frames(**header), token=token)
    return {**said, "pushed": history.head}


async def test_R7_a_branch_moves_forward_and_not_backward_or_aside(server):
    await server.make_repository()
    first = await next_commit(server, [], "1")
    second = await next_commit(server, [first["pushed"]], "2")
    assert (await heads(server))["main"] == second["pushed"]
    aside = await next_commit(server, [first["pushed"]], "aside")
    root = await next_commit(server, [], "another root")
    back = await push(server, frame("H", version=2, branch="main", head=first["pushed"], force=False) + NOTHING)
    for said in (aside, root, back):
        assert (said["type"], said["error"], said["retryable"]) == ("X", "non_fast_forward", False)
        assert "non-fast-forward push to 'main'" in said["detail"]
        assert (said["branch"], said["remote_head"]) == ("main", second["pushed"])
    assert (await heads(server))["main"] == second["pushed"]


NOTHING = frame("E", n_objects=0, n_commits=0)


async def test_a_merge_of_both_sides_is_a_fast_forward(server):
    await server.make_repository()
    base = (await next_commit(server, [], "base"))["pushed"]
    ours = (await next_commit(server, [base], "ours"))["pushed"]
    theirs = (await next_commit(server, [base], "theirs", branch="side"))["pushed"]
    merged = await next_commit(server, [theirs, ours], "merged")
    assert merged["type"] == "R"
    assert await heads(server) == {"main": merged["pushed"], "side": theirs}


async def test_force_moves_a_branch_anywhere(server):
    await server.make_repository()
    first = (await next_commit(server, [], "1"))["pushed"]
    second = (await next_commit(server, [first], "2"))["pushed"]
    other = await next_commit(server, [], "other", force=True)
    assert (other["type"], (await heads(server))["main"]) == ("R", other["pushed"])
    back = await push(server, frame("H", version=2, branch="main", head=second, force=True) + NOTHING)
    assert (back["type"], (await heads(server))["main"]) == ("R", second)


async def test_only_an_admin_forces_a_protected_branch_and_any_writer_moves_it_forward(server):
    made = await server.make_repository(protected_branches=("main",))
    await server.services.index.set_collaborator(made.number, "bob", Right.WRITE)
    first = (await next_commit(server, [], "1", token="bob"))["pushed"]
    second = (await next_commit(server, [first], "2", token="bob", force=True))["pushed"]
    said = await next_commit(server, [first], "aside", token="bob", force=True)
    assert (said["type"], said["error"]) == ("X", "protected_branch")
    assert (await heads(server))["main"] == second
    said = await next_commit(server, [first], "aside", force=True)
    assert (said["type"], (await heads(server))["main"]) == ("R", said["pushed"])
    await next_commit(server, [], "1", token="bob", branch="free")
    assert (await next_commit(server, [], "2", token="bob", branch="free", force=True))["type"] == "R"


async def test_expected_head_must_be_the_old_head(server):
    await server.make_repository()
    created = await next_commit(server, [], "1", expected_head=None)
    assert created["type"] == "R"
    first = created["pushed"]
    second = await next_commit(server, [first], "2", expected_head=first)
    assert second["type"] == "R"
    for force in (False, True):
        for expected in (first, None, "sha256:" + "0" * 64):
            said = await next_commit(server, [second["pushed"]], "3", expected_head=expected, force=force)
            assert (said["type"], said["error"], said["retryable"]) == ("X", "head_moved", False)
            assert said["remote_head"] == second["pushed"]
            there = frame("H", version=2, branch="main", head=second["pushed"], force=force, expected_head=expected)
            assert (await push(server, there + NOTHING))["error"] == "head_moved"
    said = await next_commit(server, [], "new", branch="new", expected_head=first)
    assert (said["error"], said["remote_head"]) == ("head_moved", None)
    forced = await next_commit(server, [], "4", expected_head=second["pushed"], force=True)
    assert forced["type"] == "R"
    assert await heads(server) == {"main": forced["pushed"]}


async def test_a_branch_is_made_from_a_commit_that_is_there(server):
    history = await with_history(server)
    first = history.commits[0]["commit_id"]
    said = await push(server, frame("H", version=2, branch="old/ü", head=first) + NOTHING)
    assert (said["type"], said["commits_written"], said["blobs_written"]) == ("R", 0, 0)
    assert await heads(server) == {"main": history.head, "old/ü": first}


async def test_R6_one_of_many_pushes_at_once_wins_and_the_others_learn_it(server):
    await server.make_repository()
    base = (await next_commit(server, [], "base"))["pushed"]
    said: list[dict] = []

    async def one(number: int) -> None:
        said.append(await next_commit(server, [base], f"by {number}"))

    async with trio.open_nursery() as nursery:
        for number in range(12):
            nursery.start_soon(one, number)
    won = [answer for answer in said if answer["type"] == "R"]
    assert [answer["pushed"] for answer in won] == [(await heads(server))["main"]]
    assert {answer["error"] for answer in said if answer["type"] == "X"} == {"non_fast_forward"}
    assert len(said) == 12


async def test_R6_two_first_pushes_at_once_leave_one_branch(server):
    await server.make_repository()
    said: list[dict] = []

    async def one(number: int) -> None:
        said.append(await next_commit(server, [], f"root {number}"))

    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(one, number)
    assert sorted(answer["type"] for answer in said) == ["R", *["X"] * 5]
    assert list(await heads(server)) == ["main"]


async def test_the_same_push_again_finds_everything_there(server):
    await server.make_repository()
    history = two_commits()
    first = await push(server, history.frames())
    again = await push(server, history.frames())
    assert (again["type"], again["head"]) == ("R", first["head"])
    assert (again["commits_written"], again["snapshots_written"], again["blobs_written"]) == (0, 0, 0)
    assert again["blobs_skipped"] == len(history.blobs)
    assert again["push_id"] != first["push_id"]


@pytest.mark.parametrize("spelled", [str, lambda i: i.hex, lambda i: str(i).upper(), lambda i: i.bytes])
async def test_F32_a_push_id_that_finished_gets_its_first_verdict_again(server, spelled):
    await server.make_repository()
    push_id = uuid.UUID(int=0xABCDEF0123456789)
    history = two_commits()
    first = await push(server, history.frames(push_id=spelled(push_id)))
    assert first["push_id"] == str(push_id)
    assert await push(server, history.frames(push_id=spelled(push_id))) == first
    other = Push()
    other.commit({"other": b"other"}, [history.head])
    assert await push(server, other.frames(push_id=str(push_id))) == first  # whatever is sent with it
    assert await heads(server) == {"main": history.head}
    assert (await get_blob(server, blob_id(b"other"))).status == 404


async def test_the_first_verdict_is_given_before_the_body_is_sent_again(server):
    await server.make_repository()
    history, push_id = two_commits(), str(uuid.uuid4())
    first = await push(server, history.frames(push_id=push_id))
    async with connected(server) as connection:
        await connection.send(head_bytes("POST", PUSH, token="alice", headers={"transfer-encoding": "chunked"}))
        await connection.send_chunk(history.header(push_id=push_id))
        assert last_frame((await connection.answer("POST")).body) == first


async def test_a_final_refusal_is_kept_under_its_push_id(server):
    await server.make_repository()
    history, push_id = two_commits(), str(uuid.uuid4())
    orphan = Push()
    orphan.commit({}, ["sha256:" + "0" * 64])
    first = await push(server, orphan.frames(push_id=push_id))
    assert (first["type"], first["error"]) == ("X", "missing_parents")
    again = await push(server, history.frames(push_id=push_id))
    assert {**again, "request_id": ""} == {**first, "request_id": ""}
    assert again["request_id"] != first["request_id"]
    assert await heads(server) == {}


async def test_a_push_id_belongs_to_whoever_used_it_first(server):
    made = await server.make_repository()
    await server.services.index.set_collaborator(made.number, "bob", Right.WRITE)
    history, push_id = two_commits(), str(uuid.uuid4())
    assert (await push(server, history.frames(push_id=push_id)))["type"] == "R"
    said = await push(server, history.frames(push_id=push_id), token="bob")
    assert (said["type"], said["error"]) == ("X", "forbidden")
    assert history.head not in str(said)


async def test_a_push_id_is_good_in_every_repository(server):
    history, push_id = two_commits(), str(uuid.uuid4())
    for slug in ("one", "two"):
        await server.make_repository(slug=slug)
        assert (await push(server, history.frames(push_id=push_id), repository=f"alice/{slug}"))["type"] == "R"


async def test_a_client_that_goes_away_after_its_whole_push_finds_it_accepted(tmp_path):
    store = GatedStore()
    async with serving(MemoryIndex(), store, tmp_path) as server:
        await server.make_repository()
        history, push_id = two_commits(), str(uuid.uuid4())
        async with connected(server) as connection:
            body = history.frames(push_id=push_id)
            await connection.send(request_bytes("POST", PUSH, token="alice", body=body))
            await store.waiting.wait()
        await wait_all_tasks_blocked(0.01)
        assert await heads(server) == {}
        store.gate.set()
        assert await server.services.supervisor.drain(PATIENCE_S)
        server.services.supervisor.draining = False
        assert await heads(server) == {"main": history.head}
        assert (await push(server, history.frames(push_id=push_id)))["blobs_written"] == len(history.blobs)
