"""Collection beside pushes and fetches: step by step, and whole runs at every call of what goes on (faults F36 to F40).

Whatever happens, what an accepted push references is readable and proves, and whoever is told to come again is accepted
in the end.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from actors.collect.collector import Wishes, collect
from actors.collect.fold import Folder
from storage.errors import IndexUnavailable, StoreUnavailable
from storage.rows import HELD_S, BranchMove
from tests.clones import Clone, clone, download, fetch
from tests.collecting import GONE, KEPT, LONG_S, Collector, Yard, number, yard
from tests.growing import WAYS, push_ids
from tests.muse import Push
from tests.stepping import OF_THE_STORE, Moment, Step, Steps, steps_of
from wire.ids import Scheme

pytestmark = pytest.mark.usefixtures("expected_errors")
MORE = {"more": b"something else\n"}


def over(database: str, *values: object) -> list[tuple[str, object]]:
    """Parameters over one pair of ports: what is the same above them need not be tried over the slow ones."""
    return [(database, value) for value in values]


def few(steps: list[Step], *, once: bool = False) -> list[Step]:
    """The first two calls of each name, or the first one of each that takes something away."""
    taking = {"sweep_commits", "sweep_refs", "mark_suspects", "condemn", "take_tombstones", "delete", "bury"}
    return [step for step in steps if (step.number == 1 and step.call in taking if once else step.number <= 2)]


def moments(database: str | None) -> list[str]:
    """Before each step, or before those that change most; and at the end."""
    return [*(Collector.STEPS if database is None else ("mark", "condemn", "delete", "bury")), "end"]


async def at_each_step(place: Yard, action: Callable[[], Awaitable[None]], when: str) -> None:
    """Run the collector's steps twice, for rows go before packs, and do something before one of the first ones."""
    collector = Collector(place)
    for turn in range(2 if when == "end" else 1):
        for step in Collector.STEPS:
            if not turn and step == when:
                await action()
            await collector.step(step)
    if when == "end":
        await action()


@pytest.mark.parametrize(
    ("database", "way"), [*over("memory", *WAYS, "cached"), *over("real", "stream", "mpack")], indirect=["database"]
)
async def test_what_is_left_behind_is_deleted_and_nothing_else(
    database: str | None, tmp_path: Path, way: str
) -> None:  # fmt: skip
    async with yard(database, tmp_path, cached=way == "cached") as place:
        await place.left_behind("stream" if way == "cached" else way)
        before = await place.objects()
        planned = await place.collect(dry_run=True)
        assert (planned.commit_refs, planned.snapshot_refs, planned.blob_refs) == (1, 1, len(GONE))
        assert await place.objects() == before
        report = await place.collect()
        assert (report.commit_refs, report.snapshot_refs, report.blob_refs) == (1, 1, len(GONE))
        assert report.released_bytes == sum(map(len, GONE.values()))
        await place.is_whole()
        place.environment.move(HELD_S)
        await place.index.forget_held(place.environment.now(), 1_000)  # what was confirmed is held for a day
        first = await place.collect()
        place.environment.move(LONG_S)
        second = await place.collect()
        assert first.objects + second.objects == len(GONE)
        assert first.object_bytes + second.object_bytes == report.released_bytes
        await place.collect_all()
        after = await place.objects()
        if way == "mpack":  # the pack holds what is kept, too
            assert {key for key in after if key.startswith("packs/")}
        elif way != "cached":
            assert len(after) == len(KEPT)
        assert set((await place.index.count_marks()).values()) == {0}
        await place.is_whole()


@pytest.mark.parametrize(
    ("database", "way"), [*over("memory", *WAYS, "cached"), *over("real", "stream", "mpack")], indirect=["database"]
)
async def test_F36_a_push_brings_back_what_is_being_collected(
    database: str | None, tmp_path: Path, way: str
) -> None:  # fmt: skip
    """Before and after each step of the collector, by every way."""
    by = "stream" if way == "cached" else way
    async with yard(database, tmp_path, cached=way == "cached") as place:
        await place.left_behind(by)
        for when in moments(database):
            push_id = next(push_ids)

            async def bring_back(push_id: str = push_id) -> None:
                await place.push(by, KEPT | GONE, push_id=push_id)

            await at_each_step(place, bring_back, when)
            await place.settle(by, KEPT | GONE, "x", push_id)
            await place.is_whole()
            await place.leave_behind()
        await place.collect_all()
        await place.is_whole()


