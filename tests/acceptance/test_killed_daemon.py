"""SIGKILL at any moment: nothing unacknowledged moves, nothing acknowledged is lost, sending again succeeds."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import uuid
from pathlib import Path

import httpx
import psycopg
import pytest
import trio

from museworkd.client.errors import TransferError
from museworkd.client.fetch import clone
from museworkd.client.progress import Quiet
from museworkd.client.repository import LocalRepository
from museworkd.client.transport import Remote
from museworkd.client.verify import verify
from storage.postgres.database import DatabaseSettings
from storage.postgres.index import PostgresIndex
from tests.acceptance.pushing import push_frames
from tests.dying_server import dying_server, make_repository
from tests.growing import heads
from tests.http_client import ask
from tests.muse import Push
from tests.servers import TOKENS, Daemon, museworkd, start_daemon

ROUNDS = 50
EMBEDDED_ROUNDS = 6
AFTER_BODY_MS = 40


def next_push(rng: random.Random, parents: list[str], number: int) -> Push:
    push = Push()
    push.commit(
        {f"d{i % 5}/f{i}": rng.randbytes(rng.randrange(1, 4000)) for i in range(40)} | {"empty": b""},
        parents, message=f"push {number}, first",
    )  # fmt: skip
    push.commit({"large": rng.randbytes(1_500_000), "number": b"%d" % number}, message=f"push {number}, second")
    return push


class Story:
    """One repository, one branch, and a daemon with its own PostgreSQL that keeps being killed."""

    def __init__(self, tmp_path: Path) -> None:
        self.data_dir = tmp_path / "data"
        self.daemon: Daemon = start_daemon(self.data_dir, None)
        options = ["--data-dir", str(self.data_dir)]
        museworkd("repo", "create", "ada/x", *options)
        self.token = museworkd("token", "create", "ada", *options).stdout.strip()

    @property
    def remote(self) -> Remote:
        return Remote(f"{self.daemon.url}/ada/x", self.token)

    def head(self) -> str | None:
        answer = httpx.get(f"{self.remote.url}/refs", headers={"authorization": f"Bearer {self.token}"})
        return answer.json()["branch_heads"].get("main")

    def restart(self) -> None:
        self.daemon.kill()
        self.daemon = start_daemon(self.data_dir, None)


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(400)
async def test_F20_fifty_kills_lose_nothing_and_show_nothing(tmp_path: Path, database_url: str) -> None:
    """At random moments, also in the middle of a write; ``test_killed_at_every_step`` goes through the steps."""
    rng = random.Random(2026)
    acknowledged: str | None = None
    with dying_server(tmp_path / "server", database_url) as dying:
        async with PostgresIndex(DatabaseSettings(database_url)) as index:
            assert await make_repository(index, "x")
        remote = Remote(f"{dying.server.url}/alice/x", TOKENS["alice"])
        assert await heads(dying.server, "x") == {}
        for number in range(ROUNDS):
            push = next_push(rng, [acknowledged] if acknowledged else [], number)
            body = push.frames(push_id=str(uuid.UUID(int=number + 1)))

            heard = await push_and_kill(remote, body, rng.uniform(0, 2), dying.pid())
            head = (await heads(dying.server, "x")).get("main")

            if heard is not None and heard["type"] == "R":
                assert head == push.head, f"round {number}: an acknowledged push was lost"
            else:
                assert head in {acknowledged, push.head}, f"round {number}: {heard}"
            if head != push.head:
                target = f"/alice/x/o/{next(iter(push.blobs))}"
                seen = await ask(dying.server, "GET", target, token="alice")
                assert seen.status == 404, f"round {number}: a part became visible"
            repeated = await push_frames(remote, body)
            assert repeated["type"] == "R", (number, repeated)
            assert {"main": repeated["head"]} == {"main": push.head} == await heads(dying.server, "x")
            acknowledged = push.head
        await whole(remote, tmp_path / "clone", commits=2 * ROUNDS)
        leftovers(database_url)


async def push_and_kill(remote: Remote, body: bytes, moment: float, pid: int) -> dict | None:
    """Kill after a part of the body, or (``moment`` ≥ 1) some milliseconds after all of it."""

    def kill() -> None:
        os.kill(pid, signal.SIGKILL)

    try:
        if moment < 1:
            return await push_frames(remote, body, cut_at=int(moment * len(body)), on_cut=kill)
        with trio.move_on_after((moment - 1) * AFTER_BODY_MS / 1000):
            return await push_frames(remote, body)
        return None
    except TransferError:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            kill()


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_F20_kills_of_daemon_and_embedded_database_lose_nothing(postgres_home: Path) -> None:
    tmp_path = postgres_home / "killed"
    story = Story(tmp_path)
    rng = random.Random(7)
    acknowledged: str | None = None
    for number in range(EMBEDDED_ROUNDS):
        push = next_push(rng, [acknowledged] if acknowledged else [], number)
        body = push.frames(push_id=str(uuid.UUID(int=number + 1)))
        await push_and_kill(story.remote, body, rng.uniform(0, 2), story.daemon.pid)
        if number % 2:
            kill_postmaster(tmp_path / "data")
        story.restart()
        assert story.head() in {acknowledged, push.head}
        repeated = await push_frames(story.remote, body)
        assert repeated["type"] == "R", (number, repeated)
        acknowledged = push.head
    await whole(story.remote, tmp_path / "clone", commits=2 * EMBEDDED_ROUNDS)
    assert story.daemon.stop() == 0


def kill_postmaster(data_dir: Path) -> None:
    from storage.postgres.embedded import EmbeddedPostgres

    EmbeddedPostgres(data_dir).kill()


async def whole(remote: Remote, target: Path, commits: int) -> None:
    """Every acknowledged commit can be cloned and proved."""
    await clone(remote, target, Quiet())
    with LocalRepository(target) as repository:
        report = await verify(repository, Quiet())
    assert report.problems == []
    assert report.commits == commits


def leftovers(database_url: str) -> None:
    """The branch's log is a chain of compare-and-swaps, one entry for each push."""
    with psycopg.connect(database_url) as connection:
        rows = connection.execute("SELECT old, new FROM branch_log ORDER BY entry").fetchall()
    assert len(rows) == ROUNDS
    assert [new for _, new in rows[:-1]] == [old for old, _ in rows[1:]]
