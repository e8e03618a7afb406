"""The client's pushes by one file: taken up where a connection broke off, waited for, and refused in plain words."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from museworkd.client import push as push_module
from museworkd.client import transport, uploading, verdicts
from museworkd.client.errors import ClientError, TransferError
from museworkd.client.fetch import clone
from museworkd.client.progress import Phase, Quiet
from museworkd.client.push import Way, push
from museworkd.client.repository import LocalRepository
from museworkd.client.transport import Remote
from storage.errors import StoreUnavailable
from storage.memory.index import MemoryIndex
from storage.objects.memory import MemoryStore
from storage.objects.wrapped import WrappedStore
from tests.deployments import deployed, with_history
from tests.http_client import ask
from tests.integration.cutting import Cut, cutting
from tests.muse import Push, random_history
from tests.servers import TOKENS, Server, serving

pytestmark = pytest.mark.usefixtures("expected_errors")


async def local(server: Server, tmp_path: Path, history: Push) -> Path:
    """A local repository with a history, by way of the server's repository ``from``."""
    await with_history(server, history, slug="from")
    await clone(Remote(f"{server.url}/alice/from", TOKENS["alice"]), tmp_path / "work", Quiet())
    return tmp_path / "work"


def large(seed: int) -> Push:
    history = random_history(seed)
    history.commit({f"f{n}": bytes([n]) * 50 + seed.to_bytes(4, "big") * 40_000 for n in range(9)})
    history.commit({"noise": random.Random(seed).randbytes(900_000)})
    return history


async def test_an_upload_goes_on_where_its_connection_was_cut(server, tmp_path, monkeypatch):
    monkeypatch.setattr(uploading, "_LONGEST_PAUSE_S", 0.05)
    history = large(1)
    work = await local(server, tmp_path, history)
    await server.make_repository(slug="to")
    with LocalRepository(work) as repository:
        async with cutting(server) as proxy:
            proxy.cuts = [Cut(b"PUT", 100_000), Cut(b"PUT", 300_000)]
            report = await push(
                repository, Remote(f"{proxy.url}/alice/to", TOKENS["alice"]), "main", Quiet(), way=Way.MPACK
            )
    assert proxy.cuts == []
    assert proxy.requests.count("PUT upload/mpack") == 3
    assert proxy.sent["PUT upload/mpack"] < 1_000_000 + 100_000
    assert report.attempts == 1
    assert report.result["blobs_written"] == len(history.blobs)
    await clone(Remote(f"{server.url}/alice/to", TOKENS["alice"]), tmp_path / "again", Quiet())


async def test_an_upload_that_is_always_cut_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(uploading, "_LONGEST_PAUSE_S", 0.05)
    work = await local(server, tmp_path, large(2))
    await server.make_repository(slug="to")
    async with cutting(server) as proxy:
        proxy.cuts = [Cut(b"PUT", 10_000)] * 100
        with LocalRepository(work) as repository, pytest.raises(TransferError, match="upload was cut"):
            await push(repository, Remote(f"{proxy.url}/alice/to", TOKENS["alice"]), "main", Quiet(), way=Way.MPACK)
    assert len(proxy.cuts) == 100 - uploading.ATTEMPTS
    heads = (await ask(server, "GET", "/alice/to/refs", token="alice")).value["branch_heads"]
    assert heads == {}


@pytest.mark.parametrize("known", [True, False])
async def test_a_history_too_large_for_one_file_goes_as_a_stream(tmp_path, monkeypatch, known):
    """By itself the client finds a way that works, whether it knows the server's limit or is told of it."""
    limit = 300_000
    monkeypatch.setattr(push_module, "MPACK_FROM_BYTES", 100_000)
    if known:
        monkeypatch.setattr(push_module, "MPACK_MOST_BYTES", limit)
    async with deployed(None, tmp_path, limits__mpack_bytes=limit) as server:
        work = await local(server, tmp_path, large(5))
        await server.make_repository(slug="to")
        remote, asked = Remote(f"{server.url}/alice/to", TOKENS["alice"]), Told()
        with LocalRepository(work) as repository:
            with pytest.raises(ClientError) as refused:
                await push(repository, remote, "main", Quiet(), way=Way.MPACK)
            report = await push(repository, remote, "main", asked)
            assert (await push(repository, remote, "main", Quiet())).up_to_date
        assert refused.value.code == "too_large"
        assert report.way == Way.STREAM.value
        assert ("Packing" in [name for name, _ in asked.phases]) is not known
        await clone(remote, tmp_path / "again", Quiet())


