"""What an operator's Prometheus sees of a daemon: pushes by way, outcome and phase, and its pool, store and actors."""

from __future__ import annotations

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from museworkd.telemetry.metrics import Metrics
from tests.deployments import two_commits
from tests.http_client import ask, push
from tests.mpack_pushes import mpack_of, push_mpack
from tests.servers import daemon

pytestmark = pytest.mark.usefixtures("expected_errors")


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Every sample by its name and the values of its labels, `way` first."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items(), reverse=True))): sample.value
        for family in text_string_to_metric_families(text) for sample in family.samples
    }  # fmt: skip


async def test_pushes_are_counted_by_way_outcome_and_phase(twin):
    metrics, history = Metrics(), two_commits()
    object.__setattr__(twin.services.push, "observe", metrics.observe_push)
    for slug in ("x", "y"):
        await twin.make_repository(slug=slug)
    assert (await push(twin, history.frames()))["type"] == "R"
    assert (await push(twin, history.frames(n_objects=7), repository="alice/y"))["type"] in {"R", "X"}
    assert (await push(twin, history.header() + b"".join(history.object_frames()) + b"\xc1"))["error"] == "malformed"
    assert (await push_mpack(twin, mpack_of(history), history, "y")).status == 200
    found = samples(metrics.text()[1].decode())
    assert found["museworkd_pushes_total", "stream", "malformed"] == 1
    assert found["museworkd_pushes_total", "mpack", "accepted"] == 1
    assert found["museworkd_pushes_total", "stream", "accepted"] >= 1
    assert found["museworkd_push_seconds_count", "mpack"] == 1
    assert found["museworkd_push_records_total", "commits_written"] >= len(history.commits)
    phases = {key[2] for key in found if key[:2] == ("museworkd_push_phase_seconds_total", "mpack")}
    assert {"read", "put", "verify", "connectivity", "elapsed"} <= phases


async def test_T25_metrics_are_at_an_address_of_their_own_and_nowhere_by_default(
    tmp_path, twin, database_url, free_tcp_port
):
    for target in ("/metrics", "/api/metrics"):
        assert (await ask(twin, "GET", target)).status == 404
    bind = f"127.0.0.1:{free_tcp_port}"
    with daemon(tmp_path, database_url, f"metrics.bind={bind}") as running:
        async with httpx.AsyncClient() as client:
            answer = await client.get(f"http://{bind}/metrics")
            assert (answer.status_code, answer.headers["content-type"].split(";")[0]) == (200, "text/plain")
            found = samples(answer.text)
            assert (await client.get(f"http://{bind}/alice/x/refs")).status_code == 404
            assert (await client.get(f"{running.url}/metrics")).status_code == 404
    assert found["museworkd_actors_draining",] == 0
    assert found["museworkd_database_transactions",] > 0
    assert found["museworkd_http_connections",] >= 0
    assert found["museworkd_store_puts",] <= 2  # which deployment this is, and its first facts
