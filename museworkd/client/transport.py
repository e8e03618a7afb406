"""What is asked of a server: small control requests, downloads, the push stream; and what its errors mean."""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Self

import msgpack

from museworkd.client.connection import ERROR_BODY_BYTES, Connection, Target
from museworkd.client.errors import ClientError, IntegrityError, TransferError, printable
from museworkd.client.remote import MSGPACK, UNENCODED, Remote
from wire.canonical import parse_json
from wire.errors import Refusal
from wire.pull import unpack_whole

__all__ = ["MSGPACK", "Api", "Remote", "decode", "download", "open_duplex", "printable", "refusal_error", "refused"]
ANSWER_BYTES = 16 * 1024 * 1024
"""The longest control answer: the heads of some 150,000 branches."""
LONGEST_PAUSE_S = 60.0
"""Longer than that nobody waits because a server says so."""

_PASSING = {408, 429, 500, 502, 503, 504}
"""Statuses that say nothing of the request itself, when no refusal of the server's comes with them."""
_STORE_CODE = re.compile(rb"<Code>([A-Za-z0-9]{1,60})</Code>")
_STORE_PASSING = {"IncompleteBody", "OperationAborted", "RequestTimeout", "SlowDown"}
_TOKEN_MAY_HELP = {"unauthenticated", "not_found"}
"""To somebody without a token, a private repository does not exist."""


class Api:
    """Control requests to one repository, one after the other."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self._connection = Connection(Target.of(remote.url))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._connection.aclose()

    async def get(self, path: str) -> dict[str, object]:
        """GET an endpoint."""
        return await self._call("GET", path, None)

    async def post(self, path: str, body: Mapping[str, object]) -> dict[str, object]:
        """POST a map to an endpoint."""
        return await self._call("POST", path, body)

    async def _call(self, method: str, path: str, body: Mapping[str, object] | None) -> dict[str, object]:
        headers = self._remote.headers
        content = b""
        if body is not None:
            content = msgpack.packb(body)
            headers["content-type"] = MSGPACK
        connection = self._connection
        await connection.ask(method, Target.of(self._remote.at(path)).path, headers, content)
        if connection.status >= 300:
            error = await answered(connection)
            if not self._remote.token and error.code in _TOKEN_MAY_HELP:
                raise ClientError(f"{error} (no token was sent; $MUSEWORKD_TOKEN names one)", error.code)
            raise error
        _check_unencoded(connection.headers)
        answer = await connection.receive_all(ANSWER_BYTES + 1)
        if len(answer) > ANSWER_BYTES:
            await connection.aclose()
            raise IntegrityError(f"the server's answer is longer than {ANSWER_BYTES} bytes")
        return decode(connection.content_type, answer)


class _Pieces:
    """An answer's body; no generator, which a download that is given up would leave open."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        piece = await self._connection.receive()
        if not piece:
            raise StopAsyncIteration
        return piece


@asynccontextmanager
async def download(url: str, offset: int) -> AsyncIterator[tuple[int, AsyncIterator[bytes]]]:
    """GET a URL from an offset on; gives the offset the server really starts at, and the pieces."""
    headers = {"user-agent": "museworkd-client", **UNENCODED}
    if offset:
        headers["range"] = f"bytes={offset}-"
    target = Target.named_by_server(url)
    async with Connection(target) as connection:
        await connection.ask("GET", target.path, headers)
        if connection.status not in {200, 206}:
            raise await answered(connection)
        _check_unencoded(connection.headers)
        yield (offset if connection.status == 206 else 0), _Pieces(connection)


@asynccontextmanager
async def open_duplex(remote: Remote, path: str, content_type: str) -> AsyncIterator[Connection]:
    """Begin a POST whose body is sent by the caller, who may listen meanwhile."""
    target = Target.of(remote.at(path))
    async with Connection(target) as connection:
        headers = {**remote.headers, "content-type": content_type, "transfer-encoding": "chunked"}
        await connection.begin("POST", target.path, headers)
        yield connection


async def answered(connection: Connection) -> ClientError:
    """Make an error out of an error answer that has begun."""
    kind, after = connection.content_type, connection.headers.get("retry-after", "")
    status = connection.status
    error = refused(status, kind, await connection.receive_all(ERROR_BODY_BYTES))
    if not isinstance(error, TransferError) and error.code in {"", str(status)} and status in _PASSING:
        error = TransferError(str(error), error.code)
    if isinstance(error, TransferError):
        error.retry_after_s = _seconds(after)
    return error


def decode(content_type: str, body: bytes) -> dict[str, object]:
    """Decode a control answer."""
    try:
        value = unpack_whole(body, "the answer") if MSGPACK in content_type else parse_json(body, "the answer")
    except Refusal as refusal:
        raise IntegrityError(f"the server's answer cannot be read: {refusal.detail}") from refusal
    if not isinstance(value, dict):
        raise IntegrityError("the server's answer is not a map")
    return value


def refused(status: int, content_type: str, body: bytes) -> ClientError:
    """Make an error out of an error answer."""
    try:
        members = decode(content_type, body)
    except IntegrityError:
        said = _STORE_CODE.search(body)  # an object store, which has words of its own
        code = said[1].decode("ascii") if said else ""
        text = f"the server answered {status}" + (f" ({code})" if code else "")
        return TransferError(text) if code in _STORE_PASSING else ClientError(text)
    return refusal_error(members, status)


def refusal_error(members: Mapping[str, object], status: int = 0) -> ClientError:
    """Make an error out of the envelope of protocol §11."""
    code = str(members.get("error", status))
    text = f"refused by the server ({printable(code)}): {printable(str(members.get('detail', '')))}"
    missing = members.get("missing")
    if isinstance(missing, list) and len(missing) > 1:
        text += f" (and {len(missing) - 1} more listed)"
    return TransferError(text, code) if members.get("retryable") is True else ClientError(text, code)


def _check_unencoded(headers: Mapping[str, str]) -> None:
    encoding = headers.get("content-encoding", "")
    if encoding.strip().lower() not in {"", "identity"}:
        raise IntegrityError(f"the server's answer is encoded ({printable(encoding)[:40]}), which was not asked for")


def _seconds(text: str) -> float | None:
    """Read a ``Retry-After``; one that is a date is not worth a clock."""
    try:
        seconds = float(text)
    except ValueError:
        return None
    return min(max(seconds, 0.0), LONGEST_PAUSE_S) if math.isfinite(seconds) else None
