"""Admitting objects: inflate under a budget, rebuild from a delta's base, hash, compare with the id.

Nothing goes on from here whose bytes do not hash to its id (regression R1). Small contents are hashed in the loop,
piece by piece; large ones in a worker thread, from disk to disk.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import trio

from actors.push.claims import claim_held
from actors.push.context import Attempt, Counts, PushServices
from actors.spool import Spool, SpoolDirectory
from storage.contents import read_contents
from wire.deltas import delta_pieces, result_size
from wire.errors import Code, Refusal
from wire.frames import INLINE_BYTES, Object
from wire.ids import Kind, Scheme, format_id, hash_bytes, hasher_for, parse_id
from wire.inflate import inflate, inflate_stream
from wire.limits import Limits

_SMALL_BYTES = 64 * 1024
"""Bases, deltas and results up to this size are worked on in the loop."""
_RECENT_BYTES = 1024 * 1024
"""Contents kept at hand as likely bases of the next deltas."""


@dataclass(frozen=True, slots=True)
class LargeObject:
    """An object that came in pieces, as encoded."""

    object_id: object
    encoding: str
    base: object
    spool: Spool
    most: int
    """The most bytes it may inflate to."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """A blob whose bytes are proved to be its id's."""

    object_id: bytes
    size: int
    content: bytes | Path


class Admitter:
    """Prove the objects of one push.

    ``barrier`` waits until every object admitted so far is recorded: a delta may name any of them as its base.
    """

    def __init__(
        self, services: PushServices, attempt: Attempt, spools: SpoolDirectory, counts: Counts,
        barrier: Callable[[], Awaitable[None]],
    ) -> None:  # fmt: skip
        self._services = services
        self._spools = spools
        self._attempt = attempt
        self._scheme = attempt.plan.scheme
        self._counts = counts
        self._barrier = barrier
        self._recent: dict[bytes, bytes] = {}
        self._recent_bytes = 0

    async def admit(self, item: Object | LargeObject) -> Admitted:
        """Admit one object.

        Raises:
            Refusal: ``bad_object_hash``, ``bomb``, ``malformed``, ``missing_objects`` (a delta's base).
        """
        if isinstance(item, LargeObject):
            return await self._admit_large(item)
        return await self._admit_small(item)

    @staticmethod
    def check_encoded_size(size: int, most: int) -> None:
        """Refuse an object that is too large before it is inflated."""
        if size > most:
            raise Refusal(Code.TOO_LARGE, f"an object of more than {most} bytes")

    async def _admit_small(self, item: Object) -> Admitted:
        limits = self._services.limits
        object_id = parse_id(item.object_id, self._scheme, "object_id")
        compression = item.encoding.removeprefix("delta+")
        budget = self._budget(limits.object_frame_bytes)
        if item.encoding != compression:
            return await self._admit_delta(object_id, item.base, compression, [item.content])
        try:
            content = inflate(compression, item.content, min(budget, INLINE_BYTES), limits)
        except Refusal as refusal:
            if refusal.code is not Code.BOMB or budget <= INLINE_BYTES:
                raise
            return await self._admit_inflating(item)
        self._spend(len(content))
        if hash_bytes(Kind.BLOB, content, self._scheme) != object_id:
            raise _bad_hash(object_id, self._scheme)
        self._remember(object_id, content)
        return Admitted(object_id, len(content), content)

    async def _admit_inflating(self, item: Object) -> Admitted:
        """Admit a small encoded content that inflates to a large one: by way of the disk."""
        spool = self._spools.new()
        await spool.append(item.content)
        most = self._services.limits.object_frame_bytes
        return await self._admit_large(LargeObject(item.object_id, item.encoding, item.base, spool, most))

    async def _admit_large(self, item: LargeObject) -> Admitted:
        object_id = parse_id(item.object_id, self._scheme, "object_id")
        if item.encoding.startswith("delta+"):
            compression = item.encoding.removeprefix("delta+")
            return await self._admit_delta(object_id, item.base, compression, item.spool.pieces())
        budget, limits, scheme = self._budget(item.most), self._services.limits, self._scheme
        size, digest, path = await trio.to_thread.run_sync(
            lambda: _prove(item.spool, item.encoding, budget, limits, scheme), abandon_on_cancel=False
        )
        self._spend(size)
        if digest != object_id:
            raise _bad_hash(object_id, self._scheme)
        if size <= INLINE_BYTES:  # many small pieces of a small object: a batch stores it better than a file
            content = await trio.to_thread.run_sync(path.read_bytes)
            return Admitted(object_id, size, content)
        return Admitted(object_id, size, path)

    async def _admit_delta(self, object_id: bytes, base: object, compression: str, pieces: Iterable[bytes]) -> Admitted:
        """Rebuild a content from its base: small ones at once, others in a worker thread and by way of the disk."""
        limits = self._services.limits
        content = await self._base(parse_id(base, self._scheme, "base"))
        left = limits.delta_push_instructions - self._counts.delta_instructions
        work = _Delta(
            content, compression, pieces, self._budget(limits.delta_bytes), min(left, limits.delta_instructions),
            limits, self._scheme,
        )  # fmt: skip
        small = isinstance(pieces, list) and len(content) <= _SMALL_BYTES and sum(map(len, pieces)) <= _SMALL_BYTES
        if not (small and work.try_small()):
            await trio.to_thread.run_sync(work.run, self._spools)
        self._counts.delta_instructions += work.instructions
        self._spend(work.size)
        if work.digest != object_id:
            raise _bad_hash(object_id, self._scheme)
        if isinstance(work.result, bytes):
            self._remember(object_id, work.result)
        return Admitted(object_id, work.size, work.result)

    async def _base(self, base_id: bytes) -> bytes:
        """Read a delta's base: of this push or of this repository, nothing else exists for it (threat T2)."""
        recent = self._recent.get(base_id)
        if recent is not None:
            return recent
        kept = self._attempt.kept
        if base_id not in kept:
            await self._barrier()  # what was on its way may be kept now
        content = kept.get(base_id)
        if content is not None:
            return content
        index, ticket = self._services.index, self._attempt.ticket
        lacking = await index.lacking_blobs(ticket, [base_id])
        if await claim_held(self._services, self._attempt, self._counts, lacking):
            raise _missing_base(base_id, self._scheme)
        place = (await index.places(self._scheme, [base_id])).get(base_id)
        if place is None:
            raise _missing_base(base_id, self._scheme)
        most = self._services.limits.delta_bytes
        if place.size > most:
            raise Refusal(Code.TOO_LARGE, f"a delta's base has {place.size} bytes, the limit is {most}")
        (content,) = await read_contents(index, self._services.store, self._scheme, [place])
        return content

    def _budget(self, most: int) -> int:
        return min(most, self._services.limits.inflated_push_bytes - self._counts.inflated_bytes)

    def _spend(self, size: int) -> None:
        self._counts.inflated_bytes += size

    def _remember(self, object_id: bytes, content: bytes) -> None:
        if len(content) > _RECENT_BYTES // 4 or object_id in self._recent:
            return
        self._recent[object_id] = content
        self._recent_bytes += len(content)
        while self._recent_bytes > _RECENT_BYTES:
            self._recent_bytes -= len(self._recent.pop(next(iter(self._recent))))


