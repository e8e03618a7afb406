"""Workloads of which only our server is asked: many clients at once, many ids, one large file, many jobs."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import jobs
from bench.bodies import make_bodies
from bench.crowd import measure_crowd, repositories
from bench.many import ask_about, growth, push_all, read_ids
from bench.muse_peer import MusePeer
from bench.peers import Content, Sample
from bench.rounds import Results, say
from bench.targets import CLAIMED, GROWTH, HOLDS, PROBES, UPLOAD
from bench.upload import REPOSITORY, random_pieces, upload
from bench.workloads import GROWING, SHAPES, Shape

CROWD_SHAPE = "M"

Generate = Callable[[Shape, Path], Content]


class Probes:
    """Runs them, each with a daemon of its own."""

    def __init__(self, peer: MusePeer, warm_up: Content, generate: Generate, results: Results) -> None:
        self._peer = peer
        self._warm_up = warm_up
        self._generate = generate
        self._results = results

    def run(self, name: str, wanted: frozenset[str], runs: int, place: Path) -> None:
        """Do all runs of one; nothing of it that is wanted: nothing is done."""
        wanted &= PROBES[name]
        if not wanted:
            return
        probe = {"CROWD": self._crowd, "MANY": self._many, "FILE": self._file, "JOBS": self._jobs}[name]
        began = time.monotonic()
        place.mkdir(parents=True)
        try:
            probe(name, wanted, runs, place)
        finally:
            shutil.rmtree(place)
        say(f"{name}: {runs} runs took {time.monotonic() - began:.1f} s")

    def _crowd(self, name: str, wanted: frozenset[str], runs: int, place: Path) -> None:
        say(f"preparing {name}: {repositories()} histories like {CROWD_SHAPE}")
        bodies = make_bodies(SHAPES[CROWD_SHAPE], repositories(), place / "one")
        for _ in range(runs):
            with self._served(name):
                for operation, samples in measure_crowd(self._peer.daemon, bodies, wanted).items():
                    self._add(name, operation, samples)

    def _many(self, name: str, wanted: frozenset[str], runs: int, place: Path) -> None:
        most = max(GROWING)
        sizes = sorted(GROWING) if GROWTH in wanted else [most]
        contents = {size: self._generate(GROWING[size], place / str(size)) for size in sizes}
        ids = read_ids(contents[most])
        for _ in range(runs):
            pushes: dict[int, Sample] = {}
            for size, content in contents.items():
                with self._served(name):
                    pushes[size] = push_all(self._peer, content)
                    self._add(name, f"push of {size} objects", [pushes[size]])
                    if size == most:
                        for operation, samples in ask_about(self._peer.daemon, ids, wanted).items():
                            self._add(name, operation, samples)
            if GROWTH in wanted:
                self._add(name, GROWTH, [growth(self._peer, pushes)])

    def _file(self, name: str, _: frozenset[str], runs: int, __: Path) -> None:
        with self._served(name):
            self._peer.create(REPOSITORY)
            upload(self._peer.daemon, random_pieces(runs, 4))  # a small one before: nobody is measured loading code
            for number in range(runs):
                self._add(name, UPLOAD, [upload(self._peer.daemon, random_pieces(number))])

    def _jobs(self, name: str, _: frozenset[str], runs: int, place: Path) -> None:
        with jobs.database(place) as conninfo:  # no daemon: it would claim them itself
            jobs.measure(conninfo, 100)
            for _run in range(runs):
                self._add(name, CLAIMED, [jobs.measure(conninfo)])

    @contextmanager
    def _served(self, name: str) -> Iterator[None]:
        try:
            self._peer.start()
            self._peer.create("warm")
            self._peer.push(self._warm_up, "warm")
            yield
        finally:
            held = self._peer.stop()
            if held is not None:
                self._results.add(name, HOLDS, self._peer.name, [held])

    def _add(self, name: str, operation: str, samples: list[Sample]) -> None:
        self._results.add(name, operation, self._peer.name, samples)
        last = samples[-1]
        told = [] if last.wall_s is None else [f"{last.wall_s:.3f} s"]
        if last.server_ms is not None:
            told.append(f"server {last.server_ms:.1f} ms")
        told += [f"{metric} {value:.2f}" for metric, value in last.figures.items()]
        say(f"{name}: {operation}: {', '.join(told)}")
