"""Pushing by one file (protocol §7): the URL to upload it to, and its unpacking."""

from __future__ import annotations

import uuid

import trio
from quart import Response, request
from quart_trio import QuartTrio

from actors.opaque import as_sent
from actors.push.context import PushRequest
from actors.push.header import parse_header
from actors.push.unpack import UnpackActor, Upload
from museworkd.http.access import admit
from museworkd.http.reservations import reserve_mpack
from museworkd.http.services import HttpServices
from museworkd.http.transfer_urls import TransferUrls
from storage.errors import ObjectMissing
from storage.layout import staged_mpack_key
from storage.rows import PushRecord, PushState, Repository, Right
from wire.errors import Code, Refusal, malformed
from wire.frames import Header
from wire.ids import Scheme, format_id, parse_id


def register(app: QuartTrio, services: HttpServices) -> None:
    """Add the routes."""
    from museworkd.http.control import answer, current_request_id, request_body

    async def writable(owner: str, slug: str) -> tuple[Repository, str, Right]:
        authorization = request.headers.get("authorization")
        identity, repository, right = await admit(
            services.index, services.environment, authorization, owner, slug, Right.WRITE
        )
        assert identity is not None
        return repository, identity.handle, right

    async def presign(owner: str, slug: str) -> Response:
        repository, _, _ = await writable(owner, slug)
        signed = TransferUrls(services, repository, _base(services), services.presign_s)
        return answer(await _presign(services, repository, signed, await request_body()))

    async def unpack(owner: str, slug: str) -> Response:
        repository, handle, right = await writable(owner, slug)
        push = PushRequest(repository, handle, right, current_request_id())
        verdict = await _unpack(services, push, await request_body())
        return answer(verdict, 202 if verdict.get("status") == "pending" else 200)

    @app.get("/<owner>/<slug>/push/<push_id>")
    async def state(owner: str, slug: str, push_id: str) -> Response:
        repository, handle, _ = await writable(owner, slug)
        try:
            wanted = uuid.UUID(push_id)
        except ValueError:
            raise malformed("a push id is a UUID") from None
        found = await services.index.find_push(repository.number, wanted)
        if found is None or found.handle != handle:
            raise Refusal(Code.NOT_FOUND, "no such push of yours")
        return answer(await as_sent(services.index, repository, push_state(found, services)))

    for path in ("push/mpack-presign", "push/bundle/presign"):
        app.add_url_rule(f"/<owner>/<slug>/{path}", path, presign, methods=["POST"])
    for path in ("push/unpack-mpack", "push/unpack-bundle"):
        app.add_url_rule(f"/<owner>/<slug>/{path}", path, unpack, methods=["POST"])


async def _presign(
    services: HttpServices, repository: Repository, signed: TransferUrls, body: dict[str, object]
) -> dict[str, object]:
    mpack_id, size, most = parse_mpack_key(body.get("mpack_key")), body.get("size_bytes"), services.limits.mpack_bytes
    if type(size) is not int or size < 1:
        raise malformed("size_bytes is not a number of bytes")
    if size > most:
        raise Refusal(Code.TOO_LARGE, f"an mpack of {size} bytes, the limit is {most}", limit=most)
    await reserve_mpack(services, repository, mpack_id, size)
    try:
        stored: int | None = await services.store.size(staged_mpack_key(repository.number, mpack_id))
    except ObjectMissing:
        stored = None
    return {
        "upload_url": None if stored == size else signed.put_mpack(mpack_id, size),
        "mpack_key": format_id(mpack_id, Scheme.TYPED),
        "expires_in": services.presign_s,
        "resumable": signed.resumable,
    }


async def _unpack(services: HttpServices, push: PushRequest, body: dict[str, object]) -> dict[str, object]:
    declared = body.get("declared_objects_count")
    if declared is not None and (type(declared) is not int or declared < 0):
        raise malformed("declared_objects_count is not a count")
    upload = Upload(parse_mpack_key(body.get("mpack_key")), declared)
    header = Header(body.get("branch"), body.get("head"), body)
    plan = parse_header(header, push, services.environment, services.limits)
    actor = UnpackActor(services.push, push, plan, upload)
    await services.supervisor.start(actor)
    with trio.move_on_after(services.settings.unpack_sync_s):
        await actor.done.wait()
    if isinstance(actor.verdict, Refusal):
        raise actor.verdict
    if actor.verdict is not None:
        return dict(actor.verdict)
    poll = f"{_base(services)}/{push.repository.owner}/{push.repository.slug}/push/{plan.push_id}"
    return {"push_id": str(plan.push_id), "status": "pending", "poll_url": poll}


def _base(services: HttpServices) -> str:
    return services.public_url or f"{request.scheme}://{request.host}"


def parse_mpack_key(value: object) -> bytes:
    """Read ``sha256:`` and the plain SHA-256 of all bytes of an mpack."""
    return parse_id(value, Scheme.TYPED, "mpack_key")


def push_state(record: PushRecord, services: HttpServices) -> dict[str, object]:
    """Say where a push stands: ``pending``, ``accepted``, ``refused``, ``failed`` or ``interrupted``."""
    shown: dict[str, object] = {"push_id": str(record.push_id), "branch": record.branch}
    if record.state is PushState.ACCEPTED:
        return {**(record.verdict or {}), **shown, "status": "accepted"}
    if record.state is PushState.REFUSED:
        return {**(record.verdict or {}), **shown, "status": "refused"}
    if record.verdict is not None:  # it may be sent again
        return {**record.verdict, **shown, "status": "failed"}
    alive = record.lease_expires is not None and record.lease_expires > services.environment.now()
    return {**shown, "status": "pending" if alive else "interrupted"}