@pytest.mark.parametrize(
    ("database", "way"), [*over("memory", "stream", "mpack"), *over("real", "presigned")], indirect=["database"]
)
async def test_F40_another_repository_comes_to_hold_it_during_collection(
    database: str | None, tmp_path: Path, way: str
) -> None:  # fmt: skip
    async with yard(database, tmp_path) as place:
        await place.left_behind(way)
        for when in moments(database):
            slug, push_id = f"copy-{when}", next(push_ids)
            await place.make(slug)

            async def copy(slug: str = slug, push_id: str = push_id) -> None:
                await place.push(way, GONE | MORE, slug, push_id)

            await at_each_step(place, copy, when)
            await place.settle(way, GONE | MORE, slug, push_id)
            await place.is_whole()
            await place.index.delete_repository(place.repositories.pop(slug).number, place.environment.now())
            del place.must[slug]
            await place.settle(way, KEPT | GONE, "x", next(push_ids))
            await place.leave_behind()
        await place.is_whole()


@pytest.mark.parametrize("moves_s", [0.0, 1_000.0])
@pytest.mark.parametrize(
    ("database", "way"), [*over("memory", *WAYS, "cached"), *over("real", "stream")], indirect=["database"]
)
async def test_F36_the_collector_runs_at_every_call_of_a_push(
    database: str | None, tmp_path: Path, way: str, moves_s: float
) -> None:
    """Also one for which so much time passes that the push's lease runs out: as if its daemon had been stopped."""
    by, steps = "stream" if way == "cached" else way, Steps()

    async with yard(database, tmp_path, steps.watch, cached=way == "cached") as place:

        async def run(_call: str) -> None:
            for _ in range(2):
                place.environment.move(moves_s)
                wishes = Wishes(keep_s=0, orphan_s=-(10.0**10), lease_s=min(moves_s, 300.0))
                await collect(place.index, place.store, place.environment, wishes)

        async def nothing(_call: str) -> None:
            pass

        await place.left_behind(by)
        steps.arm(None, nothing)
        assert (await place.push(by, KEPT | GONE))["type"] == "R"
        calls = list(steps.calls)
        for step in steps_of(calls, Moment.BEFORE, writing=True):
            await place.leave_behind()
            push_id = next(push_ids)
            steps.arm(step, run)
            await place.push(by, KEPT | GONE, push_id=push_id)
            steps.disarm()
            await place.settle(by, KEPT | GONE, "x", push_id)
            await place.is_whole()


async def test_F37_a_branch_is_deleted_and_collected_while_it_is_fetched(
    database: str | None, tmp_path: Path
) -> None:  # fmt: skip
    """At every call of the fetch; the fetch is answered whole all the same, and what it relied on goes afterwards."""
    steps = Steps()
    async with yard(database, tmp_path, steps.watch) as place:
        await place.left_behind("stream")
        repository = place.repositories["x"]
        head = ""

        async def make() -> None:
            nonlocal head
            side = Push(branch="side")
            head = side.commit(GONE, [], message="a side branch")
            said = await WAYS["stream"](place.server, side, next(push_ids), "x")
            if said["type"] != "R":
                await place.collect_all()
                said = await WAYS["stream"](place.server, side, next(push_ids), "x")
            assert said["type"] == "R", said

        async def delete(_call: str) -> None:
            now = place.environment.now()
            await place.index.move_branches(
                repository.number, [BranchMove("side", number(head), None, True)], "alice", now
            )
            for _ in range(2):
                place.environment.move(120)  # less than its lease, more than what the collector waits for
                wishes = Wishes(keep_s=0, lease_s=100.0)
                await collect(place.index, place.store, place.environment, wishes)

        await make()
        steps.arm(None, delete)
        assert (await clone(place.server, head)).files(head) == GONE
        steps.disarm()
        calls = steps.calls
        assert "take_lease" in calls
        for step in steps_of(calls, Moment.AFTER):
            if calls.index(step.call) < calls.index("take_lease"):
                continue
            if database is not None and step.call not in {"take_lease", "commit_records", "held_places"}:
                continue
            await make()
            steps.arm(step, delete)
            answer = await fetch(place.server, [head])
            steps.disarm()
            if answer.status == 404:  # the branch was gone before it was planned
                continue
            assert answer.status == 200, (step, answer)
            copy = Clone()
            copy.apply(await download(place.server, answer.value))
            assert copy.files(head) == GONE
            place.environment.move(LONG_S)
        if "side" in await place.index.branch_heads(repository.number):
            await delete("at last")
        place.environment.move(LONG_S)
        await place.collect_all()
        held = await place.index.held_commits(repository.number, [number(head)])
        assert held == {}


