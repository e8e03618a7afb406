"""A repository with something to collect, the collector's steps, and what must be true whatever happens meanwhile."""

from __future__ import annotations

import datetime as dt
import hashlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from actors.collect.burial import Burial
from actors.collect.collector import Wishes, collect
from actors.collect.report import Report
from actors.collect.sweep import Sweeper
from storage.environment import SeededEnvironment
from storage.index import Index
from storage.memory.index import MemoryIndex
from storage.object_store import ObjectStore
from storage.objects.filesystem import FilesystemStore
from storage.objects.memory import MemoryStore
from storage.postgres.database import DatabaseSettings
from storage.postgres.index import PostgresIndex
from storage.rows import Repository
from tests.clones import clone
from tests.growing import WAYS, RefusedError, push_ids
from tests.http_client import push
from tests.muse import Push
from tests.servers import Server, serving
from wire.ids import Scheme, parse_id
from wire.limits import DEFAULT_LIMITS

LONG_S = 8_000.0
"""Longer than a lease, and than a repository holds what was taken from it."""
AGAIN_S = 400.0
"""Longer than a lease, and than a collector may take for what it deletes."""
EVER_S = -(10.0**10)
"""However young it is."""
ATTEMPTS = 6
KEPT = {"keep": b"what every commit has\n", "sub/also": b"this, too\n" * 40}
GONE = {f"gone {number}": b"what is left behind, number %d\n" % number * 3 for number in range(5)}


def number(commit_id: str) -> bytes:
    """The digest of an id."""
    return parse_id(commit_id, Scheme.TYPED)


@dataclass
class Yard:
    """A server, its ports, and the repository ``x`` in which a branch has left something behind."""

    server: Server
    index: Index
    store: ObjectStore
    environment: SeededEnvironment
    repositories: dict[str, Repository] = field(default_factory=dict)
    must: dict[str, tuple[str, dict[str, bytes]]] = field(default_factory=dict)
    """By repository: where its branch was acknowledged to be, and the files there."""
    sent: dict[str, Push] = field(default_factory=dict)
    """By push id."""

    async def make(self, slug: str) -> None:
        self.repositories[slug] = await self.server.make_repository(slug=slug)

    async def push(
        self, way: str, files: dict[str, bytes], slug: str = "x", push_id: str | None = None, *, force: bool = False
    ) -> dict:
        """Push one commit with these files; on top of the branch, or in place of it."""
        push_id = push_id or next(push_ids)
        history = self.sent.get(push_id) or self.made(files, slug, force=force)
        self.sent[push_id] = history
        said = await answered(self.server, way, history, push_id, slug, force)
        if said["type"] == "R":
            assert said["head"] == history.head
            self.must[slug] = (history.head, files)
        return said

    def made(self, files: dict[str, bytes], slug: str, *, force: bool) -> Push:
        """Make a push; sent again under its push id, it stays as it is."""
        history = Push()
        on = [self.must[slug][0]] if slug in self.must and not force else []
        number = hashlib.sha256(repr((sorted(files), on)).encode()).hexdigest()[:8]
        history.commit(files, on, message=f"push {number}")
        return history

    async def left_behind(self, way: str) -> None:
        """Make ``x``: a commit with everything, and by force one without what is gone."""
        await self.make("x")
        assert (await self.push(way, KEPT | GONE))["type"] == "R"
        assert (await self.push("stream", KEPT, force=True))["type"] == "R"
        self.environment.move(1)

    async def leave_behind(self) -> None:
        """Move the branch by force to a commit without what is gone."""
        await self.settle("stream", KEPT, "x", next(push_ids), force=True)
        self.environment.move(1)

    async def collect(self, **wishes: object) -> Report:
        """Run the whole collector once."""
        wanted = Wishes(**{"keep_s": 0.0, "orphan_s": EVER_S, **wishes})
        return await collect(self.index, self.store, self.environment, wanted)

    async def collect_all(self) -> None:
        """Run it until nothing is left to do."""
        for _ in range(4):
            await self.collect()
            self.environment.move(LONG_S)

    async def is_whole(self) -> None:
        """Whatever an accepted push references is readable and proves."""
        for slug, (head, files) in self.must.items():
            found = await clone(self.server, head, repository=f"alice/{slug}")
            assert found.files(head) == files

    async def settle(
        self, way: str, files: dict[str, bytes], slug: str, push_id: str, *, force: bool = False
    ) -> None:  # fmt: skip
        """Do what a client does that was told to come again, while the collector goes on; it is accepted in the end."""
        for _ in range(ATTEMPTS):
            if (await self.push(way, files, slug, push_id, force=force))["type"] == "R":
                return
            await self.collect()
            self.environment.move(AGAIN_S)
        raise AssertionError("it is never accepted")

    async def objects(self) -> set[str]:
        """The keys of contents in the store."""
        return {found.key for prefix in ("objects", "packs") async for found in self.store.scan(prefix)}


