"""Metrics for Prometheus: pushes and jobs by outcome and phase, and what pool, store and actors say of themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from actors.jobs.runner import JobObservation
from actors.push.observed import PushObservation

Numbers = Mapping[str, float]
Source = Callable[[], Numbers]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_JOB_SECONDS = (*_SECONDS, 1_800, 7_200, 43_200)


class Metrics:
    """The metrics of one daemon; sources are asked when somebody looks."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._pushes = Counter(
            "museworkd_pushes", "Attempts of pushes that have ended", ["way", "outcome"], registry=self.registry
        )
        self._seconds = Histogram(
            "museworkd_push_seconds", "From header to verdict, of accepted pushes", ["way"], buckets=_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self._phases = Counter(
            "museworkd_push_phase_seconds", "Time of accepted pushes by phase; phases overlap", ["way", "phase"],
            registry=self.registry,
        )  # fmt: skip
        self._written = Counter(
            "museworkd_push_records", "What accepted pushes brought", ["kind"], registry=self.registry
        )
        self._jobs = Counter(
            "museworkd_jobs", "Attempts at jobs that have ended here", ["type", "outcome"], registry=self.registry
        )
        self._job_seconds = Histogram(
            "museworkd_job_seconds", "Of jobs that were done", ["type"], buckets=_JOB_SECONDS, registry=self.registry
        )
        self._job_waits = Histogram(
            "museworkd_job_wait_seconds", "From the enqueueing of a job to an attempt", ["type"], buckets=_JOB_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self._job_phases = Counter(
            "museworkd_job_phase_seconds", "Time of jobs that were done by phase", ["type", "phase"],
            registry=self.registry,
        )  # fmt: skip
        self._sources = _Sources()
        self.registry.register(self._sources)

    def observe_push(self, push: PushObservation) -> None:
        """Count a push; see ``actors.push.observed``."""
        self._pushes.labels(push.way, push.outcome).inc()
        if push.outcome != "accepted":
            return
        self._seconds.labels(push.way).observe(push.seconds)
        for phase, ms in push.phases_ms.items():
            self._phases.labels(push.way, phase).inc(ms / 1000)
        for kind, count in push.counts.items():
            self._written.labels(kind).inc(count)

    def observe_job(self, job: JobObservation) -> None:
        """Count an attempt at a job; see ``actors.jobs.runner``."""
        self._jobs.labels(job.type, job.outcome.value).inc()
        self._job_waits.labels(job.type).observe(job.waited_s)
        if job.outcome.value != "done":
            return
        for name, ms in job.timings.items():
            phase = name.removesuffix("_ms")
            self._job_phases.labels(job.type, phase).inc(ms / 1000)
            if phase == "elapsed":
                self._job_seconds.labels(job.type).observe(ms / 1000)

    def add_source(self, name: str, source: Source) -> None:
        """Show the numbers a source gives as gauges ``museworkd_<name>_<key>``."""
        self._sources.by_name[name] = source

    def text(self) -> tuple[str, bytes]:
        """Give Content-Type and text."""
        return CONTENT_TYPE_LATEST, generate_latest(self.registry)


class MetricsApp:
    """An ASGI application of one page, for a listener of its own: it is nobody's who may only reach the server."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:  # noqa: ARG002
        """Answer ``GET /metrics``."""
        found = scope["type"] == "http" and scope["path"] == "/metrics" and scope["method"] in {"GET", "HEAD"}
        kind, body = self._metrics.text() if found else ("text/plain", b"no such page\n")
        headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200 if found else 404, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})


class _Sources(Collector):
    def __init__(self) -> None:
        self.by_name: dict[str, Source] = {}

    def collect(self) -> Iterator[Metric]:
        for name, source in self.by_name.items():
            for key, value in source().items():
                yield GaugeMetricFamily(f"museworkd_{name}_{key}", f"{key.replace('_', ' ')} ({name})", value=value)
