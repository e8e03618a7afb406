"""``POST refs``: several branches at once, all or none."""

from __future__ import annotations

from quart import Response, request
from quart_trio import QuartTrio

from actors.branches import BranchUpdate, update_branches
from museworkd.http.access import authenticate, find_for
from museworkd.http.services import HttpServices
from storage.rows import Repository, Right
from wire.errors import Code, Refusal, malformed
from wire.ids import Scheme, format_id, parse_id
from wire.limits import Limits
from wire.paths import check_branch_name

UPDATES_MOST = 1_000


def register(app: QuartTrio, services: HttpServices) -> None:
    """Add the route."""
    from museworkd.http.control import answer, request_body

    @app.post("/<owner>/<slug>/refs")
    async def update_refs(owner: str, slug: str) -> Response:
        identity = await authenticate(services.index, services.environment, request.headers.get("authorization"))
        repository, right = await find_for(services.index, identity, owner, slug, Right.WRITE)
        assert identity is not None
        updates = _updates(repository, await request_body(), services.limits)
        now = services.environment.now()
        await update_branches(services.index, repository, right, identity.handle, updates, now)
        heads = await services.index.branch_heads(repository.number)
        scheme = repository.scheme or Scheme.TYPED
        return answer({"branch_heads": {name: format_id(head, scheme) for name, head in heads.items()}})


def _updates(repository: Repository, body: dict[str, object], limits: Limits) -> list[BranchUpdate]:
    listed, force = body.get("updates"), body.get("force", False)
    if not isinstance(listed, list) or not listed:
        raise malformed("updates is not a list of changes")
    if len(listed) > UPDATES_MOST:
        raise Refusal(Code.TOO_LARGE, f"{len(listed)} updates at once, the limit is {UPDATES_MOST}")
    updates = [_update(repository, item, force, limits) for item in listed]
    if len({update.branch for update in updates}) != len(updates):
        raise malformed("a branch is named twice")
    return updates


def _update(repository: Repository, item: object, force: object, limits: Limits) -> BranchUpdate:
    if not isinstance(item, dict) or not {"old", "new"} <= item.keys():
        raise malformed("an update is a map of branch, old and new; nil for a branch that is not there")
    forced = item.get("force", force)
    if not isinstance(forced, bool):
        raise malformed("force is not a boolean")
    scheme = repository.scheme or Scheme.TYPED
    old, new = (None if item[key] is None else parse_id(item[key], scheme, key) for key in ("old", "new"))
    if old is None and new is None:
        raise malformed("an update with neither old nor new changes nothing")
    return BranchUpdate(check_branch_name(item.get("branch"), limits), old, new, forced)
