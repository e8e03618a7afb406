"""Taking references away, in dictionaries; see ``storage.postgres.collection_sweeps``."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Sequence

from storage.collection_rows import HANDOVER_S, RefKind, Sweep, SweepOutcome, Swept
from storage.memory.collection_tables import RunRow
from storage.memory.tables import PushEntry, Tables
from storage.rows import ABANDONED_S, PushState

SLACK_S = 300.0
_EVER = dt.datetime.min.replace(tzinfo=dt.UTC)


def sweepable(tables: Tables, now: dt.datetime, keep_s: float, after: int, most: int) -> list[int]:
    """See ``Sweeping.sweepable``."""
    found = []
    for repo in sorted(tables.owners):
        at, until = tables.collection.swept.get(repo, (_EVER, _EVER))
        pushes = [push for push in tables.pushes.values() if push.repo == repo]
        deleted_at = tables.collection.deleted.get(repo, (None, None))[0]
        if repo > after and (
            (deleted_at is not None and until < deleted_at <= _ago(now, keep_s))
            or any(_is_left_alone(push, now) for push in pushes)
            or any(push.record.finished_at > at for push in pushes if _is_refused(push) and push.record.finished_at)
            or _left_behind(tables, repo, now, keep_s)
        ):
            found.append(repo)
    return found[:most]


def begin_sweep(tables: Tables, repo: int, now: dt.datetime, keep_s: float) -> Sweep | None:
    """See ``Sweeping.begin_sweep``."""
    collection = tables.collection
    if repo not in tables.owners:
        return None
    for push in tables.pushes.values():
        if push.repo == repo and _is_left_alone(push, now):
            push.attempt, push.size = push.attempt + 1, 0
            collection.begun[push.number] = collection.next_moment()
    for run in [run for run, row in collection.runs.items() if row.repo == repo]:
        del collection.runs[run]
    deleted_at, scheme = collection.deleted.get(repo, (None, None))
    if deleted_at is None:
        scheme = tables.repositories[repo].scheme
    gone = deleted_at is not None and deleted_at <= _ago(now, keep_s)
    walked = not gone and _left_behind(tables, repo, now, keep_s)
    sweep = Sweep(tables.next_number(), repo, scheme, gone, walked)
    log = tables.branch_log[repo]
    collection.runs[sweep.run] = RunRow(repo, len(log), collection.next_moment(), {kind: {} for kind in RefKind})
    if walked:
        recent = [e for e in log if e.at > _ago(now, keep_s)]
        roots = [*tables.branches[repo].values(), *(e.old for e in recent), *(e.new for e in recent)]
        reach(tables, sweep, RefKind.COMMIT, [head for head in roots if head is not None], visited=False)
    return sweep


def extend_sweep(tables: Tables, sweep: Sweep) -> bool:
    """See ``Sweeping.extend_sweep``."""
    run = tables.collection.runs.get(sweep.run)
    if run is None:
        return False
    log = tables.branch_log[sweep.repo]
    since = log[run.entries :]
    roots = [*tables.branches[sweep.repo].values(), *(e.old for e in since), *(e.new for e in since)]
    reach(tables, sweep, RefKind.COMMIT, [head for head in roots if head is not None], visited=False)
    run.entries, run.moment = len(log), tables.collection.next_moment()
    return True


def unvisited(tables: Tables, sweep: Sweep, kind: RefKind, most: int) -> list[bytes]:
    """See ``Sweeping.unvisited``."""
    run = tables.collection.runs.get(sweep.run)
    return [] if run is None else sorted(i for i, visited in run.reached[kind].items() if not visited)[:most]


def reach(tables: Tables, sweep: Sweep, kind: RefKind, ids: Sequence[bytes], *, visited: bool) -> None:
    """See ``Sweeping.reach``."""
    run = tables.collection.runs.get(sweep.run)
    if run is not None:
        for object_id in ids:
            run.reached[kind][object_id] = visited or run.reached[kind].get(object_id, False)


def reached(tables: Tables, sweep: Sweep, kind: RefKind, ids: Sequence[bytes]) -> set[bytes]:
    """See ``Sweeping.reached``."""
    run = tables.collection.runs.get(sweep.run)
    return set() if run is None else {object_id for object_id in ids if object_id in run.reached[kind]}


def sweep_commits(tables: Tables, sweep: Sweep, now: dt.datetime, *, dry_run: bool) -> Swept:
    """See ``Sweeping.sweep_commits``."""
    outcome, is_needless = _enter(tables, sweep, RefKind.COMMIT, now)
    if is_needless is None:
        return Swept(outcome)
    refs, accepted = 0, False
    for push in _pushes(tables, sweep):
        gone = [i for i in push.commits if is_needless(push, i)]
        refs, accepted = refs + len(gone), accepted or (bool(gone) and push.accepted)
        for object_id in () if dry_run else gone:
            del push.commits[object_id]
    if accepted and not dry_run:
        _count_collection(tables, sweep.repo)
    return Swept(outcome, None, refs)


def sweep_refs(
    tables: Tables, sweep: Sweep, kind: RefKind, after: bytes, most: int, now: dt.datetime, *, dry_run: bool
) -> Swept:
    """See ``Sweeping.sweep_refs``."""
    outcome, is_needless = _enter(tables, sweep, kind, now)
    if is_needless is None:
        return Swept(outcome)
    pushes = _pushes(tables, sweep)
    some = sorted({i for push in pushes for i in _rows(push, kind) if i > after})[:most]
    refs, freed = 0, set()
    for push in pushes:
        gone = [i for i in some if i in _rows(push, kind) and is_needless(push, i)]
        refs += len(gone)
        freed |= {i for i in gone if push.accepted}
        for object_id in () if dry_run else gone:
            if kind is RefKind.BLOB:
                push.blobs.discard(object_id)
                if push.accepted and sweep.scheme is not None and not sweep.gone:
                    key = sweep.repo, sweep.scheme, object_id
                    until = now + dt.timedelta(seconds=HANDOVER_S)
                    tables.held_blobs[key] = max(until, tables.held_blobs.get(key, until))
                    continue
                for scheme, blob_id in [key for key in tables.blobs if key[1] == object_id]:
                    tables.collection.suspect((scheme, blob_id), loose=False)
            else:
                del push.snapshots[object_id]
    size = 0
    if kind is RefKind.BLOB and sweep.scheme is not None:
        size = sum(tables.blobs[sweep.scheme, i].size for i in freed if (sweep.scheme, i) in tables.blobs)
    if freed and not dry_run:
        _count_collection(tables, sweep.repo)
        tables.usage[sweep.repo] = max(0, tables.usage[sweep.repo] - size)
    return Swept(outcome, some[-1] if len(some) == most else None, refs, size)


def end_sweep(tables: Tables, sweep: Sweep, now: dt.datetime, keep_s: float, *, complete: bool) -> None:
    """See ``Sweeping.end_sweep``."""
    if complete:
        for push in [push for push in _pushes(tables, sweep) if _is_left_alone(push, now)]:
            del tables.pushes[push.number]
        at, until = tables.collection.swept.get(sweep.repo, (_EVER, _EVER))
        swept = max(at, _ago(now, SLACK_S)), max(until, _ago(now, keep_s + SLACK_S))
        tables.collection.swept[sweep.repo] = swept
    tables.collection.runs.pop(sweep.run, None)


def _enter(
    tables: Tables, sweep: Sweep, kind: RefKind, now: dt.datetime
) -> tuple[SweepOutcome, Callable[[PushEntry, bytes], bool] | None]:
    """Give how things stand, and what tells whether a reference may go, if any may."""
    run = tables.collection.runs.get(sweep.run)
    if run is None:
        return SweepOutcome.LOST, None
    if sweep.walked and run.entries < len(tables.branch_log[sweep.repo]):
        return SweepOutcome.MOVED, None
    leases = tables.collection.leases.values()
    accepted = sweep.walked or sweep.gone
    leased = any(le.repo == sweep.repo and le.expires_at > now and le.begun < run.moment for le in leases)
    reached_ids = run.reached[kind]

    def is_needless(push: PushEntry, object_id: bytes) -> bool:
        if push.accepted:
            return accepted and not leased and object_id not in reached_ids
        return _is_refused(push) or _is_left_alone(push, now)

    return SweepOutcome.LEASED if accepted and leased else SweepOutcome.DONE, is_needless


def _pushes(tables: Tables, sweep: Sweep) -> list[PushEntry]:
    return [push for push in tables.pushes.values() if push.repo == sweep.repo]


def _rows(push: PushEntry, kind: RefKind) -> Iterable[bytes]:
    return push.blobs if kind is RefKind.BLOB else push.snapshots


def _left_behind(tables: Tables, repo: int, now: dt.datetime, keep_s: float) -> bool:
    """Tell whether a branch has let go of something long enough ago, and after the last sweep."""
    _, until = tables.collection.swept.get(repo, (_EVER, _EVER))
    log = tables.branch_log[repo]
    return any((e.forced or e.new is None) and until < e.at <= _ago(now, keep_s) for e in log)


def _is_left_alone(push: PushEntry, now: dt.datetime) -> bool:
    return push.record.state is PushState.OPEN and push.lease_expires <= _ago(now, ABANDONED_S)


def _is_refused(push: PushEntry) -> bool:
    return push.record.state is PushState.REFUSED


def _count_collection(tables: Tables, repo: int) -> None:
    tables.collection.collected[repo] = tables.collection.collected.get(repo, 0) + 1


def _ago(now: dt.datetime, seconds: float) -> dt.datetime:
    return now - dt.timedelta(seconds=seconds)
