"""F1, F2, F12, F25: store or index fail, or the server is told to stop, at every step of a push, by every way."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from storage.errors import IndexUnavailable, StoreUnavailable
from storage.index import Index
from storage.memory.index import MemoryIndex
from storage.object_store import ObjectStore
from storage.objects.filesystem import FilesystemStore
from storage.objects.memory import MemoryStore
from storage.postgres.database import DatabaseSettings
from storage.postgres.index import PostgresIndex
from tests.dying_server import heard
from tests.growing import WAYS, Growing, RefusedError, another_repository, by_stream, heads, push_ids
from tests.servers import Server, serving
from tests.stepping import ACCEPTING, BATCHES, OF_THE_STORE, Moment, Step, Steps, steps_of

pytestmark = pytest.mark.usefixtures("expected_errors")


@asynccontextmanager
async def ports(database: str | None, tmp_path: Path) -> AsyncIterator[tuple[Index, ObjectStore]]:
    if database is None:
        yield MemoryIndex(), MemoryStore()
        return
    async with PostgresIndex(DatabaseSettings(database)) as index:
        yield index, await FilesystemStore.open(tmp_path / "store")


async def nothing(call: str) -> None:
    """What happens at a step that is only watched."""


async def watched(server: Server, branch: Growing, way: str, steps: Steps) -> list[str]:
    """Give the calls of a push that nothing happens to; the second one of its branch."""
    for slug in (branch.slug, "other"):
        await server.make_repository(slug=slug)
    await another_repository(server)
    await branch.push(server, WAYS[way])
    steps.arm(None, nothing)
    await branch.push(server, WAYS[way])
    steps.disarm()
    return steps.calls


async def attempt(server: Server, branch: Growing, way: str, history: object, push_id: str) -> dict | None:
    try:
        return await heard(WAYS[way](server, history, push_id, branch.slug))
    except RefusedError as refused:
        return refused.said


@pytest.fixture
def database(request: pytest.FixtureRequest, parts: str) -> str | None:
    return request.getfixturevalue("database_url") if parts == "real" else None


@pytest.fixture(autouse=True)
def _batches(parts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the memory twins, a push goes in batches of one."""
    if parts == "memory":
        for module, name in BATCHES:
            monkeypatch.setattr(module, name, 1)


def chosen(parts: str, calls: list[str], moment: Moment) -> list[Step]:
    """Every call over the memory twins; over the real ports the ones that write, for they are the same above them."""
    return steps_of(calls, moment, writing=parts == "real" or moment is Moment.INSIDE)


@pytest.mark.parametrize(
    ("parts", "moment"), [("memory", Moment.BEFORE), ("memory", Moment.AFTER), ("real", Moment.AFTER)]
)
@pytest.mark.parametrize("way", WAYS)
async def test_F1_F2_F12_a_port_that_fails_at_any_step_ends_the_push_and_a_repetition_finishes_it(
    database: str | None, tmp_path: Path, way: str, parts: str, moment: Moment
) -> None:
    """I1, I2 and I4 after each; the answer names what failed, and says that trying again may help."""
    steps, branch = Steps(), Growing("x")

    async def fail(call: str) -> None:
        raise StoreUnavailable("injected") if call in OF_THE_STORE else IndexUnavailable("injected")

    async with (
        ports(database, tmp_path) as (index, store),
        serving(steps.watch(index), steps.watch(store), tmp_path) as server,
    ):
        told: set[str] = set()
        for step in chosen(parts, await watched(server, branch, way, steps), moment):
            history, push_id = branch.next(), next(push_ids)
            steps.arm(step, fail)
            said = await attempt(server, branch, way, history, push_id)
            accepted = steps.accepted
            steps.disarm()
            if steps.reached and said["type"] != "R":  # what only cleans up may fail
                expected = "store_unavailable" if step.call in OF_THE_STORE else "index_unavailable"
                assert (said["error"], said["retryable"]) == (expected, True), (step, said)
                told.add(step.call)
                if accepted:
                    assert await heads(server, branch.slug) == {"main": history.head}
                else:
                    await branch.is_unseen(server, history)
                said = await WAYS[way](server, history, push_id, branch.slug)
            assert (said["type"], said["head"]) == ("R", history.head), (step, said)
            branch.grown(history)
            if step.writes:
                await branch.can_be_fetched(server)
        await branch.is_whole(server, index)
        assert told >= {"begin_push", "put_batch"}
        assert told & ACCEPTING


