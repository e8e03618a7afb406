"""A push sends what the server lacks, also when the server's branches have moved on to commits that are not here."""

from __future__ import annotations

from pathlib import Path

import pytest

from museworkd.client import negotiating
from museworkd.client.errors import ClientError
from museworkd.client.fetch import clone
from museworkd.client.progress import Quiet
from museworkd.client.push import PushReport, push
from museworkd.client.repository import LocalRepository
from museworkd.client.transport import Api, Remote
from tests.deployments import with_history
from tests.http_client import push as push_frames
from tests.integration.cutting import CuttingProxy, cutting
from tests.muse import Push
from tests.servers import TOKENS, Server

pytestmark = pytest.mark.usefixtures("expected_errors")
SHARED, NEW = 40, 3
"""Commits the server holds below a head that is not here, and those it lacks; each has one blob of its own."""


def line(count: int) -> Push:
    made = Push()
    for number in range(count):
        made.commit({"file": b"content %d" % number}, message=f"m{number}")
    return made


@pytest.fixture
async def work(twin: Server, tmp_path: Path) -> Path:
    """A repository whose older commits the server has in ``x``, on a branch that somebody else has moved on."""
    await with_history(twin, line(SHARED + NEW), slug="from")
    await clone(Remote(f"{twin.url}/alice/from", TOKENS["alice"]), tmp_path / "work", Quiet())
    theirs = line(SHARED)
    theirs.commit({"file": b"somebody else's"}, message="theirs")
    await with_history(twin, theirs, slug="x")
    with LocalRepository(tmp_path / "work") as repository:
        repository.set_branch("side", repository.branches()["main"])
    return tmp_path / "work"


async def pushed(proxy: CuttingProxy, work: Path, **options: bool) -> PushReport:
    with LocalRepository(work) as repository:
        return await push(repository, Remote(f"{proxy.url}/alice/x", TOKENS["alice"]), "side", Quiet(), **options)


@pytest.mark.parametrize(("ids", "requests"), [(1_000, 1), (4, 4), (2, 6)])
async def test_only_what_the_server_lacks_is_sent(twin, work, monkeypatch, ids, requests):
    """However few commits fit a request, some requests tell where the common history ends; a dry run counts alike."""
    monkeypatch.setattr(negotiating, "IDS_MOST", ids)
    async with cutting(twin) as proxy:
        dry = await pushed(proxy, work, dry_run=True)
        assert 1 <= proxy.requests.count("POST negotiate") <= requests
        real = await pushed(proxy, work)
    assert (dry.commits, dry.blobs, dry.blob_bytes) == (real.commits, real.blobs, real.blob_bytes)
    assert (real.commits, real.blobs) == (NEW, NEW)
    assert (real.result["commits_written"], real.result["blobs_written"]) == (NEW, NEW)


async def test_nothing_is_asked_when_all_heads_are_here(twin, work):
    """The usual push costs no request more."""
    await twin.make_repository(slug="y")
    async with cutting(twin) as proxy:
        with LocalRepository(work) as repository:
            for branch in ("main", "side"):
                await push(repository, Remote(f"{proxy.url}/alice/y", TOKENS["alice"]), branch, Quiet())
    assert "POST negotiate" not in proxy.requests


async def test_a_server_that_cannot_negotiate_is_sent_everything(twin, work, monkeypatch):
    """Negotiating spares bytes; no push depends on it."""
    ask = Api.post

    async def without(self: Api, path: str, body: dict) -> dict:
        if path == "negotiate":
            raise ClientError("no such page", "not_found")
        return await ask(self, path, body)

    monkeypatch.setattr(Api, "post", without)
    async with cutting(twin) as proxy:
        report = await pushed(proxy, work)
    assert report.commits == SHARED + NEW


async def test_a_server_with_nothing_in_common_is_asked_once(twin, work, monkeypatch):
    """What is not acknowledged rules out all that builds on it."""
    monkeypatch.setattr(negotiating, "IDS_MOST", 10)
    theirs = Push()
    theirs.commit({"theirs": b"theirs"})
    await twin.make_repository(slug="z")
    assert (await push_frames(twin, theirs.frames(), repository="alice/z"))["type"] == "R"
    async with cutting(twin) as proxy:
        with LocalRepository(work) as repository:
            remote = Remote(f"{proxy.url}/alice/z", TOKENS["alice"])
            report = await push(repository, remote, "side", Quiet(), dry_run=True)
    assert (report.commits, proxy.requests.count("POST negotiate")) == (SHARED + NEW, 1)
