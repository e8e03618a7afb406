"""The answer to a fetch as frames (protocol §8): ``H O* C* E``, each blob proved before its last byte leaves.

What is to be sent is planned first, with records in spools; then blobs are read and sent at the pace of the client.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

import msgpack
import trio

from actors.fetch.assemble import FetchServices
from actors.fetch.contents import ContentWriter
from actors.fetch.mending import until_whole
from actors.fetch.places import located
from actors.fetch.plan import FetchPlan, plan_fetch
from actors.fetch.reading import large_blob, proved_place, small_blobs
from actors.leases import leased
from actors.spool import Spool, SpoolDirectory
from storage.layout import Place
from storage.rows import Repository
from wire.frames import VERSION, FrameWriter
from wire.ids import Scheme, format_id

COMMIT_PACK_BYTES = 200_000
"""Protocol §5: a ``C`` frame should be no larger."""
CHUNK_BYTES = 1024 * 1024
_RECORD_LENGTH = 8
_BEGINS_WITH = 64 * 1024
_DELTA_KEYS = {"delta_upsert", "delta_add", "delta_remove"}


@dataclass(frozen=True, slots=True)
class PreparedFetch:
    """What a fetch sends: blobs by their places, records in spools."""

    repository: Repository
    scheme: Scheme
    plan: FetchPlan
    places: Iterable[Place]
    object_count: int
    snapshots: Spool
    commits: Spool


@asynccontextmanager
async def prepared(
    services: FetchServices, repository: Repository, want: list[bytes], have: list[bytes], depth: int | None
) -> AsyncIterator[PreparedFetch | None]:
    """Plan a fetch for the length of a block; ``None`` when there is nothing to send.

    Raises:
        Refusal, ObjectDamaged: see ``plan_fetch`` and ``ContentWriter``.
    """
    async with (
        leased(services.index, services.environment, repository.number),
        SpoolDirectory(services.spool_dir, f"frames-{services.environment.uuid().hex}") as spools,
    ):
        async with services.slots.hold(1):
            plan = await plan_fetch(services.index, repository, want, have, depth)
            scheme = repository.scheme
            if not plan.commits or scheme is None:
                made = None
            else:
                made = await until_whole(services, scheme, lambda: _planned(services, repository, scheme, plan, spools))
        yield made


async def _planned(
    services: FetchServices, repository: Repository, scheme: Scheme, plan: FetchPlan, spools: SpoolDirectory
) -> PreparedFetch:
    snapshots, commits = spools.new(), spools.new()
    contents = ContentWriter(services.index, repository.number, scheme, plan, services.limits)
    await contents.run_into(snapshots, commits)
    places = await located(services, repository.number, scheme, contents.blobs)
    return PreparedFetch(repository, scheme, plan, places, len(places), snapshots, commits)


async def fetch_frames(
    services: FetchServices, made: PreparedFetch | None, writer: FrameWriter
) -> AsyncGenerator[bytes, None]:
    """Give the frames of a prepared fetch, in pieces of bounded size; ``None`` is nothing to send."""
    commits = len(made.plan.commits) if made is not None else 0
    counts = {"n_objects": made.object_count if made is not None else 0, "n_commits": commits}
    shallow = [format_id(commit_id, made.scheme) for commit_id in made.plan.shallow] if made is not None else []
    head = writer.send("H", {"version": VERSION, **counts, **({"shallow": shallow} if shallow else {})})
    if made is None:
        yield head + writer.send("E", counts)
        return
    yield head
    async with aclosing(object_frames(services, made.scheme, made.places, writer)) as frames:
        async for frame in frames:
            yield frame
    for spool, key in ((made.snapshots, None), (made.commits, "commits")):
        walk = _commit_frames(spool, key, writer)
        while frames_part := await trio.to_thread.run_sync(next, walk, b""):
            yield frames_part
    yield writer.send("E", counts)


async def object_frames(
    services: FetchServices, scheme: Scheme, places: Iterable[Place], writer: FrameWriter
) -> AsyncGenerator[bytes, None]:
    """Give blobs as ``O`` frames, and large ones as ``OC`` chunks.

    Raises:
        ObjectDamaged, ObjectMissing: a stored blob is not whole.
    """
    async with aclosing(small_blobs(services, scheme, places)) as batches:
        async for batch in batches:
            if isinstance(batch, Place):
                async with aclosing(_chunks(services, scheme, batch, writer)) as chunks:
                    async for chunk in chunks:
                        yield chunk
                continue
            named = [(format_id(place.object_id, scheme), content) for place, content in batch]
            yield b"".join(
                writer.send("O", {"object_id": object_id, "encoding": "raw", "content": content})
                for object_id, content in named
            )


async def _chunks(
    services: FetchServices, scheme: Scheme, place: Place, writer: FrameWriter
) -> AsyncGenerator[bytes, None]:
    object_id = format_id(place.object_id, scheme)
    waiting = bytearray()
    seq = 0

    def frame(content: bytes, *, last: bool) -> bytes:
        members = {"object_id": object_id, "encoding": "raw", "seq": seq, "last": last, "content": content}
        return writer.send("OC", members)

    place = await proved_place(services, scheme, place)  # frames that have left cannot be taken back
    async with aclosing(large_blob(services, scheme, place)) as pieces:
        async for piece in pieces:
            waiting += piece
            while len(waiting) > CHUNK_BYTES:
                yield frame(bytes(waiting[:CHUNK_BYTES]), last=False)
                del waiting[:CHUNK_BYTES]
                seq += 1
    yield frame(bytes(waiting), last=True)


def _commit_frames(spool: Spool, key: str | None, writer: FrameWriter) -> Iterator[bytes]:
    """Give the records of a spool as ``C`` frames, in order; blocking. Without a key each is told apart by its members.

    A record too large for a frame of the usual size has one of its own and comes in pieces.
    """
    with spool.open() as file:
        group: list[bytes] = []
        kind, size = "", 0
        while head := file.read(_RECORD_LENGTH):
            length = int.from_bytes(head, "little")
            begin = file.read(min(length, _BEGINS_WITH))
            own = key or _kind_of(begin)
            while own is None:  # long fields come before the map
                begin += file.read(min(length - len(begin), len(begin)))
                own = _kind_of(begin)
            if group and (own != kind or size + length > COMMIT_PACK_BYTES):
                yield writer.send_records({kind: group})
                group, size = [], 0
            kind = own
            if length <= COMMIT_PACK_BYTES:
                group.append(begin + file.read(length - len(begin)))
                size += length
                continue
            yield writer.send_records_head(kind, 1) + begin
            left = length - len(begin)
            while left:
                piece = file.read(min(left, CHUNK_BYTES))
                left -= len(piece)
                yield piece
        if group:
            yield writer.send_records({kind: group})


def _kind_of(begin: bytes) -> str | None:
    """Tell a full snapshot record from a delta by its members; ``None`` when more of it is needed."""
    unpacker = msgpack.Unpacker(max_buffer_size=len(begin) + 1)
    unpacker.feed(begin)
    try:
        for _ in range(unpacker.read_map_header()):
            name = unpacker.unpack()
            if name == "manifest":
                return "snapshots"
            if name in _DELTA_KEYS:
                return "snapshot_deltas"
            unpacker.skip()
    except msgpack.OutOfData:
        return None
    raise ValueError("a snapshot record without paths")
