"""The byte routes that give: one blob, and assembled mpacks (protocol §4, §8)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from actors.fetch.assemble import drop_pack
from actors.fetch.proofs import Check
from actors.fetch.reading import PROVED_BYTES, BlobCheck, large_blob, small_blob, sound_place
from museworkd.http.exchange import Exchange
from museworkd.http.ranges import parse_range
from museworkd.http.services import HttpServices, admit_to
from storage.errors import ObjectDamaged, ObjectMissing
from storage.layout import Place, fetch_pack_key, verifier
from storage.object_store import ReadRange
from storage.rows import Repository, Right
from wire.errors import Code, Refusal
from wire.ids import Scheme, parse_any_id, parse_id
from wire.mpack import MEDIA_TYPE

_IN_MEMORY_BYTES = 256 * 1024
"""Blobs up to this size are read at once and hashed before their first byte goes out."""


async def get_blob(services: HttpServices, exchange: Exchange, names: Mapping[str, str]) -> None:
    """``GET o/{object_id}``: one blob this repository holds; Range and ETag as usual."""
    _, repository, _ = await admit_to(services, exchange, names, Right.READ)
    if repository.scheme is None:
        scheme, object_id = parse_any_id(names["object_id"], "object id")
    else:
        scheme, object_id = repository.scheme, parse_id(names["object_id"], repository.scheme, "object id")
    fetching = services.fetch
    if await fetching.unreachable.among(services.index, repository, scheme, [object_id], services.limits):
        raise _unknown()
    await _give_blob(services, exchange, repository, scheme, object_id)


async def get_signed_blob(services: HttpServices, exchange: Exchange, names: Mapping[str, str]) -> None:
    """``GET blob/{hex}``: one blob this repository holds, by a signed URL instead of an authorisation."""
    services.signer.check(exchange.method, exchange.path, exchange.query, services.environment.now().timestamp())
    repository = await services.index.find_repository(names["owner"], names["slug"])
    if repository is None:
        raise Refusal(Code.NOT_FOUND, "no such repository")
    scheme = repository.scheme or Scheme.TYPED
    await _give_blob(services, exchange, repository, scheme, bytes.fromhex(names["object_id"]))


async def _give_blob(
    services: HttpServices, exchange: Exchange, repository: Repository, scheme: Scheme, object_id: bytes
) -> None:
    place = (await services.index.held_places(repository.number, scheme, [object_id])).get(object_id)
    if place is None:
        raise _unknown()
    etag = f'"{object_id.hex()}"'
    headers = [
        ("content-type", "application/octet-stream"), ("etag", etag), ("accept-ranges", "bytes"),
        ("cache-control", "private, no-cache"), ("vary", "authorization"), ("x-content-type-options", "nosniff"),
        ("content-security-policy", "default-src 'none'; sandbox"),
    ]  # fmt: skip
    if exchange.headers.get("if-none-match") in {etag, "*"}:
        await exchange.respond(304, headers, b"")
        return
    fetching = services.fetch
    if exchange.method != "GET":
        await _send_whole(exchange, headers, place.size, b"")
        return
    if place.pending or place.size <= _IN_MEMORY_BYTES:
        await _send_whole(exchange, headers, place.size, await small_blob(fetching, scheme, place))
        return
    if place.size > PROVED_BYTES and "range" not in exchange.headers:
        await _send_unproved(exchange, headers, place.size, large_blob(fetching, scheme, place))
        return
    try:
        await _send_proved(services, exchange, headers, _range_of(place, scheme), BlobCheck(place, scheme))
    except (ObjectDamaged, ObjectMissing):
        place = await sound_place(fetching, scheme, place)
        if exchange.started:  # what has left was right, and what follows is for who asks again
            raise
        await _send_proved(services, exchange, headers, _range_of(place, scheme), BlobCheck(place, scheme))


async def get_mpack(services: HttpServices, exchange: Exchange, names: Mapping[str, str]) -> None:
    """``GET mpack/{id}``: an assembled fetch, by a signed URL.

    It needs no authorisation, and is worth nothing once its repository has been deleted (threat T3).
    """
    services.signer.check(exchange.method, exchange.path, exchange.query, services.environment.now().timestamp())
    if await services.index.find_repository(names["owner"], names["slug"]) is None:
        raise Refusal(Code.NOT_FOUND, "no such repository")
    key = fetch_pack_key(bytes.fromhex(names["mpack_id"]))
    size = await services.store.size(key)
    headers = [
        ("content-type", MEDIA_TYPE), ("etag", f'"{names["mpack_id"]}"'), ("accept-ranges", "bytes"),
        ("cache-control", "private, max-age=3600, immutable"),
    ]  # fmt: skip
    where = ReadRange(key, 0, size)
    if exchange.method != "GET":
        await _send_whole(exchange, headers, size, b"")
        return
    try:
        await _send_proved(services, exchange, headers, where, verifier(key, size))
    except ObjectDamaged:
        await drop_pack(services.fetch, where)
        raise


async def _send_whole(exchange: Exchange, headers: list[tuple[str, str]], size: int, content: bytes) -> None:
    """Send a content that is at hand, or none to who only asks about it."""
    status, headers, start, length = _wanted(exchange, headers, size)
    await exchange.start(status, headers)
    await exchange.finish(content[start : start + length])


async def _send_proved(
    services: HttpServices, exchange: Exchange, headers: list[tuple[str, str]], where: ReadRange, check: Check
) -> None:
    """Send a content that has been proved whole, or is now; each piece is held against that before it leaves."""
    async with exchange.watched():
        digests = await services.fetch.proofs.prove(services.store, where, check)
    status, headers, start, length = _wanted(exchange, headers, where.size)
    if length:
        async with aclosing(services.fetch.proofs.pieces(services.store, where, digests, start, length)) as pieces:
            async for piece in pieces:
                if not exchange.started:  # the store has answered, and rightly
                    await exchange.start(status, headers)
                await exchange.send(piece)
    else:
        await exchange.start(status, headers)
    await exchange.finish()


async def _send_unproved(
    exchange: Exchange, headers: list[tuple[str, str]], size: int, pieces: AsyncGenerator[bytes, None]
) -> None:
    """Send all of a content too large to be read twice; its last bytes go out when the whole is known to be right."""
    async with aclosing(pieces):
        async for piece in pieces:
            if not exchange.started:
                await exchange.start(200, [*headers, ("content-length", str(size))])
            await exchange.send(piece)
    await exchange.finish()


def _wanted(
    exchange: Exchange, headers: list[tuple[str, str]], size: int
) -> tuple[int, list[tuple[str, str]], int, int]:
    """Give status, headers, and which part of a content is asked for; raises ``range_mismatch``."""
    matches = exchange.method == "GET" and exchange.headers.get("if-range") in {None, dict(headers)["etag"]}
    wanted = parse_range(exchange.headers.get("range") if matches else None, size)
    start, length = wanted or (0, size)
    if wanted is not None:
        headers = [*headers, ("content-range", f"bytes {start}-{start + length - 1}/{size}")]
    status = 206 if wanted is not None else 200
    return status, [*headers, ("content-length", str(length))], start, length


def _unknown() -> Refusal:
    return Refusal(Code.NOT_FOUND, "no such object in this repository")


def _range_of(place: Place, scheme: Scheme) -> ReadRange:
    return ReadRange(place.key(scheme), place.offset, place.size)
