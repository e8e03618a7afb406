"""A stop signal drains: what runs may finish, nothing new begins, and the process ends with 0."""

from __future__ import annotations

import signal
from pathlib import Path

import httpx
import pytest
import trio

from museworkd.client.errors import TransferError
from museworkd.client.transport import Remote
from tests.acceptance.pushing import push_pieces
from tests.muse import random_history
from tests.servers import museworkd, start_daemon


@pytest.fixture
def story(tmp_path: Path, database_url: str):
    running = start_daemon(tmp_path / "data", database_url, "server.drain_s=20")
    options = ["--data-dir", str(tmp_path / "data"), "--database-url", database_url]
    museworkd("repo", "create", "ada/x", *options)
    token = museworkd("token", "create", "ada", *options).stdout.strip()
    yield running, Remote(f"{running.url}/ada/x", token)
    if running.process.poll() is None:
        running.kill()


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
async def test_a_running_push_finishes_while_the_daemon_drains(story, stop: signal.Signals) -> None:
    running, remote = story
    body = random_history(5).frames()
    answering = trio.Event()

    class SignalInTheMiddle:
        async def __aiter__(self):
            yield body[: len(body) // 2]
            await answering.wait()
            running.process.send_signal(stop)
            await refused_connection(remote)
            yield body[len(body) // 2 :]

    answer = await push_pieces(remote, SignalInTheMiddle(), answering=answering)

    assert answer["type"] == "R", answer
    assert await trio.to_thread.run_sync(running.process.wait, 30) == 0


async def test_a_second_signal_stops_at_once(story) -> None:
    running, remote = story
    body = random_history(5).frames()
    answering = trio.Event()

    class TwoSignals:
        async def __aiter__(self):
            yield body[: len(body) // 2]
            await answering.wait()
            running.process.send_signal(signal.SIGTERM)
            await refused_connection(remote)
            running.process.send_signal(signal.SIGTERM)
            await trio.sleep_forever()
            yield b""

    with pytest.raises(TransferError):
        await push_pieces(remote, TwoSignals(), answering=answering)
    assert await trio.to_thread.run_sync(running.process.wait, 15) == 0


async def test_an_upload_that_outlasts_the_drain_is_cut_and_the_daemon_ends_well(
    tmp_path: Path, database_url: str
) -> None:
    running = start_daemon(tmp_path / "data", database_url, "server.drain_s=0.5")
    options = ["--data-dir", str(tmp_path / "data"), "--database-url", database_url]
    museworkd("repo", "create", "ada/x", *options)
    remote = Remote(f"{running.url}/ada/x", museworkd("token", "create", "ada", *options).stdout.strip())
    body = random_history(5).frames()
    answering = trio.Event()

    class Endless:
        async def __aiter__(self):
            yield body[: len(body) // 2]
            await answering.wait()
            running.process.send_signal(signal.SIGTERM)
            await trio.sleep_forever()
            yield b""

    try:
        with pytest.raises(TransferError):
            await push_pieces(remote, Endless(), answering=answering)
        assert await trio.to_thread.run_sync(running.process.wait, 15) == 0
        assert "Traceback" not in running.log.read_text()
    finally:
        if running.process.poll() is None:
            running.kill()


async def refused_connection(remote: Remote) -> None:
    """Wait until the daemon accepts nobody any more."""
    async with httpx.AsyncClient() as client:
        while True:
            try:
                await client.get(f"{remote.url}/refs")
            except httpx.ConnectError:
                return