@pytest.mark.parametrize(
    ("database", "moment"),
    [*over("memory", Moment.BEFORE, Moment.AFTER), *over("real", Moment.AFTER)],
    indirect=["database"],
)
async def test_F39_a_collector_dies_at_every_call_and_the_next_one_finishes(
    database: str | None, tmp_path: Path, moment: Moment
) -> None:
    steps = Steps()

    async def nothing(_call: str) -> None:
        pass

    async def die(call: str) -> None:
        raise StoreUnavailable("injected") if call in OF_THE_STORE else IndexUnavailable("injected")

    async with yard(database, tmp_path) as place:
        index, store = steps.watch(place.index), steps.watch(place.store)

        async def collector(wishes: Wishes) -> None:
            await collect(index, store, place.environment, wishes)

        async def three_runs() -> None:
            for _ in range(3):
                await collector(Wishes(keep_s=0, orphan_s=-(10.0**10)))
                place.environment.move(LONG_S)

        await place.left_behind("stream")
        steps.arm(None, nothing)
        await three_runs()
        calls = steps.calls
        assert {"condemn", "take_tombstones", "delete", "bury", "forget_tombstones", "sweep_commits"} <= set(calls)
        for step in few(steps_of(calls, moment, writing=True), once=database is not None):
            await place.settle("stream", KEPT | GONE, "x", next(push_ids))
            await place.leave_behind()
            steps.arm(step, die)
            with pytest.raises((StoreUnavailable, IndexUnavailable)):
                await three_runs()
            steps.disarm()
            await place.is_whole()
        await place.collect_all()
        assert len(await place.objects()) == len(KEPT)


async def test_F25_F39_a_collector_is_cancelled_at_every_call(tmp_path: Path) -> None:
    steps = Steps()
    async with yard(None, tmp_path) as place:
        index, store = steps.watch(place.index), steps.watch(place.store)
        await place.left_behind("stream")

        async def runs(cancel: Callable[[str], Awaitable[None]] | None, step: object) -> None:
            async def nothing(_call: str) -> None:
                pass

            steps.arm(step, cancel or nothing)  # type: ignore[arg-type]
            for _ in range(3):
                await collect(index, store, place.environment, Wishes(keep_s=0, orphan_s=-(10.0**10)))
                place.environment.move(LONG_S)

        await runs(None, None)
        for step in few(steps_of(steps.calls, Moment.AFTER, writing=True)):
            await place.settle("stream", KEPT | GONE, "x", next(push_ids))
            await place.leave_behind()
            with trio.CancelScope() as scope:

                async def cancel(_call: str, scope: trio.CancelScope = scope) -> None:
                    scope.cancel()
                    await trio.lowlevel.checkpoint()

                await runs(cancel, step)
            steps.disarm()
            assert scope.cancelled_caught
            await place.is_whole()
        await place.collect_all()
        assert len(await place.objects()) == len(KEPT)


async def test_F38_two_collectors_at_once_do_no_harm(database: str | None, tmp_path: Path) -> None:
    async with yard(database, tmp_path) as place:
        await place.left_behind("stream")
        for _ in range(4):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(place.collect)
                nursery.start_soon(place.collect)
            await place.is_whole()
            place.environment.move(LONG_S)
        for step in (
            Collector.STEPS[:-1] if database is None else ("condemn", "delete", "bury")
        ):  # and one that does everything between the steps of the other
            await place.settle("stream", KEPT | GONE, "x", next(push_ids))
            await place.leave_behind()
            slow = Collector(place)
            for before in Collector.STEPS[: Collector.STEPS.index(step)]:
                await slow.step(before)
            await place.collect_all()
            for after in Collector.STEPS[Collector.STEPS.index(step) :]:
                await slow.step(after)
            await place.is_whole()
        await place.collect_all()
        assert len(await place.objects()) == len(KEPT)


async def test_F38_collectors_and_pushes_all_at_once(database: str | None, tmp_path: Path) -> None:
    async with yard(database, tmp_path) as place:
        await place.left_behind("stream")
        await place.make("copy")
        for turn in range(6):
            way = list(WAYS)[turn % 3]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(place.collect)
                nursery.start_soon(place.settle, way, KEPT | GONE, "x", next(push_ids))
                nursery.start_soon(place.settle, "stream", GONE | MORE, "copy", next(push_ids))
                nursery.start_soon(place.collect)
            await place.is_whole()
            for slug in ("x", "copy"):
                assert (await place.push("stream", KEPT, slug, force=True))["type"] == "R"
            place.environment.move(LONG_S)


