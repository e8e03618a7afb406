"""Pulling: the branch and the files come up to what the server has, merges are at file level, nobody's work is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio

from museworkd.client.checkout import checkout, switch
from museworkd.client.errors import ClientError
from museworkd.client.fetch import clone, fetch
from museworkd.client.merging import merge_bases
from museworkd.client.progress import Quiet
from museworkd.client.pull import PullReport, pull
from museworkd.client.push import push
from museworkd.client.repository import LocalRepository
from museworkd.client.transport import Remote
from museworkd.client.verify import verify
from storage.environment import SeededEnvironment
from tests.deployments import with_history
from tests.http_client import push as push_frames
from tests.muse import Push
from tests.servers import TOKENS, Server, museworkd
from wire.canonical import parse_canonical
from wire.ids import Scheme, parse_id

pytestmark = pytest.mark.usefixtures("expected_errors")
Files = dict[str, bytes]
BASE: Files = {"a": b"a", "b": b"b", "dir/c": b"c", "dir/d": b"d", "other/e": b"e"}


def remote(server: Server, slug: str) -> Remote:
    return Remote(f"{server.url}/alice/{slug}", TOKENS["alice"])


def on_top(base: Push, *commits: Files, **fields: object) -> Push:
    made = Push(base.branch, dict(base.blobs), list(base.commits), list(base.snapshots))
    for files in commits:
        made.commit(files, message=f"{len(made.commits)} {sorted(files)}", **fields)
    return made


def start(files: Files = BASE) -> Push:
    made = Push()
    made.commit(files)
    return made


def files_of(root: Path) -> Files:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*") if path.is_file() and ".muse" not in path.parts
    }  # fmt: skip


async def cloned(server: Server, root: Path, ours: Push, slug: str = "ours") -> Path:
    """Give a clone, with files, that has ``ours`` on its branch."""
    await with_history(server, ours, slug=slug)
    await clone(remote(server, slug), root, Quiet())
    with LocalRepository(root) as repository:
        await checkout(repository, Quiet())
    return root


async def pulled(server: Server, root: Path, slug: str = "theirs", **options: object) -> PullReport:
    with LocalRepository(root) as repository:
        return await pull(repository, remote(server, slug), Quiet(), name=slug, author="Ada <a@b>", **options)


def head(root: Path) -> str:
    with LocalRepository(root) as repository:
        return "sha256:" + repository.branches()["main"].hex()


CHANGES: dict[str, Files] = {
    "changed, added and removed": {"a": b"a2", "dir/c": b"c", "dir/d": b"d", "new/f": b"f", "other/e": b"e"},
    "a file becomes a directory": {"a/x": b"x", "b": b"b", "dir/c": b"c", "dir/d": b"d", "other/e": b"e"},
    "a directory becomes a file": {"a": b"a", "b": b"b", "dir": b"now a file", "other/e": b"e"},
    "everything goes": {"z": b"z"},
    "an empty file": {**BASE, "b": b""},
}


@pytest.mark.parametrize("change", CHANGES)
async def test_a_fast_forward_makes_the_files_those_of_the_new_head(twin, tmp_path, change):
    """Whatever changed: after a pull the work tree is the server's, and verifies."""
    base = start()
    root = await cloned(twin, tmp_path / "work", base)
    (root / "mine.txt").write_bytes(b"nobody's business")
    theirs = on_top(base, CHANGES[change])
    await with_history(twin, theirs, slug="theirs")
    report = await pulled(twin, root)
    assert (report.result, report.head) == ("fast-forward", theirs.head)
    assert files_of(root) == {**CHANGES[change], "mine.txt": b"nobody's business"}
    with LocalRepository(root) as repository:
        found = await verify(repository, Quiet())
        assert (found.problems, found.work_tree_changes) == ([], [])
    assert (await pulled(twin, root)).result == "up to date"


LOCAL: dict[str, tuple[str, bytes | None]] = {
    "a changed file that changed there": ("a", b"my change"),
    "a changed file that was removed there": ("b", b"my change"),
    "a file in the place of a new one": ("new/f", b"my own"),
    "a file where a directory has to be": ("new", b"my own"),
    "a removed file that changed there": ("a", None),
}


@pytest.mark.parametrize("what", LOCAL)
async def test_local_changes_are_never_overwritten(twin, tmp_path, what):
    """A pull that would lose a change of the user's changes nothing, and names the file."""
    base = start()
    root = await cloned(twin, tmp_path / "work", base)
    path, content = LOCAL[what]
    (root / path).parent.mkdir(exist_ok=True)
    (root / path).unlink(missing_ok=True)
    if content is not None:
        (root / path).write_bytes(content)
    before = files_of(root)
    await with_history(twin, on_top(base, CHANGES["changed, added and removed"]), slug="theirs")
    with pytest.raises(ClientError, match=r"local changes would be lost in '(a|b|new/f)'; nothing was changed"):
        await pulled(twin, root)
    assert (files_of(root), head(root)) == (before, base.head)


