"""The client's pushes by one file: taken up where a connection broke off, waited for, and refused in plain words."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from museworkd.client import push_mpack, uploading
from museworkd.client.errors import ClientError, TransferError
from museworkd.client.fetch import clone
from museworkd.client.progress import Quiet
from museworkd.client.push import Way, push
from museworkd.client.repository import LocalRepository
from museworkd.client.transport import Remote
from tests.deployments import deployed, with_history
from tests.http_client import ask
from tests.muse import Push, random_history
from tests.servers import TOKENS, Server

pytestmark = pytest.mark.usefixtures("expected_errors")


@asynccontextmanager
async def cutting(server: Server, cuts: list[int]) -> AsyncIterator[str]:
    """A proxy whose connections are cut after so many bytes from the client, one number each; then never."""

    async def serve(client: trio.SocketStream) -> None:
        async with client, await server.connect() as upstream, trio.open_nursery() as nursery:
            left = [cuts.pop(0)] if cuts else [None]

            async def forth() -> None:
                async for data in client:
                    if left[0] is not None:
                        left[0] -= len(data)
                        if left[0] < 0:
                            break
                    await upstream.send_all(data)
                nursery.cancel_scope.cancel()

            async def back() -> None:
                async for data in upstream:
                    await client.send_all(data)
                nursery.cancel_scope.cancel()

            nursery.start_soon(forth)
            nursery.start_soon(back)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


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
    monkeypatch.setattr(uploading, "_LONGEST_PAUSE_S", 0.2)
    history = large(1)
    work = await local(server, tmp_path, history)
    await server.make_repository(slug="to")
    cuts = [100_000, 300_000]
    with LocalRepository(work) as repository:
        async with cutting(server, cuts) as url:
            seen: list[tuple[int, int]] = []
            put = uploading._put

            async def watched(client, target, path, start, size, phase):
                seen.append((start, size))
                target = target.replace(server.url, url)
                return await put(client, target, path, start, size, phase)

            monkeypatch.setattr(uploading, "_put", watched)
            report = await push(
                repository, Remote(f"{server.url}/alice/to", TOKENS["alice"]), "main", Quiet(), way=Way.MPACK
            )
    assert cuts == []
    assert report.result["blobs_written"] == len(history.blobs)
    starts = [start for start, _ in seen]
    assert starts[0] == 0
    assert starts == sorted(starts)
    assert 0 < starts[-1] < seen[0][1]
    await clone(Remote(f"{server.url}/alice/to", TOKENS["alice"]), tmp_path / "again", Quiet())


async def test_an_upload_that_is_always_cut_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(uploading, "_LONGEST_PAUSE_S", 0.2)
    work = await local(server, tmp_path, large(2))
    await server.make_repository(slug="to")
    async with cutting(server, [10_000] * 100) as url:
        put = uploading._put
        monkeypatch.setattr(
            uploading, "_put", lambda client, target, *rest: put(client, target.replace(server.url, url), *rest)
        )
        with LocalRepository(work) as repository, pytest.raises(TransferError, match="upload was cut"):
            await push(repository, Remote(f"{server.url}/alice/to", TOKENS["alice"]), "main", Quiet(), way=Way.MPACK)
    heads = (await ask(server, "GET", "/alice/to/refs", token="alice")).value["branch_heads"]
    assert heads == {}


async def test_a_long_unpacking_is_waited_for(database, tmp_path, monkeypatch):
    monkeypatch.setattr(push_mpack, "POLL_EVERY_S", 0)
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
    ways = []
    by_mpack = push_mpack.push_by_mpack

    async def watched(*arguments):
        ways.append("mpack")
        return await by_mpack(*arguments)

    monkeypatch.setattr("museworkd.client.push.push_by_mpack", watched)
    for most, expected in [(500, []), (3, ["mpack"])]:
        monkeypatch.setattr("museworkd.client.push.MPACK_FROM_OBJECTS", most)
        await twin.make_repository(slug=f"to{most}")
        with LocalRepository(work) as repository:
            await push(repository, Remote(f"{twin.url}/alice/to{most}", TOKENS["alice"]), "main", Quiet())
        assert ways == expected
