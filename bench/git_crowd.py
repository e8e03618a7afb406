"""The clones of many git clients at once, without their processes: the same requests, from the bench's own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import git_wire
from bench.crowd import ALONE, CLONE_ALONE, WARM, compare_with_alone, let_loose
from bench.git_peer import GitPeer
from bench.peers import SETTLE_S, BenchError, Sample
from bench.targets import CROWD_CLONE
from bench.workloads import BRANCH, git
from museworkd.client.connection import Connection, Target

_ANSWER_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Repository:
    url: str
    head: str
    objects: int


def measure_git_crowd(peer: GitPeer, made: Path, count: int) -> dict[str, list[Sample]]:
    """Serve as many copies of a history, clone a few alone and the others at once."""
    head = git(made, "rev-parse", BRANCH)
    objects = len(git(made, "rev-list", "--objects", BRANCH).splitlines())
    peer.start()
    try:
        crowd = [_Repository(peer.place(f"crowd{number}", made), head, objects) for number in range(count)]
        _measured(peer, crowd[:WARM])
        singles = [_measured(peer, [one]) for one in crowd[WARM : WARM + ALONE]]
        together = _measured(peer, crowd[WARM + ALONE :])
        compare_with_alone(together, count - WARM - ALONE, singles)
    finally:
        peer.stop()
    return {CLONE_ALONE: singles, CROWD_CLONE: [together]}


def _measured(peer: GitPeer, members: Sequence[_Repository]) -> Sample:
    before = peer.cpu_s()
    sample = let_loose(_clone, members)
    time.sleep(SETTLE_S)
    after = peer.cpu_s()
    if before is not None and after is not None:
        sample.server_cpu_s = after - before
    return sample


async def _clone(member: _Repository) -> None:
    """Ask as git does, three times over one connection; the pack has to be sound."""
    target = Target.of(member.url)
    async with Connection(target) as connection:
        for method, endpoint, body in (
            ("GET", git_wire.ADVERTISED, b""),
            ("POST", git_wire.UPLOAD_PACK, git_wire.LIST_REFS),
            ("POST", git_wire.UPLOAD_PACK, git_wire.want(member.head)),
        ):
            await connection.ask(method, f"{target.path}/{endpoint}", git_wire.HEADERS, body)
            answer = await connection.receive_all(_ANSWER_BYTES)
            if connection.status != 200:
                raise BenchError(f"{endpoint}: {connection.status}: {answer[:300]!r}")
    git_wire.check_pack(answer, member.objects)