async def test_a_symbolic_link_is_not_followed(twin, tmp_path):
    """A link where a directory was is a local change: what it leads to is not written (threat T11's cousin)."""
    base = start()
    root = await cloned(twin, tmp_path / "work", base)
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("c", "d"):
        (root / "dir" / name).rename(outside / name)
    (root / "dir").rmdir()
    (root / "dir").symlink_to(outside)
    await with_history(twin, on_top(base, {**BASE, "dir/c": b"c2"}), slug="theirs")
    with pytest.raises(ClientError, match="local changes would be lost in 'dir/c'"):
        await pulled(twin, root)
    assert (outside / "c").read_bytes() == b"c"


async def test_a_change_that_is_made_already_is_no_obstacle(twin, tmp_path):
    """A pull that was cut off after some files is repeated and goes on."""
    base = start()
    root = await cloned(twin, tmp_path / "work", base)
    after = CHANGES["changed, added and removed"]
    (root / "a").write_bytes(after["a"])
    (root / "b").unlink()
    await with_history(twin, on_top(base, after), slug="theirs")
    assert (await pulled(twin, root)).result == "fast-forward"
    assert files_of(root) == after


async def test_both_sides_are_merged_file_by_file(twin, tmp_path):
    """What only one side changed is taken from it; the merge has both parents, is pushed, and clones whole."""
    base = start()
    ours = on_top(base, {**BASE, "a": b"ours", "same": b"same", "mine/x": b"x"})
    others = {path: content for path, content in BASE.items() if path != "b"} | {"dir/c": b"theirs", "same": b"same"}
    theirs = on_top(base, others)
    root = await cloned(twin, tmp_path / "work", ours)
    await with_history(twin, theirs, slug="theirs")
    report = await pulled(twin, root)
    assert (report.result, report.conflicts) == ("merge", [])
    merged = {"a": b"ours", "dir/c": b"theirs", "dir/d": b"d", "other/e": b"e", "same": b"same", "mine/x": b"x"}
    assert files_of(root) == merged
    with LocalRepository(root) as repository:
        facts = repository.index.facts(repository.branches()["main"])
        assert facts is not None
        assert facts.parents == tuple(parse_id(i, Scheme.TYPED) for i in (ours.head, theirs.head))
        await push(repository, remote(twin, "theirs"), "main", Quiet())
    again = tmp_path / "again"
    await clone(remote(twin, "theirs"), again, Quiet())
    with LocalRepository(again) as repository:
        await checkout(repository, Quiet())
        assert (await verify(repository, Quiet())).problems == []
    assert files_of(again) == merged


async def test_a_merge_commit_has_the_time_of_its_environment(twin, tmp_path):
    """So that a run can be replayed; the snapshot it makes has the same."""
    base = start()
    root = await cloned(twin, tmp_path / "work", on_top(base, {**BASE, "a": b"ours"}))
    await with_history(twin, on_top(base, {**BASE, "b": b"theirs"}), slug="theirs")
    report = await pulled(twin, root, environment=SeededEnvironment(1))
    assert report.result == "merge"
    with LocalRepository(root) as repository:
        _, record = parse_canonical(repository.index.record(repository.branches()["main"]))
    assert record["committed_at"] == SeededEnvironment(1).now().isoformat()


CONFLICTS: dict[str, tuple[Files, Files, list[str]]] = {
    "changed differently": ({**BASE, "a": b"1"}, {**BASE, "a": b"2"}, ["a"]),
    "changed and removed": ({**BASE, "a": b"1"}, {k: v for k, v in BASE.items() if k != "a"}, ["a"]),
    "removed and changed": ({k: v for k, v in BASE.items() if k != "b"}, {**BASE, "b": b"2"}, ["b"]),
    "added differently": ({**BASE, "n": b"1"}, {**BASE, "n": b"2"}, ["n"]),
    "a file against a directory": ({**BASE, "n": b"1"}, {**BASE, "n/x": b"2"}, ["n/x"]),
    "a directory against a file": ({**BASE, "n/x": b"1"}, {**BASE, "n": b"2"}, ["n"]),
    "the same name but for its case": ({**BASE, "Readme": b"1"}, {**BASE, "README": b"2"}, ["README"]),
}


