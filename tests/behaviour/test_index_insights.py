"""What every ``Index`` promises of lines, last commits and findings, against the memory twin and PostgreSQL."""

from __future__ import annotations

import datetime as dt

import pytest
import trio
from trio.testing import assert_checkpoints

from storage.index import Index
from storage.insights import (
    Finding,
    KeptFinding,
    LastCommits,
    Line,
    LineStanding,
    LineTicket,
    PathChanges,
    StoredPlace,
    path_id,
)
from storage.layout import Place
from storage.rows import StoredBlob
from tests.behaviour.test_index import PLAIN, TYPED, Bench, bench, blob, emptied_url, index, name, names, tables, url

__all__ = ["bench", "emptied_url", "index", "tables", "url"]

TYPE = "push.file_last_commits"
NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
SECOND = dt.timedelta(seconds=1)
FULL = LineStanding(name("c"), name("t"), "ä/path".encode(), b"\0state\xff", {"a": [1, 2.5, None, "ü\0"], "nested": {}})


async def begin(index: Index, branch: str = "main", repo: int = 1, type_: str = TYPE) -> Line:
    return await index.begin_line(repo, type_, branch, NOW)


async def write(
    index: Index, line: Line, last: dict[str, str] | None = None, gone: tuple[str, ...] = (),
    standing: LineStanding | None = None,
) -> bool:  # fmt: skip
    changes = PathChanges({path: name(commit) for path, commit in (last or {}).items()}, gone)
    return await index.write_line(line.ticket, standing or LineStanding(name("head")), NOW, changes)


async def last(index: Index, branch: str = "main") -> dict[str, bytes]:
    paths = [f"p{n}" for n in range(50)] + ["a", "b", "c", "ä/b", "x" * 4096]
    return dict((await index.last_commits(1, TYPE, branch, paths)).by_path)


# ---- lines


async def test_a_line_stands_where_it_was_written_to(index: Index) -> None:
    line = await begin(index)
    assert line.standing == LineStanding()
    assert await index.write_line(line.ticket, FULL, NOW)
    assert await index.find_line(1, TYPE, "main") == Line(line.ticket, FULL)
    assert (await begin(index)).standing == FULL
    assert await index.find_line(1, TYPE, "other") is None


async def test_lines_of_other_branches_types_and_repositories_are_others(index: Index) -> None:
    lines = [await begin(index), await begin(index, "other"), await begin(index, repo=2), await begin(index, type_="t")]
    assert len({line.ticket.line for line in lines}) == 4
    for number, line in enumerate(lines):
        assert await write(index, line, {"a": f"c{number}"})
    assert await last(index) == {"a": name("c0")}
    assert await last(index, "other") == {"a": name("c1")}


async def test_whoever_begins_a_line_makes_earlier_tickets_stale(index: Index) -> None:
    """A worker that wakes up late changes nothing, whatever it tries."""
    early = await begin(index)
    assert await write(index, early, {"a": "c1", "b": "c1"})
    late, source = await begin(index), await begin(index, "source")
    assert await write(index, source, {"c": "c9"})
    before = await index.find_line(1, TYPE, "main")
    assert not await write(index, early, {"a": "c2"}, ("b",), FULL)
    assert await index.clear_paths(early.ticket, 10) is None
    assert await index.copy_paths(early.ticket, source.ticket.line, b"", 10) is None
    assert not await index.write_line(LineTicket(999, 1), FULL, NOW)
    assert await index.find_line(1, TYPE, "main") == before
    assert await last(index) == {"a": name("c1"), "b": name("c1")}
    assert await write(index, late, {"a": "c2"})


async def test_of_two_at_once_one_ticket_counts(index: Index) -> None:
    lines: list[Line] = []

    async def work() -> None:
        lines.append(await begin(index))

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(work)
    assert len({line.ticket.epoch for line in lines}) == 8
    assert sum([await index.write_line(line.ticket, FULL, NOW) for line in lines]) == 1


