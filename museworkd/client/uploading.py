"""Uploading a file to a signed URL, and going on where a connection broke off."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

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
        TransferError: it could not be sent within some attempts.
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
            except httpx.HTTPError as error:
                if attempt == ATTEMPTS:
                    raise TransferError(f"the upload was cut: {error or type(error).__name__}") from error
            await trio.sleep(min(0.25 * 2**attempt, _LONGEST_PAUSE_S))


async def _put(client: httpx.AsyncClient, url: str, path: Path, start: int, size: int, phase: Phase) -> int:
    headers = {"user-agent": "museworkd-client", "content-type": MEDIA_TYPE, "content-length": str(size - start)}
    if start:
        headers["content-range"] = f"bytes {start}-{size - 1}/{size}"
    sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        file = await trio.to_thread.run_sync(lambda: path.open("rb"))
        with file:
            await trio.to_thread.run_sync(file.seek, start)
            while piece := await trio.to_thread.run_sync(file.read, _PIECE_BYTES):
                yield piece
                sent += len(piece)
                phase.advance(len(piece))

    async with client.stream("PUT", url, headers=headers, content=body()) as response:
        if response.status_code >= 300:
            raise await _refused(response)
    return sent


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
