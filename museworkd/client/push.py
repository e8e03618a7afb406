"""Pushing a branch: what there is to do, by which way, and again when it is lost on the way."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace

import trio

from actors.history import is_ancestor
from actors.spool import SpoolDirectory
from museworkd.client.delivery import Delivery, Sending
from museworkd.client.errors import ClientError, GivenUpError, TransferError
from museworkd.client.negotiating import acknowledged
from museworkd.client.outgoing import Outgoing, find_outgoing
from museworkd.client.progress import Meter
from museworkd.client.push_report import Lease, Move, PushReport, Way
from museworkd.client.push_stream import StreamWay
from museworkd.client.remote import Remote
from museworkd.client.repository import LocalRepository
from museworkd.client.temporary import sweep, temporary_directory
from museworkd.client.transport import Api
from museworkd.client.unfinished import UnfinishedPush
from museworkd.client.verdicts import find_push, known_verdict
from storage.environment import Environment, SystemEnvironment
from wire.errors import Code, Refusal
from wire.ids import format_id, parse_id
from wire.limits import DEFAULT_LIMITS

__all__ = ["Lease", "Move", "PushReport", "Way", "push"]
MPACK_FROM_OBJECTS = 500
MPACK_FROM_BYTES = 50 * 1000 * 1000
"""Protocol §5, §6: from here on one file goes faster than a stream of frames."""
MPACK_MOST_BYTES = DEFAULT_LIMITS.mpack_bytes
"""Protocol §12: larger files are refused, as a rule, and a stream has no such limit."""
ATTEMPTS = 6
"""Times a push is sent; one that found more at the server than the one before is not counted."""
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 15.0


async def push(
    repository: LocalRepository, remote: Remote, branch: str, meter: Meter, *,
    force: bool = False, lease: Lease | None = None, push_id: uuid.UUID | None = None, way: Way = Way.AUTO,
    dry_run: bool = False, supposed: Mapping[str, bytes] | None = None, environment: Environment | None = None,
) -> PushReport:  # fmt: skip
    """Push one branch to the branch of the same name.

    Args:
        repository: where to push from.
        remote: where to push to.
        branch: the branch.
        meter: shows progress.
        force: move the branch even if that loses commits there.
        lease: move it only if it is where we believe it to be.
        push_id: repeat a push under the same id; without it one that was cut goes on under its own.
        way: how the bytes travel.
        dry_run: find out what would be sent, and send nothing.
        supposed: heads of branches that a dry run takes to be on the server already.
        environment: where a new push has its id from, and the time; the system's by default.

    Raises:
        ClientError: refused, here or by the server; ``code`` is the server's stable code.
        TransferError: the connection was lost; sending again is safe.
    """
    scheme = repository.scheme
    environment = environment or SystemEnvironment()
    head = repository.branches().get(branch)
    if head is None:
        raise ClientError(f"there is no branch {branch!r} here")
    sweep(repository)
    async with Api(remote) as api:
        remote_heads = {**_heads(await api.get("refs"), repository), **(supposed or {})}
    shown = format_id(head, scheme)
    rules: dict[str, object] = {"branch": branch, "head": shown, "force": force}
    if lease is not None:
        rules["expected_head"] = None if lease.expected is None else format_id(lease.expected, scheme)
    unfinished = UnfinishedPush(repository, remote.url, rules, environment)
    if remote_heads.get(branch) == head and lease is None:
        if not dry_run:
            unfinished.end()
        return PushReport(branch, shown, True, dry_run, Move.NONE.value, None)
    move = await _judge(repository, remote_heads.get(branch), head, force, lease)
    if move.refused and not dry_run:
        unfinished.end()
        raise _refused(move, branch, remote_heads.get(branch), repository)
    with temporary_directory(repository) as directory:
        async with SpoolDirectory(directory, "spool") as spools:
            with meter.phase("Counting objects") as phase:
                heads = set(remote_heads.values())
                async with Api(remote) as api:
                    held = await acknowledged(api, repository, head, heads)
                outgoing = await find_outgoing(repository, head, heads, spools, held)
                phase.advance(len(outgoing.blobs) + outgoing.commits)
            chosen = way is Way.AUTO
            way = _choose(way, outgoing)
            planned = PushReport(
                branch, shown, False, dry_run, move.value, way.value, outgoing.commits, len(outgoing.blobs),
                outgoing.blob_bytes,
            )  # fmt: skip
            if dry_run:
                return planned
            resumed = None if push_id is not None else await _begun_before(remote, unfinished.find(way.value))
            push_id = push_id or resumed or environment.uuid()
            unfinished.begin(push_id, way.value)
            header = {**rules, "push_id": str(push_id)}
            delivery = Delivery(repository, remote, outgoing, header, spools, meter)
            try:
                ways = [way, Way.STREAM] if chosen and way is Way.MPACK else [way]
                way, result, attempts = await _deliver_by(ways, delivery, unfinished, resumed=resumed is not None)
            except TransferError:
                raise
            except ClientError:
                unfinished.end()
                raise
            unfinished.end()
    return replace(
        planned, way=way.value, blobs_spared=len(delivery.spared), sent_bytes=delivery.sent_bytes, attempts=attempts,
        result=result,
    )  # fmt: skip


async def _deliver_by(
    ways: Sequence[Way], delivery: Delivery, unfinished: UnfinishedPush, *, resumed: bool
) -> tuple[Way, Mapping[str, object], int]:
    """Send by the first way; by the next if the server takes nothing of this size by it. Gives the way as well."""
    way, *others = ways
    try:
        return way, *await _deliver(delivery, way, resumed=resumed)
    except ClientError as error:
        if not others or error.code != Code.TOO_LARGE.text:
            raise
    unfinished.begin(uuid.UUID(delivery.push_id), others[0].value)
    return await _deliver_by(others, delivery, unfinished, resumed=False)


async def _deliver(delivery: Delivery, way: Way, *, resumed: bool) -> tuple[Mapping[str, object], int]:
    """Send until the server has decided; gives its result and how often it was sent."""
    sending = _sending(delivery, way)
    attempts = failures = 0
    while True:
        spared = len(delivery.spared)
        attempts += 1
        try:
            if attempts > 1 or resumed:
                unpacking = way is Way.MPACK
                received = sending.said_everything or (resumed and unpacking)
                async with Api(delivery.remote) as api:
                    found = await known_verdict(api, delivery.push_id, received=received, unpacking=unpacking)
                if found is not None:
                    return found, attempts - 1
            return await sending.send(again=attempts > 1 or resumed), attempts
        except TransferError as error:
            failures = 1 if len(delivery.spared) > spared else failures + 1
            if failures >= ATTEMPTS or isinstance(error, GivenUpError):
                raise
            pause = min(FIRST_PAUSE_S * 2 ** (failures - 1), LONGEST_PAUSE_S)
            pause = pause if error.retry_after_s is None else error.retry_after_s
            with delivery.meter.phase("Trying again") as phase:
                phase.note(str(error))
                await trio.sleep(pause)


def _sending(delivery: Delivery, way: Way) -> Sending:
    match way:
        case Way.MPACK:
            from museworkd.client.push_mpack import MpackWay  # most pushes are small, and begin sooner without

            return MpackWay(delivery)
        case Way.PRESIGNED:
            from museworkd.client.push_presigned import PresignedWay

            return PresignedWay(delivery)
        case _:
            return StreamWay(delivery)


def _choose(way: Way, outgoing: Outgoing) -> Way:
    if way is not Way.AUTO:
        return way
    size = outgoing.blob_bytes
    large = len(outgoing.blobs) >= MPACK_FROM_OBJECTS or size >= MPACK_FROM_BYTES
    return Way.MPACK if large and size <= MPACK_MOST_BYTES else Way.STREAM


async def _begun_before(remote: Remote, push_id: uuid.UUID | None) -> uuid.UUID | None:
    """Give the id a push was begun under, if it may go on: one that has its verdict is done with."""
    if push_id is None:
        return None
    async with Api(remote) as api:
        found = await find_push(api, str(push_id))
    return None if found is not None and found.get("status") in {"accepted", "refused"} else push_id


async def _judge(
    repository: LocalRepository, old: bytes | None, new: bytes, force: bool, lease: Lease | None
) -> Move:  # fmt: skip
    """Say what a push will do to the branch; the server judges by its own history."""
    if lease is not None and lease.expected != old:
        return Move.HEAD_MOVED
    if old is None:
        return Move.CREATE
    if old == new:
        return Move.NONE
    index = repository.index
    if index.has_commit(old) and await is_ancestor(index, repository.scheme, old, new):
        return Move.FAST_FORWARD
    if index.shallow():
        return Move.UNKNOWN
    return Move.FORCE if force else Move.NON_FAST_FORWARD


def _refused(move: Move, branch: str, there: bytes | None, repository: LocalRepository) -> ClientError:
    """Say why there is no use in sending, in the code that the server would give."""
    at = "does not exist there" if there is None else f"is at {format_id(there, repository.scheme)} there"
    if move is Move.HEAD_MOVED:
        text = f"the branch {branch!r} {at}, which is not what --expect says: fetch, and look at what has come"
        return ClientError(f"refused (head_moved): {text}", "head_moved")
    text = f"the branch {branch!r} {at}, with commits that are not in yours: fetch and merge them, or force (--force)"
    return ClientError(f"refused (non_fast_forward): {text}", "non_fast_forward")


def _heads(refs: Mapping[str, object], repository: LocalRepository) -> dict[str, bytes]:
    heads = refs.get("branch_heads")
    if not isinstance(heads, dict):
        raise ClientError("the server's refs have no branch heads")
    try:
        return {str(name): parse_id(head, repository.scheme) for name, head in heads.items()}
    except Refusal as refusal:
        raise ClientError(f"the server's repository cannot take this push: {refusal.detail}") from refusal