async def test_last_commits_are_set_replaced_and_removed(index: Index) -> None:
    line = await begin(index)
    long = "x" * 4096
    assert await write(index, line, {"a": "1", "b": "1", "ä/b": "1", long: "1"})
    assert await write(index, line, {"b": "2", "c": "2"}, ("a", "never there"))
    found = await index.last_commits(1, TYPE, "main", ["a", "b", "c", "ä/b", long, "unknown"])
    assert found == LastCommits(name("head"), {"b": name("2"), "c": name("2"), "ä/b": name("1"), long: name("1")})
    assert await write(index, line)
    assert await last(index) == {"b": name("2"), "c": name("2"), "ä/b": name("1"), long: name("1")}


@pytest.mark.parametrize(
    "standing", [LineStanding(), LineStanding(name("c"), name("t")), LineStanding(None, name("t"))]
)
async def test_what_is_incomplete_says_so(index: Index, standing: LineStanding) -> None:
    line = await begin(index)
    assert await write(index, line, {"a": "1"}, standing=standing)
    assert await index.last_commits(1, TYPE, "main", ["a"]) == LastCommits(None, {"a": name("1")})
    assert await index.last_commits(1, TYPE, "unknown", ["a"]) == LastCommits(None, {})


async def test_paths_are_cleared_a_few_at_a_time(index: Index) -> None:
    line, other = await begin(index), await begin(index, "other")
    for one in (line, other):
        assert await write(index, one, {f"p{n}": "1" for n in range(5)})
    assert [await index.clear_paths(line.ticket, 2) for _ in range(4)] == [2, 2, 1, 0]
    assert await last(index) == {}
    assert len(await last(index, "other")) == 5


async def test_paths_are_copied_a_few_at_a_time(index: Index) -> None:
    source, line = await begin(index, "source"), await begin(index)
    assert await write(index, source, {f"p{n}": f"c{n}" for n in range(5)})
    assert await write(index, line, {"p1": "another", "p9": "9"})
    order = sorted(path_id(f"p{n}") for n in range(5))
    after, copied = b"", []
    while (found := await index.copy_paths(line.ticket, source.ticket.line, after, 2)) is not None:
        after = found
        copied.append(after)
    assert copied == [order[1], order[3], order[4]]
    assert await last(index) == {f"p{n}": name(f"c{n}") for n in range(5)} | {"p9": name("9")}
    assert len(await last(index, "source")) == 5


async def test_lines_of_other_branches_are_forgotten(index: Index) -> None:
    """With their paths, a few rows at a time; those of other types and repositories are left alone."""
    for branch in ("main", "kept", "gone", "gone too"):
        assert await write(index, await begin(index, branch), {f"p{n}": "1" for n in range(3)})
    for line in (await begin(index, "gone", repo=2), await begin(index, "gone", type_="t")):
        assert await write(index, line, {"p0": "1"})
    steps = []
    while step := await index.forget_lines(1, TYPE, ["main", "kept"], 2):
        steps.append(step)
    assert sum(steps) == 2 * (3 + 1)
    assert all(step <= 2 for step in steps)
    assert await index.find_line(1, TYPE, "gone") is None
    assert len(await last(index, "kept")) == 3
    assert await last(index, "gone") == {}
    assert await index.find_line(2, TYPE, "gone") is not None
    assert await index.find_line(1, "t", "gone") is not None
    assert await index.forget_lines(1, TYPE, [], 100) > 0


async def test_lines_of_deleted_repositories_are_forgotten(bench: Bench) -> None:
    index, gone, kept = bench.index, await bench.repository(), await bench.repository(slug="y")
    for repository in (gone, kept):
        line = await begin(index, repo=repository.number)
        assert await write(index, line, {f"p{n}": "1" for n in range(3)})
    assert await index.forget_deleted_lines(2) == 0
    await index.delete_repository(gone.number, bench.environment.now())
    assert [await index.forget_deleted_lines(2) for _ in range(3)] == [2, 2, 0]
    assert await index.find_line(gone.number, TYPE, "main") is None
    assert len((await index.last_commits(kept.number, TYPE, "main", ["p0", "p1", "p2"])).by_path) == 3


