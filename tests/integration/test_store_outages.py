"""A store that answers 503 for a while, or always: pushes wait and go on, or end retryable; no file is left out."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import msgpack
import pytest
import trio

from storage.environment import SystemEnvironment
from storage.objects.faulty import Call, Fault, FaultyStore
from storage.objects.filesystem import FilesystemStore
from storage.objects.retrying import RetryingStore, RetryPolicy
from storage.postgres.database import DatabaseSettings
from storage.postgres.index import PostgresIndex
from tests.clones import fetch
from tests.growing import WAYS, Growing, RefusedError, another_repository, heads, push_ids
from tests.http_client import Connection, ask, connected, request_bytes
from tests.muse import blob_id
from tests.servers import Server, serving

pytestmark = pytest.mark.usefixtures("expected_errors")

HEARTBEAT_S = 0.1
SETTINGS = {"server__heartbeat_s": HEARTBEAT_S, "limits__content_cache_object_bytes": 0}
"""Small pushes depend on the store as large ones do."""
PATIENT = RetryPolicy(attempts=1_000, first_delay_s=0.001, longest_delay_s=0.01)
IMPATIENT = RetryPolicy(attempts=3, first_delay_s=0.001, longest_delay_s=0.002)


@dataclass
class Outage:
    """What the store does; the calls it refused."""

    down: bool = False
    refuses: int = 0
    """Of every call, so many first tries are refused."""
    refused: int = 0
    _tries: int = 0

    def decide(self, call: Call) -> Fault | None:
        self._tries += 1
        if self.down or (self.refuses and self._tries % (self.refuses + 1)):
            self.refused += 1
            return Fault(fail_before=True)
        return None


@dataclass
class Scene:
    server: Server
    outage: Outage
    store: RetryingStore
    index: PostgresIndex
    branch: Growing


@pytest.fixture
def policy(request: pytest.FixtureRequest) -> RetryPolicy:
    return request.param


@pytest.fixture
async def scene(database_url: str, tmp_path: Path, policy: RetryPolicy) -> AsyncIterator[Scene]:
    """A daemon over a directory whose answers can be withheld, with a branch that has begun."""
    outage, branch = Outage(), Growing("x")
    files = await FilesystemStore.open(tmp_path / "store")
    store = RetryingStore(FaultyStore(files, outage.decide), SystemEnvironment(), policy)
    async with (
        PostgresIndex(DatabaseSettings(database_url)) as index,
        serving(index, store, tmp_path, **SETTINGS) as server,
    ):
        for slug in ("x", "other"):
            await server.make_repository(slug=slug)
        await another_repository(server)
        await branch.push(server)
        yield Scene(server, outage, store, index, branch)


@pytest.mark.parametrize("policy", [PATIENT], ids=["patient"], indirect=True)
@pytest.mark.parametrize("way", WAYS)
async def test_F1_a_store_that_refuses_every_call_twice_holds_up_a_push_and_nothing_else(
    scene: Scene, way: str
) -> None:
    """The client of a push notices nothing; what it pushed is whole."""
    scene.outage.refuses = 2
    history = scene.branch.next()
    said = await WAYS[way](scene.server, history, next(push_ids), "x")
    assert (said["type"], said["head"]) == ("R", history.head)
    assert scene.outage.refused >= 4
    assert scene.store.statistics().retries >= scene.outage.refused
    scene.branch.grown(history)
    await scene.branch.can_be_fetched(scene.server)
    scene.outage.refuses = 0
    await scene.branch.is_whole(scene.server, scene.index)


@pytest.mark.parametrize("policy", [PATIENT], ids=["patient"], indirect=True)
async def test_F1_a_client_hears_heartbeats_while_the_store_is_away_and_the_push_goes_on_after_it(scene: Scene) -> None:
    """Silence is never longer than the promise (ten seconds, a tenth here), with room for a slow machine."""
    history = scene.branch.next()
    body = history.frames(push_id=next(push_ids))
    scene.outage.down = True
    async with connected(scene.server) as connection:
        await connection.send(request_bytes("POST", "/alice/x/push/stream", token="alice", body=body))
        await connection.begin_answer("POST")
        unpacker, beats, times = msgpack.Unpacker(), 0, [trio.current_time()]
        async with aclosing(frames_of(connection, unpacker)) as frames:
            async for said in frames:
                times.append(trio.current_time())
                beats += said["type"] == "P" and said["stage"] == "heartbeat"
                scene.outage.down = scene.outage.down and beats < 5
    assert (said["type"], said["head"]) == ("R", history.head)
    assert beats >= 5
    assert max(later - earlier for earlier, later in itertools.pairwise(times)) < 30 * HEARTBEAT_S
    scene.branch.grown(history)
    await scene.branch.is_whole(scene.server, scene.index)


async def frames_of(connection: Connection, unpacker: msgpack.Unpacker) -> AsyncIterator[dict]:
    while piece := await connection.piece():
        unpacker.feed(piece)
        for said in unpacker:
            yield said


@pytest.mark.parametrize("policy", [IMPATIENT], ids=["impatient"], indirect=True)
@pytest.mark.parametrize("way", WAYS)
async def test_R8_F1_a_store_that_is_down_is_told_as_that_and_never_as_something_missing(
    scene: Scene, way: str
) -> None:
    """Push, fetch and single blobs say ``store_unavailable``; the same push later succeeds, and nothing is missing."""
    server, branch, outage = scene.server, scene.branch, scene.outage
    held = branch.files["foreign"]
    history, push_id = branch.next(), next(push_ids)
    outage.down = True
    try:
        said = await WAYS[way](server, history, push_id, "x")
    except RefusedError as refused:
        said = refused.said
    assert (said["type"], said["error"], said["retryable"]) == ("X", "store_unavailable", True)
    for answer in (
        await fetch(server, [branch.head], repository="alice/x"),
        await ask(server, "GET", f"/alice/x/o/{blob_id(held)}", token="alice"),
    ):
        assert (answer.status, answer.error) == (503, "store_unavailable")
        assert int(answer.headers["retry-after"]) > 0
    assert await heads(server, "x") == {"main": branch.head}
    outage.down = False
    await branch.is_unseen(server, history)
    said = await WAYS[way](server, history, push_id, "x")
    assert (said["type"], said["head"]) == ("R", history.head)
    branch.grown(history)
    await branch.is_whole(server, scene.index)
