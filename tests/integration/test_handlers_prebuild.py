"""``fetch.mpack.prebuild``: clones are answered from packs made ahead, with the same rights and the same content."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

import actors.fetch.assemble
import actors.jobs.handlers.prebuild  # before anything is patched
from actors.fetch.making import FetchMakers
from actors.fetch.prepared import KEEP_S
from museworkd.http.uploads import Uploads
from museworkd.keepers import ExpiryKeeper
from storage.environment import SeededEnvironment
from storage.layout import fetch_pack_id, fetch_pack_key
from storage.memory.index import MemoryIndex
from storage.objects.memory import MemoryStore
from tests.clones import clone, download, fetch
from tests.deployments import deployed, two_commits, with_history
from tests.handler_runs import run, services_of
from tests.http_client import ask, push
from tests.muse import Push, random_history
from tests.servers import Server, serving

pytestmark = pytest.mark.usefixtures("expected_errors", "nothing_remembered")
TYPE = "fetch.mpack.prebuild"
HOUR_S = 3600.0


def digest(oid: str) -> bytes:
    return bytes.fromhex(oid.removeprefix("sha256:"))


async def prebuild(server: Server, slug: str = "x", **settings: object) -> dict[str, object]:
    repository = await server.services.index.find_repository("alice", slug)
    assert repository is not None
    result = await run(services_of(server, **settings), TYPE, repository.number)
    assert "elapsed_ms" in result
    return {key: value for key, value in result.items() if not key.endswith("_ms") and key != "repository_bytes"}


@pytest.fixture
def nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was assembled for somebody who asked is forgotten: only what was made ahead is left."""

    async def forgotten(*_: object) -> None:
        pass

    monkeypatch.setattr(actors.fetch.assemble, "remember", forgotten)
    monkeypatch.setattr(FetchMakers, "made", lambda *_: None)


