"""The narrow seam between our byte routes and the server below: one request and its answer.

A route sees a request head, a body that arrives in pieces under deadlines, and an answer it may begin while the body
is still arriving. Everything else of ASGI stays behind this file, so that the server can be replaced.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qsl, unquote

import trio

from museworkd.http.settings import HttpSettings
from wire.errors import Code, Refusal, malformed

PIECE_BYTES = 256 * 1024
"""Answers are cut into pieces of at most this size, so that a slow reader is noticed."""


class ClientDisconnected(Exception):
    """The client is gone."""


class Exchange:
    """One HTTP request and its answer.

    Raises:
        Refusal: ``malformed`` for a path that cannot name anything.
    """

    def __init__(self, scope: Mapping[str, Any], receive: Any, send: Any, settings: HttpSettings, request_id: str):
        self._receive = receive
        self._send = send
        self._settings = settings
        self._body_ended = False
        self._waited_s = 0.0
        self._received = 0
        self.scope = scope
        self.request_id = request_id
        self.method: str = scope["method"]
        self.path = _decoded(scope["raw_path"])
        """Decoded once; an encoded slash is a slash."""
        self.query = _query(scope["query_string"])
        self.headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if sum(name.lower() == b"authorization" for name, _ in scope["headers"]) > 1:
            raise malformed("two Authorization headers")
        self.started = False
        self.status: int | None = None
        self.sent_bytes = 0

    @property
    def received_bytes(self) -> int:
        """Bytes of the body so far."""
        return self._received

    async def body_piece(self) -> bytes:
        """Give the next piece of the body, ``b""`` at its end.

        Raises:
            ClientDisconnected: the client went away before the end.
            Refusal: ``request_timeout`` when the client is slower than the settings allow. Only the time
                spent waiting for the client counts, not the time the server was busy.
        """
        while not self._body_ended:
            event = await self._next_event()
            if event["type"] == "http.disconnect":
                raise ClientDisconnected
            self._body_ended = not event.get("more_body", False)
            piece: bytes = event.get("body", b"")
            self._received += len(piece)
            if piece:
                return piece
        return b""

    async def body(self, most: int) -> bytes:
        """Give the whole body of a small request; raises ``too_large`` above ``most`` bytes."""
        stated = self.headers.get("content-length", "0")
        pieces = bytearray()
        while True:
            if len(pieces) > most or (stated.isdigit() and int(stated) > most):
                raise Refusal(Code.TOO_LARGE, f"the body of this request has at most {most} bytes")
            piece = await self.body_piece()
            if not piece:
                return bytes(pieces)
            pieces += piece

    async def disconnected(self) -> None:
        """Wait until the client goes away; to be used after the body has ended."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Do the work of a block for as long as somebody waits for its answer; comes after the body has ended.

        Raises:
            ClientDisconnected: nobody waits any more.
        """
        failed: Exception | None = None
        ended = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cancel_when_gone, nursery.cancel_scope)
            try:
                yield
                ended = True
            except Exception as error:  # noqa: BLE001 - raised below, and not as one of a group
                failed = error
            nursery.cancel_scope.cancel()
        if failed is not None:
            raise failed
        if not ended:
            raise ClientDisconnected

    async def _cancel_when_gone(self, scope: trio.CancelScope) -> None:
        await self.disconnected()
        scope.cancel()

    async def start(self, status: int, headers: Iterable[tuple[str, str]]) -> None:
        """Begin the answer."""
        self.started = True
        self.status = status
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        raw.append((b"x-request-id", self.request_id.encode("ascii")))
        await self._emit({"type": "http.response.start", "status": status, "headers": raw})

    async def send(self, data: bytes) -> None:
        """Send bytes of the answer; waits while the client does not take them.

        Raises:
            ClientDisconnected: nobody takes the answer any more.
        """
        view = memoryview(data)
        for at in range(0, len(view), PIECE_BYTES):
            piece = bytes(view[at : at + PIECE_BYTES])
            self.sent_bytes += len(piece)
            await self._emit({"type": "http.response.body", "body": piece, "more_body": True})

    async def finish(self, last: bytes = b"") -> None:
        """End the answer; ``last`` are its last bytes, which then leave in one packet with the end."""
        if len(last) > PIECE_BYTES:
            await self.send(last)
            last = b""
        self.sent_bytes += len(last)
        await self._emit({"type": "http.response.body", "body": last, "more_body": False})

    async def respond(self, status: int, headers: Iterable[tuple[str, str]], body: bytes) -> None:
        """Answer at once."""
        await self.start(status, [*headers, ("content-length", str(len(body)))])
        await self.finish(body)

    async def _emit(self, message: Mapping[str, Any]) -> None:
        try:
            await self._send(message)
        except OSError:
            raise ClientDisconnected from None

    async def _next_event(self) -> Mapping[str, Any]:
        settings = self._settings
        allowed_s = settings.body_grace_s + self._received / settings.body_bytes_per_s - self._waited_s
        began = trio.current_time()
        with trio.move_on_after(max(0.0, min(settings.body_idle_s, allowed_s))):
            event: Mapping[str, Any] = await self._receive()
            self._waited_s += trio.current_time() - began
            return event
        raise Refusal(
            Code.REQUEST_TIMEOUT,
            f"the body arrives too slowly: no byte for {settings.body_idle_s:g} s, "
            f"or less than {settings.body_bytes_per_s} bytes/s",
        )


def _decoded(raw_path: bytes) -> str:
    try:
        path = unquote(raw_path.decode("ascii"), errors="strict")
    except UnicodeDecodeError:
        raise malformed("the path is not valid UTF-8") from None
    if "\0" in path:
        raise malformed("the path holds a NUL")
    return path


def _query(raw: bytes) -> dict[str, str]:
    return dict(parse_qsl(raw.decode("ascii", errors="replace"), keep_blank_values=True))
