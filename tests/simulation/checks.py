"""The invariants of design §5, judged after a run from what was observed and from the store's own bytes."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from typing import Any

import trio

from storage.snapshots import build_manifest
from tests.clones import Clone
from tests.muse import blob_id
from tests.simulation.client import Client
from tests.simulation.daemon import Cut, Daemon
from tests.simulation.library import Library
from tests.simulation.witness import Change, Operation
from tests.simulation.work import unended
from wire.canonical import parse_canonical
from wire.errors import Code, Refusal
from wire.ids import Scheme, format_id, parse_id

_SKEW = dt.timedelta(seconds=10)
SETTLE_S = 1_000.0
"""Within it everything that was begun has ended, once nothing goes wrong any more."""


def compare(world: Any, clone: Clone, head: str, library: Library) -> None:
    """Compare a clone of a head with what was made."""
    for commit_id, made in library.closure([head]).items():
        record = clone.commits.get(commit_id)
        if record is None:
            world.violated("I1", f"commit {commit_id} is missing in a clone of {head}")
            return
        if record != made.record:
            world.violated("I1", f"commit {commit_id} came back as another record")
        if clone.manifests.get(record["snapshot_id"]) != made.manifest:
            world.violated("I1", f"the snapshot of commit {commit_id} came back as another one")
        for object_id in made.manifest.values():
            if clone.blobs.get(object_id) != library.blobs[object_id]:
                world.violated("I1", f"blob {object_id} is missing in a clone")


async def check_calm(world: Any) -> None:
    """I8: with faults off, everything finishes, and every daemon takes a push and serves a clone at once."""
    await settle(world)
    if world.violations:
        return
    for number, repository in enumerate(world.repositories):
        if repository.number in world.deleted:
            continue
        client = Client(world, f"last{number}", repository)
        await client.enrol()
        try:
            heads = await client.heads()
            head = client.library.make(client.rng, sorted(heads.values())[:1], client.name)
            operation = await client.push_head("last", head, heads)
            if operation.outcome != "acknowledged":
                world.violated("I8", f"in calm weather a push ended as {operation.outcome}")
            heads = await client.heads()
            began = world.witness.moment()
            clone = client.new_clone()
            await client.fetcher.into(clone, sorted(set(heads.values())))
        except (Cut, Refusal) as error:
            told = isinstance(error, Refusal) and error.code is Code.STORE_DAMAGED
            if not (told and world.weather.forgotten):
                world.violated("I8", f"in calm weather a request failed: {error!r}", error)
        else:
            world.check_clone(client, clone, heads, began)
    world.calm_since = world.environment.now()
    await settle(world)
    for daemon in world.daemons:
        await _check_base_line(world, daemon)


async def settle(world: Any) -> None:
    """Wait until nobody works any more."""
    with trio.move_on_after(SETTLE_S):
        while any(_working(world).values()):
            await trio.sleep(5)
        return
    world.violated("I8", f"after {SETTLE_S} s without a fault somebody still works: {_working(world)}")


def _working(world: Any) -> dict[str, object]:
    return {
        "requests": sum(daemon.requests for daemon in world.daemons),
        "pushes": sum(len(daemon.heartbeats) for daemon in world.daemons),
        "jobs": sum(len(daemon.work.runs) for daemon in world.daemons),
        "actors": sum(daemon.supervisor._temporaries for daemon in world.daemons),
        "to do": unended(world.index.tables.jobs, world.daemons[0].types, world.calm_since + _SKEW),
    }


async def _check_base_line(world: Any, daemon: Daemon) -> None:
    """I7: what a daemon holds while it works is given back."""
    held = {
        "temporary actors": not await daemon.supervisor.drain(1.0),
        "heartbeats": len(daemon.heartbeats),
        "jobs": len(daemon.work.runs),
        "batches": daemon.push.batches.statistics().taken,
        "fetches": daemon.fetch.slots.statistics().taken,
        "confirmations": sum(s.statistics().taken for s in (daemon.confirm.groups, daemon.confirm.large)),
        "store calls": daemon.store.statistics().running + daemon.store.statistics().waiting,
        "tasks": len(daemon.nursery.child_tasks) - 1,
        "spools": sum(1 for _ in daemon.spool_dir.iterdir()) if daemon.spool_dir.is_dir() else 0,
    }
    left = {what: count for what, count in held.items() if count}
    if left:
        world.violated("I7", f"daemon {daemon.name} still holds {left}")


async def check_end(world: Any) -> None:
    """Check what is left when every daemon has ended."""
    _check_changes(world)
    _check_logs(world)
    world.jobs.check(world.index.tables.jobs)
    for repository in world.repositories:
        if repository.number not in world.deleted:
            await _check_closure(world, repository.number)


def _check_changes(world: Any) -> None:
    """I2 and I4: who moved a branch was to be, moved it where it was told, from where it may, and once."""
    operations: list[Operation] = world.witness.operations
    by_push = {o.push_id: o for o in operations if o.push_id is not None}
    seen: set[object] = set()
    for change in world.witness.changes:
        if isinstance(change.cause, str):
            causes = [o for o in operations if o.push_id is None and o.who == change.cause and _fits(o, change)]
            causes = [o for o in causes if not o.nameless]
        else:
            named = by_push.get(change.cause)
            candidates = [o for o in operations if o.nameless] if named is None else [named]
            causes = [o for o in candidates if _fits(o, change)]
            if change.cause in seen:
                world.violated("I4", f"push {change.cause} moved its branch twice")
            seen.add(change.cause)
        if not causes:
            world.violated("I2", f"nobody who was not refused wanted {change}")
            continue
        if all(o.expected is not None and o.expected[0] != change.old for o in causes):
            world.violated("I4", f"{change} is not from where its mover said: {causes}")
        forced = any(operation.force for operation in causes)
        if change.old and change.new and not forced and not world.library(change.repo).leads_to(change.new, change.old):
            world.violated("I4", f"{change} lost what was there, without force")
    for operation in operations:
        if operation.outcome == "acknowledged" and not _took_effect(world, operation):
            world.violated("I4", f"acknowledged and never done: {operation}")


def _fits(operation: Operation, change: Change) -> bool:
    """Tell whether an operation may have made a change."""
    same = (operation.repo, operation.branch, operation.new) == (change.repo, change.branch, change.new)
    during = operation.began < change.moment
    return same and during and operation.outcome != "refused"


def _took_effect(world: Any, operation: Operation) -> bool:
    """Tell whether a branch was where an operation wanted it at any time between its beginning and its answer."""
    assert operation.ended is not None
    at: str | None = None
    for change in world.witness.changes:
        if (change.repo, change.branch) != (operation.repo, operation.branch) or change.moment > operation.ended:
            continue
        if change.moment < operation.began:
            at = change.new
        elif change.new == operation.new:
            return True
    return at == operation.new


def _check_logs(world: Any) -> None:
    """I4: the log says what happened, as a chain."""
    for repository in world.repositories:
        number = repository.number
        scheme = world.scheme(number)
        log = [
            (e.branch, _text(e.old, scheme), _text(e.new, scheme), e.push_id or e.handle)
            for e in world.index.tables.branch_log[number]
        ]
        seen = [(c.branch, c.old, c.new, c.cause) for c in world.witness.changes if c.repo == number]
        if log != seen:
            world.violated("I4", f"the log of {number} is {log}, what happened is {seen}")
        heads: dict[str, str | None] = {}
        for branch, old, new, _ in log:
            if heads.get(branch) != old:
                world.violated("I4", f"the log of {branch} is no chain: from {old}, where it was {heads.get(branch)}")
            heads[branch] = new


async def _check_closure(world: Any, repo: int) -> None:
    """I1: everything a head reaches is there, in the index and by the store's own bytes."""
    index, contents = world.index, world.store.contents()
    scheme, library = world.scheme(repo), world.library(repo)
    heads = {format_id(head, scheme) for head in (await index.branch_heads(repo)).values()}
    closure = library.closure(sorted(heads))
    ids = [parse_id(commit_id, scheme) for commit_id in closure]
    records = await index.commit_records(repo, ids)
    wanted: dict[str, None] = {}
    for (commit_id, made), digest in zip(closure.items(), ids, strict=True):
        if digest not in records or not _same(records[digest], made.record):
            world.violated("I1", f"commit {commit_id} of {repo} is missing or another one")
        snapshot = parse_id(made.record["snapshot_id"], scheme)
        manifest = build_manifest(await index.snapshot_chain(scheme, snapshot), None, world.limits)
        if {path: _text(blob, scheme) for path, blob in manifest.items()} != made.manifest:
            world.violated("I1", f"snapshot {made.record['snapshot_id']} of {repo} is another one")
        wanted |= dict.fromkeys(made.manifest.values())
    places = await index.held_places(repo, scheme, [parse_id(oid, scheme) for oid in wanted])
    for object_id in wanted:
        place = places.get(parse_id(object_id, scheme))
        if place is None:
            world.violated("I1", f"nobody knows where blob {object_id} of {repo} is")
            continue
        if place.pending:
            cached = index.tables.cached[scheme, place.object_id].content
            if blob_id(cached, library.name) != object_id:
                world.violated("I1", f"blob {object_id} of {repo} is damaged while it is pending")
            continue
        stored = contents.get(place.key(scheme))
        if stored is None and place.key(scheme) in world.weather.forgotten:
            continue
        if stored is None:
            world.violated("I1", f"blob {object_id} of {repo} should be at {place.key(scheme)}, and is not")
        elif blob_id(stored[place.offset : place.offset + place.size], library.name) != object_id:
            world.violated("I1", f"blob {object_id} of {repo} is damaged at {place.key(scheme)}")
    _check_record_packs(world, repo, closure, contents)


def _check_record_packs(world: Any, repo: int, closure: Mapping[str, Any], contents: Mapping[str, bytes]) -> None:
    """The store alone knows every commit a head reaches: the index can be made again."""
    packs = b"".join(content for key, content in contents.items() if key.startswith("records/"))
    for commit_id in closure if not world.weather.forgotten else ():
        if commit_id.removeprefix("sha256:").encode() not in packs:
            world.violated("I1", f"no record pack has commit {commit_id} of {repo}")


def _same(stored: bytes, record: Mapping[str, Any]) -> bool:
    return json.dumps(parse_canonical(stored)[1], sort_keys=True) == json.dumps(record, sort_keys=True)


def _text(digest: bytes | None, scheme: Scheme) -> str | None:
    return None if digest is None else format_id(digest, scheme)
