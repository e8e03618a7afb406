"""The daemon: everything assembled, started in order, and stopped in order.

A first SIGINT or SIGTERM drains: no new connections and pushes, the running ones may finish until
``server.drain_s``, jobs included; a job that is not done then is given back. A second one ends at once; nothing
acknowledged is lost by that either.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import structlog
import trio

from actors.jobs.work import JobWork
from actors.journal.joining import join
from actors.spool import sweep
from museworkd.assembly import (
    STALE_TEMPORARY_S,
    keeper_of,
    make_services,
    make_work,
    open_deployment,
    open_store,
    watchdog_of,
)
from museworkd.config import Config, address
from museworkd.http.app import HttpApp
from museworkd.http.server import HttpServer, open_listeners
from museworkd.service_manager import ServiceManager
from museworkd.telemetry.metrics import Metrics, MetricsApp
from museworkd.telemetry.sources import add_sources
from storage.environment import SystemEnvironment
from storage.errors import IndexUnavailable
from storage.postgres.database import DatabaseStatistics

log = structlog.get_logger("museworkd")

_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD, _M_ARENA_MAX = -3, -1, -8
_MMAP_FROM_BYTES = 1024 * 1024
_ARENAS = 2
_SWITCH_S = 0.0005
_LEAST_THREADS = 2
_FILES_BESIDE = 256
"""Open files that are no connections: object files, spools, the database's sockets, worker threads' pipes."""
_STOP_S = 90.0
"""After the drain: closing the pool and stopping the embedded PostgreSQL, which may have to be killed."""
_STOP_AT_ONCE_S = 30.0
_GIVE_BACK_S = 5.0
_EXIT_STUCK = 3


async def run_daemon(config: Config, announce: Callable[[str], None]) -> None:
    """Serve until told to stop; ``announce`` is called with the URL once requests are answered."""
    tune_allocator()
    tune_interpreter()
    connections = fit_connections(config.server.max_connections)
    config = replace(config, server=replace(config.server, max_connections=connections))
    environment = SystemEnvironment()
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with open_deployment(config, environment) as deployment:
            swept_before = environment.now().timestamp() - STALE_TEMPORARY_S
            await trio.to_thread.run_sync(sweep, config.data_dir / "spool", swept_before)
            store = await open_store(config, environment)
            await join(deployment.index, store, environment)
            metrics = Metrics()
            services, children = await make_services(config, deployment.index, store, environment, metrics.observe_push)
            work = None if config.server.role == "web" else make_work(config, services, metrics.observe_job)
            children += [] if work is None else work.children()
            if deployment.embedded is not None:
                children.append(keeper_of(deployment.embedded))
            manager = ServiceManager()
            children.append(watchdog_of(services.supervisor, manager))
            server = HttpServer(HttpApp(services, config.server.role == "worker"), config.server)
            listeners = await open_listeners(*config.bind_address)
            host, port = listeners[0].socket.getsockname()[:2]
            add_sources(metrics, services, deployment.index, store, server, work)
            async with _giving_back(work), trio.open_nursery() as nursery:
                if config.metrics.bind:
                    await nursery.start(_serve_metrics, metrics, config)
                await nursery.start(services.supervisor.run, children)
                stop = trio.Event()
                stopped = trio.Event()
                nursery.start_soon(_serve, server, listeners, stop, stopped, config.server.drain_s)
                announce(f"http://{f'[{host}]' if ':' in host else host}:{port}")
                manager.ready()
                await _first(signals)
                manager.stopping()
                log.info("draining", seconds=config.server.drain_s)
                _end_within(config.server.drain_s + _STOP_S)
                nursery.start_soon(_second, signals, nursery.cancel_scope)
                stop.set()
                await services.supervisor.drain(config.server.drain_s)
                await stopped.wait()
                nursery.cancel_scope.cancel()
            _log_use(deployment.index.statistics())
    log.info("stopped")


def tune_allocator() -> None:
    """Keep glibc from holding on to memory: few arenas, and large blocks given back at once."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_ARENA_MAX, _ARENAS)
        libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_FROM_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _MMAP_FROM_BYTES)


def tune_interpreter() -> None:
    """Hand the interpreter over faster than by default: a thread in a transaction asks for it after each statement.

    Nor are there more threads that ask for it to compute than there are cores: they would only take it from each other.
    """
    sys.setswitchinterval(_SWITCH_S)
    trio.to_thread.current_default_thread_limiter().total_tokens = max(_LEAST_THREADS, len(os.sched_getaffinity(0)))


def fit_connections(wanted: int) -> int:
    """Allow as many open files as the connections need, or give how many connections fit into what is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    most = wanted + _FILES_BESIDE if hard == unlimited else min(wanted + _FILES_BESIDE, hard)
    if soft != unlimited and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    fitting = min(wanted, most - min(_FILES_BESIDE, most // 2))
    if fitting < wanted:
        log.warning("fewer connections than server.max_connections: open files are limited", connections=fitting)
    return fitting


@asynccontextmanager
async def _giving_back(work: JobWork | None) -> AsyncIterator[None]:
    """When nothing runs any more, let other daemons have what is left of this one's jobs at once."""
    try:
        yield
    finally:
        if work is not None:
            with trio.move_on_after(_GIVE_BACK_S, shield=True) as limit:
                try:
                    await work.give_back()
                except IndexUnavailable as error:
                    log.warning("jobs not given back: they are recovered when their claims are stale", error=str(error))
            if limit.cancelled_caught:
                log.warning("jobs not given back in time: they are recovered when their claims are stale")


def _log_use(database: DatabaseStatistics) -> None:
    """Leave in the log how the database was used, and how long connections were held."""
    log.info(
        "database", transactions=database.transactions, retries=database.retries, failures=database.failures,
        hold_p50_ms=round(database.hold_p50_ms, 1), hold_p99_ms=round(database.hold_p99_ms, 1),
        hold_max_ms=round(database.hold_max_ms, 1),
    )  # fmt: skip


def _end_within(seconds: float) -> None:
    """Make sure that the process ends, whatever a thread waits for; what is acknowledged is durable already."""

    def end() -> None:
        log.error("did not stop in time")
        os._exit(_EXIT_STUCK)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


async def _serve_metrics(metrics: Metrics, config: Config, task_status: trio.TaskStatus[None]) -> None:
    """Serve them until the daemon ends, draining included."""
    listeners = await open_listeners(*address(config.metrics.bind))
    host, port = listeners[0].socket.getsockname()[:2]
    log.info("metrics", url=f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics")
    await HttpServer(MetricsApp(metrics), config.server).run(listeners, trio.Event(), 0, task_status)


async def _serve(
    server: HttpServer, listeners: list[trio.SocketListener], stop: trio.Event, stopped: trio.Event, drain_s: float
) -> None:
    await server.run(listeners, stop, drain_s)
    stopped.set()


async def _first(signals: object) -> None:
    async for _ in signals:  # type: ignore[attr-defined]
        return


async def _second(signals: object, scope: trio.CancelScope) -> None:
    await _first(signals)
    log.warning("stopping at once")
    _end_within(_STOP_AT_ONCE_S)
    scope.cancel()
