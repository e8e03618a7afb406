"""A push that is cut, refused for now or killed goes on: what has arrived is not sent again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from museworkd.client import presigning, uploading, verdicts
from museworkd.client import push as pushing
from museworkd.client.errors import ClientError, TransferError
from museworkd.client.fetch import clone
from museworkd.client.progress import Quiet
from museworkd.client.push import Move, PushReport, Way, push
from museworkd.client.repository import LocalRepository
from museworkd.client.transport import Remote
from museworkd.client.verify import verify
from storage.environment import SeededEnvironment, SystemEnvironment
from storage.errors import StoreUnavailable
from storage.memory.index import MemoryIndex
from storage.objects.memory import MemoryStore
from storage.objects.wrapped import WrappedStore
from tests.deployments import with_history
from tests.http_client import PATIENCE_S, ask
from tests.http_client import push as push_frames
from tests.integration.cutting import Cut, CuttingProxy, cutting
from tests.muse import Push
from tests.servers import TOKENS, Server, clean_environment, serving

pytestmark = pytest.mark.usefixtures("expected_errors")
BLOBS, BLOB_BYTES = 320, 12_000
ALL_BYTES = BLOBS * BLOB_BYTES
STREAM, MPACK = "POST push/stream", "PUT upload/mpack"


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (uploading, pushing):
        pause = next(name for name in vars(module) if name.endswith("LONGEST_PAUSE_S"))
        monkeypatch.setattr(module, pause, 0.02)
    monkeypatch.setattr(verdicts, "SETTLE_S", 0.2)


@pytest.fixture(scope="module")
def history() -> Push:
    """Enough to be stored in several batches, and nothing that could be compressed."""
    made, rng = Push(), random.Random(1)
    made.commit({f"f{number}": rng.randbytes(BLOB_BYTES) for number in range(BLOBS)})
    return made


@pytest.fixture
async def work(twin: Server, tmp_path: Path, history: Push) -> Path:
    """A local repository with that history, and a repository on the server to push it to."""
    await with_history(twin, history, slug="from")
    await clone(Remote(f"{twin.url}/alice/from", TOKENS["alice"]), tmp_path / "work", Quiet())
    await twin.make_repository(slug="to")
    return tmp_path / "work"


async def pushed(proxy: CuttingProxy, work: Path, **options: object) -> PushReport:
    with LocalRepository(work) as repository:
        return await push(repository, Remote(f"{proxy.url}/alice/to", TOKENS["alice"]), "main", Quiet(), **options)


async def proved(server: Server, target: Path) -> int:
    await clone(Remote(f"{server.url}/alice/to", TOKENS["alice"]), target, Quiet())
    with LocalRepository(target) as repository:
        report = await verify(repository, Quiet())
    assert report.problems == []
    return report.blobs


def unfinished(work: Path) -> list[str]:
    """The ids that are kept for a next try."""
    directory = work / ".muse" / "unfinished"
    return [path.read_text().split()[0] for path in directory.iterdir()] if directory.exists() else []


async def test_a_cut_stream_sends_only_what_has_not_arrived(twin, tmp_path, work):
    async with cutting(twin) as proxy:
        proxy.cuts = [Cut(b"push/stream", ALL_BYTES * 3 // 4)]
        report = await pushed(proxy, work)
    assert proxy.cuts == []
    assert (report.attempts, report.blobs, report.commits) == (2, BLOBS, 1)
    assert report.blobs_spared > BLOBS // 4
    assert report.result["blobs_written"] == BLOBS - report.blobs_spared
    assert proxy.sent[STREAM] < ALL_BYTES * 3 // 4 + (BLOBS - report.blobs_spared) * (BLOB_BYTES + 200) + 20_000
    assert unfinished(work) == []
    assert await proved(twin, tmp_path / "again") == BLOBS


async def test_a_stream_that_is_cut_again_and_again_arrives(twin, tmp_path, work):
    async with cutting(twin) as proxy:
        proxy.cuts = [Cut(b"push/stream", ALL_BYTES * 2 // 3), Cut(b"push/stream", ALL_BYTES // 10)]
        report = await pushed(proxy, work)
    assert (proxy.cuts, report.attempts) == ([], 3)
    assert proxy.sent[STREAM] < ALL_BYTES * 7 // 4
    assert await proved(twin, tmp_path / "again") == BLOBS


async def test_a_server_that_cannot_say_what_arrived_is_sent_everything(twin, tmp_path, work, monkeypatch):
    async def unknown(*_: object) -> None:
        raise ClientError("no such page", "not_found")

    monkeypatch.setattr(presigning, "presign", unknown)
    async with cutting(twin) as proxy:
        proxy.cuts = [Cut(b"push/stream", ALL_BYTES // 2)]
        report = await pushed(proxy, work)
    assert (report.attempts, report.blobs_spared) == (2, 0)
    assert await proved(twin, tmp_path / "again") == BLOBS


@pytest.mark.parametrize("way", [Way.STREAM, Way.PRESIGNED, Way.MPACK])
async def test_a_lost_answer_is_asked_for_and_nothing_is_sent_again(twin, tmp_path, work, way):
    async with cutting(twin) as proxy:
        proxy.lost_answers = [b"snapshots_written"]
        report = await pushed(proxy, work, way=way)
    assert proxy.lost_answers == []
    last = "POST push/unpack-mpack" if way is Way.MPACK else STREAM
    assert proxy.requests.count(last) == 1
    assert any(request.startswith("GET push/") for request in proxy.requests)
    assert (report.result["status"], report.result["blobs_written"]) == ("accepted", BLOBS)
    assert unfinished(work) == []
    assert await proved(twin, tmp_path / "again") == BLOBS


async def test_a_refusal_whose_answer_was_lost_is_told(twin, work, monkeypatch):
    """The branch is taken to have moved after this client looked at it: only the server knows."""

    async def unknown(*_: object) -> Move:
        return Move.UNKNOWN

    monkeypatch.setattr(pushing, "_judge", unknown)
    theirs = Push()
    theirs.commit({"theirs": b"theirs"})
    assert (await push_frames(twin, theirs.frames(), repository="alice/to"))["type"] == "R"
    async with cutting(twin) as proxy:
        proxy.lost_answers = [b"non_fast_forward"]
        with pytest.raises(ClientError) as refused:
            await pushed(proxy, work)
    assert (proxy.lost_answers, refused.value.code) == ([], "non_fast_forward")
    assert proxy.requests.count(STREAM) == 1
    assert unfinished(work) == []


class FailingStore(WrappedStore):
    """A store whose first writes fail."""

    def __init__(self, failures: int) -> None:
        super().__init__(MemoryStore())
        self.failures = failures

    async def put_batch(self, items: Sequence[tuple[str, bytes]]) -> None:
        if self.failures and items[0][0].startswith("objects/"):
            self.failures -= 1
            raise StoreUnavailable("injected", temporary=False)
        await super().put_batch(items)


async def test_a_refusal_for_now_is_tried_again(tmp_path, twin, work):
    store, settings = FailingStore(2), {"limits__content_cache_object_bytes": 0}
    async with serving(MemoryIndex(), store, tmp_path / "second", **settings) as server, cutting(server) as proxy:
        await server.make_repository(slug="to")
        report = await pushed(proxy, work)
        assert store.failures == 0
        assert report.attempts in {2, 3}  # both writes may have failed in one attempt
        assert await proved(server, tmp_path / "again") == BLOBS


async def test_a_push_that_fails_for_long_is_given_up_and_goes_on_later_under_its_id(twin, tmp_path, work):
    async with cutting(twin) as proxy:
        proxy.cuts = [Cut(b"push/stream", 5_000)] * 100
        with pytest.raises(TransferError):
            await pushed(proxy, work)
        assert len(proxy.cuts) == 100 - pushing.ATTEMPTS
        [kept] = unfinished(work)
        proxy.cuts = []
        report = await pushed(proxy, work)
    assert report.result["push_id"] == kept
    assert unfinished(work) == []
    assert await proved(twin, tmp_path / "again") == BLOBS


async def killed_push(proxy: CuttingProxy, work: Path, *options: str, ready=None) -> None:
    """Start the command in a process of its own, kill it when the proxy has stalled it, and see it dead."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "museworkd.cli.main", "push", f"{proxy.url}/alice/to", "-C", str(work), *options],
        env=clean_environment(MUSEWORKD_TOKEN=TOKENS["alice"]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    with trio.fail_after(PATIENCE_S):
        await proxy.stalled.wait()
        while ready is not None and not await ready():
            await wait_all_tasks_blocked(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert await process.wait() == -signal.SIGKILL


async def test_a_killed_stream_goes_on_in_another_process(twin, tmp_path, work, history):
    async def some_arrived() -> bool:
        body = {
            "object_ids": list(history.blobs), "sizes": {i: len(c) for i, c in history.blobs.items()},
            "push_id": unfinished(work)[0],
        }  # fmt: skip
        answer = await ask(twin, "POST", "/alice/to/push/presign", token="alice", msgpack=body)
        return len(answer.value["already_stored"]) > BLOBS // 4

    room = twin.services.push.kept
    assert room.take(room.free)  # else nothing of a push that may be small is stored before its end
    async with cutting(twin) as proxy:
        proxy.cuts = [Cut(b"push/stream", ALL_BYTES * 3 // 4, stall=True)]
        await killed_push(proxy, work, ready=some_arrived)
        [kept] = unfinished(work)
        before = proxy.sent[STREAM]
        report = await pushed(proxy, work)
        assert proxy.sent[STREAM] - before < ALL_BYTES * 3 // 4
    assert report.result["push_id"] == kept
    assert report.blobs_spared > BLOBS // 4
    assert report.blobs == BLOBS
    assert unfinished(work) == []
    assert await proved(twin, tmp_path / "again") == BLOBS


async def test_a_killed_upload_of_an_mpack_goes_on_in_another_process(twin, tmp_path, work):
    async with cutting(twin) as proxy:
        proxy.cuts = [Cut(b"PUT", ALL_BYTES * 3 // 4, stall=True)]
        await killed_push(proxy, work, "--way", "mpack")
        before = proxy.sent[MPACK]
        assert list((work / ".muse" / "tmp").iterdir()) != []
        await pushed(proxy, work, way=Way.MPACK)
        assert not (work / ".muse" / "tmp").exists()  # what the killed one left is swept
        assert proxy.sent[MPACK] - before < ALL_BYTES // 2
    assert await proved(twin, tmp_path / "again") == BLOBS


async def test_a_verdict_of_before_is_not_told_for_a_branch_that_was_moved_since(twin, tmp_path, work, history):
    """The answer to a push was lost with its process, and somebody has forced the branch elsewhere meanwhile."""
    async with cutting(twin) as proxy:
        first = await pushed(proxy, work)
        with LocalRepository(work) as repository:
            remote = f"{proxy.url}/alice/to"
            rules = {"branch": "main", "head": history.head, "force": True}
            before = pushing.UnfinishedPush(repository, remote, rules, SystemEnvironment())
            before.begin(uuid.UUID(first.result["push_id"]), "stream")
        theirs = Push()
        theirs.commit({"theirs": b"theirs"})
        assert (await push_frames(twin, theirs.frames(force=True), repository="alice/to"))["type"] == "R"
        again = await pushed(proxy, work, force=True)
    assert again.result["push_id"] != first.result["push_id"]
    heads = (await ask(twin, "GET", "/alice/to/refs", token="alice")).value["branch_heads"]
    assert heads == {"main": history.head}
    assert unfinished(work) == []


async def test_a_new_push_has_its_id_from_the_environment(twin, work):
    """So that a run can be replayed."""
    with LocalRepository(work) as repository:
        where = Remote(f"{twin.url}/alice/to", TOKENS["alice"])
        report = await push(repository, where, "main", Quiet(), environment=SeededEnvironment(7))
    assert report.result["push_id"] == str(SeededEnvironment(7).uuid())


async def test_an_id_is_kept_for_one_way_and_one_set_of_rules(twin, work, history):
    with LocalRepository(work) as repository:
        rules = {"branch": "main", "head": history.head, "force": False}
        kept = pushing.UnfinishedPush(repository, "https://a/b/c", rules, SystemEnvironment())
        push_id = uuid.uuid4()
        kept.begin(push_id, "stream")
        assert kept.find("stream") == push_id
        assert kept.find("mpack") is None
        for url, other in [("https://a/b/d", rules), ("https://a/b/c", {**rules, "force": True}),
                           ("https://a/b/c", {**rules, "expected_head": None})]:  # fmt: skip
            assert pushing.UnfinishedPush(repository, url, other, SystemEnvironment()).find("stream") is None
        [path] = (work / ".muse" / "unfinished").iterdir()
        os.utime(path, (0, 0))
        assert kept.find("stream") is None
        pushing.UnfinishedPush(repository, "https://a/b/d", rules, SystemEnvironment()).begin(push_id, "stream")
        assert not path.exists()
