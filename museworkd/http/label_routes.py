"""Tags and releases (protocol §9): names for commits this repository holds, kept as they were sent."""

from __future__ import annotations

from collections.abc import Mapping

from actors.opaque import kept_commit_ids
from museworkd.http.control_bodies import answer, control_body
from museworkd.http.exchange import Exchange
from museworkd.http.negotiation import read_body
from museworkd.http.services import HttpServices, admit_to
from storage.labels import TagRow
from storage.rows import Repository, Right
from wire.canonical import canonical_bytes, parse_canonical
from wire.errors import Code, Refusal, malformed
from wire.ids import Kind, Scheme, format_id, parse_id
from wire.records import Tag, parse_tag

TAGS_MOST = 1_000
"""Tags of one request."""
NAME_MOST = 255
"""Characters of a tag or a release's id."""


async def put_tags(services: HttpServices, exchange: Exchange, names: Mapping[str, str]) -> None:
    """``POST tags``: each names a commit this repository holds; all are set or none."""
    _, repository, _ = await admit_to(services, exchange, names, Right.WRITE)
    body = await _body(services, exchange)
    given = body.get("tags")
    if not isinstance(given, list):
        raise malformed("tags is not a list of records")
    if len(given) > TAGS_MOST:
        raise Refusal(Code.TOO_LARGE, f"{len(given)} tags at once, the limit is {TAGS_MOST}")
    scheme = repository.scheme or Scheme.TYPED
    parsed = [parse_tag(record, scheme, services.limits) for record in given]
    rows = {tag.tag: TagRow(_name(tag.tag, "tag"), tag.commit_id, _canonical(Kind.TAG, tag)) for tag in parsed}
    await _require_held(services, repository, scheme, [tag.commit_id for tag in parsed])
    if rows:
        await services.index.put_tags(repository.number, list(rows.values()))
        await services.push.journal.settle()
    await answer(exchange, {"stored": len(rows)})


async def get_tags(services: HttpServices, exchange: Exchange, names: Mapping[str, str]) -> None:
    """``GET tags``: by name, as they were sent."""
    _, repository, _ = await admit_to(services, exchange, names, Right.READ)
    rows = await services.index.list_tags(repository.number)
    await answer(exchange, {"tags": [parse_canonical(row.record)[1] for row in rows]})


async def get_releases(services: HttpServices, exchange: Exchange, names: Mapping[str, str]) -> None:
    """``GET releases``: newest first, without those that were retracted."""
    _, repository, _ = await admit_to(services, exchange, names, Right.READ)
    records = await services.index.list_releases(repository.number)
    await answer(exchange, {"releases": [parse_canonical(record)[1] for record in records]})


async def post_release(services: HttpServices, exchange: Exchange, names: Mapping[str, str]) -> None:
    """``POST releases``: one record, with an id of its own or one that is made; done again it replaces itself."""
    _, repository, _ = await admit_to(services, exchange, names, Right.WRITE)
    body = await _body(services, exchange)
    record = body.get("release", body)
    if not isinstance(record, dict) or not record:
        raise malformed("a release is a map")
    scheme = repository.scheme or Scheme.TYPED
    given = record.get("release_id")
    release_id = str(services.environment.uuid()) if given is None else _name(given, "release_id")
    commit_id = record.get("commit_id")
    if commit_id is not None:
        await _require_held(services, repository, scheme, [parse_id(commit_id, scheme, "commit_id")])
    kept = canonical_bytes(Kind.RELEASE, {**record, "release_id": release_id}, services.limits)
    await services.index.put_release(repository.number, release_id, kept, services.environment.now())
    await services.push.journal.settle()
    await answer(exchange, {"release_id": release_id})


async def delete_release(services: HttpServices, exchange: Exchange, names: Mapping[str, str]) -> None:
    """``DELETE releases/{id}``, or ``DELETE releases`` with the id in query or body."""
    _, repository, _ = await admit_to(services, exchange, names, Right.WRITE)
    given: object = names.get("release_id") or exchange.query.get("release_id")
    if given is None:
        given = (await _body(services, exchange)).get("release_id")
    release_id = _name(given, "release_id")
    if not await services.index.retract_release(repository.number, release_id, services.environment.now()):
        raise Refusal(Code.NOT_FOUND, "no such release")
    await services.push.journal.settle()
    await answer(exchange, {"retracted": True, "release_id": release_id})


async def _body(services: HttpServices, exchange: Exchange) -> dict[str, object]:
    async with control_body(services, exchange) as data:
        return read_body(data, exchange.headers.get("content-type", ""))


async def _require_held(services: HttpServices, repository: Repository, scheme: Scheme, wanted: list[bytes]) -> None:
    wanted = await kept_commit_ids(services.index, repository, wanted)
    held = await services.index.held_commits(repository.number, wanted)
    missing = [format_id(commit_id, scheme) for commit_id in wanted if commit_id not in held]
    if missing:
        raise Refusal(
            Code.MISSING_PARENTS, f"commit {missing[0]} is not in this repository: push it first", missing=missing[:100]
        )


def _canonical(kind: Kind, tag: Tag) -> bytes:
    return canonical_bytes(kind, tag.raw)


def _name(value: object, what: str) -> str:
    if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= NAME_MOST:
        raise malformed(f"{what} is not a name of 1 to {NAME_MOST} printable characters")
    return value
