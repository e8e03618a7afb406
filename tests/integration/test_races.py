"""Many pushes at once: one branch, one push id, one content; who was acknowledged stays, and who lost is told so."""

from __future__ import annotations

import random
import uuid

import pytest
import trio

from tests.clones import clone
from tests.deployments import with_history
from tests.growing import RefusedError, by_mpack, by_stream
from tests.growing import heads as heads_of
from tests.http_client import ask, connected, head_bytes, push
from tests.muse import Push, last_frame
from tests.servers import Server
from wire.ids import Scheme, parse_id

pytestmark = pytest.mark.usefixtures("expected_errors")

ROUNDS = 20
"""Over PostgreSQL; the memory twins run in one thread."""
AT_ONCE = 8
IDENTICAL = 64


async def branch_log(server: Server, branch: str = "main") -> list:
    index = server.services.index
    return await index.branch_log((await index.find_repository("alice", "x")).number, branch)


async def heads(server: Server) -> dict[str, str]:
    return await heads_of(server, "x")


def digest(commit: str) -> bytes:
    return parse_id(commit, Scheme.TYPED)


def contender(base: str, number: int, contender: int) -> Push:
    history = Push()
    files = {"f": b"round %d, push %d" % (number, contender), "same": b"round %d" % number}
    history.commit(files, [base], message=f"round {number}, push {contender}")
    return history


@pytest.mark.parametrize("ways", [[by_stream], [by_stream, by_mpack]], ids=["stream", "mixed"])
async def test_R6_twenty_rounds_of_eight_pushes_at_once_acknowledge_exactly_the_winners(server, database, ways):
    """I2 and I4: one winner a round, in the branch's log, whole, and below everything that came after it."""
    rng = random.Random(6)
    head = (await with_history(server)).head
    won: list[str] = [head]
    for number in range(2 if database is None else ROUNDS):
        said: dict[str, dict] = {}

        async def move(history: Push, way, said=said) -> None:
            said[history.head] = await way(server, history, str(uuid.uuid4()), "x")

        async with trio.open_nursery() as nursery:
            for one in rng.sample(range(AT_ONCE), AT_ONCE):
                nursery.start_soon(move, contender(head, number, one), refusable(ways[one % len(ways)]))
        acknowledged = [commit for commit, answer in said.items() if answer["type"] == "R"]
        assert len(said) == AT_ONCE
        assert len(acknowledged) == 1, said
        assert {a["error"] for a in said.values() if a["type"] == "X"} <= {"non_fast_forward", "head_moved"}
        head = acknowledged[0]
        won.append(head)
        assert await heads(server) == {"main": head}
    log = await branch_log(server)
    assert [entry.new for entry in log] == [digest(commit) for commit in won]
    assert [entry.old for entry in log] == [None, *(entry.new for entry in log[:-1])]
    assert set(won) <= (await clone(server, head)).commits.keys()


def refusable(way):
    """A way whose refusals are answers."""

    async def tried(*arguments: object) -> dict:
        try:
            return await way(*arguments)
        except RefusedError as refused:
            return refused.said

    return tried


async def test_R6_forced_pushes_at_once_replace_one_another_legally_and_none_is_lost_unseen(server):
    """Every acknowledged push has its line in the log, which is a chain: nobody was overwritten without having been."""
    head = (await with_history(server)).head
    acknowledged: set[str] = {head}

    async def move(number: int) -> None:
        history = contender(head, 0, number)
        said = await push(server, history.frames(force=number % 2 == 0))
        if said["type"] == "R":
            acknowledged.add(history.head)
        else:
            assert said["error"] in {"non_fast_forward", "head_moved"}

    async with trio.open_nursery() as nursery:
        for number in range(16):
            nursery.start_soon(move, number)
    log = await branch_log(server)
    assert {entry.new for entry in log} == {digest(commit) for commit in acknowledged}
    assert len(log) == len(acknowledged) >= 9
    assert [entry.old for entry in log] == [None, *(entry.new for entry in log[:-1])]
    now = (await heads(server))["main"]
    assert digest(now) == log[-1].new
    assert (await clone(server, now)).files(now)["same"] == b"round 0"


