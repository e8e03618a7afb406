"""The other ways to fetch (protocol §8): as frames, blobs by id, and records with a URL for each blob."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

import msgpack
import structlog
import trio

from actors.fetch.blob_list import BlobList
from actors.fetch.contents import ContentWriter
from actors.fetch.frames import fetch_frames, object_frames, prepared
from actors.fetch.mending import until_whole
from actors.fetch.places import Places, located
from actors.fetch.plan import FetchPlan, plan_fetch
from actors.leases import leased
from actors.opaque import refuse_opaque
from actors.refusals import refusal_for
from museworkd.http.control_bodies import answer, control_body
from museworkd.http.exchange import ClientDisconnected, Exchange
from museworkd.http.id_lists import id_list_body, parse_ids
from museworkd.http.negotiation import read_body
from museworkd.http.object_routes import SIGNED_AT_ONCE, base_url
from museworkd.http.services import HttpServices, admit_to
from museworkd.http.transfer_urls import TransferUrls
from museworkd.http.wants import read_commit_ids, read_depth
from storage.rows import Repository, Right
from wire.errors import Code, Refusal, malformed
from wire.frames import FrameWriter, Grammar
from wire.ids import Scheme, format_id

log = structlog.get_logger("fetch")

MEDIA_TYPE = "application/x-muse-packstream"
_HEADERS = [("content-type", MEDIA_TYPE), ("cache-control", "private, no-store"), ("vary", "authorization")]
OBJECTS_MOST = 1_000
"""Ids of one ``fetch/objects``."""
RECORDS_MOST_BYTES = 64 * 1024 * 1024
"""Records in one answer of ``fetch/presign``; more have to be fetched as a pack or as frames."""
_URLS_MOST = 50_000


async def fetch_stream(services: HttpServices, exchange: Exchange, names: Mapping[str, str]) -> None:
    """``POST fetch/stream``: ``H O* C* E``; what fails after the first frame is an ``X`` frame."""
    _, repository, _ = await admit_to(services, exchange, names, Right.READ)
    want, have, depth = await _wanted(services, exchange, repository)
    async with prepared(services.fetch, repository, want, have, depth) as made:
        writer = FrameWriter(Grammar.FETCH)
        await _send(exchange, writer, fetch_frames(services.fetch, made, writer))


async def fetch_objects(services: HttpServices, exchange: Exchange, names: Mapping[str, str]) -> None:
    """``POST fetch/objects``: blobs this repository holds, in the order asked for; an unknown one refuses all."""
    _, repository, _ = await admit_to(services, exchange, names, Right.READ)
    async with id_list_body(services, exchange) as body:
        scheme, ids = await parse_ids(repository, await body.member("object_ids"))
    if len(ids) > OBJECTS_MOST:
        raise Refusal(Code.TOO_LARGE, f"object_ids has {len(ids)} ids, the limit is {OBJECTS_MOST}")
    places = await services.index.held_places(repository.number, scheme, list(ids))
    unreachable = services.fetch.unreachable
    hidden = await unreachable.among(services.index, repository, scheme, places, services.limits)
    missing = [text for object_id, text in ids.items() if object_id not in places or object_id in hidden]
    if missing:
        raise Refusal(Code.NOT_FOUND, f"no such object in this repository: {missing[0]}", missing=missing[:100])

    writer = FrameWriter(Grammar.OBJECTS)

    async def frames() -> AsyncGenerator[bytes, None]:
        wanted = [places[object_id] for object_id in ids]
        async with aclosing(object_frames(services.fetch, scheme, wanted, writer)) as sent:
            async for frame in sent:
                yield frame
        yield writer.send("E", {"n_objects": len(wanted), "n_commits": 0})

    await _send(exchange, writer, frames())


async def fetch_presign(services: HttpServices, exchange: Exchange, names: Mapping[str, str]) -> None:
    """``POST fetch/presign``: the records of a fetch, and a URL for each blob; as many as fit into one answer."""
    _, repository, _ = await admit_to(services, exchange, names, Right.READ)
    want, have, depth = await _wanted(services, exchange, repository)
    lease = leased(services.index, services.environment, repository.number)
    async with services.fetch.slots.hold(1), lease:
        plan = await plan_fetch(services.index, repository, want, have, depth)
        scheme = repository.scheme or Scheme.TYPED
        number = repository.number
        records, places = await until_whole(services.fetch, scheme, lambda: _taken(services, number, scheme, plan))
    signed = TransferUrls(services, repository, base_url(services, exchange), services.presign_s)
    urls: dict[str, str] = {}
    for at, place in enumerate(places, 1):
        urls[format_id(place.object_id, scheme)] = signed.get_blob(place, scheme)
        if at % SIGNED_AT_ONCE == 0:
            await trio.lowlevel.checkpoint()
    value: dict[str, object] = {
        "commits": records.commits.taken,
        "snapshots": records.snapshots.taken,
        "presigned_urls": urls,
        "expires_in": services.presign_s,
    }
    if plan.shallow:
        value["shallow"] = [format_id(commit_id, scheme) for commit_id in plan.shallow]
    await answer(exchange, value)


async def _taken(services: HttpServices, repo: int, scheme: Scheme, plan: FetchPlan) -> tuple[_Records, Places]:
    """Give the records of a plan, and where its blobs are."""
    records, blobs = _Records(), BlobList()
    if plan.commits:
        contents = ContentWriter(services.index, repo, scheme, plan, services.limits)
        await contents.run(records.snapshots.take, records.commits.take)
        blobs = contents.blobs
    if len(blobs) > _URLS_MOST:
        raise _too_large(f"{len(blobs)} blobs")
    return records, await located(services.fetch, repo, scheme, blobs)


class _Sink:
    """Takes records as long as they fit into an answer together."""

    def __init__(self, budget: list[int]) -> None:
        self._budget = budget
        self.taken: list[Mapping[str, object]] = []

    async def take(self, record: Mapping[str, object]) -> None:
        """Take one; raises ``too_large``."""
        self._budget[0] -= len(msgpack.packb(record))
        if self._budget[0] < 0:
            raise _too_large("these records")
        self.taken.append(record)


class _Records:
    def __init__(self) -> None:
        budget = [RECORDS_MOST_BYTES]
        self.snapshots, self.commits = _Sink(budget), _Sink(budget)


def _too_large(what: str) -> Refusal:
    return Refusal(Code.TOO_LARGE, f"{what} do not fit into one answer: use fetch/mpack or fetch/stream")


async def _wanted(
    services: HttpServices, exchange: Exchange, repository: Repository
) -> tuple[list[bytes], list[bytes], int | None]:
    async with control_body(services, exchange) as data:
        body = read_body(data, exchange.headers.get("content-type", ""))
    want = read_commit_ids(services.limits, repository, body, "want")
    if not want:
        raise malformed("want is empty")
    refuse_opaque(repository)
    return want, read_commit_ids(services.limits, repository, body, "have"), read_depth(body)


async def _send(exchange: Exchange, writer: FrameWriter, frames: AsyncGenerator[bytes, None]) -> None:
    """Send frames as they come; a failure before the first is a plain answer, after it an ``X`` frame."""
    async with aclosing(frames) as sent:
        try:
            async for frame in sent:
                if not exchange.started:
                    await exchange.start(200, _HEADERS)
                await exchange.send(frame)
        except ClientDisconnected:
            raise
        except Exception as error:
            refusal = refusal_for(error)
            if refusal is None or not exchange.started:
                raise
            log.warning("fetch failed", request_id=exchange.request_id, code=refusal.code.text, detail=refusal.detail)
            await exchange.send(writer.send("X", refusal.body(exchange.request_id)))
    await exchange.finish()
