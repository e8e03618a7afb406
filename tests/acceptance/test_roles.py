"""What a daemon of each role answers and does, what systemd hears of it, and what health says of a stuck one."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import httpx
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from storage.environment import SystemEnvironment
from storage.job_rows import JobState, NewJob
from storage.postgres.index import PostgresIndex
from tests.forked_workers import Workers
from tests.job_plugin import Events


@pytest.mark.parametrize(
    ("role", "serves", "works"), [("web", True, False), ("worker", False, True), ("all", True, True)]
)
async def test_a_role_says_who_answers_clients_and_who_does_jobs(
    workers: Workers, tmp_path: Path, database_url: str, postgres_index: PostgresIndex, role: str, serves: bool,
    works: bool,
) -> None:  # fmt: skip
    events = Events(tmp_path / "events")
    new = NewJob("test.quick", 0, {"directory": str(events.directory)})
    (number,) = await postgres_index.enqueue_jobs(1, [new], SystemEnvironment().now())
    with workers.running(tmp_path, database_url, 1, "jobs.poll_s=0.1", role=role) as (running,):
        async with httpx.AsyncClient(base_url=running.url) as client:
            for page in ("/livez", "/readyz"):
                assert (await client.get(page)).status_code == 200
            words = "no such repository" if serves else "no such page"
            assert (await client.get("/alice/x/refs")).json()["detail"] == words
            assert (await client.post("/alice/x/push/stream")).status_code == (401 if serves else 404)
            assert (await client.get("/api/repos")).status_code == (200 if serves else 404)
        if works:
            with trio.fail_after(60):
                while not events.all("begun"):
                    await wait_all_tasks_blocked(0.02)
        running.end()
    job = await postgres_index.find_job(number)
    assert job is not None
    assert (job.attempts > 0) is works
    assert works or job.state is JobState.PENDING


async def test_F23_systemd_hears_that_a_daemon_is_ready_alive_and_stopping(
    workers: Workers, tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[bytes] = []
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        await receiver.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "300000")
        monkeypatch.delenv("WATCHDOG_PID", raising=False)

        async def until(words: bytes) -> None:
            with trio.fail_after(60):
                while words not in heard[-1:]:
                    heard.append(await receiver.recv(100))

        with workers.running(tmp_path, database_url, 1) as (running,):
            await until(b"READY=1")
            await until(b"WATCHDOG=1")
            assert b"STOPPING=1" not in heard
            running.signal(signal.SIGTERM)
            await until(b"STOPPING=1")
            assert await trio.to_thread.run_sync(running.wait) == 0
