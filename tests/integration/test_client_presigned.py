"""The client's pushes by presigned objects: whole, taken up again object by object, and refused in plain words."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from museworkd.client import presigning, push_presigned, uploading
from museworkd.client import push as pushing
from museworkd.client.errors import ClientError, GivenUpError, IntegrityError
from museworkd.client.fetch import clone
from museworkd.client.progress import Quiet
from museworkd.client.push import PushReport, Way, push
from museworkd.client.repository import LocalRepository
from museworkd.client.transport import Remote
from museworkd.client.verify import verify
from tests.deployments import with_history
from tests.integration.cutting import Cut, cutting
from tests.muse import Push, random_history
from tests.servers import TOKENS, Server

pytestmark = pytest.mark.usefixtures("expected_errors")
LARGE = 900_000


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploading, "_LONGEST_PAUSE_S", 0.02)
    monkeypatch.setattr(pushing, "LONGEST_PAUSE_S", 0.02)


def history(seed: int = 1) -> Push:
    """Some dozen small contents, an empty one, and a large one that is not sent in one piece."""
    made = random_history(seed)
    made.commit({"empty": b"", "large": random.Random(seed).randbytes(LARGE), "small": b"x"})
    return made


async def local(server: Server, tmp_path: Path, made: Push) -> Path:
    await with_history(server, made, slug="from")
    await clone(Remote(f"{server.url}/alice/from", TOKENS["alice"]), tmp_path / "work", Quiet())
    await server.make_repository(slug="to")
    return tmp_path / "work"


async def pushed(url: str, work: Path, **options: object) -> PushReport:
    with LocalRepository(work) as repository:
        return await push(
            repository, Remote(f"{url}/alice/to", TOKENS["alice"]), "main", Quiet(), way=Way.PRESIGNED, **options
        )


async def proved(server: Server, target: Path) -> int:
    """Clone what was pushed, and prove it; gives the number of blobs."""
    await clone(Remote(f"{server.url}/alice/to", TOKENS["alice"]), target, Quiet())
    with LocalRepository(target) as repository:
        report = await verify(repository, Quiet())
    assert report.problems == []
    return report.blobs


async def test_a_push_by_presigned_objects_is_whole(server, tmp_path, monkeypatch):
    monkeypatch.setattr(presigning, "PRESIGN_OBJECTS", 7)
    monkeypatch.setattr(push_presigned, "PRESIGN_OBJECTS", 7)
    monkeypatch.setattr(push_presigned, "CONFIRM_OBJECTS", 5)
    made = history()
    work = await local(server, tmp_path, made)
    report = await pushed(server.url, work)
    assert (report.way, report.blobs, report.attempts) == ("presigned", len(made.blobs), 1)
    assert report.result["blobs_written"] == len(made.blobs)
    assert report.sent_bytes > report.blob_bytes
    assert await proved(server, tmp_path / "again") == len(made.blobs)


async def test_only_what_the_repository_lacks_is_uploaded(twin, tmp_path):
    first = history(2)
    work = await local(twin, tmp_path, first)
    await pushed(twin.url, work)
    more = Push(branch="more", commits=list(first.commits), snapshots=list(first.snapshots))
    more.commit({"new": b"a new one", "small": b"x"}, [first.head])
    async with cutting(twin) as proxy:
        report = await pushed(proxy.url, work)
    assert report.up_to_date
    assert [name for name in proxy.requests if name.startswith(("PUT", "POST"))] == []


async def test_cut_uploads_are_taken_up_again_and_confirmed_ones_are_not_repeated(server, tmp_path, monkeypatch):
    monkeypatch.setattr(push_presigned, "CONFIRM_OBJECTS", 5)
    made = history(3)
    work = await local(server, tmp_path, made)
    async with cutting(server) as proxy:
        proxy.cuts = [Cut(b"PUT", 50), Cut(b"PUT", 0), Cut(b"PUT", 90), Cut(b"POST /alice/to/push/confirm", 20)]
        proxy.lost_answers = [b"already_stored", b"confirmed"]
        report = await pushed(proxy.url, work)
    assert (proxy.cuts, proxy.lost_answers) == ([], [])
    assert report.result["head"] == made.head
    assert proxy.sent["PUT upload/object"] < report.blob_bytes * 1.5 + 100_000
    assert await proved(server, tmp_path / "again") == len(made.blobs)


async def test_a_large_content_goes_on_where_its_connection_was_cut(twin, tmp_path):
    made = Push()
    made.commit({"large": random.Random(4).randbytes(3 * LARGE)})
    work = await local(twin, tmp_path, made)
    async with cutting(twin) as proxy:
        proxy.cuts = [Cut(b"PUT", 2 * LARGE), Cut(b"PUT", LARGE // 2)]
        report = await pushed(proxy.url, work)
    assert proxy.cuts == []
    assert report.attempts == 1
    assert proxy.sent["PUT upload/object"] < 3.7 * LARGE
    assert await proved(twin, tmp_path / "again") == 1


async def test_a_push_that_was_given_up_goes_on_with_what_is_confirmed(twin, tmp_path, monkeypatch):
    monkeypatch.setattr(push_presigned, "CONFIRM_OBJECTS", 4)
    monkeypatch.setattr(push_presigned, "UPLOADS_AT_ONCE", 2)
    made = history(5)
    work = await local(twin, tmp_path, made)
    async with cutting(twin) as proxy:
        proxy.cuts = [Cut(b"/%d?" % LARGE, LARGE // 2)]
        with monkeypatch.context() as impatient:
            impatient.setattr(uploading, "ATTEMPTS", 1)
            with pytest.raises(GivenUpError):
                await pushed(proxy.url, work)
        assert "POST push/confirm" in proxy.requests
        before, puts = dict(proxy.sent), proxy.requests.count("PUT upload/object")
        report = await pushed(proxy.url, work)
        assert proxy.requests.count("PUT upload/object") - puts < len(made.blobs) - 4
        assert proxy.sent["PUT upload/object"] - before["PUT upload/object"] < 0.6 * report.blob_bytes
    assert report.blobs == len(made.blobs)
    assert await proved(twin, tmp_path / "again") == len(made.blobs)


async def test_urls_that_are_too_old_are_asked_for_anew(twin, tmp_path, monkeypatch):
    made = history(9)
    work = await local(twin, tmp_path, made)
    sound = twin.services.signer.check
    asked: list[str] = []

    def check(method: str, path: str, query: dict[str, str], now: float) -> None:
        asked.append(path)
        sound(method, path, query, now + (10_000 if len(asked) in {3, 9} else 0))

    monkeypatch.setattr(twin.services.signer, "check", check)
    report = await pushed(twin.url, work)
    assert 1 < report.attempts <= 3
    assert await proved(twin, tmp_path / "again") == len(made.blobs)


async def test_a_content_the_server_rejects_is_sent_once_more(twin, tmp_path, monkeypatch):
    made = history(6)
    work = await local(twin, tmp_path, made)
    spoiled: list[int] = []
    pieces = uploading.BlobSource.pieces

    def damaged(self, start):
        for piece in pieces(self, start):
            if len(spoiled) < 3 and piece:
                spoiled.append(len(piece))
                yield bytes([piece[0] ^ 1]) + piece[1:]
            else:
                yield piece

    monkeypatch.setattr(uploading.BlobSource, "pieces", damaged)
    report = await pushed(twin.url, work)
    assert len(spoiled) == 3
    assert report.result["head"] == made.head
    assert await proved(twin, tmp_path / "again") == len(made.blobs)


async def test_a_content_the_server_always_rejects_is_named(twin, tmp_path, monkeypatch):
    made = history(7)
    work = await local(twin, tmp_path, made)
    pieces = uploading.BlobSource.pieces

    def damaged(self, start):
        for piece in pieces(self, start):
            yield bytes([piece[0] ^ 1]) + piece[1:] if self.size == 1 else piece

    monkeypatch.setattr(uploading.BlobSource, "pieces", damaged)
    with pytest.raises(ClientError, match=r"rejects 1 objects, the first is sha256:.*bad_object_hash"):
        await pushed(twin.url, work)


async def test_a_content_that_is_damaged_here_is_told(twin, tmp_path):
    work = await local(twin, tmp_path, history(8))
    with LocalRepository(work) as repository:
        pack = next(repository.packs.iterdir())
    content = bytearray(pack.read_bytes())
    content[len(content) // 2] ^= 1
    pack.write_bytes(content)
    with pytest.raises(IntegrityError, match="is damaged in pack"):
        await pushed(twin.url, work)
