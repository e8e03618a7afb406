"""``python -m bench``: prepare the histories, run the peers against each other, show and keep the figures."""

from __future__ import annotations

import argparse
import datetime as dt
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.chart import Bar, draw
from bench.figures import Summary
from bench.git_peer import GitPeer, find_servers
from bench.muse_peer import MusePeer, import_git
from bench.peers import BenchError, Content, Peer
from bench.probes import Probes
from bench.report import ROOT, as_json, figures_of, machine_facts, show, write
from bench.rounds import BESIDE_MOST, Plan, Results, Rounds, say
from bench.targets import (
    BESIDE,
    FETCH,
    FETCH_COMMITS,
    FIRST_SERVED,
    ON_TOP,
    OPERATIONS,
    PRESIGNED,
    PROBES,
    REFS,
    START_UP,
    TARGETS,
    WAYS,
    judge,
)  # fmt: skip
from bench.workloads import SHAPES, WARM_UP, Shape, take_bundle, write_git

RESULTS = ROOT / "bench" / "results"
RUNS = 5
RUNS_LARGE = 3
"""Also of what takes a server of its own each time."""
INCREMENTS = 100
PRESIGNED_SPARED = frozenset({"L-full", "XL-text", "XL-grow", "HUGE"})
"""A push of these object by object takes long, and is measured only when it is asked for by name."""
GIT_POST_BUFFER = "http.postBuffer=1g"
"""So that git sends a pack in one request, without asking first: faster on every workload."""
BESIDE_PUSH = "XL-random"
_REAL_BUNDLES = ("h11.bundle", "psycopg.bundle")
_WORKLOADS = (*SHAPES, "REAL", *PROBES)
_NIGHTLY = frozenset(shape.name for shape in SHAPES.values() if shape.nightly)
_STOPS = (signal.SIGTERM, signal.SIGHUP)


def main() -> int:
    """Run the bench; gives the exit code."""
    options = parse(sys.argv[1:])
    for number in _STOPS:  # as with Ctrl-C, what was started is stopped
        signal.signal(number, lambda *_: sys.exit(1))
    directory = ROOT / "var" / f"bench-{os.getpid()}"
    directory.mkdir(parents=True)
    try:
        return _bench(options, directory)
    except (BenchError, RuntimeError) as error:
        say(str(error))
        return 1
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _bench(options: argparse.Namespace, directory: Path) -> int:
    facts = machine_facts()
    operations = frozenset(options.operations)
    servers = "asked not to" if options.no_git else find_servers()
    results = Results()
    muse = MusePeer(directory / "museworkd", options.push_options.split())
    peers: list[Peer] = [muse]
    try:
        if isinstance(servers, str):
            say(f"without git as a peer: {servers}")
        else:
            peers.append(GitPeer(servers, directory / "git", ["-c", GIT_POST_BUFFER]))
        warm_up = _generate(WARM_UP, directory / "content", 0, packed=False)
        rounds = Rounds(peers, warm_up, directory, results)
        complete = False
        try:
            _run_all(options, operations, directory / "content", rounds)
            git = next((peer for peer in peers if isinstance(peer, GitPeer)), None)
            probes = Probes(muse, git, warm_up, _generate_quickly, results)
            for name in options.probes:
                probes.run(name, operations, options.runs or RUNS_LARGE, directory / "content" / name)
            complete = True
        finally:
            figures = figures_of(results)
            if figures:
                facts |= {
                    "complete": complete, "load_after": list(os.getloadavg()), "runs": options.runs,
                    "git_source": options.git_source,
                    "push_options": options.push_options,
                    "git_left_out": servers if isinstance(servers, str) else None,
                }  # fmt: skip
                _conclude(results, figures, facts)
    finally:
        for peer in peers:
            peer.close()
    return 0


def _run_all(options: argparse.Namespace, operations: frozenset[str], where: Path, rounds: Rounds) -> None:
    """Prepare and run one workload after another, so that little lies on the disk at a time."""
    if not operations & (FIRST_SERVED | set(WAYS)):
        return
    packed = options.git_source == "packed"
    busy: Content | None = None
    if BESIDE in operations and {"L", BESIDE_PUSH} <= set(options.workloads):
        busy = _generate(SHAPES[BESIDE_PUSH], where / "beside", 0, packed=packed)
    for name in options.workloads:
        shape = SHAPES[name]
        small = shape.increments and bool(operations & ON_TOP)
        more = options.increments + BESIDE_MOST + 1 if small else 0
        more += FETCH_COMMITS if small and FETCH in operations else 0
        if shape.nightly:  # as many loose objects would measure the disk
            content = _generate_quickly(shape, where / name)
        else:
            content = _generate(shape, where / name, more, packed=packed)
        runs = options.runs or (RUNS_LARGE if shape.large else RUNS)
        way_runs = options.runs or RUNS_LARGE
        left_out = {PRESIGNED} if name in PRESIGNED_SPARED and not options.named else set()
        plan = Plan(content, operations - left_out, runs, way_runs, options.increments, busy if name == "L" else None)
        _run(rounds, plan, where / name)
    for bundle in options.real:
        name = f"REAL {bundle.name.removesuffix('.bundle')}"
        place = where / "real"
        say(f"preparing {name}")
        git = take_bundle(bundle, place / "git")
        content = Content(name, git, import_git(git, place / "muse"), None, None)
        _run(rounds, Plan(content, operations, options.runs or RUNS, options.runs or RUNS_LARGE, 0, None), place)


