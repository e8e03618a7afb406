"""Reading from an S3-compatible store: many byte ranges with few requests, and long contents piece by piece."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import obstore
import trio
from obstore.exceptions import BaseError

from storage.environment import Environment
from storage.errors import ObjectDamaged, ObjectMissing, StorageError, StoreUnavailable
from storage.object_store import ReadRange
from storage.objects.retrying import RetryPolicy
from storage.objects.s3_client import Clients, ClientSource
from storage.objects.s3_errors import answer_of_error

T = TypeVar("T")
InThread = Callable[[Callable[[], T]], Awaitable[T]]

COALESCE_GAP_BYTES = 64 * 1024
"""Reading this much for nothing takes less time than one more request."""
COALESCE_MOST_BYTES = 4 * 1024 * 1024
PARALLEL_READS = 16
"""Requests of one call at once; with the above it bounds what a call holds beside its result."""
PIECE_BYTES = 256 * 1024
_FETCHED_BYTES = 512 * 1024
"""One hop to a worker thread each: at a time a stream holds this, and what the connection has received already."""
RESUMES = RetryPolicy(attempts=5, first_delay_s=0.1, longest_delay_s=2.0)
"""Of a broken stream, since it last got anywhere."""


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring ranges of one key, read by one request."""

    key: str
    start: int
    end: int
    ranges: tuple[tuple[int, ReadRange], ...]
    """Each with its place in the result."""


def runs_of(ranges: Sequence[ReadRange]) -> list[Run]:
    """Put neighbours together; raises ``ObjectDamaged`` for what no content can have."""
    by_key: dict[str, list[tuple[int, ReadRange]]] = {}
    for at, wanted in enumerate(ranges):
        if wanted.offset < 0 or wanted.size < 0:
            raise ObjectDamaged(f"{wanted.key}: {wanted.offset}+{wanted.size} were asked for")
        by_key.setdefault(wanted.key, []).append((at, wanted))
    return [run for key, placed in by_key.items() for run in _runs_of_key(key, placed)]


def _runs_of_key(key: str, placed: list[tuple[int, ReadRange]]) -> Iterator[Run]:
    placed.sort(key=lambda item: (item[1].offset, item[1].size))
    held: list[tuple[int, ReadRange]] = []
    start = end = 0
    for item in placed:
        wanted = item[1]
        wanted_end = wanted.offset + wanted.size
        if held and (wanted.offset - end > COALESCE_GAP_BYTES or wanted_end - start > COALESCE_MOST_BYTES):
            yield Run(key, start, end, tuple(held))
            held = []
        if not held:
            start = end = wanted.offset
        held.append(item)
        end = max(end, wanted_end)
    yield Run(key, start, end, tuple(held))


def read_run(source: ClientSource, name: str, run: Run) -> list[tuple[int, bytes]]:
    """Read a run and give each range's content with its place; blocking. ``name`` is the key within the bucket."""
    start, end = (run.start, run.end) if run.end > run.start else _neighbour(run.start)
    found = read_part(source, run.key, name, start, end)
    if found is None:
        total, block = 0 if start == 0 else -1, memoryview(b"")
    else:
        total, block = found
    if run.end > total:
        raise ObjectDamaged(f"{run.key} has fewer than the {run.end} bytes that were asked for")
    if run.end > run.start and len(block) != end - start:
        raise StoreUnavailable(f"{run.key}: {len(block)} bytes came of {end - start}")
    return [(at, bytes(block[r.offset - start : r.offset - start + r.size]) if r.size else b"") for at, r in run.ranges]


def read_part(source: ClientSource, key: str, name: str, start: int, end: int) -> tuple[int, memoryview] | None:
    """Read bytes and tell the whole content's length; ``None`` when it ends before ``start``, or is empty."""

    def request(clients: Clients) -> tuple[int, memoryview] | None:
        try:
            result = obstore.get(clients.small, name, options={"range": (start, end)})
            return result.meta["size"], memoryview(result.bytes())
        except BaseError as error:
            if answer_of_error(error).beyond_end:
                return None
            raise

    return source.call(key, request)


