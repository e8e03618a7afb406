"""What was made for one who asked is there for the next: a clone is assembled once, not once for each client."""

from __future__ import annotations

import pytest

import actors.fetch.assemble
from actors.fetch.making import FetchMakers
from tests.clones import Clone, clone, download, fetch
from tests.deployments import with_history
from tests.handler_runs import run, services_of
from tests.http_client import push
from tests.muse import Push, random_history

pytestmark = pytest.mark.usefixtures("expected_errors")


@pytest.fixture
def assembled(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    made: list[object] = []
    assemble = actors.fetch.assemble.assemble

    async def noted(*arguments: object) -> object:
        made.append(arguments)
        return await assemble(*arguments)

    monkeypatch.setattr(actors.fetch.assemble, "assemble", noted)
    return made


@pytest.mark.parametrize("in_memory", [True, False])
async def test_the_second_clone_is_answered_from_the_first(server, assembled, monkeypatch, in_memory):
    """By the daemon that made it, and by another one that only shares the index; a job need not make it again."""
    history = await with_history(server, random_history(3))
    first = (await fetch(server, [history.head])).value
    if not in_memory:
        monkeypatch.setattr(FetchMakers, "made", lambda *_: None)
    assert (await fetch(server, [history.head])).value["mpack_id"] == first["mpack_id"]
    assert (await clone(server, history.head)).blobs == history.blobs
    assert len(assembled) == 1
    repository = await server.services.index.find_repository("alice", "x")
    assert (await run(services_of(server), "fetch.mpack.prebuild", repository.number))["built"] == 0


async def test_an_incremental_answer_is_found_by_who_asks_the_same(server, assembled):
    """Many clients that were at the same commit ask the same after a push."""
    history = await with_history(server, random_history(4))
    old = history.head
    copy = await clone(server, old)
    history.commit({"new": b"new"})
    assert (await push(server, history.frames()))["type"] == "R"
    answers = [await fetch(server, [history.head], [old]) for _ in range(3)]
    assert len({answer.value["mpack_id"] for answer in answers}) == 1
    assert len(assembled) == 2
    copy.apply(await download(server, answers[2].value))
    assert copy.blobs == history.blobs


async def test_what_is_remembered_gives_nobody_what_he_may_not_have(server):
    """Who may not read is told 404 before anything is looked for, and so is who wants what no branch leads to (R3)."""
    history = await with_history(server, random_history(5))
    old = history.head
    assert (await fetch(server, [old])).status == 200
    assert (await fetch(server, [old], token="bob")).status == 404
    other = Push()
    other.commit({"other": b"other"})
    assert (await push(server, other.frames(force=True)))["type"] == "R"
    assert (await fetch(server, [old])).status == 404


async def test_a_pack_that_is_gone_from_the_store_is_made_again(server, assembled):
    """A cache entry is never the truth."""
    history = await with_history(server, random_history(6))
    await fetch(server, [history.head])
    store = server.services.store
    await store.delete([stored.key async for stored in store.scan("fetch")])
    copy = Clone()
    copy.apply(await download(server, (await fetch(server, [history.head])).value))
    assert (copy.blobs, len(assembled)) == (history.blobs, 2)
