"""Finding common ground before a fetch: ``negotiate`` (protocol §4)."""

from __future__ import annotations

from quart import Response, request
from quart_trio import QuartTrio

from actors.history import range_of
from actors.opaque import as_sent, kept_commit_ids
from museworkd.http.access import admit
from museworkd.http.services import HttpServices
from museworkd.http.wants import read_commit_ids
from storage.rows import Repository, Right
from wire.ids import Scheme, format_id


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
        want, have = (
            read_commit_ids(services.limits, repository, body, "want"),
            read_commit_ids(services.limits, repository, body, "have"),
        )
        want, have = [await kept_commit_ids(services.index, repository, ids) for ids in (want, have)]
        agreed = await _negotiate(services, repository, want, have)
        return answer(await as_sent(services.index, repository, agreed))


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
