"""An object store in a bucket of an S3-compatible service.

A put is durable when the service has said so, and replaces the whole content at once. Bodies are signed with their
hash, so a service that checks signatures takes none that was damaged on the way. Work is done in worker threads, with
limits of their own; one that nobody waits for any more ends by the client's timeouts.

No request is made only to learn whether something is there: an answer's own headers tell sizes.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import obstore
import trio
from obstore.exceptions import BaseError

from storage.environment import Environment
from storage.errors import ObjectMissing, StorageError, StoreUnavailable
from storage.layout import check_key, is_key
from storage.object_store import ReadRange, StoredObject, StoreStatistics, UrlSigning
from storage.objects.s3_client import Clients, ClientSource
from storage.objects.s3_credentials import CredentialSource
from storage.objects.s3_errors import answer_of_error
from storage.objects.s3_reads import PARALLEL_READS, StreamRead, read_part, read_run, runs_of
from storage.objects.s3_requests import S3Requests
from storage.objects.s3_settings import S3Settings
from storage.objects.s3_uploads import Uploads
from storage.objects.s3_urls import S3UrlSigning

T = TypeVar("T")

PAGE_KEYS = 1_000
"""Keys of a listing's page, and of one request that deletes."""
_BATCH_S = 0.02
"""How long a batch of puts may take before it is worth another thread: with a near store a few threads do it all."""
_LATENCY_WEIGHT = 0.1
_JOB_ATTEMPTS = 3
_FAILURES_MOST = 16
"""Of one call: a store that is down is not asked for every one of a batch."""


