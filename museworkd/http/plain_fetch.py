"""Fetching as the public 0.1.x client does (protocol §9), on the path it shares with newer ones."""

from __future__ import annotations

from collections.abc import Mapping

import trio

from actors.fetch.mending import until_whole
from actors.fetch.plain_answer import plain_answer
from actors.leases import leased
from actors.opaque import kept_commit_ids
from actors.spool import SpoolDirectory
from museworkd.http.exchange import Exchange
from museworkd.http.fetch_pack_routes import answer_pack
from museworkd.http.id_lists import IdListBody, id_list_body
from museworkd.http.negotiation import JSON, MSGPACK, wants_msgpack
from museworkd.http.services import HttpServices, admit_to
from storage.rows import Repository, Right
from wire.errors import Code, Refusal, malformed
from wire.ids import Scheme, parse_id

HAVE_MOST = 100_000
WANT_MOST = 1_000


async def fetch(services: HttpServices, exchange: Exchange, names: Mapping[str, str]) -> None:
    """``POST fetch``: bare ids are an old client's, which gets everything in one answer; others get a pack's URL."""
    _, repository, _ = await admit_to(services, exchange, names, Right.READ)
    async with id_list_body(services, exchange) as body:
        want = await body.member("want")
        if not _is_plain(repository, want):
            members = {key: await body.member(key) for key in ("want", "have", "depth")}
            await answer_pack(services, exchange, repository, {k: v for k, v in members.items() if v is not None})
            return
        wanted, have = _ids(want, "want", WANT_MOST), await _have(body)
    if repository.scheme is Scheme.TYPED:
        raise malformed(
            "this repository has typed ids (sha256:…), which a client of version 0.1 does not know: use a newer client"
        )
    packed = wants_msgpack(exchange.headers.get("accept", ""))
    fetching = services.fetch
    async with SpoolDirectory(fetching.spool_dir, f"answer-{services.environment.uuid().hex}") as spools:
        spool = spools.new()
        async with fetching.slots.hold(1), leased(services.index, services.environment, repository.number):
            wanted, have = [await kept_commit_ids(services.index, repository, ids) for ids in (wanted, have)]

            async def write() -> None:
                await trio.to_thread.run_sync(spool.discard)  # what was written before something was mended
                await plain_answer(fetching, repository, wanted, have, spool, packed=packed)

            await until_whole(fetching, Scheme.PLAIN, write)
        headers = [
            ("content-type", MSGPACK if packed else JSON), ("cache-control", "private, no-store"),
            ("vary", "accept, authorization"), ("content-length", str(spool.size)),
        ]  # fmt: skip
        await exchange.start(200, headers)
        pieces = spool.pieces()
        while piece := await trio.to_thread.run_sync(next, pieces, b""):
            await exchange.send(piece)
        await exchange.finish()


def _is_plain(repository: Repository, want: object) -> bool:
    """Tell by the ids, and where there are none by the repository, whose answer is wanted."""
    if isinstance(want, list) and want:
        return isinstance(want[0], str) and not want[0].startswith("sha256:")
    return repository.scheme is not Scheme.TYPED and isinstance(want, list)


async def _have(body: IdListBody) -> list[bytes]:
    have = await body.member("have")
    return [] if have is None else _ids(have, "have", HAVE_MOST)


def _ids(value: object, key: str, most: int) -> list[bytes]:
    if not isinstance(value, list):
        raise malformed(f"{key} is not a list of ids")
    if len(value) > most:
        raise Refusal(Code.TOO_LARGE, f"{key} has {len(value)} ids, the limit is {most}")
    return list(dict.fromkeys(parse_id(item, Scheme.PLAIN, key) for item in value))
