"""What Prometheus sees of jobs: attempts by type and outcome, how long they waited and took, and their phases."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from actors.jobs.runner import JobObservation, Outcome
from museworkd.telemetry.metrics import Metrics


def test_attempts_are_counted_by_type_and_outcome_and_done_ones_by_phase() -> None:
    metrics = Metrics()
    for outcome in (Outcome.DONE, Outcome.DONE, Outcome.AGAIN):
        metrics.observe_job(JobObservation("gc", outcome, 2.0, {"mark_ms": 500.0, "elapsed_ms": 1_500.0}))
    metrics.add_source("work", lambda: {"running": 1, "claimed": 4})
    found = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(metrics.text()[1].decode())
        for sample in family.samples
    }
    assert found["museworkd_jobs_total", "done", "gc"] == 2
    assert found["museworkd_jobs_total", "again", "gc"] == 1
    assert found["museworkd_job_seconds_count", "gc"] == 2
    assert found["museworkd_job_seconds_sum", "gc"] == 3.0
    assert found["museworkd_job_wait_seconds_count", "gc"] == 3
    assert found["museworkd_job_phase_seconds_total", "gc", "mark"] == 1.0
    assert found["museworkd_work_running",] == 1
