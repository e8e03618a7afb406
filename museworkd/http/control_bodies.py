"""Reading and answering control requests on the seam of ``exchange``: small bodies in, small bodies out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from museworkd.http.exchange import Exchange
from museworkd.http.negotiation import write_body
from museworkd.http.services import HttpServices

SMALL_BODY_BYTES = 64 * 1024
"""Above it, bodies are read a few at a time: who sends them is not known before."""


@asynccontextmanager
async def control_body(services: HttpServices, exchange: Exchange) -> AsyncIterator[bytes]:
    """Read a whole body; what a large one takes of the memory they share is given back after the block."""
    async with AsyncExitStack() as stack:
        if _may_be_large(exchange):
            await stack.enter_async_context(services.large_bodies.hold(1))
        yield await exchange.body(services.settings.control_body_bytes)


async def answer(exchange: Exchange, value: Mapping[str, object], status: int = 200) -> None:
    """Send an answer in the form the request asks for."""
    kind, body = write_body(value, exchange.headers.get("accept", ""))
    headers = [("content-type", kind), ("cache-control", "no-store"), ("vary", "accept, authorization")]
    await exchange.respond(status, headers, body)


def _may_be_large(exchange: Exchange) -> bool:
    stated = exchange.headers.get("content-length")
    if stated is None:
        return "transfer-encoding" in exchange.headers
    return not stated.isdigit() or int(stated) > SMALL_BODY_BYTES
