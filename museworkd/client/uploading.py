"""Uploading to signed URLs (protocol §6, §7), and going on where a connection broke off."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol, Self

import trio

from museworkd.client.blob_packs import PackFiles
from museworkd.client.connection import Connection, Target
from museworkd.client.errors import GivenUpError, StaleUrlError, TransferError
from museworkd.client.progress import Meter, Phase
from museworkd.client.transport import answered
from storage.layout import Place

ATTEMPTS = 8
"""Attempts that bring next to nothing, before it is given up."""
WHOLE_BYTES = 256 * 1024
"""Up to this size a content is sent in one piece, and again from its beginning."""
_HEADWAY_BYTES = 8 * 1024 * 1024
"""An attempt that brings so much is no failure: some proxies cut every long request."""
_PIECE_BYTES = 256 * 1024
_LONGEST_PAUSE_S = 10.0


class Source(Protocol):
    """A content to upload."""

    @property
    def size(self) -> int:
        """Its length in bytes."""

    def pieces(self, start: int) -> Iterator[bytes]:
        """Give it from an offset on; blocking."""


class FileSource:
    """A whole file."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self.size = size

    def pieces(self, start: int) -> Iterator[bytes]:
        """See ``Source``."""
        file: BinaryIO
        with self._path.open("rb") as file:
            file.seek(start)
            while piece := file.read(_PIECE_BYTES):
                yield piece


class BlobSource:
    """A blob of the local repository; one that is read from its beginning is proved on the way."""

    def __init__(self, files: PackFiles, place: Place) -> None:
        self._files = files
        self._place = place
        self.size = place.size

    def pieces(self, start: int) -> Iterator[bytes]:
        """See ``Source``."""
        if self.size <= WHOLE_BYTES:
            yield self._files.read(self._place)
        elif start == 0:
            yield from self._files.pieces(self._place)
        else:
            yield from self._files.rest(self._place, start)


class Uploader:
    """Uploads, one after the other, over one connection for as long as they go to one place."""

    def __init__(self, media_type: str, *, resuming: bool, meter: Meter | None = None) -> None:
        """Take what the uploads have in common.

        Args:
            media_type: of the contents.
            resuming: an earlier attempt may have brought a part already.
            meter: shows that an upload is tried again; without it the phase of the upload tells.
        """
        self._media_type = media_type
        self._meter = meter
        self._resuming = resuming
        self._connection: Connection | None = None
        self.sent_bytes = 0
        """Of contents, all attempts together."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._connection is not None:
            await self._connection.aclose()

    async def upload(self, url: str, source: Source, phase: Phase, *, resumable: bool = True) -> None:
        """PUT a content; what was lost on the way is taken up again where the server says it broke off.

        Args:
            url: where to; nothing but the content is sent there, no authorisation above all.
            source: the content.
            phase: is told how far it is.
            resumable: the URL knows what an earlier attempt has brought; else the content is sent whole each time.

        Raises:
            ClientError: the server does not want it.
            TransferError: it could not be sent within some attempts, or the URL is too old; sending it again goes on
                where it broke off.
        """
        connection, path = await self._connected(url)
        start = shown = failures = furthest = 0
        while True:
            sent = self.sent_bytes
            try:
                if resumable and (failures or self._resuming):
                    start = await self._there(connection, path, source.size)
                    if start >= furthest + _HEADWAY_BYTES:  # by what has arrived: a proxy may take it all and lose it
                        furthest, failures = start, min(failures, 1)
                phase.advance(start - shown)
                await self._put(connection, path, source, start, phase)
                return
            except StaleUrlError:
                raise
            except TransferError as error:  # lost, or not now: the cut one may still be held there
                shown = start + self.sent_bytes - sent
                failures += 1
                if failures >= ATTEMPTS:
                    refused = connection.status >= 300
                    text = f"the upload was {'given up' if refused else 'cut'}: {error}"
                    raise GivenUpError(text, error.code) from error
                why = str(error)
                pause = min(0.25 * 2**failures, _LONGEST_PAUSE_S)
                pause = pause if error.retry_after_s is None else error.retry_after_s
            await connection.aclose()
            await self._wait(pause, why, phase)

    async def _wait(self, pause: float, why: str, phase: Phase) -> None:
        if self._meter is None:  # one of many, each in want of a line of its own
            phase.note(f"Trying again: {why}")
            await trio.sleep(pause)
            phase.note("")
            return
        with self._meter.phase("Trying again") as waiting:
            waiting.note(why)
            await trio.sleep(pause)

    async def _connected(self, url: str) -> tuple[Connection, str]:
        target = Target.named_by_server(url)
        if self._connection is None or self._connection.origin != target.origin:
            if self._connection is not None:
                await self._connection.aclose()
            self._connection = Connection(target)
        return self._connection, target.path

    async def _put(self, connection: Connection, path: str, source: Source, start: int, phase: Phase) -> None:
        headers = {"user-agent": "museworkd-client", "content-type": self._media_type}
        if source.size <= WHOLE_BYTES:
            content = b"".join(source.pieces(0))
            await connection.ask("PUT", path, headers, content)
            self._count(len(content), phase)
        else:
            if start:
                headers["content-range"] = f"bytes {start}-{source.size - 1}/{source.size}"
            await connection.begin("PUT", path, {**headers, "content-length": str(source.size - start)})
            await self._send(connection, source.pieces(start), phase)
        if connection.status >= 300:
            error = await answered(connection)
            raise StaleUrlError(str(error), error.code) if connection.status == 403 else error
        await connection.receive_all()
        if connection.status == 202:
            raise TransferError("the server has not got the whole content")

    async def _send(self, connection: Connection, pieces: Iterator[bytes], phase: Phase) -> None:
        try:
            while piece := await trio.to_thread.run_sync(next, pieces, b""):
                await connection.send(piece)
                self._count(len(piece), phase)
            await connection.end()
        except TransferError as error:
            try:
                await connection.response()  # a server that wants no more may have said why
            except TransferError:
                raise error from None
        else:
            await connection.response()

    def _count(self, size: int, phase: Phase) -> None:
        self.sent_bytes += size
        phase.advance(size)

    async def _there(self, connection: Connection, path: str, size: int) -> int:
        """Ask where to go on; the last byte is sent in any case, so that the server sees the upload complete."""
        if size <= WHOLE_BYTES:
            return 0
        await connection.ask("HEAD", path, {"user-agent": "museworkd-client"})
        told, status = connection.headers.get("upload-offset", ""), connection.status
        await connection.receive_all()
        if status != 200 or not (told.isascii() and told.isdigit()) or int(told) > size:
            return 0
        return min(int(told), size - 1)
