"""Files into an S3-compatible store: in one request, or in parts when they are large.

How a large file is stored, and what is left if the process dies after each step:

1. an upload in parts is begun — left: an upload without parts, seen by nobody;
2. its parts are sent, a few at a time, each from the file as it is read — left: parts that cost room and that nobody
   sees;
3. it is completed: from now on the key has the whole content — left: the local file, of no further use;
4. the local file is removed.

An upload that fails or is cancelled is given up at once. What a dead process leaves is given up by its age
(:meth:`Uploads.sweep`).
"""

from __future__ import annotations

import datetime as dt
import html
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import structlog
import trio

from storage.environment import Environment
from storage.errors import ObjectMissing, StorageError, StoreUnavailable
from storage.objects.retrying import RetryPolicy
from storage.objects.s3_requests import BytesBody, FileBody, S3Requests

T = TypeVar("T")
log = structlog.get_logger("store")

PART_BYTES = 16 * 1024 * 1024
PARTS_MOST = 10_000
PARALLEL_PARTS = 4
PART_RETRIES = RetryPolicy(attempts=4, first_delay_s=0.1, longest_delay_s=2.0, budget_s=15.0)
"""For one request of an upload: a file of a thousand parts is not begun anew for one that failed."""
_GIVE_UP_S = 10.0
_PARTS_END_S = 5.0
PAGE_UPLOADS = 1_000
_PAGES_MOST = 1_000
_UPLOAD = re.compile(r"<Upload>(.*?)</Upload>", re.DOTALL)


