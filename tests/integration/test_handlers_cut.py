"""F20, F25: handlers cut before or after any call to the index or the store, and run again by another worker."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import trio

from actors.jobs.handler import JobServices
from storage.memory.index import MemoryIndex
from storage.objects.memory import MemoryStore
from tests.clones import clone
from tests.deployments import two_commits
from tests.handler_runs import run, services_of, waiting
from tests.http_client import push
from tests.mpack_pushes import mpack_of, push_mpack
from tests.servers import Server, serving

pytestmark = pytest.mark.usefixtures("expected_errors")


class Cut:
    """The end of a worker at its ``number``-th step; each call has two, before it and after it."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.scope = trio.CancelScope()

    async def step(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.scope.cancel()
        await trio.lowlevel.checkpoint()

    def around(self, port: object) -> object:
        return Cutting(port, self)


class Cutting:
    """A port whose calls are steps."""

    def __init__(self, port: object, cut: Cut) -> None:
        self._port = port
        self._cut = cut

    def __getattr__(self, name: str) -> object:
        attribute = getattr(self._port, name)
        if name in {"scan", "stream", "statistics"} or not callable(attribute):
            return attribute

        async def call(*arguments: object, **more: object) -> object:
            await self._cut.step()
            result = await attribute(*arguments, **more)
            await self._cut.step()
            return result

        return call


def cut_services(services: JobServices, cut: Cut) -> JobServices:
    index, store = cut.around(services.index), cut.around(services.store)
    return replace(services, index=index, store=store, fetch=replace(services.fetch, index=index, store=store))


async def prepared(server: Server, type_: str, slug: str) -> tuple[int, dict]:
    """A repository whose last push has left a job of that type: a small push, and the same contents as one file."""
    repository = await server.make_repository(slug=slug)
    history = two_commits()
    assert (await push(server, history.frames(), repository=f"alice/{slug}"))["type"] == "R"
    if type_ == "mpack.index":
        other = await server.make_repository(slug=f"{slug}-file")
        assert (await push_mpack(server, mpack_of(history), history, f"{slug}-file")).status == 200
        return other.number, dict((await waiting(server, other.number))[type_])
    return repository.number, {}


DONE: dict[str, Callable[[MemoryIndex], bool]] = {
    "content.promote": lambda index: not index.tables.cached,
    "mpack.index": lambda index: not index.tables.cached,
    "fetch.mpack.prebuild": lambda index: bool(index.tables.prebuilt),
}


@pytest.mark.parametrize("type_", DONE)
async def test_F20_F25_a_handler_that_is_cut_anywhere_loses_nothing_and_is_done_by_the_next(tmp_path, type_):
    for number in itertools.count(1):
        index = MemoryIndex()
        async with serving(index, MemoryStore(), tmp_path / str(number)) as server:
            history, (repo, payload) = two_commits(), await prepared(server, type_, "x")
            cut = Cut(number)
            with cut.scope:
                await run(cut_services(services_of(server), cut), type_, repo, payload)
            assert (await clone(server, history.head)).blobs == history.blobs
            await run(services_of(server), type_, repo, payload)
            assert DONE[type_](index)
            assert (await clone(server, history.head)).blobs == history.blobs
        if cut.left > 0:
            break
    assert number > 8
