"""Real git histories through a real daemon and back: every file of every commit, byte for byte."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.git_histories import bundle, git, ordinary, strange
from tests.servers import Daemon, daemon, museworkd

HISTORIES = Path(os.environ.get("MUSEWORKD_HISTORIES", Path(__file__).parents[3] / "shared" / "data"))
"""A directory with bundles of public projects to go through the same tests, where there is one."""
BUNDLES = sorted(HISTORIES.glob("*.bundle")) if HISTORIES.is_dir() else []


_numbers = itertools.count(1)


@dataclass(frozen=True)
class Running:
    """A daemon that all tests of this module share, each with a repository of its own."""

    daemon: Daemon
    token: str

    def make_repository(self, *, public: bool = False, relaxed_paths: bool = False) -> str:
        """Make one; gives its URL."""
        body = {
            "slug": f"project-{next(_numbers)}", "visibility": "public" if public else "private",
            "settings": {"relaxed_paths": relaxed_paths},
        }  # fmt: skip
        headers = {"authorization": f"Bearer {self.token}"}
        made = httpx.post(f"{self.daemon.url}/api/repos", json=body, headers=headers)
        assert made.status_code == 201, made.text
        return f"{self.daemon.url}/ada/{body['slug']}"


@pytest.fixture(scope="module")
def running(postgres_home: Path, module_database_url: str) -> Iterator[Running]:
    data_dir = postgres_home / "round-trip"
    with daemon(data_dir, module_database_url) as server:
        options = ["--data-dir", str(data_dir), "--database-url", module_database_url]
        yield Running(server, museworkd("token", "create", "ada", "--scope", "admin", *options).stdout.strip())


WAYS = ["stream", "mpack"]
BOTH_WAYS_BELOW_BYTES = 3_000_000
"""Larger bundles go one way, so that the suite stays short."""


def round_trip(running: Running, source: Path, work: Path, way: str = "auto") -> tuple[dict, dict, dict]:
    url, token = running.make_repository(relaxed_paths=True), running.token
    imported = json.loads(museworkd("git-import", str(source), str(work / "here"), "--json").stdout)
    museworkd("push", url, "--all", "--way", way, "-C", str(work / "here"), token=token)
    cloned = json.loads(museworkd("clone", url, str(work / "there"), "--json", token=token).stdout)
    verified = json.loads(museworkd("verify", str(work / "there"), "--git", str(source), "--json").stdout)
    assert verified["problem_count"] == 0
    assert verified["git_commits"] == int(git_count(source, work))
    return imported, cloned, verified


def git_count(source: Path, work: Path) -> str:
    if source.is_file():
        git(work, "clone", "--quiet", "--mirror", str(source), str(work / "counted"))
        source = work / "counted"
    return git(source, "rev-list", "--count", "--branches")


@pytest.mark.parametrize(
    ("source", "way"),
    [
        pytest.param(path, way, marks=[] if path.stat().st_size < BOTH_WAYS_BELOW_BYTES else pytest.mark.soak)
        for path in BUNDLES
        for way in WAYS
        if way == "stream" or path.stat().st_size < BOTH_WAYS_BELOW_BYTES
    ],
    ids=lambda value: value.stem if isinstance(value, Path) else value,
)
@pytest.mark.timeout(400)
def test_a_public_project_comes_back_byte_for_byte(source: Path, way: str, running: Running, work: Path) -> None:
    _, cloned, verified = round_trip(running, source, work, way)
    assert cloned["commits"] == verified["commits"]


@pytest.mark.parametrize("way", WAYS)
def test_an_ordinary_repository_comes_back_byte_for_byte(
    way: str, running: Running, work: Path, tmp_path: Path
) -> None:
    source = ordinary(tmp_path / "git")
    imported, _, _ = round_trip(running, source, work, way)
    assert set(imported["branches"]) == {"main", "feature/one", "Feature/Two"}
    assert imported["executables"] > 0
    assert imported["symlinks"] == 1


def test_a_bundle_is_imported_like_its_repository(running: Running, work: Path, tmp_path: Path) -> None:
    source = bundle(ordinary(tmp_path / "git", commits=20), tmp_path / "project.bundle")
    round_trip(running, source, work)


@pytest.mark.parametrize("way", WAYS)
def test_everything_odd_that_git_allows_survives(way: str, running: Running, work: Path, tmp_path: Path) -> None:
    source = strange(tmp_path / "git")
    imported, _, _ = round_trip(running, source, work, way)
    assert imported["octopus_merges"] == 1
    assert imported["submodules"] == 2
    assert imported["escaped_paths"] == 5  # not UTF-8, backslash, control, .muse, drive letter
    assert imported["unportable_paths"] > 0
    assert imported["only_tagged_commits"] == 1
    assert imported["tags"] == 3


def test_a_default_repository_refuses_paths_that_are_not_portable(running: Running, work: Path, tmp_path: Path) -> None:
    source = strange(tmp_path / "git")
    url, token = running.make_repository(), running.token
    museworkd("git-import", str(source), str(work / "here"))
    refused = museworkd("push", url, "-C", str(work / "here"), token=token, check=1)
    assert "unsafe_path" in refused.stderr
    empty = json.loads(museworkd("clone", url, str(work / "there"), "--json",
                                 token=token).stdout)  # fmt: skip
    assert empty["commits"] == 0


def test_R16_a_second_branch_and_new_commits_send_only_what_is_new(
    running: Running, work: Path, tmp_path: Path
) -> None:
    source = ordinary(tmp_path / "git", commits=30)
    url, token = running.make_repository(), running.token
    museworkd("git-import", str(source), str(work / "here"))

    def pushed(branch: str) -> dict:
        out = museworkd("push", url, "-b", branch, "-C", str(work / "here"), "--json", token=token).stdout
        return json.loads(out)["pushes"][0]

    first = pushed("feature/one")
    second = pushed("main")
    third = pushed("Feature/Two")
    again = pushed("main")
    assert first["commits"] + second["commits"] == 30
    assert second["result"]["commits_written"] == second["commits"]
    assert (third["commits"], third["blobs"]) == (0, 0)  # its commits are there already (regression R16)
    assert again["up_to_date"] is True

    museworkd("clone", url, str(work / "there"), token=token)
    museworkd("verify", str(work / "there"), "--git", str(source))


def test_a_fetch_brings_only_what_is_new(running: Running, work: Path, tmp_path: Path) -> None:
    source = ordinary(tmp_path / "git", commits=30)
    url, token = running.make_repository(public=True), running.token
    museworkd("git-import", str(source), str(work / "here"))
    museworkd("push", url, "-b", "feature/one", "-C", str(work / "here"), token=token)
    museworkd("clone", url, str(work / "there"))  # public: no token
    museworkd("push", url, "--all", "-C", str(work / "here"), token=token)

    fetched = json.loads(museworkd("fetch", "-C", str(work / "there"), "--json").stdout)
    nothing = json.loads(museworkd("fetch", "-C", str(work / "there"), "--json").stdout)

    cloned = 30 - fetched["commits"]
    assert 0 < fetched["commits"] < 30, cloned
    assert nothing == {**nothing, "commits": 0, "blobs": 0, "branches": {}}
    museworkd("verify", str(work / "there"))


def test_a_shallow_clone_is_whole_as_far_as_it_goes(running: Running, work: Path, tmp_path: Path) -> None:
    source = ordinary(tmp_path / "git", commits=25)
    url, token = running.make_repository(public=True), running.token
    museworkd("git-import", str(source), str(work / "here"))
    museworkd("push", url, "-C", str(work / "here"), token=token)

    cloned = json.loads(museworkd("clone", url, str(work / "there"), "--depth", "3", "--json").stdout)

    assert cloned["commits"] == 3
    museworkd("verify", str(work / "there"))
    assert sorted(p.name for p in (work / "there").iterdir() if p.name != ".muse") == sorted(
        line.split("/")[0] for line in {n.split("/")[0] for n in git(source, "ls-tree", "--name-only", "main").split()}
    )


def test_a_damaged_clone_is_found(running: Running, work: Path, tmp_path: Path) -> None:
    source = ordinary(tmp_path / "git", commits=10)
    url, token = running.make_repository(public=True), running.token
    museworkd("git-import", str(source), str(work / "here"))
    museworkd("push", url, "-C", str(work / "here"), token=token)
    museworkd("clone", url, str(work / "there"))
    (pack,) = (work / "there" / ".muse" / "packs").glob("*.mpack")
    content = bytearray(pack.read_bytes())
    content[len(content) // 2] ^= 1
    pack.write_bytes(content)

    found = museworkd("verify", str(work / "there"), "--json", check=3)

    assert json.loads(found.stdout)["problem_count"] > 0
