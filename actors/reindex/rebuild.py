"""An index made anew from the object store alone.

Steps, each of which can be cut anywhere and done again; what was read or done is noted in the database, so whoever
begins again goes on:

1. the journal is read, segment by segment, entries into a table of their own;
2. one transaction makes repositories, branches, tokens … of the last word on each; accepted pushes stay open;
3. the store is listed: where blobs lie, loose or in packs;
4. of each repository, pushes are taken in again in the order they were accepted (``actors.reindex.replay``), and what
   collections took away is taken away again in between;
5. the store is told that a new generation has begun: the old database cannot be used beside it any more;
6. the new one can.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TypeVar, cast

import trio

from actors.jobs.pack_heads import pack_heads
from actors.journal.joining import Epoch, read_epoch, write_epoch
from actors.push.context import PushServices
from actors.reindex.packs import scheme_of
from actors.reindex.records import pack_records
from actors.reindex.replay import Replayer
from storage.errors import DeploymentMismatch, ObjectDamaged, ObjectMissing
from storage.journal import SEGMENT_MOST, Entry, read_segment
from storage.layout import Place, loose_key, parse_journal_key
from storage.object_store import ObjectStore, StoredObject
from storage.postgres.reindex_index import ReindexIndex
from storage.reindex import DamagedSegment, Finding, Phase
from wire.errors import Refusal
from wire.ids import Kind, Scheme

READERS = 8
"""Segments, packs or listings read at once."""
REPOSITORIES_AT_ONCE = 4
PLACES_AT_ONCE = 5_000
_STEPS_AT_ONCE = 200
_SEGMENTS_AT_ONCE = 50
T = TypeVar("T")
Progress = Callable[[str, int, int | None], None]
"""Told the phase, how many of its things are done, and of how many if that is known."""


@dataclass(slots=True)
class RebuildReport:
    """What came of it."""

    generation: int = 0
    resumed: bool = False
    segments: int = 0
    entries: int = 0
    packs: int = 0
    objects: int = 0
    steps: int = 0
    damaged: list[Finding] = field(default_factory=list)


class Rebuild:
    """One rebuilding, or the rest of one."""

    def __init__(self, index: ReindexIndex, services: PushServices, progress: Progress) -> None:
        self._index = index
        self._services = services
        self._store: ObjectStore = services.store
        self._replayer = Replayer(services, index)
        self._progress = progress
        self.report = RebuildReport()

    async def run(self, *, replace_all: bool = False) -> RebuildReport:
        """Rebuild; gives what came of it.

        Raises:
            DeploymentMismatch: the database is not empty, or the store has no journal.
            StorageError: index or store cannot go on now: run it again.
        """
        epoch = await self._begin(replace_all)
        under_way = await self._index.rebuilding()
        assert under_way is not None
        self.report.generation = under_way.generation
        if under_way.phase <= Phase.JOURNAL:
            await self._read_journal(epoch, under_way.generation)
            await self._index.enter(Phase.FACTS)
        if under_way.phase <= Phase.FACTS:
            self._progress("facts", 0, None)
            await self._index.apply_facts()
        if under_way.phase <= Phase.OBJECTS:
            await self._read_objects()
            await self._index.enter(Phase.HISTORY)
        if under_way.phase <= Phase.HISTORY:
            await self._replay()
            await self._index.enter(Phase.EPOCH)
        self.report.damaged += await self._index.findings()
        if epoch.generation < under_way.generation:
            ended = {**epoch.ended, epoch.generation: await self._index.last_found()}
            await write_epoch(self._store, replace(epoch, generation=under_way.generation, ended=ended))
        await self._index.complete()
        return self.report

    async def _begin(self, replace_all: bool) -> Epoch:
        epoch = await read_epoch(self._store)
        if epoch is None:
            raise DeploymentMismatch(
                "the object store has no journal (deployment/epoch.json is not there): nothing can be rebuilt from it; "
                "correct the store's settings"
            )
        under_way = await self._index.rebuilding()
        if under_way is not None and not replace_all:
            if under_way.deployment != epoch.deployment or under_way.generation - epoch.generation not in {0, 1}:
                raise DeploymentMismatch(
                    "the rebuilding this database is in was begun from another store: correct the store's settings, or "
                    "begin again with --replace"
                )
            self.report.resumed = True
            return epoch
        if not replace_all and (await self._index.holds_facts() or await self._index.deployment_now() is not None):
            raise DeploymentMismatch(
                "the database is not empty: name an empty one, or say --replace to throw away what it holds"
            )
        await self._index.begin(epoch.deployment, epoch.generation + 1, replace=replace_all)
        return epoch

    async def _read_journal(self, epoch: Epoch, generation: int) -> None:
        async def read(listed: Sequence[StoredObject]) -> None:
            done = await self._index.done([one.key for one in listed])
            entries: list[Entry] = []
            damaged: list[DamagedSegment] = []
            for one in listed:
                key = parse_journal_key(one.key)
                self.report.segments += 1
                if one.key in done or key is None or key.generation >= generation:
                    continue
                last = epoch.ended.get(key.generation)  # what came after it is of a database that was given up
                try:
                    found = read_segment(key, await self._store.get(one.key, SEGMENT_MOST), epoch.deployment)
                except (ObjectDamaged, ObjectMissing) as error:
                    known = key.last if last is None else min(key.last, last)
                    damaged.append(DamagedSegment(one.key, known, f"{one.key}: {error}"))
                    continue
                entries += (entry for entry in found if last is None or entry.number <= last)
            await self._index.take_entries(entries, [one.key for one in listed], damaged)
            self.report.entries += len(entries)
            self._progress("journal", self.report.segments, None)

        await _each(_in_parts(self._store.scan("journal"), _SEGMENTS_AT_ONCE), read)

    async def _read_objects(self) -> None:
        async def pack(one: StoredObject) -> None:
            self.report.packs += 1
            if not await self._index.done([one.key]):
                await self._read_pack(one)
            self._progress("packs", self.report.packs, None)

        async def loose(prefix: str) -> None:
            await self._list_loose(prefix)
            self._progress("objects", self.report.objects, None)

        async def heads(one: StoredObject) -> None:
            if not await self._index.done([one.key]):
                await self._read_heads(one.key)

        await _each(self._store.scan("packs"), pack)
        prefixes = [loose_key(bytes([byte]), scheme).rsplit("/", 1)[0] for scheme in Scheme for byte in range(256)]
        listed = await self._index.done(prefixes)
        await _each(_given([prefix for prefix in prefixes if prefix not in listed]), loose)
        if await self._index.unnamed_packs():  # pushes of before there was a journal: found by what they brought
            await _each(self._store.scan("records"), heads)

    async def _read_pack(self, one: StoredObject) -> None:
        pack_id = bytes.fromhex(one.key.rsplit("/", 1)[1].partition(".")[0])
        scheme: Scheme | None = None
        waiting: list[Place] = []
        try:
            async with aclosing(pack_heads(self._store, one.key, self._services.limits)) as batches:
                async for batch in batches:
                    if batch and scheme is None:
                        scheme = await scheme_of(self._store, one.key, min(batch, key=lambda entry: entry.size))
                    waiting += [Place(entry.object_id, entry.size, pack_id, entry.offset) for entry in batch]
                    if scheme is not None and len(waiting) >= PLACES_AT_ONCE:
                        await self._take_places(scheme, waiting, one.size, None)
                        waiting = []
        except (
            ObjectDamaged,
            ObjectMissing,
        ) as error:  # what lies elsewhere is found there; the rest is told at the end
            self.report.damaged.append(Finding("", str(error)))
            return
        await self._take_places(scheme or Scheme.TYPED, waiting, one.size, one.key)

    async def _take_places(self, scheme: Scheme, places: list[Place], size: int, key: str | None) -> None:
        await self._index.take_places(scheme, places, size, key)
        self.report.objects += len(places)

    async def _list_loose(self, prefix: str) -> None:
        _, scheme, first = prefix.split("/")
        waiting: list[Place] = []
        async for one in self._store.scan(prefix):
            rest = one.key.rsplit("/", 1)[1]
            try:
                object_id = bytes.fromhex(first + rest)
            except ValueError:
                continue
            waiting.append(Place(object_id, one.size, None, 0))
            if len(waiting) >= PLACES_AT_ONCE:
                await self._take_places(Scheme(scheme), waiting, 0, None)
                waiting = []
        if waiting:  # an empty listing is soon made again
            await self._take_places(Scheme(scheme), waiting, 0, prefix)

    async def _read_heads(self, key: str) -> None:
        pack_id = bytes.fromhex(key.rsplit("/", 1)[1].partition(".")[0])
        commits: set[bytes] = set()
        try:
            async with aclosing(pack_records(self._store, key, self._services.limits)) as records:
                async for record in records:
                    if record.canonical.startswith(Kind.COMMIT.value.encode() + b" "):
                        commits.add(record.record_id)
        except (ObjectDamaged, Refusal) as error:
            self.report.damaged.append(Finding("", str(error)))
        await self._index.take_heads(pack_id, sorted(commits), key)

    async def _replay(self) -> None:
        total = await self._index.count_steps()

        async def repository(number: int) -> None:
            after = 0
            while steps := await self._index.steps(number, after, _STEPS_AT_ONCE):
                for step in steps:
                    await self._replayer.do(step)
                    self.report.steps += 1
                    self._progress("history", self.report.steps, total)
                after = steps[-1].entry

        await _each(_given(await self._index.repository_numbers()), repository, REPOSITORIES_AT_ONCE)


async def _given(things: Sequence[T]) -> AsyncIterator[T]:
    for thing in things:
        yield thing


async def _each(things: AsyncIterator[T], work: Callable[[T], Awaitable[None]], at_once: int = READERS) -> None:
    """Do something with each of many things, some at once."""
    send, receive = trio.open_memory_channel[T](0)

    async def worker(own: trio.MemoryReceiveChannel[T]) -> None:
        async with own:
            async for thing in own:
                await work(thing)

    async with aclosing(cast("AsyncGenerator[T, None]", things)) as given, trio.open_nursery() as nursery, receive:
        for _ in range(at_once):
            nursery.start_soon(worker, receive.clone())
        async with send:
            async for thing in given:
                await send.send(thing)


async def _in_parts(things: AsyncIterator[T], most: int) -> AsyncIterator[list[T]]:
    part: list[T] = []
    async with aclosing(cast("AsyncGenerator[T, None]", things)) as given:
        async for thing in given:
            part.append(thing)
            if len(part) >= most:
                yield part
                part = []
    if part:
        yield part
