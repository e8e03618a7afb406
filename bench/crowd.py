"""Pushes and clones of many clients at once, and of one alone: all from this process, which does next to nothing.

A push sends a body that was made before; a clone asks, downloads and hashes. Git's own clients would be processes on
the same cores, and what they take could not be told from what the server takes: see ``bench.git_crowd``.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import msgpack
import trio

from bench.bodies import Body
from bench.figures import median
from bench.muse_daemon import OWNER, MuseDaemon
from bench.peers import BenchError, Sample
from bench.rounds import say
from bench.targets import AT_ONCE, CROWD_CLONE, CROWD_PUSH, ERRORS, PER_S, TIMES_ALONE
from bench.workloads import BRANCH
from museworkd.client.connection import Connection, Target
from museworkd.client.errors import ClientError
from museworkd.client.push_stream import MEDIA_TYPE
from museworkd.client.remote import Remote
from museworkd.client.transport import decode, refused

ALONE = 5
"""Done one by one, each with a repository of its own."""
WARM = 2
PUSH_ALONE, CLONE_ALONE = "push alone", "clone alone"
_ANSWER_BYTES = 1024 * 1024
_TIMEOUT_S = 300.0


@dataclass(slots=True)
class _Outcome:
    """What became of some clients that were let loose together."""

    wall_s: float = 0.0
    errors: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Member:
    """One of the crowd: a repository with what is pushed to it."""

    remote: Remote
    body: Body


Act = Callable[[_Member], Awaitable[None]]
M = TypeVar("M")


def measure_crowd(daemon: MuseDaemon, bodies: Sequence[Body], wanted: frozenset[str]) -> dict[str, list[Sample]]:
    """Push each body to a repository of its own, a few alone and the others at once; then clone likewise."""
    members = []
    for number, body in enumerate(bodies):
        repository = f"crowd{number}"
        daemon.create(repository)
        members.append(_Member(Remote(daemon.url_of(repository), daemon.token(OWNER)), body))
    warm, alone, crowd = members[:WARM], members[WARM : WARM + ALONE], members[WARM + ALONE :]
    found: dict[str, list[Sample]] = {}
    idle_bytes = daemon.resident_bytes()
    for one, many, act in ((PUSH_ALONE, CROWD_PUSH, _push), (CLONE_ALONE, CROWD_CLONE, _clone)):
        if many == CROWD_CLONE and CROWD_CLONE not in wanted:
            break
        for member in warm:
            _measured(daemon, act, [member], idle_bytes)
        singles = [_measured(daemon, act, [member], idle_bytes) for member in alone]
        together = _measured(daemon, act, crowd, idle_bytes)
        together.server_ms = None  # they wait for each other: a sum would say nothing
        compare_with_alone(together, len(crowd), singles)
        found[one], found[many] = singles, [together]
    return found


def repositories() -> int:
    """How many bodies a crowd takes."""
    return WARM + ALONE + AT_ONCE


def _measured(daemon: MuseDaemon, act: Act, members: Sequence[_Member], idle_bytes: int) -> Sample:
    measuring = daemon.measure(idle_bytes)
    return measuring.end(let_loose(act, members), f"/{OWNER}/crowd")


def let_loose(act: Callable[[M], Awaitable[None]], members: Sequence[M]) -> Sample:
    """Let clients do the same, all at once; one alone must not fail."""
    before = time.process_time()
    outcome = trio.run(_let_loose, act, members)
    sample = Sample(outcome.wall_s, client_cpu_s=time.process_time() - before)
    for error in outcome.errors[:3]:
        say(f"one of {len(members)} at once: {error}")
    if len(members) == 1 and outcome.errors:
        raise BenchError(outcome.errors[0])
    if len(members) > 1:
        sample.figures[ERRORS] = len(outcome.errors)
    return sample


def compare_with_alone(together: Sample, count: int, singles: Sequence[Sample]) -> None:
    """Note how much more is done at once than alone."""
    assert together.wall_s is not None
    alone_s = median([sample.wall_s for sample in singles if sample.wall_s is not None])
    together.figures[TIMES_ALONE] = count * alone_s / together.wall_s
    together.figures[PER_S] = count / together.wall_s


async def _let_loose(act: Callable[[M], Awaitable[None]], members: Sequence[M]) -> _Outcome:
    outcome = _Outcome()

    async def one(member: M) -> None:
        try:
            with trio.fail_after(_TIMEOUT_S):
                await act(member)
        except (ClientError, BenchError, trio.TooSlowError) as error:
            outcome.errors.append(str(error) or type(error).__name__)

    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for member in members:
            nursery.start_soon(one, member)
    outcome.wall_s = time.perf_counter() - began
    return outcome


async def _push(member: _Member) -> None:
    """Send the body; the last frame of the answer has to be the right result."""
    target = Target.of(member.remote.at("push/stream"))
    async with Connection(target) as connection:
        headers = {**member.remote.headers, "content-type": MEDIA_TYPE}
        await connection.ask("POST", target.path, headers, member.body.frames)
        answer = await connection.receive_all(_ANSWER_BYTES)
        if connection.status != 200:
            raise refused(connection.status, connection.content_type, answer)
    check_result(answer, member.body)


def check_result(answer: bytes, body: Body) -> None:
    """Hold the answer to a push against what was pushed; raises :class:`BenchError`."""
    unpacker = msgpack.Unpacker(raw=False)
    unpacker.feed(answer)
    last = {}
    for frame in unpacker:
        last = frame
    expected = {"type": "R", "head": body.head, "branch": BRANCH, "commits_written": body.commits}
    if {key: last.get(key) for key in expected} != expected:
        raise BenchError(f"a push ended with {str(last)[:300]}")


async def _clone(member: _Member) -> None:
    """Ask for everything and download it; it has to be what the server calls it."""
    wanted = Target.of(member.remote.at("fetch/mpack"))
    async with Connection(wanted) as connection:
        headers = {**member.remote.headers, "content-type": "application/x-msgpack"}
        request = msgpack.packb({"want": [member.body.head], "have": []})
        await connection.ask("POST", wanted.path, headers, request)
        answer = await connection.receive_all(_ANSWER_BYTES)
        if connection.status != 200:
            raise refused(connection.status, connection.content_type, answer)
        told = decode(connection.content_type, answer)
        if (told["commit_count"], told["object_count"]) != (member.body.commits, member.body.objects):
            raise BenchError(f"a clone has {told['commit_count']} commits and {told['object_count']} objects")
        target = Target.named_by_server(str(told["mpack_url"]))
        await connection.ask("GET", target.path, {})
        hasher = hashlib.sha256()
        while piece := await connection.receive():
            hasher.update(piece)
        if connection.status != 200 or told["mpack_id"] != f"sha256:{hasher.hexdigest()}":
            raise BenchError(f"a clone's pack is another than announced (status {connection.status})")
