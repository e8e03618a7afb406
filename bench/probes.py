"""Workloads that are no history of their own: many clients at once, many ids, one large file, an old client, many jobs.

Only our server is asked, but for the clones at once, which git takes as well.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import jobs, plain_client
from bench.bodies import make_bodies
from bench.crowd import measure_crowd, repositories
from bench.git_crowd import measure_git_crowd
from bench.git_peer import GitPeer
from bench.many import ask_about, growth, push_all, read_ids
from bench.muse_peer import MusePeer
from bench.peers import Content, Sample
from bench.rounds import Results, say
from bench.targets import CLAIMED, CROWD_CLONE, GROWTH, HOLDS, PLAIN_CLONE, PLAIN_PUSH, PROBES, UPLOAD
from bench.upload import REPOSITORY, random_pieces, upload
from bench.workloads import GROWING, SHAPES, Shape, write_git

CROWD_SHAPE = "M"
PLAIN_SHAPES = ("L", "XL-random", "XL-grow")
PLAIN_CLONED = frozenset({"L", "XL-random"})
"""With all its manifests, XL-grow is more than that client takes in one answer."""

Generate = Callable[[Shape, Path], Content]


class Probes:
    """Runs them, each with a daemon of its own."""

    def __init__(
        self, peer: MusePeer, git: GitPeer | None, warm_up: Content, generate: Generate, results: Results
    ) -> None:
        self._peer = peer
        self._git = git
        self._warm_up = warm_up
        self._generate = generate
        self._results = results

    def run(self, name: str, wanted: frozenset[str], runs: int, place: Path) -> None:
        """Do all runs of one; nothing of it that is wanted: nothing is done."""
        wanted &= PROBES[name]
        if not wanted:
            return
        probe = {
            "CROWD": self._crowd, "MANY": self._many, "FILE": self._file, "PLAIN": self._plain, "JOBS": self._jobs,
        }[name]  # fmt: skip
        began = time.monotonic()
        place.mkdir(parents=True)
        try:
            probe(name, wanted, runs, place)
        finally:
            shutil.rmtree(place)
        say(f"{name}: {runs} runs took {time.monotonic() - began:.1f} s")

    def _crowd(self, name: str, wanted: frozenset[str], runs: int, place: Path) -> None:
        say(f"preparing {name}: {repositories()} histories like {CROWD_SHAPE}")
        shape, made = SHAPES[CROWD_SHAPE], None
        bodies = make_bodies(shape, repositories(), place / "one")
        for _ in range(runs):
            with self._served(name):
                for operation, samples in measure_crowd(self._peer.daemon, bodies, wanted).items():
                    self._add(name, operation, samples)
            if self._git is not None and CROWD_CLONE in wanted:
                made = made or write_git(shape, place / "git", packed=True)
                for operation, samples in measure_git_crowd(self._git, made, repositories()).items():
                    self._results.add(name, operation, self._git.name, samples)

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

    def _plain(self, name: str, wanted: frozenset[str], runs: int, _: Path) -> None:
        for shape in PLAIN_SHAPES:
            say(f"preparing {name} {shape}: bodies of a first push")
            made = plain_client.make_push(SHAPES[shape])
            for _run in range(runs):
                with self._served(f"{name} {shape}"):
                    self._peer.create("plain")
                    self._add(f"{name} {shape}", PLAIN_PUSH, [plain_client.push(self._peer.daemon, "plain", made)])
                    if PLAIN_CLONE in wanted and shape in PLAIN_CLONED:
                        sample = plain_client.clone(self._peer.daemon, "plain", made)
                        self._add(f"{name} {shape}", PLAIN_CLONE, [sample])

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
