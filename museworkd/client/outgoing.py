"""What a push sends, found out before anything is sent: what the server's branches lack, snapshots as deltas."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import msgpack

from actors.fetch.contents import ContentWriter
from actors.fetch.plan import FetchPlan
from actors.history import range_of
from actors.spool import Spool, SpoolDirectory
from museworkd.client.errors import ClientError
from museworkd.client.limits import CLIENT_LIMITS
from museworkd.client.repository import LocalRepository
from storage.layout import Place
from wire.graph import CommitFacts

FULL, DELTA, COMMIT = b"S", b"D", b"C"
"""What kind of record follows in a spool."""
HEADS_MOST = 8
"""Of the server's heads that a push does not build on, so many are looked at for blobs that need not be sent."""
_FRAME_HEAD_BYTES = 9


@dataclass(frozen=True, slots=True)
class Outgoing:
    """Everything one push sends; the records are framed by their kind and length."""

    commits: int
    snapshots: Spool
    records: Spool
    blobs: list[Place]

    @property
    def blob_bytes(self) -> int:
        """The contents' lengths together."""
        return sum(place.size for place in self.blobs)


async def find_outgoing(
    repository: LocalRepository, head: bytes, remote_heads: set[bytes], spools: SpoolDirectory,
    acknowledged: Iterable[bytes] = (),
) -> Outgoing:  # fmt: skip
    """Collect what leads to ``head`` and to none of the server's heads, whichever branch they are of.

    Args:
        repository: where everything is read from.
        head: what is pushed.
        remote_heads: the server's, known here or not.
        spools: where the records are kept.
        acknowledged: commits of ours that the server holds below heads that are not here.

    Raises:
        ClientError: the repository lacks a blob.
    """
    index, scheme = repository.index, repository.scheme
    known = sorted(commit_id for commit_id in remote_heads if index.has_commit(commit_id))
    walk = await range_of(index, scheme, [head], {*known, *acknowledged})
    commits = tuple(reversed(walk.found))
    bases = list(dict.fromkeys([*walk.boundary(), *known[:HEADS_MOST]])) if commits else []
    boundary: list[CommitFacts] = [fact for i in bases if (fact := index.facts(i)) is not None]
    outgoing = Outgoing(len(commits), spools.new(), spools.new(), [])
    contents = ContentWriter(index, 0, scheme, FetchPlan(commits, tuple(boundary), ()), CLIENT_LIMITS)

    async def snapshot(record: Mapping[str, object]) -> None:
        await outgoing.snapshots.append(_framed(FULL if "manifest" in record else DELTA, record))

    async def commit(record: Mapping[str, object]) -> None:
        await outgoing.records.append(_framed(COMMIT, record))

    await contents.run(snapshot, commit)
    for part in contents.blobs.parts(500):
        places = await index.places(scheme, part)
        for blob_id in part:
            if blob_id not in places:
                raise ClientError(f"blob {blob_id.hex()} is missing here: run `museworkd verify`")
            outgoing.blobs.append(places[blob_id])
    outgoing.blobs.sort(key=lambda place: (place.pack_id or b"", place.offset))
    return outgoing


def _framed(tag: bytes, record: Mapping[str, object]) -> bytes:
    packed: bytes = msgpack.packb(record, use_bin_type=True)
    return tag + len(packed).to_bytes(8, "little") + packed


def framed_records(spool: Spool) -> Iterator[tuple[bytes, bytes]]:
    """Give the records of a spool, each with its kind; blocking when the spool is on disk."""
    with spool.open() as file:
        while head := file.read(_FRAME_HEAD_BYTES):
            yield head[:1], file.read(int.from_bytes(head[1:], "little"))
