"""Administration of repositories under ``/api/``."""

from __future__ import annotations

from quart import Response, request
from quart_trio import QuartTrio

from museworkd.administration import check_handle, create_repository, parse_settings, shown
from museworkd.http.access import Identity, authenticate, find_for
from museworkd.http.services import HttpServices
from storage.rows import Right, Visibility
from wire.errors import Code, Refusal, malformed
from wire.paths import check_branch_name


def register(app: QuartTrio, services: HttpServices) -> None:
    """Add the routes."""
    from museworkd.http.control import answer, request_body

    async def caller() -> Identity | None:
        return await authenticate(services.index, services.environment, request.headers.get("authorization"))

    @app.get("/api/repos")
    async def list_repositories() -> Response:
        identity = await caller()
        found = await services.index.list_repositories(None if identity is None else identity.handle)
        return answer({"repositories": [shown(r) for r in found]})

    @app.post("/api/repos")
    async def create() -> Response:
        identity = await caller()
        if identity is None:
            raise Refusal(Code.UNAUTHENTICATED, "this needs a token")
        body = await request_body()
        owner = body.get("owner", identity.handle)
        if owner != identity.handle or identity.scope < Right.ADMIN:
            raise Refusal(Code.FORBIDDEN, "an admin token makes repositories of its own identity only")
        made = await create_repository(services.index, services.environment, identity.handle, body)
        return answer(shown(made), 201)

    @app.get("/api/repos/<owner>/<slug>")
    async def get(owner: str, slug: str) -> Response:
        repository, right = await find_for(services.index, await caller(), owner, slug, Right.READ)
        return answer({**shown(repository), "right": right.name.lower()})

    @app.patch("/api/repos/<owner>/<slug>")
    async def update(owner: str, slug: str) -> Response:
        repository, _ = await find_for(services.index, await caller(), owner, slug, Right.ADMIN)
        body = await request_body()
        visibility = _visibility(body.get("visibility", repository.visibility.value))
        branch = check_branch_name(body.get("default_branch", repository.default_branch))
        settings = parse_settings(body.get("settings", {}), repository.settings, repository.scheme)
        await services.index.update_repository(repository.number, visibility, settings, branch)
        changed = await services.index.find_repository(owner, slug)
        if changed is None:
            raise Refusal(Code.NOT_FOUND, "no such repository")
        return answer(shown(changed))

    @app.delete("/api/repos/<owner>/<slug>")
    async def delete(owner: str, slug: str) -> Response:
        repository, _ = await find_for(services.index, await caller(), owner, slug, Right.ADMIN)
        await services.index.delete_repository(repository.number, services.environment.now())
        return answer({"deleted": str(repository.repo_id)})

    @app.put("/api/repos/<owner>/<slug>/collaborators/<handle>")
    async def set_collaborator(owner: str, slug: str, handle: str) -> Response:
        repository, _ = await find_for(services.index, await caller(), owner, slug, Right.ADMIN)
        named = (await request_body()).get("right")
        rights = {right.name.lower(): right for right in Right}
        if not isinstance(named, str) or named not in rights:
            raise malformed("right is none, read, write or admin")
        await services.index.set_collaborator(repository.number, check_handle(handle), rights[named])
        return answer({"handle": handle, "right": named})


def _visibility(value: object) -> Visibility:
    try:
        return Visibility(value)
    except ValueError:
        raise malformed("visibility is private or public") from None
