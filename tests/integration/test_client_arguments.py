"""What a client command is given: usage errors, targets, URLs, leases, and what it says of an empty repository."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio

from museworkd.cli.client_options import find_remote
from museworkd.client.errors import ClientError
from museworkd.client.fetch import head_branch
from museworkd.client.repository import LocalRepository
from museworkd.client.transport import Api, Remote
from tests.deployments import with_history
from tests.http_client import push
from tests.muse import Push
from tests.servers import TOKENS, Server, museworkd

EMPTY = "0" * 64


async def muse(*arguments: str, check: int = 0):
    return await trio.to_thread.run_sync(lambda: museworkd(*arguments, token=TOKENS["alice"], check=check))


@pytest.mark.parametrize(
    "options", [["-b", "main", "--all"], ["--all", "--expect", EMPTY], ["-b", "a", "-b", "b", "--expect", "none"]]
)
def test_options_that_contradict_one_another_are_wrong_usage(work: Path, options: list[str]) -> None:
    done = museworkd("push", "http://127.0.0.1:9/a/b", *options, "-C", str(work), check=2)
    assert "Usage:" in done.stderr


@pytest.mark.usefixtures("expected_errors")
async def test_a_lease_counts_also_when_the_branch_is_there_already(twin: Server, work: Path) -> None:
    await with_history(twin)
    url = f"{twin.url}/alice/x"
    await muse("clone", url, str(work / "here"))
    here = ["-C", str(work / "here")]
    head = (work / "here" / ".muse" / "refs" / "heads" / "main").read_text().strip()
    other = f"sha256:{EMPTY}"
    assert "head_moved" in (await muse("push", url, "--expect", other, *here, check=1)).stderr
    assert "head_moved" in (await muse("push", url, "--expect", "none", *here, check=1)).stderr
    await muse("push", url, "--expect", head, *here)


@pytest.mark.usefixtures("expected_errors")
async def test_a_clone_into_a_file_is_refused(twin: Server, work: Path) -> None:
    await with_history(twin)
    (work / "file").write_text("mine")
    done = await muse("clone", f"{twin.url}/alice/x", str(work / "file"), check=1)
    assert done.stderr == f"error: {work}/file exists and is not a directory\n"
    assert (work / "file").read_text() == "mine"


@pytest.mark.usefixtures("expected_errors")
async def test_a_clone_of_an_empty_repository_says_so(twin: Server, work: Path) -> None:
    await twin.make_repository()
    done = await muse("clone", f"{twin.url}/alice/x", str(work / "here"))
    assert "note: the repository is empty" in done.stderr
    assert "cloned 0 commits and 0 blobs" in done.stdout
    assert json.loads((await muse("verify", str(work / "here"), "--json")).stdout)["problem_count"] == 0


@pytest.mark.parametrize(
    "url", ["http://ada:secret@127.0.0.1:9/a/b", "https://secret@host/a/b", "http://:secret@h/a/b"]
)
def test_a_url_with_a_password_is_refused_and_not_repeated(work: Path, url: str) -> None:
    done = museworkd("clone", url, str(work / "here"), check=1)
    assert "must not hold a name or password" in done.stderr
    assert "secret" not in done.stderr
    assert not (work / "here").exists()


@pytest.mark.parametrize(
    "url", ["http://[::1/a/b", "http://h:99999/a/b", "http://h:x/a/b", "http://h/a", "ftp://h/a/b"]
)
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ClientError, match="not a repository URL"):
        Remote(url, None)


@pytest.mark.usefixtures("expected_errors")
async def test_remarks_of_a_phase_end_with_it(twin: Server, work: Path) -> None:
    await with_history(twin)
    await twin.make_repository(slug="y")
    await muse("clone", f"{twin.url}/alice/x", str(work / "here"))
    done = await muse("push", f"{twin.url}/alice/y", "-C", str(work / "here"))
    (sending,) = [line for line in done.stderr.splitlines() if line.startswith("Sending")]
    assert "(" not in sending


@pytest.mark.parametrize(
    ("branches", "chosen"),
    [
        ({"one", "trunk", "main"}, "trunk"), ({"dev", "main", "master"}, "main"), ({"dev", "master"}, "master"),
        ({"one", "dev"}, "dev"), (set(), "trunk"),
    ],
)  # fmt: skip
def test_a_clone_is_on_the_default_branch_or_on_the_likeliest(branches: set[str], chosen: str) -> None:
    """The choice depends on nothing but the names."""
    assert head_branch(branches, "trunk") == chosen


@pytest.mark.usefixtures("expected_errors")
async def test_a_clone_says_that_the_default_branch_does_not_exist(twin: Server, work: Path) -> None:
    """Files of another branch are there, and one line on stderr says of which."""
    await twin.make_repository()
    for branch in ("dev", "master"):
        made = Push(branch)
        made.commit({"name": branch.encode()})
        assert (await push(twin, made.frames()))["type"] == "R"
    done = await muse("clone", f"{twin.url}/alice/x", str(work / "here"), "-q")
    assert (work / "here" / "name").read_text() == "master"
    assert done.stderr == "note: the default branch 'main' does not exist there; this clone is on 'master'\n"


@pytest.mark.usefixtures("expected_errors")
async def test_without_a_token_a_refusal_says_that_none_was_sent(twin: Server) -> None:
    """A private repository does not exist for somebody who forgot the token; with one, nothing is said of it."""
    await twin.make_repository()
    for token, said in ((None, True), (TOKENS["bob"], False)):
        async with Api(Remote(f"{twin.url}/alice/x", token)) as api:
            with pytest.raises(ClientError) as refused:
                await api.get("refs")
        assert refused.value.code == "not_found"
        assert ("no token was sent; $MUSEWORKD_TOKEN names one" in str(refused.value)) is said


def test_a_remote_that_is_not_known_is_told_with_an_option_that_exists(work: Path) -> None:
    """The way out that a message names is one: the option is push's."""
    with LocalRepository.fresh(work / "here"):
        pass
    with LocalRepository(work / "here") as repository, pytest.raises(ClientError) as refused:
        find_remote(repository, "nosuch", None)
    assert "`museworkd push URL --set-remote` keeps it as `origin`" in str(refused.value)
