"""The byte routes that give: one blob, and assembled mpacks (protocol §4, §8)."""

from __future__ import annotations

from collections.abc import Mapping

from museworkd.http.exchange import Exchange
from museworkd.http.ranges import parse_range
from museworkd.http.services import HttpServices, admit_to
from storage.contents import settled_place
from storage.errors import ObjectDamaged
from storage.layout import fetch_pack_key
from storage.object_store import ReadRange
from storage.rows import Repository, Right
from wire.errors import Code, Refusal
from wire.ids import Kind, Scheme, hasher_for, parse_any_id, parse_id
from wire.mpack import MEDIA_TYPE

_IN_MEMORY_BYTES = 256 * 1024
"""Blobs up to this size are read at once and hashed before their first byte goes out."""
_PROVED_BYTES = 256 * 1024 * 1024
"""Blobs up to this size are read and hashed whole before a part of them goes out."""


async def get_blob(services: HttpServices, exchange: Exchange, names: Mapping[str, str]) -> None:
    """``GET o/{object_id}``: one blob this repository holds; Range and ETag as usual."""
    _, repository, _ = await admit_to(services, exchange, names, Right.READ)
    if repository.scheme is None:
        scheme, object_id = parse_any_id(names["object_id"], "object id")
    else:
        scheme, object_id = repository.scheme, parse_id(names["object_id"], repository.scheme, "object id")
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
        raise Refusal(Code.NOT_FOUND, "no such object in this repository")
    etag = f'"{object_id.hex()}"'
    headers = [
        ("content-type", "application/octet-stream"), ("etag", etag), ("accept-ranges", "bytes"),
        ("cache-control", "private, no-cache"), ("vary", "authorization"), ("x-content-type-options", "nosniff"),
        ("content-security-policy", "default-src 'none'; sandbox"),
    ]  # fmt: skip
    if exchange.headers.get("if-none-match") in {etag, "*"}:
        await exchange.respond(304, headers, b"")
        return
    proof: _Proof | None = _Proof(object_id, scheme, place.size)
    whole: bytes | None = None
    if exchange.method == "GET":
        assert proof is not None
        place, whole = await settled_place(services.index, scheme, place)
        if whole is not None or place.size <= _IN_MEMORY_BYTES:
            if whole is None:
                (whole,) = await services.store.get_ranges([ReadRange(place.key(scheme), place.offset, place.size)])
            proof.update(whole)
            proof.check()
        elif "range" in exchange.headers and place.size <= _PROVED_BYTES:
            async with services.store.stream(place.key(scheme), place.offset, place.size) as pieces:
                async for piece in pieces:
                    proof.update(piece)
            proof.check()
            proof = None
    await _send_content(services, exchange, headers, place.key(scheme), place.offset, place.size, whole, proof)


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
    await _send_content(services, exchange, headers, key, 0, size)


class _Proof:
    """What is sent of a blob hashes to its id, or is not sent to its end."""

    def __init__(self, object_id: bytes, scheme: Scheme, size: int) -> None:
        self._object_id = object_id
        self._hasher = hasher_for(Kind.BLOB, size, scheme)

    def update(self, piece: bytes) -> None:
        """Take the next bytes."""
        self._hasher.update(piece)

    def check(self) -> None:
        """Compare, after the last bytes."""
        if self._hasher.digest() != self._object_id:
            raise ObjectDamaged(f"object {self._object_id.hex()} does not hash to its id")


async def _send_content(
    services: HttpServices, exchange: Exchange, headers: list[tuple[str, str]], key: str, offset: int, size: int,
    whole: bytes | None = None, proof: _Proof | None = None,
) -> None:  # fmt: skip
    matches = exchange.method == "GET" and exchange.headers.get("if-range") in {None, dict(headers)["etag"]}
    wanted = parse_range(exchange.headers.get("range") if matches else None, size)
    start, length = wanted or (0, size)
    if wanted is not None:
        headers = [*headers, ("content-range", f"bytes {start}-{start + length - 1}/{size}")]
    headers = [*headers, ("content-length", str(length))]
    status = 206 if wanted is not None else 200
    if exchange.method != "GET" or whole is not None or not length:
        await exchange.start(status, headers)
        if exchange.method == "GET" and whole is not None:
            await exchange.send(whole[start : start + length])
    else:
        async with services.store.stream(key, offset + start, length) as pieces:  # opened before anything is said
            await exchange.start(status, headers)
            held, proving = b"", proof if wanted is None else None
            async for piece in pieces:
                if held:
                    await exchange.send(held)
                held = piece  # the last one goes out when the whole is known to be right
                if proving is not None:
                    proving.update(piece)
            if proving is not None:
                proving.check()
            await exchange.send(held)
    await exchange.finish()
