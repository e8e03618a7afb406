"""The client where URLs lead to an object store: what it sends there, and what it does when the store fails it.

A proxy stands between the client and the store alone; the daemon reaches the store undisturbed.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from museworkd.client import fetch as fetch_module
from museworkd.client import push as push_module
from museworkd.client import uploading
from museworkd.client.errors import ClientError, IntegrityError, TransferError
from museworkd.client.fetch import clone
from museworkd.client.progress import Quiet
from museworkd.client.push import PushReport, Way, push
from museworkd.client.repository import LocalRepository
from museworkd.client.transport import Remote
from museworkd.client.verify import verify
from tests.deployments import with_history
from tests.muse import Push, random_history
from tests.s3_deployments import over_s3
from tests.s3_faults import Fault, FaultyS3, always, faulty_s3, once
from tests.s3_server import S3Server
from tests.servers import TOKENS, Server

pytestmark = pytest.mark.usefixtures("expected_errors")

DIRECT = [Way.MPACK, Way.PRESIGNED]


@dataclass
class Scene:
    server: Server
    store: FaultyS3
    """As clients see it."""
    work: Path
    """A local repository with the history."""
    history: Push
    tmp_path: Path

    async def push(self, way: Way) -> PushReport:
        with LocalRepository(self.work) as repository:
            return await push(repository, self.remote("to"), "main", Quiet(), way=way)

    async def clone(self, slug: str = "to", name: str = "again") -> None:
        await clone(self.remote(slug), self.tmp_path / name, Quiet())

    def remote(self, slug: str) -> Remote:
        return Remote(f"{self.server.url}/alice/{slug}", TOKENS["alice"])


@pytest.fixture
async def scene(ceph_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    monkeypatch.setattr(uploading, "_LONGEST_PAUSE_S", 0.02)
    monkeypatch.setattr(push_module, "FIRST_PAUSE_S", 0.02)
    history = random_history(1)
    history.commit({f"f{n}": random.Random(n).randbytes(1000 * n) for n in range(9)})
    history.commit({"noise": random.Random(1).randbytes(900_000)})
    async with (
        faulty_s3(ceph_server) as store,
        over_s3(ceph_server, tmp_path, store={"public_endpoint": store.endpoint}) as server,
    ):
        await with_history(server, history, slug="from")
        await server.make_repository(slug="to")
        made = Scene(server, store, tmp_path / "work", history, tmp_path)
        await made.clone("from", "work")
        store.asked.clear()
        yield made


@pytest.mark.parametrize("way", DIRECT, ids=lambda way: way.value)
async def test_T20_the_store_is_sent_contents_and_no_token(scene: Scene, way: Way) -> None:
    """To a foreign host goes what the URL is for; a push asks it nothing, and a clone is one request."""
    report = await scene.push(way)
    assert report.result["blobs_written"] == len(scene.history.blobs)
    puts = len(scene.history.blobs) if way is Way.PRESIGNED else 1
    assert scene.store.counts() == {"PUT": puts}
    await scene.clone()
    assert scene.store.counts() == {"PUT": puts, "GET": 1}
    for asked in scene.store.asked:
        assert not asked.headers.keys() & {"authorization", "cookie", "content-range", "range"}
        assert TOKENS["alice"] not in repr(asked)
    with LocalRepository(scene.tmp_path / "again") as repository:
        assert (await verify(repository, Quiet())).problems == []


UPLOADS = {
    "cut in the middle": Fault(cut_request_at=500),
    "cut after it was done": Fault(lose_answer=True),
    "refused for now": Fault(refuse=503),
    "failed inside": Fault(refuse=500),
    "expired": Fault(refuse=403),
    "done and said to have failed": Fault(answer_instead=500),
}
CASES = [(Way.MPACK, name) for name in UPLOADS] + [(Way.PRESIGNED, name) for name in list(UPLOADS)[:5:2]]


@pytest.mark.parametrize(("way", "name"), CASES)
async def test_an_upload_to_the_store_that_fails_is_sent_again_whole(scene: Scene, way: Way, name: str) -> None:
    """A store takes no ``Content-Range`` and tells nobody how far it came: the content goes from its beginning."""
    large = once(lambda asked: int(asked.headers.get("content-length", 0)) > 500, UPLOADS[name])
    scene.store.rules = [large]
    report = await scene.push(way)
    assert len(scene.store.faults) == 1
    assert report.result["blobs_written"] == len(scene.history.blobs)
    assert {asked.method for asked in scene.store.asked} == {"PUT"}
    assert not any("content-range" in asked.headers for asked in scene.store.asked)
    await scene.clone()


@pytest.mark.parametrize("way", DIRECT, ids=lambda way: way.value)
async def test_an_upload_that_arrived_damaged_is_found_out(scene: Scene, way: Way) -> None:
    """One bit, on the way to the store: object by object it is sent again; one file is refused, and says so."""
    scene.store.rules = [once(lambda asked: asked.method == "PUT", Fault(flip_request_at=700))]
    if way is Way.MPACK:
        with pytest.raises(ClientError, match=r"bad_object_hash|malformed"):
            await scene.push(way)
    await scene.push(way)
    await scene.clone()


async def test_a_store_that_takes_nothing_is_given_up(scene: Scene) -> None:
    scene.store.rules = [always(lambda asked: asked.method == "PUT", Fault(refuse=503))]
    with pytest.raises(TransferError, match="503"):
        await scene.push(Way.MPACK)
    assert len(scene.store.asked) == uploading.ATTEMPTS


async def test_F3_a_download_from_the_store_that_is_cut_goes_on_by_range(scene: Scene) -> None:
    scene.store.rules = [once(lambda asked: asked.method == "GET", Fault(cut_answer_at=200_000), times=2)]
    await scene.clone("from")
    ranges = [asked.headers.get("range") for asked in scene.store.asked]
    assert ranges[0] is None
    assert [value is not None and value.startswith("bytes=") for value in ranges[1:]] == [True, True]


async def test_a_download_whose_url_has_expired_is_asked_for_again(scene: Scene) -> None:
    scene.store.rules = [once(lambda asked: asked.method == "GET", Fault(refuse=403))]
    await scene.clone("from")
    first, second = (asked.query["X-Amz-Signature"] for asked in scene.store.asked)
    assert len(scene.store.faults) == 1
    assert (first, second) != (None, None)


async def test_F3_a_bit_flipped_on_the_way_from_the_store_fails_the_clone(scene: Scene) -> None:
    scene.store.rules = [once(lambda asked: asked.method == "GET", Fault(flip_answer_at=100_000))]
    with pytest.raises(IntegrityError):
        await scene.clone("from")
    assert not (scene.tmp_path / "again").exists()


async def test_a_store_that_refuses_a_download_for_now_is_asked_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_module, "RESUME_PAUSE_S", 0.01)
    scene.store.rules = [once(lambda asked: asked.method == "GET", Fault(refuse=503), times=2)]
    await scene.clone("from")
    assert len(scene.store.faults) == 2
