"""``/livez`` and ``/readyz``: for the process manager and the load balancer.

An actor that the watchdog has given up on is not mended by waiting: both pages say so with 503.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
from quart import Response
from quart_trio import QuartTrio

from museworkd.http.services import HttpServices
from storage.errors import IndexUnavailable, ObjectMissing, StorageError

CHECK_TIMEOUT_S = 3.0
RETRY_AFTER_S = 1
_PROBE_KEY = "fetch/probe"


def register(app: QuartTrio, services: HttpServices) -> None:
    """Add the routes."""
    from museworkd.http.control import answer

    @app.get("/livez")
    async def livez() -> Response:
        silent = services.supervisor.silent
        return answer({"status": "stuck", "silent": list(silent)}, 503) if silent else answer({"status": "live"})

    async def index_state() -> str:
        try:
            await services.index.ping()
        except IndexUnavailable:
            return "unavailable"
        return "ok"

    async def store_state() -> str:
        try:
            await services.store.size(_PROBE_KEY)
        except ObjectMissing:
            pass  # it answered
        except StorageError:
            return "unavailable"
        return "ok"

    @app.get("/readyz")
    async def readyz() -> Response:
        checks = dict.fromkeys(("index", "store"), "no answer in time")
        checks["supervisor"] = "draining" if services.supervisor.draining else "ok"
        silent = services.supervisor.silent
        checks["actors"] = f"silent: {', '.join(silent)}" if silent else "ok"

        async def look(name: str, state: Callable[[], Awaitable[str]]) -> None:
            checks[name] = await state()

        with trio.move_on_after(CHECK_TIMEOUT_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(look, "index", index_state)
                nursery.start_soon(look, "store", store_state)
        if all(state == "ok" for state in checks.values()):
            return answer({"status": "ready", "checks": checks})
        refused = answer({"status": "not ready", "checks": checks}, 503)
        refused.headers["retry-after"] = str(RETRY_AFTER_S)
        return refused