def _run(rounds: Rounds, plan: Plan, place: Path) -> None:
    if plan.operations & FIRST_SERVED:
        rounds.run(plan)
    if plan.operations & set(WAYS):
        rounds.ways(plan)
    shutil.rmtree(place)


def _generate_quickly(shape: Shape, place: Path) -> Content:
    say(f"preparing a history of {shape.name}")
    place.mkdir(parents=True)
    git = write_git(shape, place / "git", quickly=True)
    return Content(shape.name, git, import_git(git, place / "muse"), None, None)


def _generate(shape: Shape, place: Path, more: int, *, packed: bool) -> Content:
    say(f"preparing {shape.name}: {shape.objects} objects, {shape.content_bytes / 1e6:.1f} MB")
    place.mkdir(parents=True)
    git = write_git(shape, place / "git", packed=packed)
    muse = import_git(git, place / "muse")
    if not more:
        return Content(shape.name, git, muse, None, None)
    git_more = write_git(shape, place / "git-more", more, packed=packed)
    return Content(shape.name, git, muse, git_more, import_git(git_more, place / "muse-more"))


def _conclude(results: Results, figures: dict[tuple[str, str, str, str], Summary], facts: dict[str, object]) -> None:
    judgements = judge(figures, MusePeer.name, GitPeer.name)
    show(figures, judgements, MusePeer.name, GitPeer.name)
    now = dt.datetime.now(dt.UTC)
    measured = facts["commit"]  # as it was at the beginning
    name = f"{now:%Y-%m-%dT%H%M%S}-{measured}"
    path = write(RESULTS, name, as_json(results, figures, judgements, {"date": now.isoformat(), **facts}))
    say(f"every sample: {path}")
    bars = _bars(figures)
    if bars:
        chart = path.with_suffix(".svg")
        chart.write_text(draw(f"museworkd {measured} and git", bars), "utf-8")
        say(f"chart: {chart}")


def _bars(figures: dict[tuple[str, str, str, str], Summary]) -> list[Bar]:
    wanted = {(t.workload, t.operation): t.bound for t in TARGETS if t.of_git and t.metric == "wall_s"}
    bars = []
    for (workload, operation, peer, metric), ours in figures.items():
        git = figures.get((workload, operation, GitPeer.name, metric))
        if peer == MusePeer.name and metric == "wall_s" and git is not None and operation not in {REFS, START_UP}:
            bound = wanted.get((workload.partition(" ")[0], operation))
            bars.append(Bar(f"{workload}: {operation}", ours.median, git.median, bound))
    return bars


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; ends the process when it cannot be understood."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--workloads", nargs="*", default=[], metavar="NAME", help=f"of {', '.join(_WORKLOADS)}")
    parser.add_argument("--real", nargs="*", type=Path, metavar="BUNDLE", help="bundles or repositories")
    parser.add_argument(
        "--operations", nargs="*", default=[], metavar="NAME", help=f"of {', '.join(map(_on_command_line, OPERATIONS))}"
    )
    parser.add_argument("--runs", type=int, default=0, help=f"default: {RUNS}, {RUNS_LARGE} of the largest")
    parser.add_argument("--increments", type=int, default=INCREMENTS, help="pushes of one commit, in all runs together")
    parser.add_argument("--push-options", default="", help="given to `museworkd push` in every operation")
    parser.add_argument("--git-source", choices=("loose", "packed"), default="loose")
    parser.add_argument("--no-git", action="store_true", help="without the peer")
    options = parser.parse_args(arguments)
    named = list(options.workloads) or [name for name in _WORKLOADS if name not in _NIGHTLY]
    if options.real is None:
        data = ROOT.parent / "shared" / "data"
        options.real = [data / name for name in _REAL_BUNDLES if (data / name).exists()] if "REAL" in named else []
    options.probes = [name for name in named if name in PROBES]
    options.workloads = [name for name in named if name not in PROBES and name != "REAL"]
    options.named = bool(options.operations)
    spelled = {_on_command_line(name): name for name in OPERATIONS}
    options.operations = [spelled.get(name, name) for name in options.operations] or list(OPERATIONS)
    for name, known in ((options.workloads, SHAPES), (options.operations, OPERATIONS)):
        unknown = [item for item in name if item not in known]
        if unknown:
            parser.error(f"not known: {', '.join(unknown)}; there are {', '.join(map(_on_command_line, known))}")
    for bundle in options.real:
        if not bundle.exists():
            parser.error(f"{bundle} is not there")
    return options


def _on_command_line(name: str) -> str:
    return name.replace(" ", "-")


if __name__ == "__main__":
    raise SystemExit(main())