class S3Store:
    """``ObjectStore`` over an S3-compatible service."""

    def __init__(
        self, settings: S3Settings, credentials: CredentialSource, environment: Environment,
        puts: int = 100, gets: int = 64,
    ) -> None:  # fmt: skip
        self.settings = settings
        self.credentials = credentials
        self._environment = environment
        self._puts = trio.CapacityLimiter(puts)
        self._gets = trio.CapacityLimiter(gets)
        self._clients = ClientSource(settings, credentials, puts + gets)
        self.requests = S3Requests(settings, credentials, environment)
        self.uploads = Uploads(self.requests, environment, self._puts)
        self._signing: S3UrlSigning | None = S3UrlSigning(settings, credentials, environment)
        self._put_s = _BATCH_S
        """How long one put takes, smoothed."""
        self._statistics = StoreStatistics()

    async def put_batch(self, items: Sequence[tuple[str, bytes]]) -> None:
        """See ``ObjectStore``; several requests at once, of which each thread makes some."""
        wanted = {self._name(key): (key, content) for key, content in items}
        workers = min(len(wanted), math.ceil(len(wanted) * self._put_s / _BATCH_S))

        def put(name: str, key: str, content: bytes) -> None:
            self._clients.call(key, lambda c: obstore.put(c.small, name, content, use_multipart=False))

        began = trio.current_time()
        await self._share(
            self._puts,
            workers,
            [lambda n=n, k=k, c=c: put(n, k, c) for n, (k, c) in wanted.items()],  # type: ignore[misc]
        )
        if wanted:
            each_s = (trio.current_time() - began) * workers / len(wanted)
            self._put_s += _LATENCY_WEIGHT * (each_s - self._put_s)
        self._statistics.puts += len(items)
        self._statistics.put_bytes += sum(len(content) for _, content in items)

    async def put_file(self, key: str, path: Path) -> None:
        """See ``ObjectStore``; in parts from 16 MiB on (``storage.objects.s3_uploads``)."""
        check_key(key)
        size = await self._in_thread(self._puts, lambda: path.stat().st_size if path.exists() else None)
        if size is None:
            await self.uploads.require(key, path)
        else:
            await self.uploads.put(key, path, size)
            await self._in_thread(self._puts, lambda: path.unlink(missing_ok=True))
        self._statistics.puts += 1
        self._statistics.put_bytes += size or 0

    async def copy(self, source: str, target: str) -> None:
        """See ``ObjectStore``; contents up to 5 GiB, as S3 has it."""
        names = self._name(source), self._name(target)
        await self._call(self._puts, source, lambda clients: obstore.copy(clients.small, *names))
        self._statistics.puts += 1

    async def get(self, key: str, most: int) -> bytes:
        """See ``ObjectStore``."""
        name = self._name(key)

        def read(clients: Clients) -> bytes:
            result = obstore.get(clients.small, name)
            size = result.meta["size"]
            if size > most:
                raise ValueError(f"{key} has {size} bytes, at most {most} were expected")
            content = bytes(result.bytes())
            if len(content) != size:
                raise StoreUnavailable(f"{key}: {len(content)} bytes came of {size}")
            return content

        content = await self._call(self._gets, key, read)
        self._statistics.gets += 1
        self._statistics.get_bytes += len(content)
        return content

    async def get_ranges(self, ranges: Sequence[ReadRange]) -> list[bytes]:
        """See ``ObjectStore``; neighbouring ranges of one key take one request."""
        names = {r.key: self._name(r.key) for r in ranges}
        runs = runs_of(ranges)
        result = [b""] * len(ranges)

        def read(at: int) -> None:
            for place, content in read_run(self._clients, names[runs[at].key], runs[at]):
                result[place] = content

        await self._share(self._gets, PARALLEL_READS, [lambda n=n: read(n) for n in range(len(runs))])  # type: ignore[misc]
        self._statistics.gets += len(names)
        self._statistics.get_bytes += sum(map(len, result))
        return result

    @asynccontextmanager
    async def stream(self, key: str, offset: int = 0, size: int | None = None) -> AsyncIterator[AsyncIterator[bytes]]:
        """See ``ObjectStore``; one request, and another where its connection broke."""
        name = self._name(key)
        reading = StreamRead(
            self._clients, self._environment, lambda work: self._in_thread(self._gets, work), key, name
        )
        try:
            await self._in_thread(self._gets, lambda: reading.open(offset, size))
            self._statistics.gets += 1
            async with aclosing(self._counted(reading)) as pieces:
                yield pieces
        finally:
            reading.close()

    async def size(self, key: str) -> int:
        """See ``ObjectStore``; one byte is asked for, since a refused HEAD does not tell a bucket from a key."""
        name = self._name(key)
        found = await self._in_thread(self._gets, lambda: read_part(self._clients, key, name, 0, 1))
        return 0 if found is None else found[0]

    async def delete(self, keys: Iterable[str]) -> None:
        """See ``ObjectStore``; up to 1,000 in a request."""
        names = [self._name(key) for key in keys]
        for start in range(0, len(names), PAGE_KEYS):
            page = names[start : start + PAGE_KEYS]
            try:
                await self._call(self._puts, page[0], lambda clients, p=page: obstore.delete(clients.small, p))  # type: ignore[misc]
            except ObjectMissing:  # from a service that minds
                await self._delete_each(page)
            self._statistics.deletes += len(page)
        if not names:
            await trio.lowlevel.checkpoint()

    async def scan(self, prefix: str) -> AsyncIterator[StoredObject]:
        """See ``ObjectStore``; a page of 1,000 keys at a time."""
        under = self.settings.full_key(check_key(prefix.rstrip("/")) if prefix else "").rstrip("/")
        own = self.settings.full_key("")
        pages: list[Iterator[Sequence[obstore.ObjectMeta]]] = []

        def page(clients: Clients) -> Sequence[obstore.ObjectMeta] | None:
            if not pages:
                pages.append(iter(obstore.list(clients.small, under or None, chunk_size=PAGE_KEYS)))
            return next(pages[0], None)

        while found := await self._call(self._gets, prefix, page):
            for row in found:
                key = row["path"].removeprefix(own)
                if is_key(key):  # what else is in the bucket is not ours
                    yield StoredObject(key, row["size"], row["last_modified"].timestamp())

    def statistics(self) -> StoreStatistics:
        """See ``ObjectStore``."""
        limiters = [limiter.statistics() for limiter in (self._puts, self._gets)]
        return replace(
            self._statistics, running=sum(each.borrowed_tokens for each in limiters),
            waiting=sum(each.tasks_waiting for each in limiters),
        )  # fmt: skip

    def signing(self) -> UrlSigning | None:
        """See ``ObjectStore``; ``None`` once it is known that the service does not keep what a URL promises."""
        return self._signing

    def give_up_signing(self) -> None:
        """Let the daemon sign URLs to itself: the service does not keep what a URL promises."""
        self._signing = None

    async def sweep_temporary(self, older_than_s: float) -> int:
        """See ``ObjectStore``: uploads in parts."""
        return await self.uploads.sweep(older_than_s)

    async def _delete_each(self, names: list[str]) -> None:
        for name in names:
            try:
                await self._call(self._puts, name, lambda clients, n=name: obstore.delete(clients.small, n))  # type: ignore[misc]
            except ObjectMissing:
                continue

    async def _counted(self, reading: StreamRead) -> AsyncGenerator[bytes, None]:
        async with aclosing(reading.pieces()) as pieces:
            async for piece in pieces:
                self._statistics.get_bytes += len(piece)
                yield piece

    async def _call(self, limiter: trio.CapacityLimiter, key: str, request: Callable[[Clients], T]) -> T:
        return await self._in_thread(limiter, lambda: self._clients.call(key, request))

    async def _in_thread(self, limiter: trio.CapacityLimiter, work: Callable[[], T]) -> T:
        def translated() -> T:
            try:
                return work()
            except BaseError as error:
                raise self._clients.meaning(answer_of_error(error), "") from None
            except OSError as error:  # of a local file
                raise StoreUnavailable(str(error), temporary=False) from error

        return await trio.to_thread.run_sync(translated, limiter=limiter, abandon_on_cancel=True)

    async def _share(self, limiter: trio.CapacityLimiter, workers: int, jobs: Iterable[Callable[[], None]]) -> None:
        """Let threads take jobs until none is left, too much has failed, or nobody waits any more.

        What fails for a while is taken again after the others, or a batch that is begun anew would never come through
        a store of which every tenth request fails.
        """
        waiting = deque((job, 1) for job in jobs)
        failures: list[StorageError] = []
        stopped = threading.Event()

        def work() -> None:
            while not stopped.is_set():
                try:
                    job, attempt = waiting.popleft()
                except IndexError:
                    return
                try:
                    job()
                except StorageError as error:
                    failures.append(error)
                    if not error.temporary or attempt >= _JOB_ATTEMPTS or len(failures) >= _FAILURES_MOST:
                        stopped.set()
                        raise
                    waiting.append((job, attempt + 1))

        async def one() -> None:
            try:
                await self._in_thread(limiter, work)
            except StorageError as error:
                failures.insert(0, error)
                stopped.set()

        try:
            await trio.lowlevel.checkpoint()
            async with trio.open_nursery() as nursery:
                for _ in range(min(workers, len(waiting))):
                    nursery.start_soon(one)
            if stopped.is_set():
                raise failures[0]
        finally:
            stopped.set()

    def _name(self, key: str) -> str:
        return self.settings.full_key(check_key(key))
