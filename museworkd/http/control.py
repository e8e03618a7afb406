"""The control plane on quart-trio: small bodies in, small bodies out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio
from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import BadHost, HTTPException, MethodNotAllowed

from museworkd.http import health_routes, history_routes, mpack_routes, repository_routes
from museworkd.http.control_bodies import control_body
from museworkd.http.exchange import Exchange
from museworkd.http.negotiation import read_body, write_body
from museworkd.http.services import HttpServices
from wire.errors import Code, Refusal, malformed

LARGE_BODIES_AT_ONCE = 24
_REFUSED = 400
_REQUEST_ID = "museworkd.request_id"


def make_control_plane(services: HttpServices, health_only: bool = False) -> Callable[[Exchange], Awaitable[None]]:
    """Build the Quart application and give the function that runs it for one exchange."""
    app = QuartTrio("museworkd", static_folder=None)
    app.url_map.merge_slashes = False  # our clients follow no redirects
    app.config.update(
        PROPAGATE_EXCEPTIONS=True,  # the front answers errors, here as everywhere
        RESPONSE_TIMEOUT=None,
        BODY_TIMEOUT=None,
        MAX_CONTENT_LENGTH=services.settings.control_body_bytes,
    )
    app.register_error_handler(HTTPException, _as_refusal)
    health_routes.register(app, services)
    for routes in () if health_only else (history_routes, mpack_routes, repository_routes):
        routes.register(app, services)

    async def run(exchange: Exchange) -> None:
        answer = _Collected()
        scope = {**exchange.scope, _REQUEST_ID: exchange.request_id}
        async with control_body(services, exchange) as body:
            try:
                await app(scope, _body_once(body), answer.send)  # type: ignore[arg-type]
            except* BadHost:
                raise malformed("the Host header names no host") from None
        if exchange.path.startswith("/api/") and exchange.method not in {"GET", "HEAD"} and answer.status < _REFUSED:
            await services.push.journal.settle()
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in answer.headers]
        await exchange.start(answer.status, headers)
        await exchange.finish(bytes(answer.body))

    return run


async def request_body() -> dict[str, object]:
    """Decode the current request's body."""
    data = await request.get_data(as_text=False)
    assert isinstance(data, bytes)
    return read_body(data, request.headers.get("content-type", ""))


def current_request_id() -> str:
    """Give the id of the current request."""
    return str(request.scope[_REQUEST_ID])  # type: ignore[literal-required]


def answer(value: dict[str, object] | list[object], status: int = 200) -> Response:
    """Encode an answer for the current request."""
    kind, body = write_body(value, request.headers.get("accept", ""))
    return Response(body, status, {"cache-control": "no-store", "vary": "accept, authorization"}, content_type=kind)


async def _as_refusal(error: HTTPException) -> Response:
    if isinstance(error, MethodNotAllowed):
        raise Refusal(Code.METHOD_NOT_ALLOWED, "not offered here", allow=sorted(error.valid_methods or ()))
    code = {404: Code.NOT_FOUND, 413: Code.TOO_LARGE}.get(error.code or 0)
    raise Refusal(code or Code.MALFORMED, {404: "no such page"}.get(error.code or 0, "no"))


class _Collected:
    """A control answer, held until it is whole: a failure on the way can still become a proper error."""

    def __init__(self) -> None:
        self.status = 500
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = bytearray()

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], list(message["headers"])
        elif message["type"] == "http.response.body":
            self.body += message.get("body", b"")


def _body_once(body: bytes) -> Callable[[], Awaitable[dict[str, object]]]:
    events = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, object]:
        if events:
            return events.pop()
        await trio.sleep_forever()
        raise AssertionError

    return receive