async def answered(server: Server, way: str, history: Push, push_id: str, slug: str, force: bool) -> dict:
    """Push by a way; gives its last word. One that is not a verdict says that trying again helps."""
    try:
        if force:
            return await push(server, history.frames(push_id=push_id, force=True), repository=f"alice/{slug}")
        said = await WAYS[way](server, history, push_id, slug)
    except RefusedError as refused:
        said = dict(refused.said)
    assert said["type"] == "R" or said["retryable"] or said["error"] == "push_superseded", said
    return said


@asynccontextmanager
async def yard(
    database: str | None, tmp_path: Path, watch: Callable[[object], object] = lambda port: port, *, cached: bool = False
) -> AsyncIterator[Yard]:
    """Serve over either pair of ports; without the content cache unless it is asked for."""
    environment = SeededEnvironment(5)
    settings = {} if cached else {"limits__content_cache_object_bytes": 0}

    @asynccontextmanager
    async def over(index: Index, store: ObjectStore) -> AsyncIterator[Yard]:
        async with serving(watch(index), watch(store), tmp_path, environment, **settings) as server:  # type: ignore[arg-type]
            yield Yard(server, index, store, environment)

    if database is None:
        async with over(MemoryIndex(), MemoryStore(environment)) as made:
            yield made
        return
    store = await FilesystemStore.open(tmp_path / "store")
    async with PostgresIndex(DatabaseSettings(database), environment) as index, over(index, store) as made:
        yield made


class Collector:
    """The collector's steps, one by one."""

    STEPS = ("sweep", "hold", "orphans", "mark", "wait", "review", "condemn", "take", "delete", "bury", "forget")

    def __init__(self, place: Yard, lease_s: float = 300.0) -> None:
        self._place = place
        self._report = Report()
        self._lease_s = lease_s
        self._owner = uuid.uuid4()
        self._burial = Burial(place.index, place.store, place.environment, self._report, lease_s)
        self._number: uuid.UUID | None = None
        self._marks: list = []

    async def step(self, name: str) -> None:
        run: Callable[[], Awaitable[None]] = getattr(self, f"_{name}")
        await run()

    async def _sweep(self) -> None:
        place = self._place
        for repository in place.repositories.values():
            sweeper = Sweeper(place.index, place.environment, DEFAULT_LIMITS, 0, self._report, dry_run=False)
            await sweeper.run(repository.number)

    async def _hold(self) -> None:
        self._place.environment.move(LONG_S)
        await self._place.index.forget_held(self._place.environment.now(), 1_000)

    async def _orphans(self) -> None:
        await self._burial.mark_orphans(EVER_S)

    async def _mark(self) -> None:
        await self._burial.mark_suspects()

    async def _wait(self) -> None:
        self._place.environment.move(self._lease_s + 1)

    async def _review(self) -> None:
        self._number = await self._burial.review()

    async def _condemn(self) -> None:
        if self._number is not None:
            await self._burial.condemn(self._number)

    async def _take(self) -> None:
        now = self._place.environment.now()
        self._marks = await self._place.index.take_tombstones(self._owner, 1_000, now, now + dt.timedelta(seconds=300))

    async def _delete(self) -> None:
        await self._place.store.delete([mark.key for mark in self._marks])

    async def _bury(self) -> None:
        await self._place.index.bury(self._owner, self._marks, self._place.environment.now())

    async def _forget(self) -> None:
        self._place.environment.move(self._lease_s + 1)
        await self._burial.forget()
