"""Pushing as the public 0.1.x client does (protocol §9): what to send, blobs ahead of it, and the push itself."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing

import msgpack
import trio

from actors.leases import leased
from actors.opaque import as_sent
from actors.push.actor import PushActor
from actors.push.context import BATCH_BYTES, BATCH_OBJECTS, ClientGone, PushRequest
from actors.push.plain_body import PIECE_BYTES, PlainBody
from actors.spool import Spool, SpoolDirectory
from museworkd.http.control_bodies import answer
from museworkd.http.exchange import Exchange
from museworkd.http.id_lists import id_list_body, parse_ids
from museworkd.http.negotiation import is_msgpack
from museworkd.http.object_routes import base_url, stored_of
from museworkd.http.reservations import reserve_objects
from museworkd.http.services import HttpServices, admit_to, admit_writer
from museworkd.http.transfer_urls import TransferUrls
from storage.layout import loose_key
from storage.rows import HELD_S, Repository, Right, StoredBlob
from wire.bundle import BundleReader
from wire.errors import Code, Refusal, malformed
from wire.frames import Object, ObjectBegin, ObjectEnd, ObjectPiece
from wire.ids import Kind, Scheme, format_id, hash_bytes, hasher_for, parse_id

OBJECTS_MOST = 1_000
"""Objects of one ``push/objects``."""
PRESIGN_MOST = 10_000
TTL_MOST_S = 86_400
_TAKE_BYTES = 1024 * 1024
_ENVELOPE = {"type", "error", "detail", "request_id", "retryable"}


async def filter_objects(services: HttpServices, exchange: Exchange, names: Mapping[str, str]) -> None:
    """``POST filter-objects``: which of some blobs have to be sent, in the order asked for (threats T1, T2)."""
    repository, _ = await admit_writer(services, exchange, names)
    async with id_list_body(services, exchange) as body:
        scheme, ids = await _plain_ids(repository, await body.member("object_ids"))
        there = await stored_of(services, repository, scheme, ids)
        await answer(exchange, {"missing": [text for object_id, text in ids.items() if object_id not in there]})


async def presign(services: HttpServices, exchange: Exchange, names: Mapping[str, str]) -> None:
    """``POST presign``: URLs to get blobs by; a blob to put is sent inline, since its size is not known here."""
    _, repository, right = await admit_to(services, exchange, names, Right.READ)
    async with id_list_body(services, exchange) as body:
        direction = await body.member("direction")
        if direction not in {"put", "get"}:
            raise malformed("direction is neither put nor get")
        if direction == "put" and right < Right.WRITE:
            await admit_to(services, exchange, names, Right.WRITE)
        scheme, ids = await _plain_ids(repository, await body.member("object_ids"))
        if len(ids) > PRESIGN_MOST:
            raise Refusal(Code.TOO_LARGE, f"object_ids has {len(ids)} ids, the limit is {PRESIGN_MOST}")
        lifetime = await body.member("ttl_seconds")
    if direction == "put":
        await answer(exchange, {"presigned": {}, "inline": list(ids.values())})
        return
    if lifetime is not None and (type(lifetime) is not int or not 1 <= lifetime <= TTL_MOST_S):
        raise malformed(f"ttl_seconds is not a number from 1 to {TTL_MOST_S}")
    places = await services.index.held_places(repository.number, scheme, list(ids))
    hidden = await services.fetch.unreachable.among(services.index, repository, scheme, places, services.limits)
    lifetime_s = min(lifetime or services.presign_s, services.presign_s)
    signed = TransferUrls(services, repository, base_url(services, exchange), lifetime_s)
    presigned = {
        ids[object_id]: signed.get_blob(place, scheme) for object_id, place in places.items() if object_id not in hidden
    }
    await answer(exchange, {"presigned": presigned, "inline": []})


async def push_objects(services: HttpServices, exchange: Exchange, names: Mapping[str, str]) -> None:
    """``POST push/objects``: blobs that a push will name; held for this repository until then, read by nobody."""
    repository, _ = await admit_writer(services, exchange, names)
    _require_plain(repository, Scheme.PLAIN)
    _require_msgpack(exchange)
    name = f"objects-{services.environment.uuid().hex}"
    lease = leased(services.index, services.environment, repository.number)
    async with lease as lease_id, SpoolDirectory(services.push.spool_dir, name) as spools:
        taken = _Objects(services, repository, spools, lease_id)
        async with aclosing(_pieces(exchange)) as pieces:
            async for data in pieces:
                await taken.take(data)
        await taken.flush()
    await answer(exchange, {"stored": taken.stored, "skipped": taken.skipped})


async def push(services: HttpServices, exchange: Exchange, names: Mapping[str, str]) -> None:
    """``POST push``: the whole of a push in one body, judged like every other."""
    try:
        identity, repository, right = await admit_to(services, exchange, names, Right.WRITE)
    except Refusal as refusal:
        if refusal.code is not Code.FORBIDDEN:
            raise
        told = {**refusal.body(exchange.request_id), "detail": f"not authorized: {refusal.detail}"}
        await answer(exchange, told, 409)  # the status whose text that client shows
        return
    assert identity is not None
    _require_plain(repository, Scheme.PLAIN)
    _require_msgpack(exchange)
    request = PushRequest(repository, identity.handle, right, exchange.request_id)
    async with SpoolDirectory(services.push.spool_dir, f"plain-{services.environment.uuid().hex}") as spools:
        body = PlainBody(spools, services.limits)
        async with aclosing(_pieces(exchange)) as pieces:
            async for data in pieces:
                await trio.to_thread.run_sync(body.take, data)
        await trio.to_thread.run_sync(body.take, b"")
        branch = str(body.branch)
        try:
            verdict = await _judged(services, request, body)
        except Refusal as refusal:
            raise _in_their_words(refusal, branch) from None
    heads = await services.index.branch_heads(repository.number)
    written = verdict.get("commits_written")
    told = {
        "ok": True,
        "message": f"pushed {written} commit{'' if written == 1 else 's'} to {branch!r}",
        "branch_heads": {name: format_id(head, Scheme.PLAIN) for name, head in heads.items()},
        "remote_head": verdict.get("head"),
    }
    await answer(exchange, await as_sent(services.index, repository, told))


async def _judged(services: HttpServices, request: PushRequest, body: PlainBody) -> Mapping[str, object]:
    """Feed the frames to a push actor; gives its result or raises its refusal."""
    actor = PushActor(services.push, request)
    frames = body.frames()
    first = await trio.to_thread.run_sync(next, frames)
    await services.supervisor.start(actor)
    last: dict[str, object] = {}
    try:
        async with actor.answers, trio.open_nursery() as nursery:
            nursery.start_soon(_feed, actor, first, frames)
            async for frame in actor.answers:
                last = msgpack.unpackb(frame)
            nursery.cancel_scope.cancel()
    finally:
        actor.interrupt(ClientGone())
    if actor.at_door is not None:
        raise actor.at_door
    if last.get("type") == "R":
        return last
    code = Code.from_text(str(last.get("error"))) or Code.INTERNAL
    facts = {key: value for key, value in last.items() if key not in _ENVELOPE}
    raise Refusal(code, str(last.get("detail", "the push has no verdict")), **facts)


async def _feed(actor: PushActor, first: bytes, frames: Iterator[bytes]) -> None:
    try:
        data: bytes | None = first
        while data:
            for at in range(0, len(data), PIECE_BYTES):
                await actor.post(data[at : at + PIECE_BYTES])
            data = await trio.to_thread.run_sync(next, frames, None)
        await actor.post(b"")
    except trio.BrokenResourceError:
        pass  # the actor has its verdict already


def _in_their_words(refusal: Refusal, branch: str) -> Refusal:
    """Say what that client looks for in the text of a refusal."""
    if refusal.code in {Code.NON_FAST_FORWARD, Code.HEAD_MOVED}:
        text = f"non-fast-forward push to '{branch}': {refusal.detail}"
        return Refusal(Code.NON_FAST_FORWARD, text, **refusal.facts)
    if refusal.code is Code.MISSING_PARENTS:
        missing = refusal.facts.get("missing")
        named = f" ({missing[0]})" if isinstance(missing, list) and missing else ""
        return Refusal(refusal.code, f"{refusal.detail}: push the missing commit{named} first", **refusal.facts)
    return refusal


class _Objects:
    """Objects on their way from a body into the store, a batch at a time."""

    def __init__(
        self, services: HttpServices, repository: Repository, spools: SpoolDirectory, lease: uuid.UUID
    ) -> None:
        self._services = services
        self._repository = repository
        self._spools = spools
        self._lease = lease
        self._reader = BundleReader(services.limits)
        self._batch: dict[bytes, bytes] = {}
        self._size = 0
        self._content: Spool | None = None
        self._count = 0
        self.stored = 0
        self.skipped = 0

    async def take(self, data: bytes) -> None:
        """Take the next bytes."""
        for event in self._reader.receive_data(data):
            match event:
                case Object(object_id, "raw", None, content):
                    self._admit(object_id)
                    await self._small(parse_id(object_id, Scheme.PLAIN, "object_id"), content)
                case ObjectBegin():
                    self._content = self._spools.new()
                case ObjectPiece(content):
                    assert self._content is not None
                    await self._content.append(content)
                case ObjectEnd(object_id, "raw", None):
                    self._admit(object_id)
                    await self._large(parse_id(object_id, Scheme.PLAIN, "object_id"))
                case Object() | ObjectEnd():
                    raise malformed("objects of this client are sent raw")
                case _:
                    pass

    async def flush(self) -> None:
        """End the body and store what is left."""
        await self.take(b"")
        await self._store()

    def _admit(self, object_id: object) -> None:
        self._count += 1
        if self._count > OBJECTS_MOST:
            raise Refusal(Code.TOO_LARGE, f"more than {OBJECTS_MOST} objects at once")
        if not isinstance(object_id, str):
            raise malformed("object_id is not text")

    async def _small(self, object_id: bytes, content: bytes) -> None:
        if hash_bytes(Kind.BLOB, content, Scheme.PLAIN) != object_id:
            raise _bad_hash(object_id)
        if object_id in self._batch:
            self.skipped += 1
            return
        self._batch[object_id] = content
        self._size += len(content)
        if len(self._batch) >= BATCH_OBJECTS or self._size >= BATCH_BYTES:
            await self._store()

    async def _store(self) -> None:
        batch, self._batch, self._size = self._batch, {}, 0
        if not batch:
            return
        new = await self._new({object_id: len(content) for object_id, content in batch.items()})
        if new:
            await self._services.store.put_batch([(loose_key(i, Scheme.PLAIN), batch[i]) for i in new])
            await self._hold([StoredBlob(i, len(batch[i])) for i in new])

    async def _large(self, object_id: bytes) -> None:
        content, self._content = self._content, None
        assert content is not None
        size = content.size
        digest = await trio.to_thread.run_sync(_digest, content)
        if digest != object_id:
            raise _bad_hash(object_id)
        if await self._new({object_id: size}):
            path = await trio.to_thread.run_sync(content.flush)
            await self._services.store.put_file(loose_key(object_id, Scheme.PLAIN), path)
            await self._hold([StoredBlob(object_id, size)])
        else:
            await trio.to_thread.run_sync(content.discard)

    async def _new(self, sizes: Mapping[bytes, int]) -> list[bytes]:
        """Give those this repository has not been given yet, with room for them reserved."""
        services, repository = self._services, self._repository
        there = await services.index.stored_blobs(
            repository.number, Scheme.PLAIN, list(sizes), services.environment.now()
        )
        new = [object_id for object_id in sizes if object_id not in there]
        named = {object_id.hex(): object_id for object_id in new}
        await reserve_objects(services, repository, named, {text: sizes[i] for text, i in named.items()}, None)
        self.skipped += len(sizes) - len(new)
        self.stored += len(new)
        return new

    async def _hold(self, blobs: list[StoredBlob]) -> None:
        expires = self._services.environment.now() + dt.timedelta(seconds=HELD_S)
        await self._services.index.hold_blobs(self._repository.number, Scheme.PLAIN, blobs, expires, self._lease)


def _digest(content: Spool) -> bytes:
    hasher = hasher_for(Kind.BLOB, content.size, Scheme.PLAIN)
    for piece in content.pieces():
        hasher.update(piece)
    return hasher.digest()


def _bad_hash(object_id: bytes) -> Refusal:
    shown = format_id(object_id, Scheme.PLAIN)
    return Refusal(Code.BAD_OBJECT_HASH, f"object {shown} does not hash to its id", id=shown)


async def _pieces(exchange: Exchange) -> AsyncGenerator[bytes, None]:
    """Give the body in pieces that are worth a thread."""
    waiting: list[bytes] = []
    size = 0
    while piece := await exchange.body_piece():
        waiting.append(piece)
        size += len(piece)
        if size >= _TAKE_BYTES:
            yield b"".join(waiting)
            waiting, size = [], 0
    if waiting:
        yield b"".join(waiting)


async def _plain_ids(repository: Repository, value: object) -> tuple[Scheme, dict[bytes, str]]:
    _require_plain(repository, Scheme.PLAIN)
    scheme, ids = await parse_ids(repository, value)
    if ids:
        _require_plain(repository, scheme)
    return Scheme.PLAIN, ids


def _require_plain(repository: Repository, scheme: Scheme) -> None:
    """Refuse a repository of the other id scheme, in a sentence that says so."""
    if repository.scheme not in {None, Scheme.PLAIN} or scheme is not Scheme.PLAIN:
        raise malformed(
            "this repository has typed ids (sha256:…), which a client of version 0.1 does not know: use a newer client"
        )


def _require_msgpack(exchange: Exchange) -> None:
    kind = exchange.headers.get("content-type", "")
    if kind and not is_msgpack(kind):
        raise Refusal(Code.UNSUPPORTED_MEDIA, "objects travel as msgpack: send application/x-msgpack")
