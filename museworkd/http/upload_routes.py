"""Where signed upload URLs lead when the store itself has none to give: ``PUT`` and ``HEAD`` (protocol §6, §7).

An upload lands under a staging key, which is never served; what it is worth is decided when it is confirmed or
unpacked. The URL is bound to repository, content, size and expiry, and works for nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from museworkd.http.exchange import Exchange
from museworkd.http.services import HttpServices
from museworkd.http.small_uploads import SMALL_BYTES
from museworkd.http.transfer_urls import OBJECT_KINDS
from museworkd.http.uploads import PartialUpload
from storage.errors import ObjectMissing
from storage.layout import staged_mpack_key, staged_object_key
from storage.rows import Repository
from wire.errors import Code, Refusal, malformed

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")


async def put_upload(services: HttpServices, exchange: Exchange, names: Mapping[str, str]) -> None:
    """``PUT upload/{kind}/{id}/{size}``: take a content, or continue one with ``Content-Range``."""
    _check_signature(services, exchange)
    if _is_small(exchange, names):
        await _take_small(services, exchange, names)
        return
    repository, key, size = await _find(services, names)
    if await _stored(services, key) == size:
        await _read_off(exchange, size)
    else:
        async with services.uploads.hold(_name(repository, names)) as partial:
            await _receive(exchange, partial, size)
            await partial.flush()
            if partial.length < size:  # a client may send it in several requests
                await exchange.respond(202, [("upload-offset", str(partial.length))], b"")
                return
            await services.store.put_file(key, partial.path)
    await exchange.respond(204, [("upload-offset", str(size))], b"")


def _is_small(exchange: Exchange, names: Mapping[str, str]) -> bool:
    """Tell whether a content comes whole and is better kept in memory; an mpack can always be taken up again."""
    size = names["size"]
    whole = exchange.headers.get("content-length") == size and "content-range" not in exchange.headers
    return whole and int(size) <= SMALL_BYTES and names["kind"] != "mpack"


async def _take_small(services: HttpServices, exchange: Exchange, names: Mapping[str, str]) -> None:
    """Take a content at once; it replaces one that was uploaded before and may have been damaged on its way."""
    repository = await services.recent.find(names["owner"], names["slug"])
    size = int(names["size"])
    if repository is None:
        raise Refusal(Code.NOT_FOUND, "no such repository")
    reserved = await services.small_uploads.reserve(size)
    try:
        content = await exchange.body(size)
        if len(content) != size:
            raise malformed(f"{len(content)} bytes came, {size} were announced")
        await services.small_uploads.put(_staged_key(repository, names), content)
    finally:
        services.small_uploads.release(reserved)
    await exchange.respond(204, [("upload-offset", str(size))], b"")


async def head_upload(services: HttpServices, exchange: Exchange, names: Mapping[str, str]) -> None:
    """``HEAD``: how many bytes are there, as ``Upload-Offset``."""
    if exchange.method != "HEAD":
        raise Refusal(Code.METHOD_NOT_ALLOWED, "an upload is not served", allow=["HEAD", "PUT"])
    _check_signature(services, exchange)
    repository, key, size = await _find(services, names)
    stored = await _stored(services, key)
    there = size if stored == size else services.uploads.length(_name(repository, names))
    headers = [("upload-offset", str(there)), ("upload-length", str(size)), ("cache-control", "no-store")]
    await exchange.start(200, [*headers, ("content-length", str(there))])
    await exchange.finish()


def _check_signature(services: HttpServices, exchange: Exchange) -> None:
    services.signer.check("PUT", exchange.path, exchange.query, services.environment.now().timestamp())


async def _find(services: HttpServices, names: Mapping[str, str]) -> tuple[Repository, str, int]:
    repository = await services.index.find_repository(names["owner"], names["slug"])
    if repository is None:
        raise Refusal(Code.NOT_FOUND, "no such repository")
    return repository, _staged_key(repository, names), int(names["size"])


def _staged_key(repository: Repository, names: Mapping[str, str]) -> str:
    content_id = bytes.fromhex(names["id"])
    if names["kind"] == "mpack":
        return staged_mpack_key(repository.number, content_id)
    scheme = next(scheme for scheme, kind in OBJECT_KINDS.items() if kind == names["kind"])
    return staged_object_key(repository.number, content_id, scheme)


async def _stored(services: HttpServices, key: str) -> int | None:
    try:
        return await services.store.size(key)
    except ObjectMissing:
        return None


async def _receive(exchange: Exchange, partial: PartialUpload, size: int) -> None:
    start, end = _content_range(exchange.headers.get("content-range"), size)
    if start > partial.length:
        raise Refusal(Code.RANGE_MISMATCH, f"the upload has {partial.length} bytes so far", size=partial.length)
    stated = exchange.headers.get("content-length")
    if stated is not None and stated.isdigit() and int(stated) != end - start:
        raise malformed(f"{end - start} bytes are expected here, {stated} are announced")
    if start == 0 and partial.length:
        await partial.restart()
    skipped = partial.length - start  # bytes that are there already
    expected = end - start
    received = 0
    while piece := await exchange.body_piece():
        received += len(piece)
        if received > expected:
            raise Refusal(Code.TOO_LARGE, f"more than the {expected} bytes this request announces")
        if skipped >= len(piece):
            skipped -= len(piece)
            continue
        await partial.append(piece[skipped:])
        skipped = 0
    if received != expected:
        raise malformed(f"{received} bytes came, {expected} were announced")


async def _read_off(exchange: Exchange, size: int) -> None:
    """Take a content that is there already without keeping it, so that the client sees the answer."""
    received = 0
    while piece := await exchange.body_piece():
        received += len(piece)
        if received > size:
            raise Refusal(Code.TOO_LARGE, f"more than {size} bytes")


def _content_range(header: str | None, size: int) -> tuple[int, int]:
    """Give where this request's bytes start and end."""
    if header is None:
        return 0, size
    match = _CONTENT_RANGE.fullmatch(header.strip())
    if match is None:
        raise malformed("Content-Range is not bytes FIRST-LAST/SIZE")
    first, last, total = map(int, match.groups())
    if total != size or not first <= last < total:
        raise malformed(f"Content-Range does not fit an upload of {size} bytes")
    return first, last + 1


def _name(repository: Repository, names: Mapping[str, str]) -> str:
    return f"{repository.number}-{names['kind']}-{names['id']}-{names['size']}"
