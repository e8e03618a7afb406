"""SIGKILL at any moment: nothing unacknowledged moves, nothing acknowledged is lost, sending again succeeds."""

from __future__ import annotations

import random
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
from tests.acceptance.pushing import push_frames
from tests.muse import Push
from tests.servers import Daemon, museworkd, start_daemon

ROUNDS = 50
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
    """One repository, one branch, and a daemon that keeps being killed."""

    def __init__(self, tmp_path: Path, database_url: str | None) -> None:
        self.data_dir = tmp_path / "data"
        self.database_url = database_url
        self.daemon: Daemon = start_daemon(self.data_dir, database_url)
        options = ["--data-dir", str(self.data_dir)]
        if database_url is not None:
            options += ["--database-url", database_url]
        museworkd("repo", "create", "ada/x", *options)
        self.token = museworkd("token", "create", "ada", *options).stdout.strip()

    @property
    def remote(self) -> Remote:
        return Remote(f"{self.daemon.url}/ada/x", self.token)

    def head(self) -> str | None:
        answer = httpx.get(f"{self.remote.url}/refs", headers={"authorization": f"Bearer {self.token}"})
        return answer.json()["branch_heads"].get("main")

    def blob_status(self, object_id: str) -> int:
        url = f"{self.remote.url}/o/{object_id}"
        return httpx.get(url, headers={"authorization": f"Bearer {self.token}"}).status_code

    def restart(self) -> None:
        self.daemon.kill()
        self.daemon = start_daemon(self.data_dir, self.database_url)

    async def push_and_kill(self, body: bytes, moment: float) -> dict | None:
        """Kill after a part of the body, or (``moment`` ≥ 1) some milliseconds after all of it."""
        try:
            if moment < 1:
                return await push_frames(
                    self.remote, body, cut_at=int(moment * len(body)), on_cut=self.daemon.process.kill
                )
            with trio.move_on_after((moment - 1) * AFTER_BODY_MS / 1000):
                return await push_frames(self.remote, body)
            return None
        except TransferError:
            return None


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_fifty_kills_lose_nothing_and_show_nothing(tmp_path: Path, database_url: str) -> None:
    story = Story(tmp_path, database_url)
    rng = random.Random(2026)
    acknowledged: str | None = None
    moved_unheard = 0
    for number in range(ROUNDS):
        push = next_push(rng, [acknowledged] if acknowledged else [], number)
        body = push.frames(push_id=str(uuid.UUID(int=number + 1)))

        heard = await story.push_and_kill(body, rng.uniform(0, 2))
        story.restart()
        head = story.head()

        if heard is not None and heard["type"] == "R":
            assert head == push.head, f"round {number}: an acknowledged push was lost"
        else:
            assert head in {acknowledged, push.head}, f"round {number}: {heard}"
        if head != push.head:
            assert story.blob_status(next(iter(push.blobs))) == 404, f"round {number}: a part became visible"
        moved_unheard += heard is None and head == push.head
        repeated = await push_frames(story.remote, body)
        assert repeated["type"] == "R", (number, repeated)
        assert repeated["head"] == push.head == story.head()
        acknowledged = push.head
    await whole(story, tmp_path / "clone", commits=2 * ROUNDS)
    leftovers(story)
    assert story.daemon.stop() == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_kills_of_daemon_and_embedded_database_lose_nothing(postgres_home: Path) -> None:
    tmp_path = postgres_home / "killed"
    story = Story(tmp_path, None)
    rng = random.Random(7)
    acknowledged: str | None = None
    for number in range(8):
        push = next_push(rng, [acknowledged] if acknowledged else [], number)
        body = push.frames(push_id=str(uuid.UUID(int=number + 1)))
        await story.push_and_kill(body, rng.uniform(0, 2))
        if number % 2:
            kill_postmaster(tmp_path / "data")
        story.restart()
        assert story.head() in {acknowledged, push.head}
        repeated = await push_frames(story.remote, body)
        assert repeated["type"] == "R", (number, repeated)
        acknowledged = push.head
    await whole(story, tmp_path / "clone", commits=16)
    assert story.daemon.stop() == 0


def kill_postmaster(data_dir: Path) -> None:
    from storage.postgres.embedded import EmbeddedPostgres

    EmbeddedPostgres(data_dir).kill()


async def whole(story: Story, target: Path, commits: int) -> None:
    """Every acknowledged commit can be cloned and proved."""
    await clone(story.remote, target, Quiet())
    with LocalRepository(target) as repository:
        report = await verify(repository, Quiet())
    assert report.problems == []
    assert report.commits == commits


def leftovers(story: Story) -> None:
    """The branch's log is a chain of compare-and-swaps, one entry for each push."""
    assert story.database_url is not None
    with psycopg.connect(story.database_url) as connection:
        rows = connection.execute("SELECT old, new FROM branch_log ORDER BY entry").fetchall()
    assert len(rows) == ROUNDS
    assert [new for _, new in rows[:-1]] == [old for old, _ in rows[1:]]
