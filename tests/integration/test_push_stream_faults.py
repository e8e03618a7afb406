"""Pushes that are cut, that wait, and whose store or index fails: nothing is left, a repetition finishes them."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

import msgpack
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from storage.environment import SystemEnvironment
from storage.memory.index import MemoryIndex
from storage.objects.faulty import Call, Fault, FaultyStore
from storage.objects.memory import MemoryStore
from storage.objects.retrying import RetryingStore, RetryPolicy
from tests.clones import clone
from tests.deployments import two_commits
from tests.http_client import PATIENCE_S, Connection, ask, connected, head_bytes, push, request_bytes
from tests.muse import (
    Push,
    commit_id,
    frame,
    last_frame,
    make_snapshot,
    random_history,
)
from tests.refused_pushes import PUSH, ZEROS, X, member, refused
from tests.servers import Server, serving
from tests.surviving import GatedStore

pytestmark = pytest.mark.usefixtures("expected_errors")


def tiny_push(push_id: str) -> bytes:
    """As few bytes as a push can have."""
    snapshot = {"snapshot_id": make_snapshot({"f": X})["snapshot_id"], "manifest": {"f": X}}
    record = {"snapshot_id": snapshot["snapshot_id"], "message": "", "committed_at": ""}
    record["commit_id"] = commit_id(record)
    header = frame("H", version=2, branch="main", head=record["commit_id"], push_id=push_id)
    return header + member() + frame("C", commits=[record], snapshots=[snapshot]) + frame("E", n_objects=1, n_commits=1)


async def nothing_is_visible(server: Server) -> None:
    assert (await ask(server, "GET", "/alice/x/refs", token="alice")).value["branch_heads"] == {}
    assert (await ask(server, "GET", f"/alice/x/o/{X}", token="alice")).status == 404


async def no_push_is_left(server: Server) -> None:
    assert await server.services.supervisor.drain(15)
    server.services.supervisor.draining = False


def cuts(database: str | None, body: bytes) -> range:
    """Every byte boundary over the memory twins, some over the real ones."""
    return range(0, len(body), 1 if database is None else 61)


async def test_F29_a_push_whose_connection_is_cut_at_any_byte_leaves_no_trace(server, database):
    await server.make_repository()
    body = tiny_push(str(uuid.uuid4()))
    for cut in cuts(database, body):
        async with connected(server) as connection:
            headers = {"content-length": str(len(body))}
            await connection.send(head_bytes("POST", PUSH, token="alice", headers=headers) + body[:cut])
    await no_push_is_left(server)
    await nothing_is_visible(server)
    assert (await push(server, body))["type"] == "R"


async def test_F29_a_push_that_ends_properly_at_any_byte_leaves_no_trace(server, database):
    await server.make_repository()
    body = tiny_push(str(uuid.uuid4()))
    header = len(tiny_push(str(uuid.uuid4())).partition(b"\xa4type\xa1O")[0]) - 1
    async with connected(server) as connection:
        for cut in cuts(database, body):
            answer = await connection.ask("POST", PUSH, token="alice", body=body[:cut])
            if cut < header:
                assert (answer.status, answer.error) == (422, "malformed")
            else:
                last = list(frames_of(answer.body))[-1]
                assert (answer.status, last["type"], last["error"]) == (200, "X", "malformed")
    await nothing_is_visible(server)
    assert (await push(server, body))["type"] == "R"


def frames_of(data: bytes) -> msgpack.Unpacker:
    unpacker = msgpack.Unpacker()
    unpacker.feed(data)
    return unpacker


async def test_an_incomplete_push_never_becomes_the_verdict_of_its_id(server):
    await server.make_repository()
    push_id = str(uuid.uuid4())
    history = two_commits()
    attempts: list[Callable[[], bytes]] = [
        lambda: history.header(push_id=push_id),
        lambda: history.header(push_id=push_id) + b"\xc1",
        lambda: history.header(push_id=push_id) + frame("O", object_id=ZEROS, encoding="raw", content=b""),
        lambda: history.header(push_id=push_id) + history.commit_frame() + history.end(),
    ]
    for attempt in attempts:
        assert (await push(server, attempt()))["type"] == "X"
    assert (await push(server, history.frames(push_id=push_id)))["type"] == "R"


# waiting: heartbeats, draining


async def stages(connection: Connection) -> AsyncIterator[dict]:
    """The frames of an answer as they arrive."""
    unpacker = msgpack.Unpacker()
    while piece := await connection.piece():
        unpacker.feed(piece)
        for said in unpacker:
            yield said


async def test_a_client_hears_from_a_server_that_only_waits(tmp_path):
    store = GatedStore()
    async with serving(MemoryIndex(), store, tmp_path, server__heartbeat_s=0.2) as server:
        await server.make_repository()
        history = two_commits()
        async with connected(server) as connection:
            await connection.send(request_bytes("POST", PUSH, token="alice", body=history.frames()))
            await connection.begin_answer("POST")
            beats = 0
            times = [trio.current_time()]
            async with aclosing(stages(connection)) as frames:
                async for said in frames:
                    times.append(trio.current_time())
                    if said["type"] == "P" and said["stage"] == "heartbeat":
                        beats += 1
                        assert (said["done"], said["total"]) == (len(history.blobs), None)
                    if beats == 4:
                        store.gate.set()
            assert said["type"] == "R"
            assert max(b - a for a, b in itertools.pairwise(times)) < 5  # far more than promised, far less than silence


async def test_a_client_hears_from_a_server_that_waits_for_it(tmp_path):
    async with serving(MemoryIndex(), MemoryStore(), tmp_path, server__heartbeat_s=0.1) as server:
        await server.make_repository()
        history = two_commits()
        async with connected(server) as connection:
            await connection.send(head_bytes("POST", PUSH, token="alice", headers={"transfer-encoding": "chunked"}))
            await connection.send_chunk(history.header())
            await connection.begin_answer("POST")
            async with aclosing(stages(connection)) as frames:
                async for said in frames:
                    if said["type"] == "P" and said["stage"] == "heartbeat":
                        await connection.send_chunk(history.frames()[len(history.header()) :])
                        break
            assert last_frame((await connection.rest())[0])["type"] == "R"


async def test_a_push_to_a_server_that_drains_is_503_before_its_body_is_read(server):
    await server.make_repository()
    assert await server.services.supervisor.drain(0)
    async with connected(server) as connection:
        await connection.send(head_bytes("POST", PUSH, token="alice", headers={"transfer-encoding": "chunked"}))
        answer = await connection.answer("POST")
        assert (answer.status, answer.error, answer.value["retryable"]) == (503, "draining", True)
        assert int(answer.headers["retry-after"]) > 0


async def test_F21_a_push_that_runs_when_the_server_drains_finishes(tmp_path):
    store = GatedStore()
    async with serving(MemoryIndex(), store, tmp_path) as server:
        await server.make_repository()
        history = two_commits()
        drained: list[bool] = []

        async def drain() -> None:
            drained.append(await server.services.supervisor.drain(PATIENCE_S))

        async with connected(server) as connection, trio.open_nursery() as nursery:
            await connection.send(request_bytes("POST", PUSH, token="alice", body=history.frames()))
            await store.waiting.wait()
            nursery.start_soon(drain)
            await wait_all_tasks_blocked(0.01)
            assert drained == []
            store.gate.set()
            assert last_frame((await connection.answer("POST")).body)["type"] == "R"
        assert drained == [True]


async def test_F1_a_store_that_is_down_ends_the_push_with_a_retryable_frame(tmp_path):
    faults = [Fault(fail_before=True, temporary=False)]
    store = FaultyStore(MemoryStore(), lambda call: faults[0] if faults and call.operation.startswith("put") else None)
    async with serving(MemoryIndex(), store, tmp_path) as server:
        await server.make_repository()
        history, push_id = two_commits(), str(uuid.uuid4())
        said = await refused(server, history.frames(push_id=push_id), "store_unavailable", *history.blobs)
        assert said["retryable"] is True
        faults.clear()
        assert (await push(server, history.frames(push_id=push_id)))["type"] == "R"
        assert (await clone(server, history.head)).blobs == history.blobs


async def test_F1_a_store_that_is_flaky_is_asked_again(tmp_path):
    calls: dict[str, int] = {}

    def decide(call: Call) -> Fault | None:
        calls[call.operation] = calls.get(call.operation, 0) + 1
        return Fault(fail_before=True) if calls[call.operation] % 3 else None

    policy = RetryPolicy(first_delay_s=0.001, longest_delay_s=0.002)
    store = RetryingStore(FaultyStore(MemoryStore(), decide), SystemEnvironment(), policy)
    async with serving(MemoryIndex(), store, tmp_path) as server:
        await server.make_repository()
        history = random_history(2)
        assert (await push(server, history.frames()))["type"] == "R"
        assert store.statistics().retries > 0
        assert (await clone(server, history.head)).blobs == history.blobs


FAULTS = {"F1": Fault(fail_before=True), "F2": Fault(fail_after=True), "F10": Fault(full=True)}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
async def test_F1_F2_F10_a_store_that_fails_at_any_call_ends_the_push_and_a_repetition_finishes_it(tmp_path, fault):
    left = [-1]
    failed: list[str] = []

    def decide(call: Call) -> Fault | None:
        if not call.operation.startswith("put"):
            return None
        left[0] -= 1
        if left[0]:
            return None
        failed.append(call.operation)
        return fault

    settings = {"limits__content_cache_object_bytes": 0}  # or the contents of a small push are put later, by a job
    async with serving(MemoryIndex(), FaultyStore(MemoryStore(), decide), tmp_path, **settings) as server:
        for number in itertools.count(1):
            repository = f"alice/repository-{number}"
            await server.make_repository(slug=f"repository-{number}")
            history, push_id = Push(), str(uuid.uuid4())
            history.commit({f"f{n}": b"%d of %d" % (n, number) * 50_000 for n in range(12)})
            failed.clear()
            left[0] = number
            said = await push(server, history.frames(push_id=push_id), repository=repository)
            if not failed:
                assert said["type"] == "R"
                break
            assert (said["type"], said["error"], said["retryable"]) == ("X", "store_unavailable", True)
            heads = (await ask(server, "GET", f"/{repository}/refs", token="alice")).value["branch_heads"]
            assert heads == {}
            assert (await push(server, history.frames(push_id=push_id), repository=repository))["type"] == "R"
            assert (await clone(server, history.head, repository=repository)).blobs == history.blobs
        assert number > 2


async def test_a_bug_in_a_push_is_told_as_one_and_stays_in_the_log(tmp_path, logs, expected_errors):
    class Buggy(MemoryIndex):
        async def finish_push(self, *arguments: object) -> None:
            raise RuntimeError("a secret of the server")

    async with serving(Buggy(), MemoryStore(), tmp_path) as server:
        await server.make_repository()
        said = await refused(server, two_commits().frames(), "internal")
        assert "secret" not in str(said)
        expected_errors += [entry for entry in logs if entry["event"] == "actor crashed"]
        assert len(expected_errors) == 1
        assert (await ask(server, "GET", "/readyz")).status == 200