@pytest.mark.parametrize("one_id", [True, False], ids=["one push id", "ids of their own"])
async def test_F31_F32_sixty_four_identical_pushes_at_once_are_one(server, one_id):
    """Each ends accepted or taken over, which says to ask again; there is one line in the log, and no error."""
    base = await with_history(server)
    history, push_id = contender(base.head, 0, 0), str(uuid.uuid4())
    said: list[dict] = []

    async def repeat() -> None:
        said.append(await push(server, history.frames(push_id=push_id if one_id else str(uuid.uuid4()))))

    async with trio.open_nursery() as nursery:
        for _ in range(IDENTICAL):
            nursery.start_soon(repeat)
    accepted = [answer for answer in said if answer["type"] == "R"]
    assert {answer["head"] for answer in accepted} == {history.head}
    refused = [answer for answer in said if answer["type"] != "R"]
    assert {answer["error"] for answer in refused} <= ({"push_superseded"} if one_id else set())
    if one_id:
        again = await push(server, history.frames(push_id=push_id))
        assert all(answer == again for answer in accepted)
    assert len(await branch_log(server)) == 2
    assert await heads(server) == {"main": history.head}
    assert (await clone(server, history.head)).files(history.head)["same"] == b"round 0"


@pytest.mark.parametrize("content", ["the same", "another"])
async def test_F28_a_second_connection_takes_a_push_over_from_a_half_open_one(server, content):
    """The first, stalled in the middle of a frame, wakes up late: it is told so, and writes nothing any more."""
    base = await with_history(server)
    history, push_id = contender(base.head, 0, 0), str(uuid.uuid4())
    late = history if content == "the same" else contender(base.head, 0, 1)
    frames = late.frames(push_id=push_id)
    cut = len(late.header(push_id=push_id)) + 20
    async with connected(server) as first:
        headers = {"content-length": str(len(frames))}
        await first.send(head_bytes("POST", "/alice/x/push/stream", token="alice", headers=headers) + frames[:cut])
        assert (await first.begin_answer("POST"))[0] == 200
        await begun(server, push_id)
        assert (await push(server, history.frames(push_id=push_id)))["type"] == "R"
        await first.send(frames[cut:])
        said = last_frame((await first.rest())[0])
    assert said["type"] == "X"
    assert said["error"] in {"push_superseded", "non_fast_forward" if content == "another" else ""}
    assert len(await branch_log(server)) == 2
    assert await heads(server) == {"main": history.head}
    for blob in late.blobs.keys() - history.blobs.keys():
        assert (await ask(server, "GET", f"/alice/x/o/{blob}", token="alice")).status == 404
        alone = Push(commits=late.commits[-1:], snapshots=late.snapshots)
        said = await push(server, alone.frames(branch="late"))
        assert (said["type"], said["error"]) == ("X", "missing_objects")


async def begun(server: Server, push_id: str) -> None:
    """Wait until the server has begun a push; each question is a turn of its loop."""
    for _ in range(2_000):
        if (await ask(server, "GET", f"/alice/x/push/{push_id}", token="alice")).status == 200:
            return
    raise AssertionError(push_id)


async def test_R6_first_pushes_of_a_repository_at_once_leave_one_row_of_one_branch(server):
    """By stream and by mpack, of one branch and of two: one winner each."""
    await server.make_repository()
    said: dict[str, list[dict]] = {"main": [], "second": []}

    async def first(number: int) -> None:
        history = Push(branch="second" if number % 3 == 0 else "main")
        history.commit({"f": b"%d" % number}, message=f"first push {number}")
        way = refusable(by_mpack if number % 2 else by_stream)
        said[history.branch].append({"commit": history.head} | await way(server, history, str(uuid.uuid4()), "x"))

    async with trio.open_nursery() as nursery:
        for number in range(12):
            nursery.start_soon(first, number)
    winners = {branch: [answer["commit"] for answer in all_ if answer["type"] == "R"] for branch, all_ in said.items()}
    assert {branch: len(all_) for branch, all_ in winners.items()} == {"main": 1, "second": 1}
    assert await heads(server) == {branch: all_[0] for branch, all_ in winners.items()}
    for branch, (winner,) in winners.items():
        assert [(entry.old, entry.new) for entry in await branch_log(server, branch)] == [(None, digest(winner))]
        await clone(server, winner)


async def test_F28_a_superseded_push_is_told_that_it_was(server):
    base = await with_history(server)
    history, late, push_id = contender(base.head, 0, 0), contender(base.head, 0, 1), str(uuid.uuid4())
    frames = late.frames(push_id=push_id)
    cut = len(late.header(push_id=push_id)) + 20
    async with connected(server) as first:
        headers = {"content-length": str(len(frames))}
        await first.send(head_bytes("POST", "/alice/x/push/stream", token="alice", headers=headers) + frames[:cut])
        assert (await first.begin_answer("POST"))[0] == 200
        await begun(server, push_id)
        assert (await push(server, history.frames(push_id=push_id)))["type"] == "R"
        await first.send(frames[cut:])
        said = last_frame((await first.rest())[0])
    assert (said["type"], said["error"]) == ("X", "push_superseded"), said
