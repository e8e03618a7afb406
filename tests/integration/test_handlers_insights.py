"""``intel.structural`` and ``profile.snapshot``: what they report is what the files and the history are."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import msgpack
import pytest

from actors.jobs import churn, sized_files, structure
from actors.jobs.handlers import intel_structural, profile_snapshot
from actors.jobs.languages import OTHER, language_of
from storage.memory.index import MemoryIndex
from storage.postgres.database import DatabaseSettings
from storage.postgres.index import PostgresIndex
from storage.rows import BranchMove
from tests import handler_runs
from tests.deployments import with_history
from tests.handler_runs import services_of
from tests.insight_histories import FileHistory, Files, Library, blob_size, digest, random_files
from tests.muse import bare, random_history
from tests.servers import Server

STRUCTURAL, PROFILE = "intel.structural", "profile.snapshot"


@pytest.fixture
async def library(tmp_path: Path) -> Library:
    made = Library(MemoryIndex(), tmp_path, say_again=0)
    await made.make()
    return made


@pytest.fixture
async def real_library(database_url: str, tmp_path: Path) -> AsyncIterator[Library]:
    async with PostgresIndex(DatabaseSettings(database_url)) as index:
        made = Library(index, tmp_path, say_again=0)
        await made.make()
        yield made


async def structural(library: Library, branch: str = "main") -> tuple[dict, dict]:
    """Run the job; gives its counts and a branch's report."""
    counts = dict(await intel_structural.run(library.context(STRUCTURAL)))
    return counts, await report(library, STRUCTURAL, branch)


async def profile(library: Library, branch: str = "main") -> tuple[dict, dict]:
    counts = dict(await profile_snapshot.run(library.context(PROFILE)))
    return counts, await report(library, PROFILE, branch)


async def report(library: Library, type_: str, branch: str) -> dict:
    line = await library.index.find_line(library.repository.number, type_, branch)
    assert line is not None
    assert line.standing.report is not None
    return dict(line.standing.report)


def expected_structure(files: Files) -> dict:
    languages: dict[str, list[int]] = {}
    for path, blob in files.items():
        sums = languages.setdefault(language_of(path), [0, 0])
        sums[0] += 1
        sums[1] += blob_size(blob)
    largest = sorted(files, key=lambda path: (-blob_size(files[path]), path))
    return {
        "files": len(files), "bytes": sum(map(blob_size, files.values())), "unknown_sizes": 0,
        "languages": [
            {"language": name, "files": count, "bytes": size}
            for name, (count, size) in sorted(languages.items(), key=lambda item: (-item[1][1], item[0]))
        ],
        "largest": [{"path": p, "bytes": blob_size(files[p])} for p in largest[: structure.LARGEST_SHOWN]],
    }  # fmt: skip


def expected_churn(history: FileHistory, head: bytes) -> dict:
    """The definition, read out: the newest commits, without merges, against their first parents."""
    newest = sorted(history.reachable(head), key=lambda c: (-c.generation, c.id))[: churn.WINDOW_COMMITS]
    counts: Counter[str] = Counter()
    for commit in newest:
        if len(commit.parents) < 2:
            before = history.commits[commit.parents[0]].files if commit.parents else {}
            paths = before.keys() | commit.files.keys()
            counts.update(path for path in paths if before.get(path) != commit.files.get(path))
    files = history.commits[head].files
    weights = {path: count * blob_size(files[path]) for path, count in counts.items() if path in files}

    def most(of: dict[str, int]) -> list[str]:
        return sorted(of, key=lambda path: (-of[path], path))[: intel_structural.SHOWN]

    return {
        "window": {"commits": len(newest), "most": churn.WINDOW_COMMITS, "bulk_commits": 0},
        "churn": [{"path": path, "changes": counts[path]} for path in most(counts)],
        "hotspots": [
            {"path": p, "changes": counts[p], "bytes": blob_size(files[p])} for p in most(weights) if weights[p]
        ],
    }


