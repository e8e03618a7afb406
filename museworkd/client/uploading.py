"""Uploading a file to a signed URL, and going on where a connection broke off."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, Self

import httpx
import trio

from museworkd.client.errors import TransferError
from museworkd.client.progress import Phase
from museworkd.client.transport import CONNECT_S, QUIET_S, refused
from wire.mpack import MEDIA_TYPE

ATTEMPTS = 8
_PIECE_BYTES = 256 * 1024
_LONGEST_PAUSE_S = 10.0
_ERROR_BODY_BYTES = 64 * 1024


async def upload_file(url: str, path: Path, size: int, phase: Phase) -> None:
    """PUT a file of ``size`` bytes; a lost connection is taken up again where the server says it broke off.

    Raises:
        ClientError: the server does not want it.
        TransferError: it could not be sent within some attempts; sending it again goes on where it broke off.
    """
    timeout = httpx.Timeout(QUIET_S, connect=CONNECT_S)
    shown = 0
    async with httpx.AsyncClient(timeout=timeout, follow_redirects=False) as client:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                start = 0 if attempt == 1 else await _there(client, url, size)
                phase.advance(start - shown)
                shown = start
                if start < size:
                    shown += await _put(client, url, path, start, size, phase)
                return
            except (httpx.HTTPError, TransferError) as error:  # lost, or not now: the cut one may still be held there
                if attempt == ATTEMPTS:
                    raise TransferError(f"the upload was cut: {error or type(error).__name__}") from error
            await trio.sleep(min(0.25 * 2**attempt, _LONGEST_PAUSE_S))


async def _put(client: httpx.AsyncClient, url: str, path: Path, start: int, size: int, phase: Phase) -> int:
    headers = {
        "host": httpx.URL(url).netloc.decode("ascii"), "user-agent": "museworkd-client", "content-type": MEDIA_TYPE,
        "content-length": str(size - start),
    }  # fmt: skip
    if start:
        headers["content-range"] = f"bytes {start}-{size - 1}/{size}"
    body = _Body(path, start, phase)
    request = httpx.Request("PUT", url, headers=headers, stream=body)
    try:
        response = await client.send(request, stream=True)
        try:
            if response.status_code >= 300:
                raise await _refused(response)
        finally:
            await response.aclose()
    finally:
        await body.aclose()
    return body.sent


class _Body(httpx.AsyncByteStream):
    """A file from an offset on, counted as it is taken; no generator, which a cut request would leave open."""

    def __init__(self, path: Path, start: int, phase: Phase) -> None:
        self._path = path
        self._start = start
        self._phase = phase
        self._file: BinaryIO | None = None
        self.sent = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        piece = await trio.to_thread.run_sync(self._read)
        if not piece:
            raise StopAsyncIteration
        self.sent += len(piece)
        self._phase.advance(len(piece))
        return piece

    async def aclose(self) -> None:
        if self._file is not None:
            self._file.close()

    def _read(self) -> bytes:
        if self._file is None:
            self._file = self._path.open("rb")
            self._file.seek(self._start)
        return self._file.read(_PIECE_BYTES)


async def _there(client: httpx.AsyncClient, url: str, size: int) -> int:
    async with client.stream("HEAD", url, headers={"user-agent": "museworkd-client"}) as response:
        told = response.headers.get("upload-offset", "")
        if response.status_code != 200 or not told.isdigit() or int(told) > size:
            return 0
        return int(told)


async def _refused(response: httpx.Response) -> Exception:
    body = b""
    async for piece in response.aiter_raw():
        body += piece
        if len(body) >= _ERROR_BODY_BYTES:
            break
    return refused(response.status_code, response.headers.get("content-type", ""), body[:_ERROR_BODY_BYTES])