# ---- what has to be in the store


async def test_what_is_stored_is_listed_in_order_of_id_and_scheme(bench: Bench) -> None:
    """Of all repositories, loose or in packs, each once."""
    x, index = await bench.repository(), bench.index
    expires = bench.environment.now() + dt.timedelta(hours=1)
    typed = [blob(text, size, None if size % 2 else f"pack {size % 3}", size) for size, text in enumerate("abcdefg")]
    await index.hold_blobs(x.number, TYPED, typed, expires)
    await index.hold_blobs(x.number, PLAIN, typed[:2], expires)
    every = sorted([(one.object_id, TYPED) for one in typed] + [(one.object_id, PLAIN) for one in typed[:2]],
                   key=lambda key: (key[0], key[1].value))  # fmt: skip
    by_id = {one.object_id: one for one in typed}
    found: list[StoredPlace] = []
    after = None
    while rows := await index.stored_after(after, 2):
        assert len(rows) <= 2
        found += rows
        after = (rows[-1].place.object_id, rows[-1].scheme)
    assert [(row.place.object_id, row.scheme) for row in found] == every
    for row in found:
        stored = by_id[row.place.object_id]
        offset = stored.offset
        assert row.place == Place(stored.object_id, stored.size, stored.pack_id, offset)
    packs = sorted(names(["pack 0", "pack 1", "pack 2"]))
    assert await index.packs_after(b"", 10) == packs
    assert await index.packs_after(packs[0], 1) == packs[1:2]
    assert await index.packs_after(packs[-1], 10) == []


async def test_what_is_pending_need_not_be_in_the_store(bench: Bench) -> None:
    x = await bench.repository()
    ticket = await bench.begin(x)
    pending = StoredBlob(name("a"), 3, content=b"abc")
    await bench.index.record_blobs(ticket, TYPED, [pending, blob("b")])
    rows = await bench.index.stored_after(None, 10)
    assert [row.place.object_id for row in rows] == [name("b")]


# ---- findings


async def test_a_finding_is_kept_with_when_it_was_met_first_and_last(index: Index) -> None:
    whole, part = Finding("packs/a", None, "damaged", "ü"), Finding("packs/a", name("x"), "missing", "")
    await index.record_findings([whole, part], NOW)
    again = Finding("packs/a", None, "missing", "now gone")
    await index.record_findings([again, Finding("objects/b", name("y"), "unreadable", "")], NOW + SECOND)
    found = await index.list_findings(10)
    assert found == [
        KeptFinding(Finding("objects/b", name("y"), "unreadable", ""), NOW + SECOND, NOW + SECOND),
        KeptFinding(again, NOW, NOW + SECOND),
        KeptFinding(part, NOW, NOW),
    ]
    assert await index.list_findings(1) == found[:1]


async def test_findings_that_were_not_met_again_are_forgotten(index: Index) -> None:
    await index.record_findings([Finding("a", None, "damaged", "")], NOW)
    await index.record_findings([Finding("b", None, "damaged", "")], NOW + SECOND)
    assert await index.forget_findings(NOW) == 0
    assert await index.forget_findings(NOW + SECOND) == 1
    assert [kept.finding.key for kept in await index.list_findings(10)] == ["b"]


async def test_every_call_is_a_checkpoint(index: Index) -> None:
    ticket = (await begin(index)).ticket
    calls = [
        lambda: begin(index), lambda: index.find_line(1, TYPE, "main"),
        lambda: index.write_line(ticket, FULL, NOW), lambda: index.clear_paths(ticket, 1),
        lambda: index.copy_paths(ticket, 1, b"", 1), lambda: index.last_commits(1, TYPE, "main", []),
        lambda: index.forget_lines(1, TYPE, [], 1), lambda: index.forget_deleted_lines(1),
        lambda: index.stored_after(None, 1),
        lambda: index.packs_after(b"", 1), lambda: index.record_findings([], NOW),
        lambda: index.forget_findings(NOW), lambda: index.list_findings(1),
    ]  # fmt: skip
    for call in calls:
        with assert_checkpoints():
            await call()
