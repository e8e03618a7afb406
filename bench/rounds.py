"""One workload, several runs: which operations follow each other, and what a run begins with.

Every run starts both servers anew and empty, and lets both of them take one small push and clone that is not measured.
Then each operation is done by one peer and at once by the other; who begins changes from run to run, so that neither
always has the machine's caches from the other.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.peers import CLIENT_TIMEOUT_S, BenchError, Content, Peer, Sample
from bench.targets import (
    BESIDE,
    CLONE,
    FETCH,
    FETCH_COMMITS,
    FIRST_BYTE,
    FIRST_PUSH,
    HOLDS,
    INCREMENT,
    MPACK,
    NO_OP,
    ON_TOP,
    REFS,
    REPUSH,
    REPUSH_ELSEWHERE,
    START_UP,
    WAYS,
)  # fmt: skip

REFS_A_RUN = 100
STARTS_A_RUN = 3
BESIDE_MOST = 60
_FIRST, _SECOND, _ELSEWHERE, _BUSY = "first", "second", "other/first", "busy"


@dataclass(slots=True)
class Results:
    """Every sample of a bench, by workload, operation and peer."""

    samples: dict[tuple[str, str, str], list[Sample]] = field(default_factory=dict)

    def add(self, workload: str, operation: str, peer: str, samples: Sequence[Sample]) -> None:
        """Keep samples."""
        self.samples.setdefault((workload, operation, peer), []).extend(samples)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done with a workload."""

    content: Content
    operations: frozenset[str]
    runs: int
    way_runs: int
    """Of the ways a first push can travel: each takes a server of its own."""
    increments: int
    """In all runs together."""
    beside: Content | None
    """What is pushed while increments are measured beside a push."""


