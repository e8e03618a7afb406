"""The front of the HTTP floor: request ids, routing, errors, the access log.

Byte routes (pushes, blobs, packs) run on the seam of ``exchange``; everything else has a small body, which is read
here under the same deadlines and handed to the control plane whole.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import structlog
import trio

from actors.refusals import refusal_for
from museworkd.http.branch_routes import get_refs, post_refs
from museworkd.http.control import make_control_plane
from museworkd.http.exchange import ClientDisconnected, Exchange
from museworkd.http.fetch_pack_routes import fetch_mpack
from museworkd.http.fetch_routes import get_blob, get_mpack, get_signed_blob
from museworkd.http.fetch_stream_routes import fetch_objects, fetch_presign, fetch_stream
from museworkd.http.label_routes import delete_release, get_releases, get_tags, post_release, put_tags
from museworkd.http.negotiation import write_body
from museworkd.http.object_routes import confirm_objects, presign_objects
from museworkd.http.plain_fetch import fetch
from museworkd.http.plain_push import filter_objects, presign, push, push_objects
from museworkd.http.push_route import push_stream
from museworkd.http.services import HttpServices
from museworkd.http.upload_routes import head_upload, put_upload
from wire.errors import Code, Refusal

log = structlog.get_logger("access")

Handler = Callable[[HttpServices, Exchange, Mapping[str, str]], Awaitable[None]]

RETRY_AFTER_S = 1
_REPOSITORY = r"/(?P<owner>[^/]+)/(?P<slug>[^/]+)"
_UPLOAD = _REPOSITORY + "/upload/(?P<kind>mpack|object|plain-object)/(?P<id>[0-9a-f]{64})/(?P<size>[0-9]{1,18})"
_ROUTES: list[tuple[str, re.Pattern[str], Handler]] = [
    ("GET", re.compile(_REPOSITORY + "/refs"), get_refs),
    ("POST", re.compile(_REPOSITORY + "/refs"), post_refs),
    ("POST", re.compile(_REPOSITORY + "/push/stream"), push_stream),
    ("POST", re.compile(_REPOSITORY + "/push/presign"), presign_objects),
    ("POST", re.compile(_REPOSITORY + "/push/confirm"), confirm_objects),
    ("GET", re.compile(_REPOSITORY + "/o/(?P<object_id>[^/]+)"), get_blob),
    ("GET", re.compile(_REPOSITORY + "/blob/(?P<object_id>[0-9a-f]{64})"), get_signed_blob),
    ("POST", re.compile(_REPOSITORY + "/push"), push),
    ("POST", re.compile(_REPOSITORY + "/push/objects"), push_objects),
    ("POST", re.compile(_REPOSITORY + "/filter-objects"), filter_objects),
    ("POST", re.compile(_REPOSITORY + "/presign"), presign),
    ("POST", re.compile(_REPOSITORY + "/tags"), put_tags),
    ("GET", re.compile(_REPOSITORY + "/tags"), get_tags),
    ("GET", re.compile(_REPOSITORY + "/releases"), get_releases),
    ("POST", re.compile(_REPOSITORY + "/releases"), post_release),
    ("DELETE", re.compile(_REPOSITORY + "/releases(?:/(?P<release_id>[^/]+))?"), delete_release),
    ("POST", re.compile(_REPOSITORY + "/fetch"), fetch),
    ("POST", re.compile(_REPOSITORY + "/fetch/mpack"), fetch_mpack),
    ("POST", re.compile(_REPOSITORY + "/fetch/stream"), fetch_stream),
    ("POST", re.compile(_REPOSITORY + "/fetch/objects"), fetch_objects),
    ("POST", re.compile(_REPOSITORY + "/fetch/presign"), fetch_presign),
    ("PUT", re.compile(_UPLOAD), put_upload),
    ("GET", re.compile(_UPLOAD), head_upload),
    ("GET", re.compile(_REPOSITORY + "/mpack/(?P<mpack_id>[0-9a-f]{64})"), get_mpack),
]


class HttpApp:
    """The ASGI application; ``health_only``: of a daemon that has nothing to say but how it is."""

    def __init__(self, services: HttpServices, health_only: bool = False) -> None:
        self._services = services
        self._routes = [] if health_only else _ROUTES
        self._control = make_control_plane(services, health_only)

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        """Serve one request; never raises but for cancellation."""
        if scope["type"] != "http":
            return
        environment = self._services.environment
        request_id = environment.random_bytes(8).hex()
        began = trio.current_time()
        try:
            exchange = Exchange(scope, receive, send, self._services.settings, request_id)
        except Refusal as refusal:
            await _refuse_unrouted(send, request_id, refusal)
            log.info("request", request_id=request_id, method=scope["method"], status=refusal.code.status)
            return
        try:
            await self._serve(exchange)
        except ClientDisconnected:
            pass
        finally:
            log.info(
                "request", request_id=request_id, method=exchange.method, path=exchange.path[:200],
                status=exchange.status, received=exchange.received_bytes, sent=exchange.sent_bytes,
                ms=round((trio.current_time() - began) * 1000, 1),
            )  # fmt: skip

    async def _serve(self, exchange: Exchange) -> None:
        try:
            await self._route(exchange)
        except ClientDisconnected:
            raise
        except Exception as error:  # noqa: BLE001 - every failure gets an answer, and a bug its trace in the log
            await self._answer_error(exchange, error)

    async def _route(self, exchange: Exchange) -> None:
        wanted = "GET" if exchange.method == "HEAD" else exchange.method
        offered: list[str] = []
        for method, pattern, handler in self._routes:
            match = pattern.fullmatch(exchange.path)
            if match is None:
                continue
            offered += ["GET", "HEAD"] if method == "GET" else [method]
            if method == wanted:
                await handler(self._services, exchange, match.groupdict())
                return
        if offered:
            raise Refusal(Code.METHOD_NOT_ALLOWED, f"{exchange.method} is not offered here", allow=offered)
        if exchange.path.startswith("//"):  # the control plane would drop one, and a proxy's rules see another path
            raise Refusal(Code.NOT_FOUND, "no such page")
        await self._control(exchange)

    async def _answer_error(self, exchange: Exchange, error: Exception) -> None:
        if _only_gone(error):
            raise ClientDisconnected from None
        refusal = refusal_for(error)
        if refusal is None:
            log.error("request failed", request_id=exchange.request_id, path=exchange.path[:200], exc_info=error)
            refusal = Refusal(Code.INTERNAL, "the server made a mistake; its log has the details")
        elif refusal.code.status >= 500:
            log.warning(
                "request failed", request_id=exchange.request_id, path=exchange.path[:200], code=refusal.code.text,
                detail=refusal.detail,
            )  # fmt: skip
        if exchange.started:
            raise ConnectionAbortedError from None  # the connection is cut: a partial answer must not look whole
        await answer_refusal(exchange, refusal)


def _only_gone(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(_only_gone(inner) for inner in error.exceptions)
    return isinstance(error, ClientDisconnected)


async def answer_refusal(exchange: Exchange, refusal: Refusal) -> None:
    """Send the error envelope of protocol §11."""
    kind, body = write_body(refusal.body(exchange.request_id), exchange.headers.get("accept", ""))
    headers = [("content-type", kind), ("cache-control", "no-store")]
    if refusal.code is Code.UNAUTHENTICATED:
        headers.append(("www-authenticate", 'Bearer realm="museworkd"'))
    if refusal.code.status in {429, 503}:
        headers.append(("retry-after", str(RETRY_AFTER_S)))
    allow = refusal.facts.get("allow")
    if refusal.code is Code.METHOD_NOT_ALLOWED and isinstance(allow, list):
        headers.append(("allow", ", ".join(allow)))
    if refusal.code is Code.RANGE_MISMATCH and "size" in refusal.facts:
        headers.append(("content-range", f"bytes */{refusal.facts['size']}"))
    await exchange.respond(refusal.code.status, headers, body)


async def _refuse_unrouted(send: Any, request_id: str, refusal: Refusal) -> None:
    kind, body = write_body(refusal.body(request_id), "")
    headers = {"content-type": kind, "content-length": str(len(body)), "x-request-id": request_id}
    raw = [(name.encode("ascii"), value.encode("ascii")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.code.status, "headers": raw})
    await send({"type": "http.response.body", "body": body, "more_body": False})
