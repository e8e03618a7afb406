"""Writing out commits and snapshots that are in the index and in no record pack of the store (protocol §2).

A push writes its record pack before it is accepted, and names it. One that an earlier version accepted names none, and
a pack may be lost. Steps for each such push, and what is left if the process dies after each:

1. its records are read from the index, proved, and written to a local file — that file; swept at the next start;
2. the pack is put into the store under its hash, durably — a pack nobody names: the next run writes the same again;
3. the push names it, unless somebody was faster. The journal takes note of that by itself.

Nothing waits for anything while bytes move, and the rate is bounded: it may run beside the daemons.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from functools import partial

import msgpack
import structlog
import trio

from actors.fsck.problems import Phase
from actors.jobs.reading import Pace
from actors.manifests import ManifestCache
from actors.push.record_pack import RecordPack
from actors.repair.reading import RepairServices
from actors.snapshot_builder import BuiltSnapshot
from actors.spool import SpoolDirectory
from storage.collection_rows import RefKind
from storage.errors import ObjectDamaged, ObjectMissing
from storage.fsck import AcceptedPush, BroughtRecord, RecordPacks
from storage.history_rows import SnapshotRow
from storage.layout import record_pack_key
from storage.rows import Repository
from storage.snapshots import apply_packed, unpack_changes
from wire.canonical import parse_canonical
from wire.errors import Refusal
from wire.ids import Kind, Scheme
from wire.manifest import Manifest
from wire.opaque import is_opaque
from wire.records import Snapshot, parse_commit

PUSHES_AT_ONCE = 1_000
GROUP = 32
"""Pushes of a repository whose records are found by one look through what it holds."""
_IDS_AT_ONCE = 2_000
_RECORDS_AT_ONCE = 200
FAILURES_SHOWN = 100

log = structlog.get_logger("backfill")


@dataclass(slots=True)
class Backfilled:
    """What a run has done."""

    pushes: int = 0
    """That lacked a record pack."""
    written: int = 0
    records: int = 0
    bytes: int = 0
    left: int = 0
    failures: list[str] = field(default_factory=list)
    """Why some are left."""


class Backfill:
    """Write out what is not."""

    def __init__(
        self, services: RepairServices, packs: RecordPacks, bytes_per_s: float = 0.0,
        damaged: Collection[bytes] = (), phase: Phase | None = None,
    ) -> None:  # fmt: skip
        """Prepare; record packs that are ``damaged`` count as missing."""
        self._services = services
        self._packs = packs
        self._pace = Pace(bytes_per_s)
        self._damaged = frozenset(damaged)
        self._phase = phase
        self.done = Backfilled()
        self.mended: set[int] = set()
        """Pushes whose records are in the store now."""

    async def run(self, dry_run: bool = False) -> Backfilled:
        """Go through all accepted pushes; with ``dry_run`` only count."""
        after = 0
        while pushes := await self._packs.pushes_after(after, PUSHES_AT_ONCE):
            after = pushes[-1].number
            by_repository: dict[int, list[AcceptedPush]] = defaultdict(list)
            for push in await self._lacking(pushes):
                by_repository[push.repo].append(push)
            repositories = await self._services.index.repositories_numbered(list(by_repository))
            for number, lacking in by_repository.items():
                repository = repositories.get(number)
                if repository is None or repository.scheme is None:
                    continue
                self.done.pushes += len(lacking)
                for start in range(0, len(lacking), GROUP):
                    if dry_run:
                        self.done.left += len(lacking[start : start + GROUP])
                    else:
                        await self._group(repository, repository.scheme, lacking[start : start + GROUP])
            if self._phase is not None:
                self._phase.advance(len(pushes))
        return self.done

    async def _lacking(self, pushes: Sequence[AcceptedPush]) -> list[AcceptedPush]:
        """Give those pushes that brought something which is in no record pack they name."""
        lacking: list[AcceptedPush] = []
        unnamed: dict[int, list[AcceptedPush]] = defaultdict(list)
        for push in pushes:
            if push.record_pack is None or push.record_pack in self._damaged or await self._is_gone(push.record_pack):
                unnamed[push.repo].append(push)
        for repo, some in unnamed.items():
            with_records = await self._packs.pushes_with_records(repo, [push.number for push in some])
            lacking += [push for push in some if push.number in with_records]
        return lacking

    async def _is_gone(self, pack_id: bytes) -> bool:
        try:
            await self._services.store.size(record_pack_key(pack_id))
        except ObjectMissing:
            return True
        return False

    async def _group(self, repository: Repository, scheme: Scheme, pushes: Sequence[AcceptedPush]) -> None:
        numbers = [push.number for push in pushes]
        brought: dict[int, dict[RefKind, list[BroughtRecord]]] = {number: defaultdict(list) for number in numbers}
        for kind in (RefKind.SNAPSHOT, RefKind.COMMIT):
            after = (b"", 0)
            while found := await self._packs.brought_records(repository.number, numbers, kind, after, _IDS_AT_ONCE):
                after = (found[-1].record_id, found[-1].push)
                for one in found:
                    brought[one.push][kind].append(one)
        for push in pushes:
            try:
                await self._write(repository, scheme, push, brought.pop(push.number))
            except (ObjectDamaged, Refusal) as error:
                self.done.left += 1
                log.error("the records of a push cannot be written out", push=push.number, error=str(error))
                if len(self.done.failures) < FAILURES_SHOWN:
                    name = f"{repository.owner}/{repository.slug}"
                    self.done.failures.append(f"push {push.number} of {name}: {error}")

    async def _write(
        self, repository: Repository, scheme: Scheme, push: AcceptedPush,
        brought: dict[RefKind, list[BroughtRecord]],
    ) -> None:  # fmt: skip
        """Write one push's records as one pack, what others build on before these, and name it."""
        services = self._services
        async with SpoolDirectory(services.spool_dir, f"backfill-{services.environment.uuid().hex}") as spools:
            pack = RecordPack(spools)
            await self._snapshots(repository, scheme, push, _in_order(brought[RefKind.SNAPSHOT]), pack)
            await self._commits(repository, scheme, push, _in_order(brought[RefKind.COMMIT]), pack)
            await self._pace.take(pack.size)
            pack_id = await pack.store(services.store)
        if pack_id is None:
            return
        if pack_id != push.record_pack and not await self._packs.name_record_pack(
            push.number, push.record_pack, pack_id
        ):
            return  # somebody else has named one: what was written is needless
        self.done.written += 1
        self.done.records += len(pack)
        self.done.bytes += pack.size
        self.mended.add(push.number)

    async def _commits(
        self, repository: Repository, scheme: Scheme, push: AcceptedPush, ids: Sequence[bytes], pack: RecordPack
    ) -> None:
        left = list(ids)
        while left:
            some = left[:_RECORDS_AT_ONCE]
            bodies = await self._packs.brought_commits(repository.number, push.number, some)
            if not bodies:
                raise ObjectDamaged(f"the index has no record of commit {some[0].hex()}")
            await trio.to_thread.run_sync(self._prove, bodies, scheme)
            taken = 0
            for commit_id in some:
                if commit_id not in bodies:
                    break
                await trio.to_thread.run_sync(pack.add, commit_id, [bodies[commit_id]])
                taken += 1
            if not taken:
                raise ObjectDamaged(f"the index has no record of commit {some[0].hex()}")
            left = left[taken:]

    def _prove(self, bodies: dict[bytes, bytes], scheme: Scheme) -> None:
        for commit_id, body in bodies.items():
            kind, record = parse_canonical(body)
            if kind is not Kind.COMMIT or (
                not is_opaque(commit_id) and parse_commit(record, scheme, self._services.limits).commit_id != commit_id
            ):
                raise ObjectDamaged(f"the record of commit {commit_id.hex()} is of another one")

    async def _snapshots(
        self, repository: Repository, scheme: Scheme, push: AcceptedPush, ids: Sequence[bytes], pack: RecordPack
    ) -> None:
        cache = ManifestCache(self._services.index, scheme, None, self._services.limits)
        for start in range(0, len(ids), _RECORDS_AT_ONCE):
            some = ids[start : start + _RECORDS_AT_ONCE]
            extras = await self._packs.brought_extras(repository.number, push.number, some)
            async with aclosing(self._rows(scheme, some)) as parts:
                async for rows in parts:
                    bases = list({row.base_id for row in rows if row.base_id is not None and row.depth})
                    # in the store, a repository's own records lead from one to the next
                    own = await self._packs.brought_before(repository.number, push.number, bases) if bases else set()
                    for row in rows:
                        base_id = row.base_id if row.depth and row.base_id in own else None
                        manifest = await self._manifest(cache, scheme, row)
                        more = extras.get(row.snapshot_id, b"")
                        await trio.to_thread.run_sync(
                            partial(_add_snapshot, self._services, scheme, row, base_id, manifest, more, pack)
                        )

    async def _manifest(self, cache: ManifestCache, scheme: Scheme, row: SnapshotRow) -> Manifest:
        """Rebuild a snapshot and prove it: what is written out is what its id says."""
        base = cache.at_hand(row.base_id) if row.base_id is not None and row.depth else None
        if base is not None:
            with suppress(ValueError, msgpack.UnpackException, Refusal):
                made = await trio.to_thread.run_sync(apply_packed, base, row.delta, self._services.limits)
                found = await trio.to_thread.run_sync(made.snapshot_id, scheme)
                if found == row.snapshot_id or is_opaque(row.snapshot_id):
                    cache.keep(row.snapshot_id, made)
                    return made
        return (await cache.load(row.snapshot_id))[0]

    async def _rows(self, scheme: Scheme, ids: Sequence[bytes]) -> AsyncGenerator[list[SnapshotRow], None]:
        """Give rows, in order, some at a time; a full content is only told of by its depth."""
        left = list(ids)
        while left:
            found = await self._services.index.snapshot_deltas(scheme, left)
            if left[0] not in found:
                raise ObjectDamaged(f"the index lacks snapshot {left[0].hex()}")
            rows = list(itertools.takewhile(lambda row: row is not None, map(found.get, left)))
            yield [row for row in rows if row is not None]
            left = left[len(rows) :]


def _add_snapshot(
    services: RepairServices, scheme: Scheme, row: SnapshotRow, base_id: bytes | None, manifest: Manifest,
    extras: bytes, pack: RecordPack,
) -> None:  # fmt: skip
    """Write a snapshot as the push that brought it would have; blocking."""
    members = parse_canonical(extras)[1] if extras else {}
    item = Snapshot(row.snapshot_id, {}, manifest.directories, members)
    changes = unpack_changes(row.delta)
    built = BuiltSnapshot(
        row=row, manifest=manifest, extras=extras, added={}, item=item, base_id=base_id, changes=changes
    )
    pack.add(row.snapshot_id, built.canonical_pieces(scheme, services.limits))


def _in_order(brought: Sequence[BroughtRecord]) -> list[bytes]:
    return [one.record_id for one in sorted(brought, key=lambda one: (one.order, one.record_id))]
