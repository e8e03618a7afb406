"""``push.file_last_commits``: what is kept of every file is what its history says, however a branch got there."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from actors.jobs import path_trace
from actors.jobs.handlers import file_last_commits
from storage.insights import LineStanding
from storage.memory.index import MemoryIndex
from storage.postgres.database import DatabaseSettings
from storage.postgres.index import PostgresIndex
from storage.rows import BranchMove
from tests.git_histories import git, ordinary
from tests.insight_histories import FileHistory, Library, digest, git_files, git_last_commits, random_files

TYPE = "push.file_last_commits"
H11 = Path(__file__).parents[3] / "shared" / "data" / "h11.bundle"


@pytest.fixture
async def library(tmp_path: Path) -> Library:
    made = Library(MemoryIndex(), tmp_path)
    await made.make()
    return made


@pytest.fixture
async def real_library(database_url: str, tmp_path: Path) -> AsyncIterator[Library]:
    async with PostgresIndex(DatabaseSettings(database_url)) as index:
        made = Library(index, tmp_path)
        await made.make()
        yield made


async def run(library: Library) -> dict:
    return dict(await file_last_commits.run(library.context(TYPE)))


async def check(library: Library, history: FileHistory, branch: str, head: bytes) -> None:
    """Every file's row is right, and there are no others."""
    every = {path for commit in history.commits.values() for path in commit.files}
    found = await library.last_commits(branch, every)
    assert found.commit_id == head
    assert found.by_path == history.last_commits(head)


@pytest.mark.parametrize("seed", range(12))
async def test_wherever_a_branch_moves_its_files_say_what_history_says(library: Library, seed: int) -> None:
    """Forward, back, across, and to a history of its own: as if it had been computed anew."""
    history, rng = random_files(seed), random.Random(seed)
    heads = rng.sample(list(history.commits), 12)
    for step, head in enumerate(heads):
        branch = rng.choice(["main", "main", "other"]) if step else "main"
        await library.push(history, branch, head, seed)
        result = await run(library)
        assert result["branches"] == len(await library.index.branch_heads(library.repository.number))
        await check(library, history, branch, head)
        assert (await run(library))["paths"] == 0


async def test_over_postgresql_as_over_its_twin(real_library: Library) -> None:
    history = random_files(99)
    for head in list(history.commits)[::12]:
        await real_library.push(history, "main", head)
        await run(real_library)
        await check(real_library, history, "main", head)


async def test_slices_give_what_one_walk_gives(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_last_commits, "PATHS_AT_ONCE", 3)
    history = random_files(3)
    for head in list(history.commits)[::9]:
        await library.push(history, "main", head)
        await run(library)
        await check(library, history, "main", head)


@pytest.mark.parametrize("reuse", [True, False])
async def test_an_attempt_that_was_cut_is_taken_up(
    library: Library, monkeypatch: pytest.MonkeyPatch, reuse: bool
) -> None:
    """Slices that are done are not done again, unless the branch has moved meanwhile; then none of them counts."""
    monkeypatch.setattr(file_last_commits, "PATHS_AT_ONCE", 3)
    history = FileHistory()
    first = history.commit("c1", [], **{f"f{n}": "1" for n in range(9)})
    second = history.commit("c2", ["c1"], f8="2")
    head = second
    await library.push(history, "main", head)
    cut = cut_after(library, 2)
    with pytest.raises(_Cut):
        await file_last_commits.run(cut)
    found = await library.last_commits("main", ["f0", "f8"])
    assert found.commit_id is None
    assert found.by_path == {"f0": first}
    if not reuse:
        head = history.commit("c3", ["c2"], f0=None, f1="3")
        await library.push(history, "main", head)
    result = await run(library)
    assert result["paths"] == (3 if reuse else 8)
    await check(library, history, "main", head)


async def test_a_fast_forward_walks_its_new_commits_only(library: Library) -> None:
    history = FileHistory()
    history.commit("c0", [], **{f"f{n}": "0" for n in range(50)})
    for number in range(1, 101):
        history.commit(f"c{number}", [f"c{number - 1}"], **{f"f{number % 50}": f"{number}"})
    await library.push(history, "main", digest("c98"))
    assert (await run(library))["rebuilt"] == 1
    await library.push(history, "main", digest("c100"))
    result = await run(library)
    assert (result["rebuilt"], result["commits"], result["paths"]) == (0, 3, 2)
    await check(library, history, "main", digest("c100"))


async def test_a_forced_move_looks_no_further_than_where_the_histories_part(library: Library) -> None:
    """An amended commit: only the files it touched are followed further down."""
    history = FileHistory()
    history.commit("c0", [], **{f"f{n}": "0" for n in range(50)})
    for number in range(1, 41):
        history.commit(f"c{number}", [f"c{number - 1}"], **{f"f{number}": "1"})
    old = history.commit("old", ["c40"], f40="old", f1=None)
    new = history.commit("new", ["c40"], f2="new")
    await library.push(history, "main", old)
    await run(library)
    await library.push(history, "main", new)
    result = await run(library)
    assert result["rebuilt"] == 0
    assert result["paths"] == 3  # f2 by the new commit; f40 and f1 by what came before both
    await check(library, history, "main", new)


