"""What is shown and kept of a bench: a table for people, a JSON file with every sample, and what was reached."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from bench.figures import Summary, ratio, summarize
from bench.peers import Sample
from bench.rounds import Results
from bench.targets import FIRST_SERVED, MIB, NO_PROCESS, START_UP, WAYS, Figures, Judgement

ROOT = Path(__file__).resolve().parent.parent
METRICS = (
    "wall_s", "client_cpu_s", "client_peak_bytes", "server_cpu_s", "server_peak_bytes", "sent_bytes",
    "received_bytes", "server_ms",
)  # fmt: skip
_WIDTH = 200
"""A narrower terminal wraps the lines, and shows every figure."""
FORMAT = 1
_NAMES = ("workload", "operation")
_VERDICTS = {True: "reached", False: "not reached", None: "not measured"}


def figures_of(results: Results) -> dict[tuple[str, str, str, str], Summary]:
    """Summarize every metric that was measured."""
    found = {}
    for (workload, operation, peer), samples in results.samples.items():
        for metric in METRICS:
            values = [value for sample in samples if (value := getattr(sample, metric)) is not None]
            if values:
                found[workload, operation, peer, metric] = summarize(values)
        for metric in dict.fromkeys(metric for sample in samples for metric in sample.figures):
            values = [sample.figures[metric] for sample in samples if metric in sample.figures]
            found[workload, operation, peer, metric] = summarize(values)
    return found


def show(figures: Figures, judgements: Sequence[Judgement], ours: str, git: str) -> None:
    """Print the tables on stdout."""
    console = Console(width=max(_WIDTH, Console().width))
    table = Table(title="Medians; git: in the same run", title_justify="left", box=SIMPLE_HEAD)
    for name in (
        "workload", "operation", "n", "wall s", "net s", "git", "ratio", "p99 s", "srv ms", "p99",
        "git", "srv CPU", "git", "cl CPU", "git", "RSS +MiB", "wire MB", "git",
    ):  # fmt: skip
        table.add_column(name, justify="left" if name in _NAMES else "right", no_wrap=True)
    for workload, operation in _pairs(figures):

        def of(peer: str, metric: str, where: tuple[str, str] = (workload, operation)) -> Summary | None:
            return figures.get((*where, peer, metric))

        start = figures.get((workload, START_UP, ours, "wall_s"))
        wall, theirs = of(ours, "wall_s"), of(git, "wall_s")
        if wall is None:
            continue
        net = None  # what is no process of its own has no start, and a start has nothing besides
        if start is not None and operation in (FIRST_SERVED | set(WAYS)) - NO_PROCESS:
            net = max(0.0, wall.median - start.median)
        peak = of(ours, "server_peak_bytes")
        table.add_row(
            workload, operation, str(wall.count), _seconds(wall.median),
            _number(net, 3), _median(theirs),
            _number(ratio(wall.median, None if theirs is None else theirs.median)), _seconds(wall.p99),
            _median(of(ours, "server_ms"), 1), _number(_p99(of(ours, "server_ms")), 1),
            _median(of(git, "server_ms"), 1),
            _median(of(ours, "server_cpu_s")), _median(of(git, "server_cpu_s")),
            _median(of(ours, "client_cpu_s")), _median(of(git, "client_cpu_s")),
            "–" if peak is None else f"{peak.most / MIB:.1f}",
            _wire(of(ours, "sent_bytes"), of(ours, "received_bytes")),
            _wire(of(git, "sent_bytes"), of(git, "received_bytes")),
        )  # fmt: skip
    console.print(table)
    console.print(
        "net s: without our client's start; srv ms: by the access log, all requests of an operation; CPU: seconds; "
        "RSS: of the daemon, the most above idle in any run; wire: both ways"
    )
    further = Table(title="Further figures", title_justify="left", box=SIMPLE_HEAD)
    for name in ("workload", "operation", "figure", "n", "median", "least", "most"):
        further.add_column(name, justify="left" if name in {*_NAMES, "figure"} else "right", no_wrap=True)
    for (workload, operation, _, metric), summary in figures.items():
        if metric not in METRICS:
            numbers = map(_number, (summary.median, summary.least, summary.most))
            further.add_row(workload, operation, metric, str(summary.count), *numbers)
    if further.row_count:
        console.print(further)
    targets = Table(title="Targets", title_justify="left", box=SIMPLE_HEAD)
    for name in ("workload", "operation", "figure", "wanted", "measured", ""):
        targets.add_column(name)
    for judgement in judgements:
        target = judgement.target
        value = None if judgement.value is None else judgement.value / target.scale
        figure = f"{target.metric}{' p99' if target.p99 else ''}"
        targets.add_row(
            judgement.workload, target.operation, figure, target.text, _number(value), _VERDICTS[judgement.reached]
        )
    console.print(targets)


def as_json(
    results: Results, figures: Figures, judgements: Sequence[Judgement], facts: Mapping[str, object]
) -> dict[str, object]:
    """Give everything that is known of a bench."""
    measured: list[dict[str, object]] = []
    for (workload, operation, peer), samples in results.samples.items():
        summaries = {
            key[3]: found.as_dict() for key, found in figures.items() if key[:3] == (workload, operation, peer)
        }
        measured.append(
            {
                "workload": workload, "operation": operation, "peer": peer, "summary": summaries,
                "samples": [_sample(sample) for sample in samples],
            }
        )  # fmt: skip
    targets = [
        {
            "workload": j.workload, "operation": j.target.operation, "metric": j.target.metric, "p99": j.target.p99,
            "at_least": j.target.at_least, "ratio_to_git": j.target.of_git,
            "bound": j.target.bound, "measured": j.value, "reached": j.reached,
        }
        for j in judgements
    ]  # fmt: skip
    return {"format": FORMAT, **facts, "measured": measured, "targets": targets}


def machine_facts() -> dict[str, object]:
    """Say what it was measured on and of."""
    models = [line.partition(":")[2].strip() for line in _read("/proc/cpuinfo").splitlines() if "model name" in line]
    return {
        "commit": _git("rev-parse", "--short", "HEAD") or "unknown",
        "changed_files": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(), "kernel": platform.release(), "cpus": os.cpu_count(),
        "cpu": models[0] if models else platform.machine(), "load_before": list(os.getloadavg()),
        "git": _git("--version").removeprefix("git version "),
    }  # fmt: skip


def write(directory: Path, name: str, document: Mapping[str, object]) -> Path:
    """Write the JSON file; gives its path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.json"
    path.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    return path


def _sample(sample: Sample) -> dict[str, object]:
    return {name: value for name, value in asdict(sample).items() if value not in (None, [], {})}


def _pairs(figures: Figures) -> list[tuple[str, str]]:
    """Give the workloads with their operations, together."""
    seen = list(dict.fromkeys((workload, operation) for workload, operation, _, _ in figures))
    order = {workload: at for at, workload in enumerate(dict.fromkeys(workload for workload, _ in seen))}
    return sorted(seen, key=lambda pair: order[pair[0]])


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _read(path: str) -> str:
    try:
        return Path(path).read_text("utf-8")
    except OSError:
        return ""


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _seconds(value: float) -> str:
    return f"{value:.3f}"


def _median(summary: Summary | None, digits: int = 3, scale: float = 1.0) -> str:
    return "–" if summary is None else f"{summary.median / scale:.{digits}f}"


def _wire(sent: Summary | None, received: Summary | None) -> str:
    """Give what went either way, in MB."""
    return "–" if sent is None or received is None else f"{(sent.median + received.median) / 1e6:.2f}"


def _p99(summary: Summary | None) -> float | None:
    return None if summary is None else summary.p99
