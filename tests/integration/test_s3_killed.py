"""A daemon over a real S3 store, killed at the store's every request of a push: the steps of two stores, for real."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import trio

from museworkd.client import push as push_module
from museworkd.client import uploading
from museworkd.client.errors import TransferError
from museworkd.client.fetch import clone
from museworkd.client.progress import Quiet
from museworkd.client.push import Way, push
from museworkd.client.repository import LocalRepository
from museworkd.client.transport import Api, Remote
from tests.deployments import with_history
from tests.muse import random_history
from tests.s3_deployments import over_s3
from tests.s3_faults import Asked, Fault, FaultyS3, faulty_s3
from tests.s3_server import S3Server
from tests.servers import TOKENS, Daemon, start_daemon

pytestmark = pytest.mark.usefixtures("expected_errors")

KILLS = 2


class Deadly:
    """A rule that kills a daemon at the n-th write a push makes in the store: done, or not done."""

    def __init__(self, at: int, daemon: Daemon) -> None:
        self.at = at
        self.daemon = daemon
        self.seen = 0

    def __call__(self, asked: Asked) -> Fault | None:
        if asked.method not in {"PUT", "POST"}:
            return None
        self.seen += 1
        if self.seen != self.at:
            return None
        self.daemon.process.kill()
        return Fault(lose_answer=True) if self.at % 2 else Fault(refuse=503)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("way", [Way.STREAM, Way.MPACK], ids=lambda way: way.value)
async def test_F20_a_daemon_killed_at_a_write_to_the_store_loses_nothing_and_shows_nothing(
    s3_server: S3Server, tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch, way: Way
) -> None:
    """At each of the first writes: the branch is not moved, or moved and whole; the push is accepted by the next."""
    monkeypatch.setattr(uploading, "ATTEMPTS", 1)
    monkeypatch.setattr(push_module, "ATTEMPTS", 1)
    bucket, history = s3_server.new_bucket(), random_history(3)
    async with faulty_s3(s3_server) as proxy:
        async with over_s3(s3_server, tmp_path, database_url, bucket=bucket) as server:
            await with_history(server, history, slug="from")
            for at in range(1, KILLS + 1):
                await server.make_repository(slug=f"to-{at}")
            await clone(Remote(f"{server.url}/alice/from", TOKENS["alice"]), tmp_path / "work", Quiet())
        killed = 0
        daemon = await started(proxy, bucket, tmp_path, database_url)
        try:
            with LocalRepository(tmp_path / "work") as repository:
                for at in range(1, KILLS + 1):
                    proxy.rules = [deadly := Deadly(at, daemon)]
                    try:
                        await push(repository, remote(daemon, at), "main", Quiet(), way=way)
                        acceptable = {history.head}
                    except TransferError:
                        acceptable = {None, history.head}
                    proxy.rules = []
                    if deadly.seen >= at:
                        killed += 1
                        daemon.process.wait()
                        daemon = await started(proxy, bucket, tmp_path, database_url)
                    assert await head_of(daemon, at) in acceptable
                    await push(repository, remote(daemon, at), "main", Quiet(), way=way)
                    assert await head_of(daemon, at) == history.head
                    await clone(remote(daemon, at), tmp_path / f"again-{at}", Quiet())
        finally:
            daemon.kill()
        assert killed


def remote(daemon: Daemon, at: int) -> Remote:
    return Remote(f"{daemon.url}/alice/to-{at}", TOKENS["alice"])


async def started(proxy: FaultyS3, bucket: str, tmp_path: Path, database_url: str) -> Daemon:
    """Start a daemon whose store is behind the proxy, which runs in this loop."""
    credentials = tmp_path / "s3-credentials"
    settings = proxy.as_server.settings(bucket) | {"store.credentials_file": str(credentials)}
    return await trio.to_thread.run_sync(
        functools.partial(start_daemon, tmp_path / "daemon", database_url, *(f"{k}={v}" for k, v in settings.items()))
    )


async def head_of(daemon: Daemon, at: int) -> str | None:
    async with Api(remote(daemon, at)) as api:
        return (await api.get("refs"))["branch_heads"].get("main")
