"""What ``git-import`` takes in, refuses and says: no file of git's is lost without a word."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from museworkd.client.errors import ClientError
from museworkd.client.git_comparison import compare_with_git
from museworkd.client.git_import import import_git
from museworkd.client.progress import Quiet
from museworkd.client.repository import LocalRepository
from tests.git_histories import FastImport, git, ordinary, strange
from tests.servers import museworkd


def imported(source: Path, target: Path) -> dict:
    return json.loads(museworkd("git-import", str(source), str(target), "--json").stdout)


def verified(target: Path, source: Path, check: int = 0) -> dict:
    return json.loads(museworkd("verify", str(target), "--git", str(source), "--json", check=check).stdout)


def history(path: Path, *commits: dict[bytes, bytes]) -> Path:
    stream = FastImport()
    mark = None
    for files in commits:
        entries = {name: ("100644", content) for name, content in files.items()}
        mark = stream.commit("main", entries, [] if mark is None else [mark])
    return stream.into(path)


def test_paths_that_escape_to_one_another_stay_two_files(tmp_path: Path, work: Path) -> None:
    files = {b"a%09b": b"percent", b"a\tb": b"tab", b"a%2509b": b"twice", b"100%": b"ordinary"}
    source = history(tmp_path / "git", files, {b"a\tb": b"tab again"})
    report = imported(source, work / "here")
    assert report["escaped_paths"] == 3
    proved = verified(work / "here", source)
    assert (proved["git_commits"], proved["git_files"]) == (2, 8)


def test_paths_of_client_metadata_are_kept_under_another_name_and_said(tmp_path: Path, work: Path) -> None:
    files = {b".muse/x": b"1", b"sub/.MUSE/y": b"2", b"d/.git\xe2\x80\x8c": b"3", b"git~1": b"4", b"plain": b"5"}
    source = history(tmp_path / "git", files)
    done = museworkd("git-import", str(source), str(work / "here"))
    (note,) = [line for line in done.stderr.splitlines() if "escaped" in line]
    assert note.startswith("note: 4 paths: had to be escaped")
    assert "'.muse/x'" in note
    assert note.endswith(", …")
    assert verified(work / "here", source)["git_files"] == 5


def one_of_two(*arguments: object) -> str:
    """A mapping that makes one path of two."""
    raw = arguments[-1]
    assert isinstance(raw, bytes)
    return raw.decode().replace("\t", "%09")


async def folded(source: Path, target: Path) -> None:
    with LocalRepository.fresh(target) as repository:
        await import_git(source, repository, Quiet())


async def test_two_paths_that_would_become_one_are_refused_by_name(tmp_path: Path, work: Path, monkeypatch) -> None:
    source = history(tmp_path / "git", {b"a%09b": b"percent", b"a\tb": b"tab"})
    monkeypatch.setattr("museworkd.client.git_import.muse_path", one_of_two)
    with pytest.raises(ClientError, match=r"'a\\tb' and 'a%09b' would both become"):
        await folded(source, work / "here")
    assert not (work / "here").exists()


async def test_verify_finds_a_lost_file_by_gits_own_paths(tmp_path: Path, work: Path, monkeypatch) -> None:
    """The comparison shares no mapping with the import: what an import folds into one is found missing."""
    source = history(tmp_path / "git", {b"a%09b": b"percent", b"a\tb": b"tab"})
    monkeypatch.setattr("museworkd.client.git_import._Importer._path", one_of_two)
    await folded(source, work / "here")
    with LocalRepository.find(work / "here") as repository:
        report = await compare_with_git(repository, source, Quiet())
    assert report.git_files == 2
    assert [problem for problem in report.problems if "'a%09b' is missing" in problem]


def test_a_tree_that_names_a_path_twice_is_refused(tmp_path: Path, work: Path) -> None:
    git(tmp_path, "init", "--quiet", "--bare", "--initial-branch=main", "git")
    source = tmp_path / "git"
    blobs = [git(source, "hash-object", "-w", "--stdin", data=content) for content in (b"one", b"two")]
    entries = b"".join(b"100644 same\0" + bytes.fromhex(blob) for blob in blobs)
    tree = git(source, "hash-object", "-t", "tree", "-w", "--literally", "--stdin", data=entries)
    commit = git(source, "commit-tree", "-m", "twice", tree)
    git(source, "update-ref", "refs/heads/main", commit)
    refused = museworkd("git-import", str(source), str(work / "here"), check=1)
    assert "the path 'same' twice" in refused.stderr
    assert not (work / "here").exists()


def test_a_shallow_git_clone_is_refused_with_what_to_do(tmp_path: Path, work: Path) -> None:
    source = ordinary(tmp_path / "git", commits=5)
    git(tmp_path, "clone", "--quiet", "--depth", "2", f"file://{source}", "shallow")
    refused = museworkd("git-import", str(tmp_path / "shallow"), str(work / "here"), check=1)
    assert "shallow clone" in refused.stderr
    assert "git fetch --unshallow" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (work / "here").exists()


@pytest.mark.parametrize(
    ("branches", "chosen"), [(["a", "main", "master"], "main"), (["a", "master"], "master"), (["b", "a"], "a")]
)
def test_a_head_on_no_branch_becomes_a_usual_one(tmp_path: Path, work: Path, branches: list[str], chosen: str) -> None:
    stream = FastImport()
    for branch in branches:
        stream.commit(branch, {b"file": ("100644", branch.encode())}, [])
    source = stream.into(tmp_path / "git")
    git(source, "update-ref", "--no-deref", "HEAD", f"refs/heads/{branches[0]}")
    imported(source, work / "here")
    assert (work / "here" / ".muse" / "HEAD").read_text() == f"{chosen}\n"


def test_a_head_that_no_branch_leads_to_is_said(tmp_path: Path, work: Path) -> None:
    source = ordinary(tmp_path / "git", commits=3)
    lost = git(source, "commit-tree", "-m", "lost", "main^{tree}")
    git(source, "update-ref", "--no-deref", "HEAD", lost)
    assert f"commit {lost}" in museworkd("git-import", str(source), str(work / "here")).stderr


def test_notes_name_paths_and_count_what_was_made_beside_git(tmp_path: Path, work: Path) -> None:
    source = strange(tmp_path / "git")
    done = museworkd("git-import", str(source), str(work / "here"))
    unportable = next(line for line in done.stderr.splitlines() if "--relaxed-paths" in line)
    assert unportable.endswith("--relaxed-paths: 'aux.txt', 'trailing. '")
    assert "1 octopus merge: made a chain of merges of two; 2 more commits" in done.stderr
    assert "symbolic link: a checkout writes a plain file that holds the target" in done.stderr
    assert " commits and 2 made of octopus merges, " in done.stdout
    assert "3 tags, kept here: tags are not pushed" in done.stdout


def test_one_is_not_many(tmp_path: Path, work: Path) -> None:
    source = history(tmp_path / "git", {b"a": b"1"})
    out = museworkd("git-import", str(source), str(work / "here")).stdout
    assert out.startswith("imported 1 commit, 1 snapshot, 1 blob (0.0 MB), branch: main\n")


def test_a_target_that_is_a_file_or_holds_something_called_muse_is_refused(tmp_path: Path, work: Path) -> None:
    source = ordinary(tmp_path / "git", commits=3)
    (work / "file").write_text("mine")
    assert "not a directory" in museworkd("git-import", str(source), str(work / "file"), check=1).stderr
    (work / "here" / ".muse").mkdir(parents=True)
    (work / "here" / ".muse" / "mine").write_text("mine")
    assert "in the way" in museworkd("git-import", str(source), str(work / "here"), check=1).stderr
    assert (work / "here" / ".muse" / "mine").read_text() == "mine"
    (work / "there").mkdir()
    (work / "there" / "mine").write_text("mine")
    museworkd("git-import", str(source), str(work / "there"))
    assert sorted(path.name for path in (work / "there").iterdir()) == [".muse", "mine"]