@dataclass(slots=True)
class _Delta:
    """A content on its way from its base; the base and the delta are in memory, a large result is on disk."""

    base: bytes
    compression: str
    pieces: Iterable[bytes]
    budget: int
    most: int
    """Instructions."""
    limits: Limits
    scheme: Scheme
    size: int = 0
    instructions: int = 0
    digest: bytes = b""
    result: bytes | Path = b""

    def try_small(self) -> bool:
        """Do it if that takes no time worth a thread."""
        try:
            delta = b"".join(inflate_stream(self.compression, self.pieces, _SMALL_BYTES, self.limits))
        except Refusal as refusal:
            if refusal.code is not Code.BOMB:
                raise
            return False
        if result_size(delta, self.budget) > _SMALL_BYTES:
            return False
        self._rebuild(delta, None)
        return True

    def run(self, spools: SpoolDirectory) -> None:
        """Do it; blocking, for a worker thread."""
        delta = bytearray()
        for piece in inflate_stream(self.compression, self.pieces, self.limits.delta_bytes, self.limits):
            delta += piece
        if result_size(delta, self.budget) <= INLINE_BYTES:
            self._rebuild(delta, None)
            return
        path = spools.new_path()
        with path.open("wb") as file:
            self._rebuild(delta, file)
        self.result = path

    def _rebuild(self, delta: bytes | bytearray, file: BinaryIO | None) -> None:
        hasher = hasher_for(Kind.BLOB, result_size(delta, self.budget), self.scheme)
        steps, whole = delta_pieces(self.base, delta, self.budget, self.most), bytearray()
        while True:
            try:
                piece = next(steps)
            except StopIteration as stop:
                self.instructions = stop.value
                break
            hasher.update(piece)
            self.size += len(piece)
            if file is None:
                whole += piece
            else:
                file.write(piece)
        self.digest = hasher.digest()
        self.result = bytes(whole)


def _prove(spool: Spool, encoding: str, budget: int, limits: Limits, scheme: Scheme) -> tuple[int, bytes, Path]:
    """Inflate from disk to disk and hash; the length comes first in a typed id, hence the second pass."""
    if encoding == "raw":
        size, path = spool.size, spool.flush()
        if size > budget:
            raise Refusal(Code.BOMB, f"a content has more than the {budget} bytes allowed here")
    else:
        path, size = spool.directory.new_path(), 0
        with path.open("wb") as file:
            for piece in inflate_stream(encoding, spool.pieces(), budget, limits):
                file.write(piece)
                size += len(piece)
    hasher = hasher_for(Kind.BLOB, size, scheme)
    for piece in _file_pieces(path):
        hasher.update(piece)
    return size, hasher.digest(), path


def _file_pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(256 * 1024):
            yield piece


def _bad_hash(object_id: bytes, scheme: Scheme) -> Refusal:
    shown = format_id(object_id, scheme)
    return Refusal(Code.BAD_OBJECT_HASH, f"object {shown} does not hash to its id", id=shown)


def _missing_base(base_id: bytes, scheme: Scheme) -> Refusal:
    shown = format_id(base_id, scheme)
    return Refusal(
        Code.MISSING_OBJECTS, f"a delta's base {shown} is neither in this push nor in this repository", missing=[shown]
    )