async def test_what_a_merge_took_from_its_other_side_is_followed_there(library: Library) -> None:
    """To where both sides part and beyond, though the line of first parents had another content meanwhile."""
    history = FileHistory()
    history.commit("c0", [], q="0", r="0")
    history.commit("c1", ["c0"], q="1")
    history.commit("side", ["c1"], r="1")
    history.commit("c2", ["c1"], q="2")
    merge = history.commit("merge", ["c2", "side"], q="1", r="1")
    await library.push(history, "main", digest("c0"))
    await run(library)
    await library.push(history, "main", merge)
    assert (await run(library))["rebuilt"] == 0
    found = await library.last_commits("main", ["q", "r"])
    assert found.by_path == {"q": digest("c1"), "r": digest("side")}


async def test_a_new_branch_begins_with_what_is_known_of_the_default_one(library: Library) -> None:
    history = FileHistory()
    history.commit("c0", [], a="0", b="0", c="0")
    history.commit("c1", ["c0"], a="1")
    topic = history.commit("topic", ["c1"], b="1")
    await library.push(history, "main", digest("c1"))
    await run(library)
    await library.push(history, "topic", topic)
    result = await run(library)
    assert (result["branches"], result["current"], result["rebuilt"], result["paths"]) == (2, 1, 0, 1)
    await check(library, history, "topic", topic)


async def test_a_branch_that_is_gone_is_forgotten(library: Library) -> None:
    history = random_files(5)
    heads = list(history.commits)
    await library.push(history, "main", heads[-1])
    await library.push(history, "gone", heads[-2])
    await run(library)
    index, number = library.index, library.repository.number
    await index.move_branches(number, [BranchMove("gone", heads[-2], None, True)], "ada", library.environment.now())
    result = await run(library)
    assert result["rows_forgotten"] > 0
    assert await index.find_line(number, TYPE, "gone") is None
    await check(library, history, "main", heads[-1])


async def test_a_worker_that_is_late_writes_nothing(library: Library) -> None:
    """What it read is old by now: a line that somebody else has begun drops what it says."""
    history = FileHistory()
    first = history.commit("c0", [], a="0")
    second = history.commit("c1", ["c0"], a="1")
    await library.push(history, "main", first)
    late = await library.index.begin_line(library.repository.number, TYPE, "main", library.environment.now())
    await library.push(history, "main", second)
    await run(library)
    now = library.environment.now()
    assert not await library.index.write_line(late.ticket, LineStanding(first), now)
    await check(library, history, "main", second)


async def test_what_was_collected_does_not_keep_a_branch_from_being_brought_up_to_date(library: Library) -> None:
    """The commit a line is up to date with may be gone after a forced move."""
    history = random_files(11)
    old, new = list(history.commits)[-1], list(history.commits)[20]
    await library.push(history, "main", new)
    await run(library)
    index = library.index
    line = await index.begin_line(library.repository.number, TYPE, "main", library.environment.now())
    await index.write_line(line.ticket, LineStanding(digest("collected")), library.environment.now())
    assert (await run(library))["rebuilt"] == 1
    await check(library, history, "main", new)
    assert old not in (await library.last_commits("main", ["a/f0"])).by_path.values()


async def test_an_empty_repository_and_an_empty_commit(library: Library) -> None:
    assert (await run(library))["branches"] == 0
    history = FileHistory()
    head = history.commit("nothing", [])
    await library.push(history, "main", head)
    assert (await run(library))["branches"] == 1
    assert (await library.last_commits("main", ["a"])).commit_id == head


def real_git(path: Path) -> Path:
    """The history of a public project, where it is at hand, else a generated one."""
    if not H11.exists():
        return ordinary(path, commits=200, seed=1)
    git(path.parent, "clone", "--quiet", "--bare", str(H11), str(path))
    return path


@pytest.mark.parametrize("source", [ordinary, real_git])
async def test_of_every_file_it_is_the_commit_git_names(library: Library, tmp_path: Path, source: object) -> None:
    """``git log -1 -- path`` is the yardstick, merges and all; a branch gets there in steps."""
    repository = source(tmp_path / "git")
    history, names = git_files(repository)
    head = git(repository, "rev-parse", "HEAD")
    line = git(repository, "rev-list", "--first-parent", "--reverse", head).split()
    for stop in [*line[:: max(len(line) // 4, 1)], head]:
        await library.push(history, "main", digest(stop))
        await run(library)
    files = history.commits[digest(head)].files
    found = await library.last_commits("main", files)
    by_git = git_last_commits(repository, head, files)
    assert {path: names[commit] for path, commit in found.by_path.items()} == by_git


def test_sets_of_paths_say_what_is_in_them() -> None:
    """A named set, and all but a named set, through the same steps."""
    named, others = path_trace.Paths({"a", "b"}), path_trace.Paths({"a", "b"}, all_but=True)
    assert named.among("abc") == ["a", "b"]
    assert others.among("abc") == ["c"]
    others.drop("c")
    assert others.among("abc") == []
    both = named.add(others)
    assert both.all_but
    assert both.names == {"c"}
    assert path_trace.Paths({"x"}).add(path_trace.Paths({"y", "z"})).names == {"x", "y", "z"}


class _Cut(Exception):
    pass


def cut_after(library: Library, steps: int) -> object:
    context = library.context(TYPE)
    told = 0

    async def progress(stage: str, done: int = 0, total: int | None = None) -> None:
        nonlocal told
        told += stage == "paths"
        if told == steps:
            raise _Cut

    context.progress = progress
    return context