class Rounds:
    """Runs plans."""

    def __init__(self, peers: Sequence[Peer], warm_up: Content, directory: Path, results: Results) -> None:
        self._peers = peers
        self._warm_up = warm_up
        self._directory = directory
        self._results = results

    def run(self, plan: Plan) -> None:
        """Do all runs of a plan."""
        commits = {}
        if plan.content.muse_more is not None and plan.operations & ON_TOP:
            commits = {peer.name: peer.increments(plan.content) for peer in self._peers}
        for number in range(plan.runs):
            order = self._peers[:: -1 if number % 2 else 1]
            began = time.monotonic()
            try:
                for peer in order:
                    peer.start()
                    self._warm(peer)
                self._one(plan, order, {name: iter(found) for name, found in commits.items()})
            finally:
                for peer in order:
                    self._stop(plan, peer)
            say(f"{plan.content.name}: run {number + 1} of {plan.runs} took {time.monotonic() - began:.1f} s")

    def _stop(self, plan: Plan, peer: Peer) -> None:
        held = peer.stop()
        if held is not None:
            self._results.add(plan.content.name, HOLDS, peer.name, [held])

    def _warm(self, peer: Peer) -> None:
        peer.create("warm")
        peer.push(self._warm_up, "warm")
        self._clone(peer, self._warm_up, "warm")

    def _one(self, plan: Plan, order: Sequence[Peer], commits: dict[str, Iterator[str]]) -> None:
        content, wanted = plan.content, plan.operations
        self._each(plan, order, START_UP, lambda peer: [peer.start_up() for _ in range(STARTS_A_RUN)])
        for peer in order:
            peer.create(_FIRST)
        # the others need what it pushed, so it is always done
        self._each(plan, order, FIRST_PUSH, lambda peer: [peer.push(content, _FIRST)])
        if CLONE in wanted:
            self._each(plan, order, CLONE, lambda peer: [self._clone(peer, content, _FIRST)])
        if FIRST_BYTE in wanted:
            self._each(plan, order, FIRST_BYTE, lambda peer: peer.first_byte(_FIRST))
        if NO_OP in wanted:
            self._each(plan, order, NO_OP, lambda peer: [peer.push_nothing(content, _FIRST)])
        if REFS in wanted:
            self._each(plan, order, REFS, lambda peer: peer.refs(_FIRST, REFS_A_RUN))
        if REPUSH in wanted:
            for peer in order:
                peer.create(_SECOND)
            self._each(plan, order, REPUSH, lambda peer: [peer.push(content, _SECOND)])
        if REPUSH_ELSEWHERE in wanted:
            for peer in order:
                peer.create(_ELSEWHERE)
            self._each(plan, order, REPUSH_ELSEWHERE, lambda peer: [peer.push(content, _ELSEWHERE)])
        if commits:
            self._on_top(plan, order, commits)

    def _on_top(self, plan: Plan, order: Sequence[Peer], commits: dict[str, Iterator[str]]) -> None:
        """Do what takes further commits."""
        content, wanted = plan.content, plan.operations
        if FETCH in wanted:
            self._each(plan, order, FETCH, lambda peer: [self._fetch(peer, content, commits)])
        if INCREMENT in wanted:
            for _ in range(-(-plan.increments // plan.runs)):
                for peer in order:
                    sample = peer.push_increment(content, _FIRST, _next(commits, peer))
                    self._results.add(content.name, INCREMENT, peer.name, [sample])
            self._said(content.name, INCREMENT, order)
        if BESIDE in wanted and plan.beside is not None:
            beside = plan.beside
            self._each(plan, order, BESIDE, lambda peer: self._beside(peer, content, beside, commits))

    def ways(self, plan: Plan) -> None:
        """Push each way to servers of their own: what one push left in a store would shorten the next.

        Who has one way pushes once, beside all of them.
        """
        wanted = [operation for operation in WAYS if operation in plan.operations]
        if MPACK in wanted and self._went_by_mpack(plan.content.name):
            wanted.remove(MPACK)
            say(f"{plan.content.name}: {MPACK}: the first push was one")
        if not wanted:
            return
        turns: list[tuple[Peer, list[str]]] = []
        for peer in self._peers:
            turns += [(peer, wanted)] if peer.one_way else [(peer, [operation]) for operation in wanted]
        for number in range(plan.way_runs):
            first = number % len(turns)
            for peer, operations in turns[first:] + turns[:first]:
                try:
                    peer.start()
                    peer.create("warm")
                    peer.push_by(self._warm_up, "warm", WAYS[operations[0]])
                    peer.create(_FIRST)
                    sample = peer.push_by(plan.content, _FIRST, WAYS[operations[0]])
                finally:
                    self._stop(plan, peer)
                for operation in operations:
                    self._results.add(plan.content.name, operation, peer.name, [sample])
            for operation in wanted:
                self._said(plan.content.name, operation, self._peers)

    def _went_by_mpack(self, workload: str) -> bool:
        """Whether the client's own choice was one file, so that it was measured already."""
        first = [sample for (name, operation, _), samples in self._results.samples.items()
                 if (name, operation) == (workload, FIRST_PUSH) for sample in samples]  # fmt: skip
        return any("push/unpack-mpack" in request for sample in first for request in sample.requests)

    def _each(self, plan: Plan, order: Sequence[Peer], operation: str, measure: Callable[[Peer], list[Sample]]) -> None:
        for peer in order:
            self._results.add(plan.content.name, operation, peer.name, measure(peer))
        self._said(plan.content.name, operation, order)

    def _said(self, workload: str, operation: str, order: Sequence[Peer]) -> None:
        last = [(peer.name, self._results.samples.get((workload, operation, peer.name))) for peer in order]
        say(
            f"{workload}: {operation}: "
            + ", ".join(f"{name} {found[-1].wall_s or 0:.3f} s" for name, found in last if found)
        )

    def _clone(self, peer: Peer, content: Content, repository: str) -> Sample:
        target = self._directory / "clone"
        try:
            return peer.clone(content, repository, target)
        finally:
            shutil.rmtree(target, ignore_errors=True)

    def _fetch(self, peer: Peer, content: Content, commits: dict[str, Iterator[str]]) -> Sample:
        """Clone, push some commits, and fetch those into the clone: only that is measured."""
        target = self._directory / "clone"
        try:
            peer.clone(content, _FIRST, target)
            for _ in range(FETCH_COMMITS):
                commit = _next(commits, peer)
            peer.push_increment(content, _FIRST, commit)
            return peer.fetch(content, target, commit)
        finally:
            shutil.rmtree(target, ignore_errors=True)

    def _beside(self, peer: Peer, content: Content, beside: Content, commits: dict[str, Iterator[str]]) -> list[Sample]:
        """Push small commits for as long as a large first push takes."""
        peer.create(_BUSY)
        failed: list[BenchError] = []

        def push() -> None:
            try:
                peer.push_beside(beside, _BUSY)
            except BenchError as error:
                failed.append(error)

        pushing = threading.Thread(target=push, name="the push beside", daemon=True)
        pushing.start()
        samples: list[Sample] = []
        while pushing.is_alive() and len(samples) < BESIDE_MOST:
            sample = peer.push_increment(content, _FIRST, _next(commits, peer))
            if pushing.is_alive():
                # CPU time and memory are the other push's too
                samples.append(replace(sample, server_cpu_s=None, server_peak_bytes=None))
        pushing.join(CLIENT_TIMEOUT_S)
        if failed:
            raise failed[0]
        return samples


def _next(commits: dict[str, Iterator[str]], peer: Peer) -> str:
    return next(commits[peer.name])


def say(text: str) -> None:
    """Tell people how far it is."""
    print(f"bench: {text}", file=sys.stderr, flush=True)
