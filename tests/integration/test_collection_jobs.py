"""The jobs ``gc`` and ``mpack.gc``: what payloads ask for, what is told, histories walked in pieces, and leases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import trio

from actors.collect import sweep
from actors.collect.collector import Wishes, collect
from actors.jobs.handler import JobRefused
from actors.leases import leased
from storage.errors import LeaseLost
from storage.job_rows import DEPLOYMENT
from storage.memory.index import MemoryIndex
from storage.objects.memory import MemoryStore
from storage.rows import BranchMove
from tests.clones import clone
from tests.collecting import GONE, KEPT, LONG_S, Yard, number, yard
from tests.growing import push_ids
from tests.handler_runs import run, services_of
from tests.http_client import push
from tests.job_workers import ClockEnvironment
from tests.muse import random_history

pytestmark = pytest.mark.usefixtures("expected_errors")


async def gc(place: Yard, repo: int = DEPLOYMENT, **payload: object) -> Mapping[str, object]:
    return await run(services_of(place.server), "gc", repo, payload)


async def test_gc_keeps_what_the_setting_says_unless_its_payload_says_otherwise(tmp_path: Path) -> None:
    async with yard(None, tmp_path) as place:
        await place.left_behind("stream")
        number_of_x = place.repositories["x"].number
        assert (await gc(place))["repositories"] == 0
        planned = await gc(place, keep_s=0, dry_run=True)
        assert (planned["dry_run"], planned["blob_refs"]) == (True, len(GONE))
        done = await gc(place, number_of_x, keep_s=0)
        assert (done["dry_run"], done["repositories"], done["blob_refs"]) == (False, 1, len(GONE))
        assert {"sweep_ms", "orphans_ms", "review_ms", "delete_ms", "elapsed_ms"} <= done.keys()
        place.environment.move(14 * 86_400 + LONG_S)
        for _ in range(3):
            await gc(place)
            place.environment.move(LONG_S)
        assert len(await place.objects()) == len(KEPT)
        for wrong in (-1, "soon", True):
            with pytest.raises(JobRefused):
                await gc(place, keep_s=wrong)


async def test_gc_forgets_what_was_found_out_about_repositories_that_are_gone(tmp_path: Path) -> None:
    async with yard(None, tmp_path) as place:
        for slug in ("x", "y"):
            await place.make(slug)
            assert (await place.push("stream", KEPT, slug))["type"] == "R"
            done = await run(
                services_of(place.server), "push.file_last_commits", place.repositories[slug].number, {}
            )  # fmt: skip
            assert "elapsed_ms" in done
        kept, gone = place.repositories["x"].number, place.repositories.pop("y").number
        await place.index.delete_repository(gone, place.environment.now())
        assert await place.index.find_line(gone, "push.file_last_commits", "main") is not None
        await gc(place, dry_run=True)
        assert await place.index.find_line(gone, "push.file_last_commits", "main") is not None
        await gc(place)
        assert await place.index.find_line(gone, "push.file_last_commits", "main") is None
        assert await place.index.find_line(kept, "push.file_last_commits", "main") is not None


async def test_mpack_gc_folds_what_a_repository_holds(tmp_path: Path) -> None:
    async with yard(None, tmp_path) as place:
        await place.make("x")
        files = {f"f{n}": b"file %d\n" % n for n in range(70)}
        assert (await place.push("stream", files))["type"] == "R"
        done = await run(services_of(place.server), "mpack.gc", place.repositories["x"].number, {})
        assert (done["packs"], done["objects"], done["bytes"]) == (1, 70, sum(map(len, files.values())))
        repo = place.repositories["x"].number
        assert (await run(services_of(place.server), "mpack.gc", repo, {}))["skipped"] is True
        assert (await run(services_of(place.server), "mpack.gc", repo, {"now": True}))["packs"] == 0
        place.environment.move(3_601)
        assert (await run(services_of(place.server), "mpack.gc", repo, {}))["packs"] == 0
        await place.is_whole()


@pytest.mark.parametrize("seed", range(3))
async def test_the_walk_keeps_just_what_branches_lead_to(
    database: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """In histories with merges, by pieces of any size: two branches stay whole, and what only the third had goes."""
    for name in ("ASKED_AT_ONCE", "ANCESTORS_AT_ONCE", "SNAPSHOTS_AT_ONCE", "REFS_AT_ONCE"):
        monkeypatch.setattr(sweep, name, 3)
    async with yard(database, tmp_path) as place:
        await place.make("x")
        repo = place.repositories["x"].number
        heads = {}
        for at, branch in enumerate(("main", "side", "gone")):
            history = random_history(10 * seed + at, commits=9)
            history.branch = branch
            assert (await push(place.server, history.frames(push_id=next(push_ids))))["type"] == "R"
            heads[branch] = history
        gone = BranchMove("gone", number(heads["gone"].head), None, True)
        await place.index.move_branches(repo, [gone], "alice", place.environment.now())
        place.environment.move(1)
        report = await place.collect()
        assert report.commit_refs == len(heads["gone"].commits)
        kept = {**heads["main"].blobs, **heads["side"].blobs}
        assert report.blob_refs == len(heads["gone"].blobs.keys() - kept.keys())
        await place.collect_all()
        assert len(await place.objects()) == len(kept)
        for branch in ("main", "side"):
            copy = await clone(place.server, heads[branch].head)
            assert copy.commits.keys() == {commit["commit_id"] for commit in heads[branch].commits}
            assert copy.blobs == heads[branch].blobs


async def test_a_run_that_waits_deletes_what_it_has_marked(autojump_clock: object) -> None:
    del autojump_clock
    environment = ClockEnvironment(1)
    index, store = MemoryIndex(), MemoryStore(environment)
    await store.put_batch([("packs/" + "ab" * 32 + ".mpack", b"nobody's")])
    await trio.sleep(10)
    report = await collect(index, store, environment, Wishes(orphan_s=0.0, wait=True))
    assert (report.packs, report.pack_bytes) == (1, 8)
    assert [found async for found in store.scan("")] == []


# ---- leases


async def test_a_lease_that_is_lost_ends_what_relies_on_it(autojump_clock: object) -> None:
    del autojump_clock
    environment, index = ClockEnvironment(1), MemoryIndex()

    async def rely() -> None:
        async with leased(index, environment, 1, 100.0):
            await trio.sleep(1_000)  # it is renewed
            index.tables.collection.leases.clear()
            await trio.sleep_forever()

    with pytest.raises(LeaseLost):
        await rely()
    assert index.tables.collection.leases == {}


async def test_what_fails_under_a_lease_is_told_as_it_is() -> None:
    index = MemoryIndex()

    async def fail() -> None:
        async with leased(index, ClockEnvironment(1), 1):
            assert len(index.tables.collection.leases) == 1
            raise KeyError

    with pytest.raises(KeyError):
        await fail()
    assert index.tables.collection.leases == {}
    with trio.CancelScope() as scope:
        async with leased(index, ClockEnvironment(1), 1):
            scope.cancel()
            await trio.sleep_forever()
    assert index.tables.collection.leases == {}