@pytest.mark.parametrize(
    ("parts", "moment"),
    [("memory", Moment.BEFORE), ("memory", Moment.INSIDE), ("memory", Moment.AFTER), ("real", Moment.INSIDE)],
)
@pytest.mark.parametrize("way", WAYS)
async def test_F25_a_server_that_stops_at_any_step_of_a_push_leaves_all_of_it_or_nothing(
    database: str | None, tmp_path: Path, way: str, parts: str, moment: Moment
) -> None:
    """Every push is cut by a drain whose time is over; a server that is started after it finishes it."""
    steps, branch = Steps(), Growing("x")
    async with ports(database, tmp_path) as (index, store):
        watching = (steps.watch(index), steps.watch(store))
        async with serving(*watching, tmp_path) as server:
            every = chosen(parts, await watched(server, branch, way, steps), moment)
        if moment is Moment.AFTER:
            every = every[-2:]  # of the others, it is before the next
        cut: CutPush | None = None
        for step in [*every, None]:
            async with trio.open_nursery() as nursery, serving(*watching, tmp_path) as server:
                if cut is not None:
                    await cut.finish(server)
                if step is None:
                    await branch.is_whole(server, index)
                else:
                    cut = CutPush(steps, step, branch, way)
                    nursery.start_soon(cut.run, server)
                    await cut.there.wait()
                    await server.services.supervisor.drain(0)
            steps.disarm()


class CutPush:
    """A push to a server that is stopped at a step of it, and its end on another one."""

    def __init__(self, steps: Steps, step: Step, branch: Growing, way: str) -> None:
        self._steps, self._step, self._branch, self._way = steps, step, branch, way
        self._history, self._push_id = branch.next(), next(push_ids)
        self._said: dict | None = None
        self.there = trio.Event()

    async def run(self, server: Server) -> None:
        self._steps.arm(self._step, self._wait, self.there.set)
        self._said = await attempt(server, self._branch, self._way, self._history, self._push_id)
        self.there.set()

    async def finish(self, server: Server) -> None:
        said, branch, history = self._said, self._branch, self._history
        if said is None or said["type"] != "R":
            assert said is None or said["retryable"], (self._step, said)
            if await heads(server, branch.slug) == {"main": branch.head}:
                assert not self._steps.accepted
                await branch.is_unseen(server, history)
            else:
                assert ACCEPTING & set(self._steps.calls)
            said = await WAYS[self._way](server, history, self._push_id, branch.slug)
        assert (said["type"], said["head"]) == ("R", history.head), (self._step, said)
        branch.grown(history)
        if self._step.writes:
            await branch.can_be_fetched(server)

    async def _wait(self, call: str) -> None:
        self.there.set()
        await wait_all_tasks_blocked()  # until it is cancelled, or everything else is that can be


@pytest.mark.parametrize("parts", ["memory"])
async def test_the_counts_of_a_push_are_those_of_all_its_attempts(tmp_path, parts):
    steps, branch, push_id = Steps(), Growing("x"), str(uuid.uuid4())

    async def fail(call: str) -> None:
        raise IndexUnavailable("injected")

    async with serving(steps.watch(MemoryIndex()), MemoryStore(), tmp_path) as server:
        await server.make_repository()
        history = branch.next()
        steps.arm(Step("finish_push", 1, Moment.BEFORE), fail)
        assert (await by_stream(server, history, push_id, "x"))["type"] == "X"
        steps.disarm()
        said = await by_stream(server, history, push_id, "x")
    assert (said["commits_written"], said["snapshots_written"]) == (2, 2), said
