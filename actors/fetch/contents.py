"""From planned commits to the records and blobs of the answer, batch by batch, over bounded memory.

Each snapshot goes out as changes to one the client has or gets first; the blobs sent are those that such changes
add and no earlier one did.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import msgpack
import trio

from actors.fetch.blob_list import BlobList
from actors.fetch.plan import FetchPlan
from actors.manifests import ManifestCache
from actors.memory import WORTH_BYTES, give_back
from actors.spool import Spool
from storage.errors import ObjectDamaged, SnapshotDamaged
from storage.history_rows import SnapshotRow
from storage.snapshots import Changes, Entries, are_sound, large_changes, unpack_changes
from wire.canonical import parse_canonical
from wire.errors import Refusal
from wire.graph import CommitFacts
from wire.ids import Kind, Scheme, format_id, hash_bytes, parse_id
from wire.limits import Limits
from wire.manifest import AT_ONCE
from wire.mpack import record_bytes, record_head
from wire.opaque import is_opaque
from wire.records import Snapshot, SnapshotDelta, commit_text, delta_record, snapshot_record

if TYPE_CHECKING:
    from storage.index import History

T = TypeVar("T")
_BATCH = 200
_WORK_BYTES = 256 * 1024
"""Stored bytes turned into records by one worker thread at once: parsed they take up to twenty times as much."""

Sink = Callable[[Mapping[str, object]], Awaitable[None]]
"""Takes one record."""
Read = Callable[[Sequence[bytes]], Awaitable[Mapping[bytes, T]]]


@dataclass(frozen=True, slots=True)
class _CommitOut:
    """A commit on its way out."""

    fact: CommitFacts
    body: bytes
    scheme: Scheme

    @property
    def cost(self) -> int:
        return len(self.body)

    def blobs(self) -> Iterable[bytes]:
        return ()

    def record(self) -> Mapping[str, object]:
        return commit_record(self.fact, self.body, self.scheme)

    def write(self, spool: Spool) -> None:
        spool.add(record_bytes(self.record()))


@dataclass(frozen=True, slots=True)
class _SnapshotOut:
    """A snapshot on its way out: as packed changes, or unpacked ones."""

    snapshot_id: bytes
    base_id: bytes | None
    changes: bytes | Changes
    extras: bytes
    scheme: Scheme

    @property
    def cost(self) -> int:
        size = len(self.changes) if isinstance(self.changes, bytes) else 100 * len(self.changes.upsert)
        return size + len(self.extras)

    def blobs(self) -> Iterable[bytes]:
        return self._unpacked().upsert.values()

    def record(self) -> Mapping[str, object]:
        return self._record(self._unpacked().upsert)

    def write(self, spool: Spool) -> None:
        entries = self._unpacked().upsert
        if len(entries) <= AT_ONCE:
            spool.add(record_bytes(self._record(entries)))
            return
        record = self._record({})
        key = "manifest" if self.base_id is None else "delta_upsert"
        spool.add(record_head(sum(map(len, self._pieces(record, key, entries)))))
        for piece in self._pieces(record, key, entries):
            spool.add(piece)

    def _unpacked(self) -> Changes:
        if not isinstance(self.changes, bytes):
            return self.changes
        try:
            return unpack_changes(self.changes)
        except (ValueError, msgpack.UnpackException) as error:
            raise SnapshotDamaged(self.snapshot_id, f"is damaged: {error}") from error

    def _record(self, entries: Mapping[str, bytes]) -> dict[str, object]:
        changes, extras = self._unpacked(), parse_canonical(self.extras)[1] if self.extras else {}
        if self.base_id is None:
            return snapshot_record(Snapshot(self.snapshot_id, entries, changes.directories, extras), self.scheme)
        delta = SnapshotDelta(
            self.snapshot_id, self.base_id, entries, tuple(changes.remove), changes.directories, extras
        )
        return delta_record(delta, self.scheme)

    def _pieces(self, record: Mapping[str, object], key: str, entries: Mapping[str, bytes]) -> Iterator[bytes]:
        """Give the record with a large map of paths as msgpack, never holding it whole."""
        packer = msgpack.Packer(autoreset=False)
        packer.pack_map_header(len(record))
        for name, value in record.items():
            if name != key:
                packer.pack(name)
                packer.pack(value)
        packer.pack(key)
        packer.pack_map_header(len(entries))
        walk = iter(entries.items())
        while part := list(itertools.islice(walk, 1024)):
            for path, blob in part:
                packer.pack(path)
                packer.pack(format_id(blob, self.scheme))
            yield packer.bytes()
            packer.reset()


_Out = _CommitOut | _SnapshotOut
Deliver = Callable[[list[_Out]], Awaitable[None]]


@dataclass(slots=True)
class ContentWriter:
    """Write the SNAPSHOTS and COMMITS records of a plan, and list the blobs they need."""

    history: History
    repository: int
    """The repository's number in that history."""
    scheme: Scheme
    plan: FetchPlan
    limits: Limits
    blobs: BlobList = field(default_factory=BlobList)
    snapshots: int = 0
    _sent: set[bytes] = field(default_factory=set)
    """Snapshots the client has by now."""
    _cache: ManifestCache = field(init=False)

    def __post_init__(self) -> None:
        self._cache = ManifestCache(self.history, self.scheme, None, self.limits)

    async def run(self, snapshots: Sink, commits: Sink) -> None:
        """Give every record to one of two sinks.

        Raises:
            ObjectDamaged: the index lacks a record or snapshot it should have; it is named.
        """

        def deliver(sink: Sink) -> Deliver:
            async def to_sink(batch: list[_Out]) -> None:
                for record in await trio.to_thread.run_sync(self._made, batch):
                    await sink(record)

            return to_sink

        await self._run(deliver(snapshots), deliver(commits))

    async def run_into(self, snapshots: Spool, commits: Spool) -> None:
        """Write every record in its wire form into one of two spools; raises like :meth:`run`."""

        def deliver(spool: Spool) -> Deliver:
            async def to_spool(batch: list[_Out]) -> None:
                await trio.to_thread.run_sync(self._write, batch, spool)

            return to_spool

        await self._run(deliver(snapshots), deliver(commits))
        self._cache = ManifestCache(self.history, self.scheme, None, self.limits)  # what is still to come needs none
        if snapshots.size > WORTH_BYTES:
            await trio.to_thread.run_sync(give_back)

    def _made(self, batch: list[_Out]) -> list[Mapping[str, object]]:
        for one in batch:
            self.blobs.add_all(one.blobs())
        return [one.record() for one in batch]

    def _write(self, batch: list[_Out], spool: Spool) -> None:
        for one in batch:
            self.blobs.add_all(one.blobs())
            one.write(spool)

    async def _run(self, snapshots: Deliver, commits: Deliver) -> None:
        for fact in self.plan.boundary:
            if fact.snapshot_id not in self._sent:
                self._sent.add(fact.snapshot_id)
                manifest = await self._cache.get(fact.snapshot_id)
                await trio.to_thread.run_sync(self.blobs.exclude_all, manifest.blobs())
        by_id = {fact.commit_id: fact for fact in (*self.plan.commits, *self.plan.boundary)}
        for start in range(0, len(self.plan.commits), _BATCH):
            part = self.plan.commits[start : start + _BATCH]
            await self._write_snapshots(part, by_id, _Grouped(snapshots))
            await self._write_commits(part, _Grouped(commits))
        self.blobs.finish()

    async def _write_commits(self, part: tuple[CommitFacts, ...], out: _Grouped) -> None:
        def read(ids: Sequence[bytes]) -> Awaitable[Mapping[bytes, bytes]]:
            return self.history.commit_records(self.repository, ids)

        facts = {fact.commit_id: fact for fact in part}
        async with aclosing(by_pieces(list(facts), read)) as pieces:
            async for ids, records in pieces:
                for commit_id in ids:
                    if commit_id not in records:
                        raise ObjectDamaged(f"the index lacks the record of commit {commit_id.hex()}")
                    await out.add(_CommitOut(facts[commit_id], records[commit_id], self.scheme))
        await out.flush()

    async def _write_snapshots(
        self, part: tuple[CommitFacts, ...], by_id: dict[bytes, CommitFacts], out: _Grouped
    ) -> None:
        facts: dict[bytes, CommitFacts] = {}
        for fact in part:
            if fact.snapshot_id not in self._sent:
                facts.setdefault(fact.snapshot_id, fact)

        def read(ids: Sequence[bytes]) -> Awaitable[Mapping[bytes, SnapshotRow]]:
            return self.history.snapshot_deltas(self.scheme, ids)

        def read_extras(ids: Sequence[bytes]) -> Awaitable[Mapping[bytes, bytes]]:
            return self.history.snapshot_extras(self.repository, ids)

        async with aclosing(by_pieces(list(facts), read)) as pieces:
            async for ids, rows in pieces:
                async with aclosing(by_pieces(ids, read_extras)) as parts:
                    async for some, extras in parts:
                        for snapshot_id in some:
                            row = rows.get(snapshot_id)
                            if row is None:
                                raise SnapshotDamaged(snapshot_id, "is missing")
                            base_id, changes = await self._as_changes(facts[snapshot_id], row, by_id)
                            more = extras.get(snapshot_id, b"")
                            await out.add(_SnapshotOut(snapshot_id, base_id, changes, more, self.scheme))
                            self._sent.add(snapshot_id)
                            self.snapshots += 1
        await out.flush()

    async def _as_changes(
        self, fact: CommitFacts, row: SnapshotRow, by_id: dict[bytes, CommitFacts]
    ) -> tuple[bytes | None, bytes | Changes]:
        """Describe a snapshot by one the client has: as stored if that fits, else by a parent's, else whole.

        What is stored is what was proved when it came in, as far as its checksum says so; else it is rebuilt.
        """
        sound = (
            await trio.to_thread.run_sync(are_sound, row.delta) if large_changes(row.delta) else are_sound(row.delta)
        )
        if sound and row.base_id is not None and row.base_id in self._sent:
            return row.base_id, row.delta
        parents = [known for parent in fact.parents if (known := by_id.get(parent)) is not None]
        sent = [known for known in parents if known.snapshot_id in self._sent]
        if sound and row.base_id is None and not sent:
            return None, row.delta
        target = await self._cache.get(row.snapshot_id)  # hashed, or as changes that are sound to what was
        if sent:
            base = await self._cache.get(sent[0].snapshot_id)
            few = await trio.to_thread.run_sync(base.few_changes_to, target, max(AT_ONCE, len(target) // 2))
            if few is not None:
                return sent[0].snapshot_id, Changes(*few, target.directories)
        return None, Changes(Entries(target), (), target.directories)


class _Grouped:
    """Collects what goes out into pieces of work for one thread."""

    def __init__(self, deliver: Deliver) -> None:
        self._deliver = deliver
        self._batch: list[_Out] = []
        self._cost = 0

    async def add(self, one: _Out) -> None:
        self._batch.append(one)
        self._cost += one.cost
        if self._cost >= _WORK_BYTES:
            await self.flush()

    async def flush(self) -> None:
        batch, self._batch, self._cost = self._batch, [], 0
        if batch:
            await self._deliver(batch)


def commit_record(fact: CommitFacts, body: bytes, scheme: Scheme) -> Mapping[str, object]:
    """Read a commit's stored record, which has to be the one its id and its place in the graph were made from.

    In a shallow repository a commit may stand without its parents: then those of the record have to make its id.

    Raises:
        ObjectDamaged: it is not.
    """
    try:
        record = parse_canonical(body)[1]
        keys = ("commit_id", "snapshot_id", "parent_commit_id", "parent2_commit_id")
        theirs = [record[key] for key in keys[2:] if record.get(key) is not None]
        parents = fact.parents or tuple(parse_id(text, scheme) for text in theirs)
        ids = (fact.commit_id, fact.snapshot_id, *parents)
        if any(map(is_opaque, ids)):
            return record
        named = [record[key] for key in keys if record.get(key) is not None]
        text = commit_text(record, parents, fact.snapshot_id, scheme)
        if named == [format_id(one, scheme) for one in ids] and hash_bytes(Kind.COMMIT, text, scheme) == fact.commit_id:
            return record
    except Refusal:
        pass
    raise ObjectDamaged(f"commit {fact.commit_id.hex()} in the index does not hash to its id")


async def by_pieces(wanted: list[bytes], read: Read[T]) -> AsyncGenerator[tuple[list[bytes], Mapping[bytes, T]], None]:
    """Ask until everything was given; ids come with what was read along with them, or with nothing if there is none."""
    while wanted:
        found = await read(wanted)
        last = max((at for at, one in enumerate(wanted) if one in found), default=len(wanted) - 1)
        yield wanted[: last + 1], found
        wanted = wanted[last + 1 :]
