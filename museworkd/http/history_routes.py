"""Reading history: ``refs``, ``negotiate``, ``fetch`` (protocol §4, §8)."""

from __future__ import annotations

from quart import Response, request
from quart_trio import QuartTrio

from actors.fetch.assemble import fetch
from actors.history import range_of
from museworkd.http.access import admit
from museworkd.http.services import HttpServices
from storage.rows import Repository, Right
from wire.errors import Code, Refusal, malformed
from wire.ids import Scheme, format_id, parse_any_id, parse_id

DEPTH_MOST = 1_000_000


def register(app: QuartTrio, services: HttpServices) -> None:
    """Add the routes."""
    from museworkd.http.control import answer, request_body

    async def readable(owner: str, slug: str) -> Repository:
        authorization = request.headers.get("authorization")
        _, repository, _ = await admit(services.index, services.environment, authorization, owner, slug, Right.READ)
        return repository

    @app.post("/<owner>/<slug>/negotiate")
    async def negotiate(owner: str, slug: str) -> Response:
        repository = await readable(owner, slug)
        body = await request_body()
        want, have = _ids(services, repository, body, "want"), _ids(services, repository, body, "have")
        return answer(await _negotiate(services, repository, want, have))

    async def fetch_mpack(owner: str, slug: str) -> Response:
        repository = await readable(owner, slug)
        body = await request_body()
        want = _ids(services, repository, body, "want")
        if not want:
            raise malformed("want is empty")
        have = _ids(services, repository, body, "have")
        made = await fetch(services.fetch, repository, want, have, _depth(body))
        url = None if made.mpack_id is None else _mpack_url(services, repository, made.mpack_id)
        value: dict[str, object] = {
            "mpack_id": None if made.mpack_id is None else format_id(made.mpack_id, Scheme.TYPED),
            "mpack_url": url,
            "commit_count": made.commit_count,
            "object_count": made.object_count,
            "size_bytes": made.size_bytes,
        }
        if "depth" in body:
            value["shallow"] = [format_id(i, repository.scheme or Scheme.TYPED) for i in made.shallow]
        return answer(value)

    app.add_url_rule("/<owner>/<slug>/fetch", "fetch", fetch_mpack, methods=["POST"])
    app.add_url_rule("/<owner>/<slug>/fetch/mpack", "fetch_mpack", fetch_mpack, methods=["POST"])


async def _negotiate(
    services: HttpServices, repository: Repository, want: list[bytes], have: list[bytes]
) -> dict[str, object]:
    scheme = repository.scheme or Scheme.TYPED
    index = services.index
    held = await index.held_commits(repository.number, have)
    wanted = await index.held_commits(repository.number, want)
    ack = [commit_id for commit_id in have if commit_id in held]
    # one walk for all pairs of the two lists: a thousand ids each would make a million (threat T14)
    aside = {fact.commit_id for fact in (await range_of(index, scheme, ack, wanted)).found} if wanted else set(ack)
    common = max((commit_id for commit_id in ack if commit_id not in aside), key=lambda i: held[i], default=None)
    return {
        "ack": [format_id(commit_id, scheme) for commit_id in ack],
        "common_base": None if common is None else format_id(common, scheme),
        "ready": not have or common is not None,
    }


def _ids(services: HttpServices, repository: Repository, body: dict[str, object], key: str) -> list[bytes]:
    """Read a list of commit ids of the repository's scheme; keeps the order, drops repetitions."""
    value = body.get(key)
    if value is None and key == "have":
        return []
    if not isinstance(value, list):
        raise malformed(f"{key} is not a list of ids")
    most = services.limits.negotiate_ids
    if len(value) > most:
        raise Refusal(Code.TOO_LARGE, f"{key} has {len(value)} ids, the limit is {most}")
    if repository.scheme is None:
        return list(dict.fromkeys(parse_any_id(item, key)[1] for item in value))
    return list(dict.fromkeys(parse_id(item, repository.scheme, key) for item in value))


def _depth(body: dict[str, object]) -> int | None:
    depth = body.get("depth")
    if depth is None:
        return None
    if type(depth) is not int or not 1 <= depth <= DEPTH_MOST:
        raise malformed(f"depth is not a number from 1 to {DEPTH_MOST}")
    return depth


def _mpack_url(services: HttpServices, repository: Repository, mpack_id: bytes) -> str:
    expires = int(services.environment.now().timestamp()) + services.presign_s
    path = f"/{repository.owner}/{repository.slug}/mpack/{mpack_id.hex()}"
    base = services.public_url or f"{request.scheme}://{request.host}"
    return base + services.signer.sign("GET", path, expires)