@pytest.fixture
def assembled(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Answers that were assembled for somebody who asked."""
    made: list[object] = []
    assemble = actors.fetch.assemble.assemble

    async def noted(*arguments: object) -> object:
        made.append(arguments)
        return await assemble(*arguments)

    monkeypatch.setattr(actors.fetch.assemble, "assemble", noted)
    return made


async def test_a_clone_gets_what_was_made_ahead_and_it_is_what_it_would_have_got(server, assembled):
    history = await with_history(server, random_history(2))
    before = (await fetch(server, [history.head])).value
    assert len(assembled) == 1
    done = await prebuild(server)
    assert done == {"packs": 1, "built": 1, "objects": len(history.blobs), "bytes": before["size_bytes"]}
    after = (await fetch(server, [history.head])).value
    assert len(assembled) == 1
    assert {key: after[key] for key in after if key != "mpack_url"} == {
        key: before[key] for key in before if key != "mpack_url"
    }
    assert (await clone(server, history.head)).blobs == history.blobs
    assert (await prebuild(server))["built"] == 0


async def test_other_questions_are_answered_as_ever(server, assembled):
    history = await with_history(server, two_commits())
    await prebuild(server)
    first, second = (commit["commit_id"] for commit in history.commits)
    for want, have, more in (([second], [first], {}), ([first], [], {}), ([second], [], {"depth": 1})):
        assert (await fetch(server, want, have, **more)).status == 200
    assert len(assembled) == 3


async def test_a_clone_of_all_branches_and_of_the_default_one_are_made(server, assembled):
    history = await with_history(server, two_commits())
    other = Push(branch="other")
    other.commit({"z": b"z"}, parents=[history.commits[0]["commit_id"]])
    assert (await push(server, other.frames()))["type"] == "R"
    assert (await prebuild(server))["packs"] == 2
    for want in ([history.head, other.head], [other.head, history.head], [history.head]):
        answer = await fetch(server, want)
        assert await download(server, answer.value)
    assert assembled == []
    await fetch(server, [other.head])
    assert len(assembled) == 1


async def test_after_the_branch_has_moved_the_new_one_is_made_and_the_old_one_expires(server, assembled):
    history = await with_history(server, two_commits())
    await prebuild(server)
    old = history.head
    history.commit({"more": b"more"})
    assert (await push(server, history.frames()))["type"] == "R"
    assert (await clone(server, old)).blobs  # still right: it is an ancestor now
    assert assembled == []
    assert (await clone(server, history.head)).blobs == history.blobs
    assert len(assembled) == 1
    assert (await prebuild(server))["built"] == 1
    assert (await clone(server, history.head)).blobs == history.blobs
    assert len(assembled) == 1
    await fetch(server, [old])
    assert len(assembled) == 2


async def test_R3_R4_a_pack_made_ahead_is_given_only_to_who_may_read_and_only_while_it_is_reachable(server):
    history = await with_history(server, two_commits())
    old = history.head
    await prebuild(server)
    assert (await fetch(server, [old], token="bob")).status == 404
    assert (await fetch(server, [old], token=None)).status == 404
    other = Push()
    other.commit({"other": b"other"})
    assert (await push(server, other.frames(force=True)))["type"] == "R"
    assert (await fetch(server, [old])).status == 404
    await server.make_repository(slug="y")
    assert (await fetch(server, [old], repository="alice/y")).status == 404


async def test_a_pack_whose_file_is_gone_is_made_anew(server, assembled):
    history = await with_history(server, two_commits())
    await prebuild(server)
    mpack_id = digest((await fetch(server, [history.head])).value["mpack_id"])
    await server.services.store.delete([fetch_pack_key(mpack_id)])
    assert (await clone(server, history.head)).blobs == history.blobs
    assert len(assembled) == 1
    assert (await prebuild(server))["built"] == 1


@pytest.mark.parametrize("most", [0, 10])
async def test_a_repository_above_the_setting_is_left_out(server, assembled, most):
    history = await with_history(server, two_commits())
    await prebuild(server)
    assert await prebuild(server, prebuild_bytes=most) == {"packs": 0, "built": 0, "too_large": True}
    assert (await clone(server, history.head)).blobs == history.blobs
    assert len(assembled) == 1


async def test_an_empty_repository_has_no_clone(server):
    await server.make_repository()
    assert await prebuild(server) == {"packs": 0, "built": 0, "too_large": False}


@pytest.mark.parametrize("damage", ["flip", "missing"])
async def test_R8_a_pack_is_made_of_whole_objects_or_not_at_all(tmp_path: Path, damage: str) -> None:
    async with deployed(None, tmp_path, limits__content_cache_object_bytes=0) as server:
        await with_history(server, two_commits())
        store = server.services.store
        key = [stored.key async for stored in store.scan("objects")][0]  # noqa: RUF015
        await store.delete([key])
        if damage == "flip":
            await store.put_batch([(key, b"something else")])
        with pytest.raises(Exception, match=r".") as caught:
            await prebuild(server)
        assert type(caught.value).__name__ in {"ObjectDamaged", "ObjectMissing"}
        assert server.services.index.tables.prebuilt == {}


async def packs(server: Server) -> set[bytes | None]:
    return {fetch_pack_id(stored.key) async for stored in server.services.store.scan("fetch")}


async def test_packs_made_ahead_outlive_ordinary_answers_and_go_with_their_rows(tmp_path: Path) -> None:
    environment = SeededEnvironment(1)
    index, store = MemoryIndex(), MemoryStore(environment)
    async with serving(index, store, tmp_path, environment) as server:
        keeper = ExpiryKeeper(store, index, Uploads(tmp_path / "none"), environment, 2 * HOUR_S)
        history = await with_history(server, two_commits())
        first, second = (commit["commit_id"] for commit in history.commits)
        await prebuild(server)
        ahead = digest((await fetch(server, [second])).value["mpack_id"])
        ordinary = digest((await fetch(server, [first])).value["mpack_id"])
        assert await packs(server) == {ahead, ordinary}
        environment.move(3 * HOUR_S)
        await keeper.sweep()
        assert await packs(server) == {ahead}
        environment.move(KEEP_S - 2 * HOUR_S)  # it has expired, and may still be downloaded
        await keeper.sweep()
        assert await packs(server) == {ahead}
        environment.move(2 * HOUR_S)
        await keeper.sweep()
        assert await packs(server) == set()
        assert index.tables.prebuilt == {}


async def test_a_pack_that_is_used_lives_on(tmp_path: Path) -> None:
    environment = SeededEnvironment(1)
    async with deployed(None, tmp_path, environment) as server:
        history = await with_history(server, two_commits())
        await prebuild(server)
        tables = server.services.index.tables
        (made,) = tables.prebuilt.values()
        await fetch(server, [history.head])
        assert [row.expires for row in tables.prebuilt.values()] == [made.expires]
        environment.move(0.6 * KEEP_S)
        await fetch(server, [history.head])
        assert [row.expires for row in tables.prebuilt.values()] == [environment.now() + dt.timedelta(seconds=KEEP_S)]


async def test_a_deleted_repositorys_pack_is_worth_nothing(server):
    history = await with_history(server, two_commits())
    await prebuild(server)
    answer = await fetch(server, [history.head])
    assert (await ask(server, "DELETE", "/api/repos/alice/x", token="alice")).status in {200, 204}
    await server.make_repository()
    assert (await fetch(server, [history.head])).status in {404, 422}
    assert answer.status == 200
