"""Where the numbers of the metrics come from that are asked for, not counted."""

from __future__ import annotations

from dataclasses import asdict

from actors.jobs.work import JobWork
from museworkd.http.server import HttpServer
from museworkd.http.services import HttpServices
from museworkd.telemetry.metrics import Metrics
from storage.object_store import ObjectStore
from storage.postgres.index import PostgresIndex


def add_sources(
    metrics: Metrics, services: HttpServices, index: PostgresIndex, store: ObjectStore, server: HttpServer,
    work: JobWork | None = None,
) -> None:  # fmt: skip
    """Show the pool, the store, the connections, the actors, the fetches and the jobs of a daemon."""

    def actors() -> dict[str, float]:
        statistics = services.supervisor.statistics()
        return {
            "running": len(statistics.children), "restarts": statistics.restarts, "draining": statistics.draining,
            "silent": len(services.supervisor.silent),
        }  # fmt: skip

    metrics.add_source("database", lambda: asdict(index.database.statistics()))
    metrics.add_source("store", lambda: asdict(store.statistics()))
    metrics.add_source("http", lambda: asdict(server.statistics()))
    metrics.add_source("actors", actors)
    metrics.add_source("fetch", services.fetch.statistics)
    if work is not None:
        metrics.add_source("work", work.statistics)
