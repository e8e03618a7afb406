"""A stop signal drains: what runs may finish, nothing new begins, and the process ends with 0."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import trio

from museworkd.client.errors import TransferError
from museworkd.client.transport import Remote
from storage.postgres.index import PostgresIndex
from tests.acceptance.pushing import push_pieces
from tests.dying_server import make_repository
from tests.muse import random_history
from tests.servers import TOKENS, Daemon, daemon


@contextmanager
def daemon_that_drains(tmp_path: Path, database_url: str, drain_s: float) -> Iterator[tuple[Daemon, Remote]]:
    with daemon(tmp_path / "data", database_url, f"server.drain_s={drain_s}") as running:
        yield running, Remote(f"{running.url}/alice/x", TOKENS["alice"])


@pytest.fixture
async def story(tmp_path: Path, database_url: str, postgres_index: PostgresIndex):
    assert await make_repository(postgres_index, "x")
    with daemon_that_drains(tmp_path, database_url, 20) as story:
        yield story


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
async def test_F21_a_running_push_finishes_while_the_daemon_drains(story, stop: signal.Signals) -> None:
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


async def test_F21_an_upload_that_outlasts_the_drain_is_cut_and_the_daemon_ends_well(
    tmp_path: Path, database_url: str, postgres_index: PostgresIndex
) -> None:
    assert await make_repository(postgres_index, "x")
    body = random_history(5).frames()
    answering = trio.Event()

    class Endless:
        async def __aiter__(self):
            yield body[: len(body) // 2]
            await answering.wait()
            running.process.send_signal(signal.SIGTERM)
            await trio.sleep_forever()
            yield b""

    with daemon_that_drains(tmp_path, database_url, 0.5) as (running, remote):
        with pytest.raises(TransferError):
            await push_pieces(remote, Endless(), answering=answering)
        assert await trio.to_thread.run_sync(running.process.wait, 15) == 0
        assert "Traceback" not in running.log.read_text()


async def refused_connection(remote: Remote) -> None:
    """Wait until the daemon accepts nobody any more."""
    async with httpx.AsyncClient() as client:
        while True:
            try:
                await client.get(f"{remote.url}/refs")
            except httpx.ConnectError:
                return