@pytest.mark.parametrize("what", CONFLICTS)
async def test_a_conflict_is_named_and_changes_nothing(twin, tmp_path, what):
    """Neither branch nor files move, the exit code is 1, and the paths are told."""
    base = start()
    mine, others, expected = CONFLICTS[what]
    ours = on_top(base, mine)
    root = await cloned(twin, tmp_path / "work", ours)
    await with_history(twin, on_top(base, others), slug="theirs")
    before = files_of(root)
    url = f"{twin.url}/alice/theirs"

    def run():
        return museworkd("pull", url, "--json", "-C", str(root), token=TOKENS["alice"], check=1)

    done = await trio.to_thread.run_sync(run)
    report = json.loads(done.stdout)
    assert (report["result"], report["conflicts"], report["head"]) == ("conflict", expected, ours.head)
    assert [line for line in done.stderr.splitlines() if "conflict" in line] == [f"conflict: {p!r}" for p in expected]
    assert (files_of(root), head(root)) == (before, ours.head)


async def test_a_side_that_is_ahead_has_nothing_to_pull(twin, tmp_path):
    """What the server has is below the local head already."""
    base = start()
    ours = on_top(base, {**BASE, "a": b"2"})
    root = await cloned(twin, tmp_path / "work", ours)
    await with_history(twin, base, slug="theirs")
    assert (await pulled(twin, root)).result == "ahead"
    assert head(root) == ours.head
    await push_frames(twin, on_top(base, {**BASE, "b": b"3"}).frames(), repository="alice/theirs")
    with pytest.raises(ClientError, match="no fast-forward"):
        await pulled(twin, root, fast_forward_only=True)


async def test_unrelated_histories_are_not_merged(twin, tmp_path):
    """There is nothing to hold the two sides against."""
    root = await cloned(twin, tmp_path / "work", start())
    await with_history(twin, start({"unrelated": b"1"}), slug="theirs")
    with pytest.raises(ClientError, match="nothing in common"):
        await pulled(twin, root)


async def test_a_criss_cross_history_merges_what_all_bases_agree_on(twin, tmp_path):
    """With two merge bases a path that they judge differently is a conflict, never a guess."""
    base = start()
    left, right = on_top(base, {**BASE, "a": b"left"}), on_top(base, {**BASE, "b": b"right"})
    both = Push("main", {**left.blobs, **right.blobs}, [*left.commits, right.commits[-1]],
                [*left.snapshots, right.snapshots[-1]])  # fmt: skip
    merged: Files = {**BASE, "a": b"left", "b": b"right"}
    one = on_top(both)
    one.commit(merged, [left.head, right.head], message="one")
    two = on_top(both)
    two.commit(merged, [right.head, left.head], message="two")
    ours, theirs = on_top(one, {**merged, "dir/c": b"ours"}), on_top(two, {**merged, "dir/d": b"theirs"})
    root = await cloned(twin, tmp_path / "work", ours)
    await with_history(twin, theirs, slug="theirs")
    assert (await pulled(twin, root)).result == "merge"
    assert files_of(root) == {**merged, "dir/c": b"ours", "dir/d": b"theirs"}
    with LocalRepository(root) as repository:
        ids = [parse_id(i, Scheme.TYPED) for i in (ours.head, theirs.head, left.head, right.head)]
        assert sorted(merge_bases(repository, ids[0], ids[1])) == sorted(ids[2:])


async def test_a_clone_without_files_stays_one(twin, tmp_path):
    """``--no-checkout`` says that there is no work tree: pulling moves the branch only."""
    base = start()
    await with_history(twin, base, slug="theirs")
    root = tmp_path / "work"
    await clone(remote(twin, "theirs"), root, Quiet())
    theirs = on_top(base, {**BASE, "a": b"2"})
    await push_frames(twin, theirs.frames(), repository="alice/theirs")
    assert (await pulled(twin, root)).result == "fast-forward"
    assert (files_of(root), head(root)) == ({}, theirs.head)


async def test_a_branch_that_is_gone_is_forgotten_when_asked(twin, tmp_path):
    """Without ``prune`` a fetch keeps what is known of it; with it, the report names it."""
    base = start()
    root = await cloned(twin, tmp_path / "work", base, slug="theirs")
    side = Push("side", dict(base.blobs), list(base.commits), list(base.snapshots))
    side.commit({"s": b"s"})
    await push_frames(twin, side.frames(), repository="alice/theirs")
    with LocalRepository(root) as repository:
        await fetch(repository, remote(twin, "theirs"), Quiet())
        number = (await twin.services.index.find_repository("alice", "theirs")).number
        twin.services.index.tables.branches[number].pop("side")
        assert (await fetch(repository, remote(twin, "theirs"), Quiet())).pruned == []
        assert "side" in repository.remote_branches("origin")
        assert (await fetch(repository, remote(twin, "theirs"), Quiet(), prune=True)).pruned == ["side"]
        assert "side" not in repository.remote_branches("origin")


async def test_a_switch_that_was_done_does_nothing_again(twin, tmp_path):
    """Repeating it after a crash between files and branch is safe."""
    base = start()
    root = await cloned(twin, tmp_path / "work", base)
    with LocalRepository(root) as repository:
        assert await switch(repository, repository.branches()["main"], Quiet()) == 0