@pytest.mark.parametrize(
    ("database", "way"), [*over("memory", *WAYS), *over("real", "stream", "mpack")], indirect=["database"]
)
async def test_small_packs_and_loose_objects_are_folded_and_their_old_places_go(
    database: str | None, tmp_path: Path, way: str
) -> None:
    async with yard(database, tmp_path) as place:
        await place.make("x")
        files: dict[str, bytes] = {}
        for turn in range(9):
            files |= {f"f{turn} {n}": b"file %d of push %d\n" % (n, turn) * 20 for n in range(9)}
            assert (await place.push(way, dict(files)))["type"] == "R"
        before = await place.objects()
        folder = Folder(place.index, place.store, place.environment, tmp_path / "spool")
        folded = await folder.run(place.repositories["x"].number)
        assert (folded.packs, folded.objects, folded.damaged, folded.left) == (1, 81, 0, 0)
        await place.is_whole()
        await place.collect_all()
        after = await place.objects()
        assert len(after) == 1
        assert not after & before
        await place.is_whole()
        again = Folder(place.index, place.store, place.environment, tmp_path / "spool")
        assert (await again.run(place.repositories["x"].number)).packs == 0


async def test_F37_a_fetch_that_planned_with_old_places_reads_them(database: str | None, tmp_path: Path) -> None:
    """Objects are folded and their old places collected at every call of a fetch."""
    steps = Steps()
    async with yard(database, tmp_path, steps.watch) as place:
        await place.make("x")
        files = {f"f{n}": b"file %d\n" % n * 20 for n in range(70)}
        assert (await place.push("stream", files))["type"] == "R"
        head = place.must["x"][0]

        async def fold(_call: str) -> None:
            folder = Folder(place.index, place.store, place.environment, tmp_path / "spool", 2 * 1024 * 1024)
            await folder.run(place.repositories["x"].number)
            for _ in range(2):
                place.environment.move(120)
                wishes = Wishes(keep_s=0, lease_s=100.0)
                await collect(place.index, place.store, place.environment, wishes)

        steps.arm(None, fold)
        await clone(place.server, head)
        calls = steps.calls
        for step in steps_of(calls, Moment.AFTER):
            if calls.index(step.call) < calls.index("take_lease"):
                continue
            if database is not None and step.call not in {"held_places", "get_ranges"}:
                continue
            assert (await place.push("stream", KEPT, force=True))["type"] == "R"
            await place.collect_all()
            await place.settle("stream", files, "x", next(push_ids))
            head = place.must["x"][0]
            steps.arm(step, fold)
            assert (await clone(place.server, head)).files(head) == files
            steps.disarm()
            place.environment.move(LONG_S)


async def test_a_damaged_object_is_left_where_it_is(tmp_path: Path, logs: list[dict], expected_errors: list) -> None:
    async with yard(None, tmp_path) as place:
        await place.make("x")
        files = {f"f{n}": b"file %d\n" % n * 20 for n in range(70)}
        assert (await place.push("stream", files))["type"] == "R"
        damaged, missing = sorted(await place.objects())[:2]
        await place.store.put_batch([(damaged, b"x" * 160)])
        await place.store.delete([missing])
        folder = Folder(place.index, place.store, place.environment, tmp_path / "spool")
        folded = await folder.run(place.repositories["x"].number)
        assert (folded.objects, folded.damaged) == (68, 2)
        expected_errors += [entry for entry in logs if "damaged or missing" in entry["event"]]
        await place.collect_all()
        assert damaged in await place.objects()


async def test_a_history_that_is_not_whole_is_not_collected_from(
    tmp_path: Path, logs: list[dict], expected_errors: list
) -> None:
    async with yard(None, tmp_path) as place:
        await place.left_behind("stream")
        tables = place.index.tables  # type: ignore[attr-defined]
        head = number(place.must["x"][0])
        facts = tables.commits.pop((Scheme.TYPED, head))
        before = await place.objects()
        report = await place.collect()
        assert (report.postponed, report.blob_refs) == (1, 0)
        expected_errors += [entry for entry in logs if "is not whole" in entry["event"]]
        tables.commits[Scheme.TYPED, head] = facts
        await place.collect_all()
        assert len(await place.objects()) < len(before)
        await place.is_whole()