def _neighbour(offset: int) -> tuple[int, int]:
    """A part of one byte: none can be asked for."""
    return (offset - 1, offset) if offset else (0, 1)


class StreamRead:
    """One long content being read; a connection that breaks is replaced by one that goes on where it was."""

    def __init__(
        self, source: ClientSource, environment: Environment, in_thread: InThread[bytes | None], key: str, name: str
    ) -> None:
        self._source = source
        self._environment = environment
        self._in_thread = in_thread
        self._key = key
        self._name = name
        self._tag: str | None = None
        self._chunks: Iterator[bytes] | None = None
        self._at = 0
        self._end = 0

    def open(self, offset: int, size: int | None) -> None:
        """Begin; blocking.

        Raises:
            ObjectDamaged: the content does not have these bytes.
        """
        if offset < 0 or (size is not None and size < 0):
            raise ObjectDamaged(f"{self._key}: {offset}+{size} were asked for")
        if size == 0 or offset:
            total = self._open_part(offset, size)
        else:
            total = self._open_from(0, size)
        self._at, self._end = offset, total if size is None else offset + size
        if self._end > total or offset > total:
            self.close()
            raise ObjectDamaged(f"{self._key} has {total} bytes, {offset}+{size} were asked for")

    def close(self) -> None:
        """Let go of the connection."""
        self._chunks = None

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """Give the bytes in pieces."""
        attempt = 1
        while self._at < self._end:
            try:
                chunk = await self._in_thread(self._next)
            except StorageError as error:
                if not error.temporary or attempt >= RESUMES.attempts or self._tag is None:
                    raise
                self.close()
                await trio.sleep(RESUMES.delay_s(attempt, self._environment.jitter()))
                attempt += 1
                continue
            if chunk is None:
                raise ObjectDamaged(f"{self._key} ends at byte {self._at}, {self._end} were expected")
            attempt = 1
            for at in range(0, len(chunk), PIECE_BYTES):
                piece = chunk[at : at + PIECE_BYTES]
                self._at += len(piece)
                yield piece

    def _next(self) -> bytes | None:
        if self._chunks is None:
            self._open_from(self._at, self._end - self._at)
        chunks = self._chunks
        assert chunks is not None
        try:
            return next(chunks, None)
        except (BaseError, OSError) as error:
            raise self._source.meaning(answer_of_error(error), self._key) from None

    def _open_part(self, offset: int, size: int | None) -> int:
        """Open where a range may be empty, which cannot be asked for; gives the whole content's length."""
        if size:
            return self._open_from(offset, size)
        start, end = _neighbour(offset)
        found = read_part(self._source, self._key, self._name, start, end)
        total = found[0] if found is not None else (0 if start == 0 else -1)
        if size is None and total > offset:
            self._open_from(offset, total - offset)
        return total

    def _open_from(self, offset: int, size: int | None) -> int:
        def request(clients: Clients) -> tuple[int, str | None, Iterator[bytes] | None]:
            options: obstore.GetOptions = {}
            if offset or size is not None:
                options["range"] = (offset, offset + size) if size is not None else {"offset": offset}
            if self._tag is not None:
                options["if_match"] = self._tag
            try:
                result = obstore.get(clients.streams, self._name, options=options)
            except BaseError as error:
                answer = answer_of_error(error)
                if answer.beyond_end:
                    return -1, None, None
                if answer.status == 412:
                    raise StoreUnavailable(f"{self._key} was replaced while it was read") from None
                raise
            return result.meta["size"], result.meta["e_tag"], iter(result.stream(min_chunk_size=_FETCHED_BYTES))

        try:
            total, self._tag, self._chunks = self._source.call(self._key, request)
        except ObjectMissing:
            if self._tag is None:
                raise
            raise StoreUnavailable(f"{self._key} was removed while it was read") from None
        return total