@pytest.mark.parametrize("seed", range(8))
async def test_wherever_a_branch_moves_its_report_is_as_if_made_anew(
    library: Library, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Languages, largest files, churn and hotspots, brought up to date by what differs; short lists, short windows."""
    monkeypatch.setattr(churn, "WINDOW_COMMITS", 10)
    monkeypatch.setattr(intel_structural, "WINDOW_COMMITS", 10)
    monkeypatch.setattr(structure, "LARGEST_SHOWN", 3)
    monkeypatch.setattr(structure, "LARGEST_KEPT", 5)
    history, rng = random_files(seed), random.Random(seed)
    for head in rng.sample(list(history.commits), 12):
        await library.push(history, "main", head, seed)
        _, found = await structural(library)
        assert found == expected_structure(history.commits[head].files) | expected_churn(history, head)


async def test_over_postgresql_as_over_its_twin(real_library: Library) -> None:
    history = random_files(4)
    for head in list(history.commits)[20::13]:
        await real_library.push(history, "main", head)
        _, found = await structural(real_library)
        files = history.commits[head].files
        assert found == expected_structure(files) | expected_churn(history, head)
        _, shape = await profile(real_library)
        assert shape["files"] == len(files)


@pytest.mark.parametrize("seed", range(3))
async def test_what_was_pushed_is_what_is_reported(server: Server, seed: int) -> None:
    """From real bytes to what readers are shown, in the same way for each type."""
    pushed = await with_history(server, random_history(seed, commits=25))
    history = FileHistory()
    manifests = {snapshot["snapshot_id"]: snapshot["manifest"] for snapshot in pushed.snapshots}
    for commit in pushed.commits:
        parents = [bare_id(commit[key]) for key in ("parent_commit_id", "parent2_commit_id") if commit[key]]
        files = {path: bare_id(oid) for path, oid in manifests[commit["snapshot_id"]].items()}
        history.add(bare_id(commit["commit_id"]), parents, files)
    head = bare_id(pushed.head)
    services, index = services_of(server), server.services.index
    for type_ in ("push.file_last_commits", STRUCTURAL, PROFILE):
        result = await handler_runs.run(services, type_, 1)
        assert result["branches"] == 1
        assert result["elapsed_ms"] > 0
        assert result["manifest_ms"] >= 0
    files = history.commits[head].files
    found = await index.last_commits(1, "push.file_last_commits", "main", list(files))
    assert (found.commit_id, found.by_path) == (head, history.last_commits(head))
    sizes = {bare_id(oid): len(content) for oid, content in pushed.blobs.items()}
    for type_ in (STRUCTURAL, PROFILE):
        line = await index.find_line(1, type_, "main")
        assert line is not None
        assert line.standing.report is not None
        assert line.standing.report["files"] == len(files)
        assert line.standing.report["bytes"] == sum(sizes[blob] for blob in files.values())


def bare_id(text: str) -> bytes:
    return bytes.fromhex(bare(text))


async def test_a_push_costs_what_it_changed(library: Library) -> None:
    history = FileHistory()
    history.commit("c0", [], **{f"f{n}.py": f"{n}" for n in range(100)})
    for number in range(1, 30):
        history.commit(f"c{number}", [f"c{number - 1}"], **{f"f{number}.py": f"new {number}"})
    await library.push(history, "main", digest("c27"))
    counts, _ = await structural(library)
    assert (counts["snapshots_whole"], counts["commits"]) == (1, 28)
    await library.push(history, "main", digest("c29"))
    counts, found = await structural(library)
    assert (counts["snapshots_whole"], counts["commits"], counts["current"]) == (0, 2, 0)
    assert found == expected_structure(history.commits[digest("c29")].files) | expected_churn(history, digest("c29"))
    counts, _ = await structural(library)
    assert (counts["commits"], counts["current"]) == (0, 1)


async def test_an_import_is_no_churn(library: Library) -> None:
    """A commit that changes very many files at once says nothing about any of them."""
    history = FileHistory()
    history.commit("c0", [], **{f"f{n}.c": "0" for n in range(churn.CHANGES_MOST + 1)})
    head = history.commit("c1", ["c0"], **{"f1.c": "1"})
    await library.push(history, "main", head)
    _, found = await structural(library)
    assert found["window"]["bulk_commits"] == 1
    assert found["churn"] == [{"path": "f1.c", "changes": 1}]


async def test_a_branch_that_is_gone_is_forgotten(library: Library) -> None:
    history = random_files(5)
    heads = list(history.commits)
    await library.push(history, "main", heads[-1])
    await library.push(history, "gone", heads[-2])
    await structural(library, "gone")
    await profile(library, "gone")
    index, number = library.index, library.repository.number
    await index.move_branches(number, [BranchMove("gone", heads[-2], None, True)], "ada", library.environment.now())
    for run, type_ in [(structural, STRUCTURAL), (profile, PROFILE)]:
        await run(library)
        assert await index.find_line(number, type_, "gone") is None
        assert await index.find_line(number, type_, "main") is not None


async def test_state_of_another_version_counts_as_nothing(library: Library) -> None:
    history = random_files(6)
    head = list(history.commits)[-1]
    await library.push(history, "main", head)
    _, before = await structural(library)
    index, now = library.index, library.environment.now()
    line = await index.begin_line(library.repository.number, STRUCTURAL, "main", now)
    await index.write_line(line.ticket, replace(line.standing, state=msgpack.packb([99])), now)
    counts, after = await structural(library)
    assert counts["snapshots_whole"] == 1
    assert after == before


# ---- profile.snapshot


async def test_the_shape_of_a_snapshot(library: Library) -> None:
    history = FileHistory()
    head = history.commit(
        "c0", [], **{"top": "x", "a/one": "x", "a/b/two": "x", "a/b/three": "y", "a-b/four": "z", "c/d/e/five": "z"}
    )
    await library.push(history, "main", head)
    counts, found = await profile(library)
    assert (counts["snapshots"], counts["files"]) == (1, 6)
    x, y, z = (blob_size(digest(text)) for text in "xyz")
    assert found["files"] == 6
    assert found["directories"] == 6  # a, a/b, a-b, c, c/d, c/d/e
    assert found["depth"] == {"deepest": 4, "mean": round((1 + 2 + 3 + 3 + 2 + 4) / 6, 2)}
    assert found["bytes"] == 3 * x + y + 2 * z
    assert found["distinct"] == {"contents": 3, "bytes": x + y + z}
    assert found["duplicates"]["files"] == 3
    assert found["duplicates"]["bytes"] == 2 * x + z
    assert {tuple(entry["paths"]): entry["files"] for entry in found["duplicates"]["largest"]} == {
        ("a/b/two", "a/one", "top"): 3, ("a-b/four", "c/d/e/five"): 2,
    }  # fmt: skip
    sizes: Counter[int] = Counter()
    for size in [x, x, x, y, z, z]:
        sizes[1 << size.bit_length()] += 1
    assert {entry["below"]: entry["files"] for entry in found["sizes"]} == sizes
    counts, again = await profile(library)
    assert (counts["snapshots"], counts["current"]) == (0, 1)
    assert again == found


async def test_a_large_manifest_is_looked_at_in_parts(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    history = random_files(8)
    head = list(history.commits)[-1]
    await library.push(history, "main", head)
    _, whole = await profile(library)
    _, made = await structural(library)
    monkeypatch.setattr(sized_files, "BLOBS_AT_ONCE", 2)
    monkeypatch.setattr(sized_files, "_LOOKED_UP", 1)
    other = Library(MemoryIndex(), library.spool_dir, say_again=0)
    await other.make()
    await other.push(history, "main", head)
    assert (await profile(other))[1] == whole
    assert (await structural(other))[1] == made


async def test_a_snapshot_without_files(library: Library) -> None:
    history = FileHistory()
    await library.push(history, "main", history.commit("c0", []))
    _, found = await profile(library)
    assert (found["files"], found["directories"], found["bytes"]) == (0, 0, 0)
    _, made = await structural(library)
    assert (made["files"], made["languages"], made["churn"]) == (0, [], [])


@pytest.mark.parametrize(
    ("path", "language"),
    [
        ("a/b.py", "Python"), ("Makefile", "Makefile"), ("x/Dockerfile", "Dockerfile"), ("README.MD", "Markdown"),
        ("song.mid", "MIDI"), ("noext", OTHER), ("py", OTHER), (".gitignore", OTHER), ("a.tar.gz", "Archive"),
    ],
)  # fmt: skip
def test_a_files_language_follows_from_its_name(path: str, language: str) -> None:
    assert language_of(path) == language
