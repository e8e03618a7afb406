"""Fetching as one file (protocol §8): ``fetch/mpack``, and ``fetch`` for clients that know packs."""

from __future__ import annotations

from collections.abc import Mapping

from actors.fetch.assemble import fetch
from actors.opaque import refuse_opaque
from museworkd.http.control_bodies import answer, control_body
from museworkd.http.exchange import Exchange
from museworkd.http.negotiation import read_body
from museworkd.http.object_routes import base_url
from museworkd.http.services import HttpServices, admit_to
from museworkd.http.transfer_urls import TransferUrls
from museworkd.http.wants import read_commit_ids, read_depth
from storage.rows import Repository, Right
from wire.errors import Refusal, malformed
from wire.ids import Scheme, format_id


async def fetch_mpack(services: HttpServices, exchange: Exchange, names: Mapping[str, str]) -> None:
    """``POST fetch/mpack``: what is lacking as one file, by its URL."""
    _, repository, _ = await admit_to(services, exchange, names, Right.READ)
    async with control_body(services, exchange) as data:
        body = read_body(data, exchange.headers.get("content-type", ""))
    await answer_pack(services, exchange, repository, body)


async def answer_pack(
    services: HttpServices, exchange: Exchange, repository: Repository, body: Mapping[str, object]
) -> None:
    """Answer a fetch by a pack; who does not wait any more is not waited for."""
    want = read_commit_ids(services.limits, repository, body, "want")
    refuse_opaque(repository)
    if not want:
        raise malformed("want is empty")
    have, depth = read_commit_ids(services.limits, repository, body, "have"), read_depth(body)
    patience, start = services.settings.fetch_sync_s, services.supervisor.start
    try:
        async with exchange.watched():
            found = await fetch(services.fetch, start, repository, want, have, depth, patience)
    except Refusal as refusal:
        exchange.request_id = str(refusal.facts.get("preparing_id", exchange.request_id))  # the same each time
        raise
    signed = TransferUrls(services, repository, base_url(services, exchange), services.presign_s)
    value: dict[str, object] = {
        "mpack_id": None if found.mpack_id is None else format_id(found.mpack_id, Scheme.TYPED),
        "mpack_url": None if found.mpack_id is None else signed.get_mpack(found.mpack_id),
        "commit_count": found.commit_count,
        "object_count": found.object_count,
        "size_bytes": found.size_bytes,
    }
    if "depth" in body:
        value["shallow"] = [format_id(i, repository.scheme or Scheme.TYPED) for i in found.shallow]
    await answer(exchange, value)
