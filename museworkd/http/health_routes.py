"""``/livez`` and ``/readyz``: for the process manager and the load balancer."""

from __future__ import annotations

import trio
from quart import Response
from quart_trio import QuartTrio

from museworkd.http.services import HttpServices
from storage.errors import IndexUnavailable, ObjectMissing, StorageError

CHECK_TIMEOUT_S = 3.0
_PROBE_KEY = "fetch/probe"


def register(app: QuartTrio, services: HttpServices) -> None:
    """Add the routes."""
    from museworkd.http.control import answer

    @app.get("/livez")
    async def livez() -> Response:
        return answer({"status": "live"})

    @app.get("/readyz")
    async def readyz() -> Response:
        checks = {"index": "ok", "store": "ok", "supervisor": "ok"}
        with trio.move_on_after(CHECK_TIMEOUT_S) as scope:
            try:
                await services.index.ping()
            except IndexUnavailable:
                checks["index"] = "unavailable"
            try:
                await services.store.size(_PROBE_KEY)
            except ObjectMissing:
                pass  # it answered
            except StorageError:
                checks["store"] = "unavailable"
        if scope.cancelled_caught:
            checks = {name: state if state != "ok" else "no answer in time" for name, state in checks.items()}
        if services.supervisor.draining:
            checks["supervisor"] = "draining"
        ready = all(state == "ok" for state in checks.values())
        return answer({"status": "ready" if ready else "not ready", "checks": checks}, 200 if ready else 503)
