"""Pushing object by object (protocol §6): which ones need not be sent, where to upload the others, and their proof."""

from __future__ import annotations

import re
import uuid
from collections.abc import Container, Mapping
from contextlib import AsyncExitStack

import trio

from actors.push.confirm import Confirmation
from actors.push.header import parse_push_id
from museworkd.http.exchange import Exchange
from museworkd.http.id_lists import IN_LOOP_IDS, id_list_body, neighbours, off_loop, parse_ids, parse_sizes
from museworkd.http.negotiation import write_body
from museworkd.http.reservations import reserve_objects
from museworkd.http.services import HttpServices, admit_writer
from museworkd.http.transfer_urls import TransferUrls
from storage.rows import Repository
from wire.errors import malformed
from wire.ids import Scheme

_LOOKUP_BATCH = 1_000
"""Protocol §6: ids per query."""
_LOOKUPS_AT_ONCE = 3
"""Of one request; the index has few connections for everybody."""
SIGNED_AT_ONCE = 250
"""URLs between two looks at what else there is to do: a few milliseconds."""
_HOST = re.compile(r"[A-Za-z0-9._:\[\]-]{1,300}")


async def presign_objects(services: HttpServices, exchange: Exchange, names: Mapping[str, str]) -> None:
    """``POST push/presign``: what the repository has is told, for everything else there is a URL.

    Only the index is asked, and only for what this repository holds (threat T2).
    """
    repository, identity = await admit_writer(services, exchange, names)
    async with id_list_body(services, exchange) as body:
        scheme, ids = await parse_ids(repository, await body.member("object_ids"))
        push_id = await body.member("push_id")
        push = None if push_id is None else (parse_push_id(push_id, services.environment), identity.handle)
        stored = await stored_of(services, repository, scheme, ids, push)
        wanted, there = await off_loop(len(ids) > IN_LOOP_IDS, _divide, ids, stored)
        stated = await body.member("sizes") if wanted else {}
        sizes = await off_loop(len(wanted) > IN_LOOP_IDS, parse_sizes, wanted, stated, services.limits.object_bytes)
        await reserve_objects(services, repository, wanted, sizes, None if push is None else push[0])
        await _answer(exchange, {
            "presigned_urls": await _urls(services, exchange, repository, scheme, wanted, sizes),
            "already_stored": there,
            "expires_in": services.presign_s,
            "resumable": services.direct is None,
        }, len(ids))  # fmt: skip


async def confirm_objects(services: HttpServices, exchange: Exchange, names: Mapping[str, str]) -> None:
    """``POST push/confirm``: uploads are verified and held for a push that names them."""
    repository, _ = await admit_writer(services, exchange, names)
    async with id_list_body(services, exchange) as body:
        scheme, ids = await parse_ids(repository, await body.member("object_ids"))
        stated = _stated(ids, await body.member("sizes"))
    async with AsyncExitStack() as stack:
        if len(ids) > IN_LOOP_IDS:  # it may take long, and keeps its list meanwhile
            await stack.enter_async_context(services.confirms.long.hold(1))
        confirmation = Confirmation(services.push, services.confirms, repository.number, scheme)
        async with exchange.watched():  # what was recorded by then stays
            await confirmation.run(list(ids), stated)
        rejected = confirmation.rejected
        await _answer(exchange, {
            "confirmed": [text for object_id, text in ids.items() if object_id not in rejected],
            "rejected": [
                {"object_id": text, "error": rejected[object_id].code.text, "detail": rejected[object_id].detail}
                for object_id, text in ids.items() if object_id in rejected
            ],
        }, len(ids))  # fmt: skip


async def stored_of(
    services: HttpServices, repository: Repository, scheme: Scheme, ids: Mapping[bytes, str],
    push: tuple[uuid.UUID, str] | None = None,
) -> set[bytes]:  # fmt: skip
    """Ask the index in batches of ids it keeps close together, which it finds together."""
    now = services.environment.now()
    divided = [list(ids)]
    if len(ids) > _LOOKUP_BATCH:
        divided = await off_loop(len(ids) > IN_LOOP_IDS, neighbours, ids, _LOOKUP_BATCH)
    batches, found = iter(divided), set[bytes]()

    async def look() -> None:
        for batch in batches:
            found.update(await services.index.stored_blobs(repository.number, scheme, batch, now, push))

    async with trio.open_nursery() as nursery:
        for _ in range(min(_LOOKUPS_AT_ONCE, len(divided))):
            nursery.start_soon(look)
    return found


def _divide(ids: Mapping[bytes, str], stored: Container[bytes]) -> tuple[dict[str, bytes], list[str]]:
    """Part what is to be uploaded from what is there."""
    wanted: dict[str, bytes] = {}
    there: list[str] = []
    for object_id, text in ids.items():
        if object_id in stored:
            there.append(text)
        else:
            wanted[text] = object_id
    return wanted, there


def _stated(ids: Mapping[bytes, str], stated: object) -> dict[bytes, int]:
    """Read the sizes a confirmation states, if any."""
    if stated is None:
        return {}
    if not isinstance(stated, dict) or not all(type(size) is int for size in stated.values()):
        raise malformed("sizes is not a map of ids to sizes")
    return {object_id: stated[text] for object_id, text in ids.items() if text in stated}


async def _urls(
    services: HttpServices, exchange: Exchange, repository: Repository, scheme: Scheme, wanted: Mapping[str, bytes],
    sizes: Mapping[str, int],
) -> dict[str, str]:  # fmt: skip
    signed = TransferUrls(services, repository, base_url(services, exchange), services.presign_s)
    urls: dict[str, str] = {}
    for at, (text, object_id) in enumerate(wanted.items(), 1):
        urls[text] = signed.put_object(object_id, scheme, sizes[text])
        if at % SIGNED_AT_ONCE == 0:
            await trio.lowlevel.checkpoint()
    return urls


def base_url(services: HttpServices, exchange: Exchange) -> str:
    """Give how clients reach the server: as the settings say, or as this one has addressed it."""
    if services.public_url:
        return services.public_url
    host = exchange.headers.get("host", "")
    if not _HOST.fullmatch(host):
        raise malformed("the Host header names no host")
    return f"{exchange.scope['scheme']}://{host}"


async def _answer(exchange: Exchange, value: dict[str, object], count: int) -> None:
    kind, body = await off_loop(count > IN_LOOP_IDS, write_body, value, exchange.headers.get("accept", ""))
    headers = [("content-type", kind), ("cache-control", "no-store"), ("vary", "accept, authorization")]
    await exchange.respond(200, headers, body)