class FullStore(WrappedStore):
    """A store that takes no files for a while."""

    def __init__(self, failures: int) -> None:
        super().__init__(MemoryStore())
        self.failures = failures

    async def put_file(self, key: str, path: Path) -> None:
        if self.failures:
            self.failures -= 1
            raise StoreUnavailable("injected", temporary=False)
        await super().put_file(key, path)


class Told(Quiet):
    """What people are shown: the phases, each with its remarks."""

    def __init__(self) -> None:
        self.phases: list[tuple[str, list[str]]] = []

    @contextmanager
    def phase(self, name: str, total: int | None = None) -> Iterator[Phase]:
        with super().phase(name, total) as phase:
            remarks: list[str] = []
            phase.note = remarks.append
            self.phases.append((name, remarks))
            yield phase


@pytest.mark.parametrize("failures", [2, 100])
async def test_an_upload_that_is_refused_for_now_is_told_as_refused(twin, tmp_path, monkeypatch, failures):
    """Whoever waits sees that it is tried again and why; nobody is told of a cut that was none."""
    monkeypatch.setattr(uploading, "_LONGEST_PAUSE_S", 0.01)
    monkeypatch.setattr(transport, "LONGEST_PAUSE_S", 0.01)
    work = await local(twin, tmp_path, large(4))
    store, told = FullStore(failures), Told()
    async with serving(MemoryIndex(), store, tmp_path / "second") as server:
        await server.make_repository(slug="to")
        remote = Remote(f"{server.url}/alice/to", TOKENS["alice"])
        with LocalRepository(work) as repository:
            if failures < uploading.ATTEMPTS:
                await push(repository, remote, "main", told, way=Way.MPACK)
            else:
                with pytest.raises(TransferError) as refused:
                    await push(repository, remote, "main", told, way=Way.MPACK)
                assert str(refused.value).startswith("the upload was given up: refused by the server (store_unavail")
    again = [remarks for name, remarks in told.phases if name == "Trying again"]
    assert len(again) == min(failures, uploading.ATTEMPTS - 1)
    assert all("store_unavailable" in remark for [remark] in again)


async def test_a_long_unpacking_is_waited_for(database, tmp_path, monkeypatch):
    monkeypatch.setattr(verdicts, "POLL_EVERY_S", 0)
    async with deployed(database, tmp_path, server__unpack_sync_s=1e-9) as server:
        history = large(3)
        work = await local(server, tmp_path, history)
        await server.make_repository(slug="to")
        with LocalRepository(work) as repository:
            remote = Remote(f"{server.url}/alice/to", TOKENS["alice"])
            report = await push(repository, remote, "main", Quiet(), way=Way.MPACK)
            assert report.result["status"] == "accepted"
            assert (await push(repository, remote, "main", Quiet(), way=Way.MPACK)).up_to_date
            await server.make_repository(slug="signed", require_signed_commits=True)
            remote = Remote(f"{server.url}/alice/signed", TOKENS["alice"])
            with pytest.raises(ClientError) as refused:
                await push(repository, remote, "main", Quiet(), way=Way.MPACK)
            assert refused.value.code == "bad_signature"


async def test_the_way_follows_from_what_there_is_to_send(twin, tmp_path, monkeypatch):
    work = await local(twin, tmp_path, large(4))
    for most, expected in [(500, "stream"), (3, "mpack")]:
        monkeypatch.setattr("museworkd.client.push.MPACK_FROM_OBJECTS", most)
        await twin.make_repository(slug=f"to{most}")
        with LocalRepository(work) as repository:
            report = await push(repository, Remote(f"{twin.url}/alice/to{most}", TOKENS["alice"]), "main", Quiet())
        assert report.way == expected