class Uploads:
    """Stores files. ``limiter`` bounds the threads."""

    def __init__(self, requests: S3Requests, environment: Environment, limiter: trio.CapacityLimiter) -> None:
        self._requests = requests
        self._environment = environment
        self._limiter = limiter
        self.page_uploads = PAGE_UPLOADS
        self.part_bytes = PART_BYTES

    async def put(self, key: str, path: Path, size: int) -> None:
        """Store a file's content; the file stays."""
        if size <= self.part_bytes:
            await self._in_thread(lambda stopped: self._put_whole(key, path, size, stopped))
        else:
            await self._put_parts(key, path, size)

    async def sweep(self, older_than_s: float) -> int:
        """Give up uploads that were begun so long ago and never ended; gives how many."""
        limit = self._environment.now() - dt.timedelta(seconds=older_than_s)
        count, markers = 0, {"key-marker": "", "upload-id-marker": ""}
        for _ in range(_PAGES_MOST):
            page = await self._in_thread(lambda _, m=dict(markers): self._page(m))  # type: ignore[misc]
            for full_key, upload_id, begun in _uploads_of(page):
                key = full_key.removeprefix(self._requests.settings.full_key(""))
                if begun < limit:
                    await self._in_thread(lambda _, k=key, u=upload_id: self._abort(k, u))  # type: ignore[misc]
                    count += 1
            if _text_of(page, "IsTruncated") != "true":
                break
            markers = {"key-marker": _text_of(page, "NextKeyMarker"),
                       "upload-id-marker": _text_of(page, "NextUploadIdMarker")}  # fmt: skip
        return count

    async def _put_parts(self, key: str, path: Path, size: int) -> None:
        part_bytes = max(self.part_bytes, -(-size // PARTS_MOST))
        offsets = list(range(0, size, part_bytes))
        upload = _Upload(await self._retried(lambda _: self._begin(key)), len(offsets))
        failures: list[StorageError] = []
        waiting = iter(list(enumerate(offsets)))

        async def send(scope: trio.CancelScope) -> None:
            for at, offset in waiting:
                body = FileBody(path, offset, min(part_bytes, size - offset), upload.stopped.is_set)
                try:
                    upload.tags[at] = await self._retried(
                        lambda _, n=at + 1, b=body: self._part(key, upload, n, b)  # type: ignore[misc]
                    )
                except StorageError as error:
                    failures.append(error)
                    scope.cancel()
                    return

        try:
            async with trio.open_nursery() as nursery:
                for _ in range(min(PARALLEL_PARTS, len(offsets))):
                    nursery.start_soon(send, nursery.cancel_scope)
            if failures:
                raise failures[0]
            await self._retried(lambda _: self._complete(key, upload, size))
        except BaseException:
            await self._give_up(key, upload)
            raise

    async def _give_up(self, key: str, upload: _Upload) -> None:
        upload.stopped.set()
        with trio.move_on_after(_GIVE_UP_S, shield=True) as limit:
            try:
                await self._in_thread(lambda _: self._abort_when_idle(key, upload))
            except StorageError as error:
                log.warning("an upload is left over until its age ends it", key=key, error=str(error))
        if limit.cancelled_caught:
            log.warning("an upload is left over until its age ends it", key=key, error="the store does not answer")

    async def _retried(self, work: Callable[[Callable[[], bool]], T]) -> T:
        attempt, give_up_at = 1, trio.current_time() + PART_RETRIES.budget_s
        while True:
            try:
                return await self._in_thread(work)
            except StorageError as error:
                delay_s = PART_RETRIES.delay_s(attempt, self._environment.jitter())
                late = trio.current_time() + delay_s > give_up_at
                if not error.temporary or attempt >= PART_RETRIES.attempts or late:
                    raise
            attempt += 1
            await trio.sleep(delay_s)

    async def _in_thread(self, work: Callable[[Callable[[], bool]], T]) -> T:
        """Run in a worker thread; one that nobody waits for any more is told so."""
        stopped = threading.Event()

        def translated() -> T:
            try:
                return work(stopped.is_set)
            except OSError as error:  # of the local file
                raise StoreUnavailable(str(error), temporary=False) from error

        try:
            return await trio.to_thread.run_sync(translated, limiter=self._limiter, abandon_on_cancel=True)
        except BaseException:
            stopped.set()
            raise

    def _put_whole(self, key: str, path: Path, size: int, stopped: Callable[[], bool]) -> None:
        self._requests.do("PUT", key, body=FileBody(path, 0, size, stopped))

    def _begin(self, key: str) -> str:
        found = _text_of(self._requests.do("POST", key, {"uploads": ""}).body.decode("utf-8", "replace"), "UploadId")
        if not found:
            raise StoreUnavailable("the S3 store began an upload and did not name it", temporary=False)
        return found

    def _part(self, key: str, upload: _Upload, number: int, body: FileBody) -> str:
        with upload.running():
            query = {"partNumber": str(number), "uploadId": upload.id}
            return self._requests.do("PUT", key, query, body).headers.get("etag", "")

    def _complete(self, key: str, upload: _Upload, size: int) -> None:
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{html.escape(tag)}</ETag></Part>"
            for number, tag in enumerate(upload.tags, 1)
        )
        text = f'<CompleteMultipartUpload xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{parts}'
        body = BytesBody(f"{text}</CompleteMultipartUpload>".encode())
        response = self._requests.ask("POST", key, {"uploadId": upload.id}, body)
        if response.succeeded or (response.answer.code == "NoSuchUpload" and self._completed(key, upload, size)):
            return
        raise self._requests.meaning(response.answer, key)

    def _completed(self, key: str, upload: _Upload, size: int) -> bool:
        """Tell whether an earlier request, whose answer was lost, has completed the upload."""
        response = self._requests.ask("GET", key, headers={"range": "bytes=0-0"})
        return response.status == 206 and response.headers.get("content-range", "").endswith(f"/{size}") and (
            response.headers.get("etag", "").strip('"').endswith(f"-{len(upload.tags)}")
        )  # fmt: skip

    def _look(self, key: str) -> None:
        response = self._requests.ask("GET", key, headers={"range": "bytes=0-0"})
        if not response.succeeded and not response.answer.beyond_end:  # which an empty content answers
            raise self._requests.meaning(response.answer, key)

    def _abort_when_idle(self, key: str, upload: _Upload) -> None:
        """Wait until no part is on its way any more: it would be kept by a server that has forgotten the upload."""
        upload.wait_idle(_PARTS_END_S)
        self._abort(key, upload.id)

    def _abort(self, key: str, upload_id: str) -> None:
        response = self._requests.ask("DELETE", key, {"uploadId": upload_id})
        if not response.succeeded and response.answer.code != "NoSuchUpload":
            raise self._requests.meaning(response.answer, key)

    def _page(self, markers: dict[str, str]) -> str:
        prefix = self._requests.settings.prefix
        query = {"uploads": "", "max-uploads": str(self.page_uploads)} | {
            name: value for name, value in markers.items() if value
        }
        query |= {"prefix": f"{prefix}/"} if prefix else {}
        return self._requests.do("GET", "", query).body.decode("utf-8", "replace")

    async def require(self, key: str, path: Path) -> None:
        """Accept a file that is not there when an earlier call has stored it.

        Raises:
            StoreUnavailable: neither the file nor the key is there.
        """
        try:
            await self._retried(lambda _: self._look(key))
        except ObjectMissing:
            raise StoreUnavailable(f"{path} is not there, and neither is {key}", temporary=False) from None


class _Upload:
    """One upload in parts."""

    def __init__(self, upload_id: str, parts: int) -> None:
        self.id = upload_id
        self.tags = [""] * parts
        self.stopped = threading.Event()
        self._changed = threading.Condition()
        self._running = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count a part that is on its way."""
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def wait_idle(self, timeout_s: float) -> None:
        """Wait until no part is on its way."""
        with self._changed:
            self._changed.wait_for(lambda: self._running == 0, timeout_s)

    def _count(self, change: int) -> None:
        with self._changed:
            self._running += change
            self._changed.notify_all()


def _uploads_of(page: str) -> list[tuple[str, str, dt.datetime]]:
    found = []
    for text in _UPLOAD.findall(page):
        try:
            begun = dt.datetime.fromisoformat(_text_of(text, "Initiated"))
        except ValueError:  # of an age nobody knows: left
            continue
        if begun.tzinfo is None:
            begun = begun.replace(tzinfo=dt.UTC)
        found.append((_text_of(text, "Key"), _text_of(text, "UploadId"), begun))
    return found


def _text_of(text: str, name: str) -> str:
    found = re.search(rf"<{name}>([^<]*)</{name}>", text)
    return html.unescape(found[1]) if found else ""
