"""``POST push/stream``: the request's body into a push actor, its frames back, both at once (protocol §5)."""

from __future__ import annotations

from collections.abc import Mapping

import trio

from actors.push.actor import PushActor
from actors.push.context import ClientGone, PushRequest
from museworkd.http.exchange import ClientDisconnected, Exchange
from museworkd.http.services import HttpServices, admit_to
from storage.rows import Right
from wire.errors import Code, Refusal

MEDIA_TYPE = "application/x-muse-packstream"
_ACCEPTED = {MEDIA_TYPE, "application/octet-stream", ""}


async def push_stream(services: HttpServices, exchange: Exchange, names: Mapping[str, str]) -> None:
    """Take a push. Authentication and look-up come before the body; their failures are plain statuses."""
    identity, repository, right = await admit_to(services, exchange, names, Right.WRITE)
    assert identity is not None
    kind = exchange.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in _ACCEPTED:
        raise Refusal(Code.UNSUPPORTED_MEDIA, f"a push stream has the type {MEDIA_TYPE}")
    actor = PushActor(services.push, PushRequest(repository, identity.handle, right, exchange.request_id))
    await services.supervisor.start(actor)
    try:
        async with actor.answers, trio.open_nursery() as nursery:
            nursery.start_soon(_feed, exchange, actor)
            await _relay(exchange, actor)
            nursery.cancel_scope.cancel()
    finally:
        actor.interrupt(ClientGone())  # nobody feeds it any more; one that has its whole body does not mind


async def _feed(exchange: Exchange, actor: PushActor) -> None:
    """Pass the body on as fast as the actor takes it."""
    try:
        while True:
            piece = await exchange.body_piece()
            await actor.post(piece)
            if not piece:
                return
    except ClientDisconnected:
        await _tell(actor, None)
    except Refusal as refusal:
        actor.interrupt(refusal)
    except trio.BrokenResourceError:
        pass  # the actor has its verdict already


async def _tell(actor: PushActor, message: None) -> None:
    try:
        await actor.post(message)
    except trio.BrokenResourceError:
        pass


async def _relay(exchange: Exchange, actor: PushActor) -> None:
    """Pass the frames on; when the client is gone they are dropped, and the push goes on to its end."""
    gone = False
    async for frame in actor.answers:
        if not gone:
            try:
                if not exchange.started:
                    await exchange.start(200, [("content-type", MEDIA_TYPE), ("cache-control", "no-store")])
                await exchange.send(frame)
            except ClientDisconnected:
                gone = True
    if actor.at_door is not None:
        raise actor.at_door
    if exchange.started and not gone:
        await exchange.finish()
