"""Clones by the real client, over real parts, at any moment: each is an acknowledged state, whole to its last byte."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from actors.collect.collector import Wishes, collect
from museworkd.client.checkout import checkout
from museworkd.client.errors import ClientError
from museworkd.client.fetch import clone, fetch
from museworkd.client.progress import Quiet
from museworkd.client.repository import LocalRepository
from museworkd.client.transport import Remote
from museworkd.client.verify import verify
from tests.deployments import deployed, two_commits
from tests.handler_runs import run, services_of
from tests.http_client import ask, push
from tests.muse import Push, blob_id, make_commit, make_snapshot
from tests.servers import TOKENS, Server
from wire.ids import format_id

pytestmark = pytest.mark.usefixtures("expected_errors")

OPERATIONS = 200
CLONERS = 2
ASKED_MOST = 10
"""Times a clone is begun anew because a branch it had heard of was gone when it asked for it."""
PASSING = {"not_found", "busy"}
"""A commit no branch leads to any more; what took too long beside a collector."""
Files = dict[str, bytes]
State = dict[str, str]


@dataclass
class Shop:
    """A repository that many things happen to, and what was acknowledged."""

    server: Server
    rng: random.Random
    states: list[State] = field(default_factory=list)
    files: dict[str, Files] = field(default_factory=dict)
    """Of every commit that was ever pushed."""
    number: int = 0
    something_new: trio.Event = field(default_factory=trio.Event)
    over: bool = False

    @property
    def heads(self) -> State:
        return dict(self.states[-1]) if self.states else {}

    def acknowledged(self, branch: str, head: str | None) -> None:
        state = self.heads
        state.pop(branch, None)
        self.states.append(state if head is None else {**state, branch: head})
        self.something_new.set()
        self.something_new = trio.Event()

    def changed(self, files: Files) -> Files:
        rng, made = self.rng, dict(files)
        for _ in range(rng.randrange(1, 5)):
            path = f"{rng.choice(['src', 'docs'])}/{rng.randrange(12)}"
            if rng.random() < 0.2:
                made.pop(path, None)
            else:
                made[path] = rng.choice([b"", b"the same\n", rng.randbytes(rng.randrange(1, 9_000))])
        return made

    async def more(self, count: int) -> None:
        """Wait until so many more things were acknowledged, or it is over."""
        until = len(self.states) + count
        while len(self.states) < until and not self.over:
            await self.something_new.wait()

    async def push(self, branch: str, on: str | None, *, force: bool = False) -> None:
        made = Push(branch=branch)
        self.number += 1
        files = self.changed(self.files[on] if on is not None else {})
        head = made.commit(files, [on] if on is not None else [], message=f"push {self.number}")
        said = await push(self.server, made.frames(force=force))
        if said["type"] != "R":
            assert said["retryable"], said
            return
        self.files[head] = files
        self.acknowledged(branch, head)

    async def delete(self, branch: str) -> None:
        update = {"branch": branch, "old": self.heads[branch], "new": None, "force": True}
        answer = await ask(self.server, "POST", "/alice/x/refs", token="alice", json={"updates": [update]})
        assert answer.status == 200, answer
        self.acknowledged(branch, None)

    async def one_thing(self) -> None:
        """Do what comes next: mostly pushes, forced and not, and now and then what works behind them."""
        rng, there = self.rng, self.server.services
        branch = rng.choice(["main", "one", "two", "three"])
        old = self.heads.get(branch)
        kind = rng.random()
        if kind < 0.55 or old is None:
            await self.push(branch, old or rng.choice([None, *self.heads.values()]))
        elif kind < 0.8:
            await self.push(branch, rng.choice([None, *self.heads.values()]), force=True)
        elif kind < 0.92:
            if branch != "main":
                await self.delete(branch)
        elif kind < 0.95:
            await collect(there.index, there.store, there.environment, Wishes(keep_s=0.0, orphan_s=0.0, lease_s=0.0))
        else:
            await run(services_of(self.server), rng.choice(["content.promote", "mpack.gc", "fetch.mpack.prebuild"]), 1)


async def cloned(remote: Remote, target: Path) -> None:
    """Clone as a user does, who begins anew when the server says that what he asked for has just gone."""
    for _ in range(ASKED_MOST):
        try:
            await clone(remote, target, Quiet())
        except ClientError as error:
            if error.code not in PASSING:
                raise
            assert not target.exists()
        else:
            return
    raise AssertionError("branches went too fast")


def heads_of(repository: LocalRepository) -> State:
    found = repository.remote_branches("origin")
    return {branch: format_id(head, repository.scheme) for branch, head in found.items()}


async def whole(repository: LocalRepository) -> None:
    report = await verify(repository, Quiet())
    assert not report.problems, report.problems


@pytest.mark.parametrize("seed", [11])
async def test_R2_R8_F37_a_clone_at_any_moment_is_an_acknowledged_state(
    database_url: str, tmp_path: Path, seed: int
) -> None:
    """200 pushes, forced moves, deletions, collections and jobs; clones all the while, and one that follows."""
    taken: list[tuple[int, int, State]] = []
    async with deployed(database_url, tmp_path) as server:
        await server.make_repository()
        shop = Shop(server, random.Random(seed))
        await shop.push("main", None)
        remote = Remote(f"{server.url}/alice/x", TOKENS["alice"])

        async def clone_on(number: int) -> None:
            rng, count = random.Random(seed + number), 0
            while not shop.over:
                await shop.more(rng.randrange(12))
                target = tmp_path / f"clone-{number}-{(count := count + 1)}"
                before = len(shop.states) - 1
                await cloned(remote, target)
                with LocalRepository(target) as repository:
                    taken.append((before, len(shop.states), heads_of(repository)))
                    await whole(repository)
                shutil.rmtree(target)

        async def follow() -> None:
            target = tmp_path / "follower"
            await cloned(remote, target)
            with LocalRepository(target) as repository:
                while not shop.over:
                    await shop.more(4)
                    before = len(shop.states) - 1
                    try:
                        await fetch(repository, remote, Quiet(), prune=True)
                    except ClientError as error:
                        if error.code not in PASSING:
                            raise
                        continue
                    taken.append((before, len(shop.states), heads_of(repository)))
                await whole(repository)

        async with trio.open_nursery() as nursery:
            for number in range(CLONERS):
                nursery.start_soon(clone_on, number)
            nursery.start_soon(follow)
            for _ in range(OPERATIONS):
                await shop.one_thing()
            shop.over = True
            shop.something_new.set()
    shop.states.append(shop.heads)
    for before, after, state in taken:
        assert state in shop.states[before : after + 1], (before, after, state)
    assert len(taken) >= CLONERS
    assert len(set(map(str, (state for *_, state in taken)))) > 2  # of different moments


async def test_R2_R12_R13_R15_three_owners_repositories_with_one_history_clone_whole(
    database_url: str, tmp_path: Path
) -> None:
    """Each owner pushes the same history; each clone has all of it, empty files and directories too, at once."""
    history = two_commits()
    snapshot = make_snapshot({"empty": blob_id(b""), "a": blob_id(b"hello\n")}, ["kept/empty", "two"])
    history.snapshots.append(snapshot)
    history.commits.append(make_commit(snapshot["snapshot_id"], [history.head], message="directories"))
    async with deployed(database_url, tmp_path) as server:
        for owner in ("alice", "bob", "reader"):
            await server.make_repository(owner=owner, slug="same")
            assert (await push(server, history.frames(), repository=f"{owner}/same", token=owner))["type"] == "R"
        answer = await ask(server, "DELETE", "/api/repos/alice/same", token="alice")
        assert answer.status == 200
        for owner in ("bob", "reader"):
            target = tmp_path / owner
            await clone(Remote(f"{server.url}/{owner}/same", TOKENS[owner]), target, Quiet())
            with LocalRepository(target) as repository:
                await whole(repository)
                assert heads_of(repository) == {"main": history.head}
                await checkout(repository, Quiet())
            assert (target / "empty").read_bytes() == b""
            assert (target / "a").read_bytes() == b"hello\n"
            assert (target / "kept" / "empty").is_dir()
            with pytest.raises(ClientError):
                await clone(Remote(f"{server.url}/{owner}/same", TOKENS["alice"]), tmp_path / "not", Quiet())
