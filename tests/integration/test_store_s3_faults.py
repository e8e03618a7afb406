"""What happens to pushes and fetches when the S3 store, or the network to it, does what it should not.

A proxy between the daemon and a real S3 server injects the faults. Whatever it does, a push is accepted and whole, or
it is refused in a way that says to try again, nothing of it can be seen, and the same push is accepted later.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from tests import s3_faults
from tests.clones import clone, fetch
from tests.growing import WAYS, Growing, RefusedError, foreign, push_ids
from tests.http_client import ask, push
from tests.muse import Push
from tests.s3_deployments import over_s3
from tests.s3_faults import Asked, Fault, FaultyS3, Rule, faulty_s3, once
from tests.s3_server import S3Server
from tests.servers import Server

MIB = 1024 * 1024
PUSHES_MOST = 20
PATIENT = {"retry_s": 30}
IMPATIENT = {"retry_s": 2, "call_timeout_s": 3}
PATIENCE_S = 60.0
SETTINGS = {"limits__content_cache_object_bytes": 0}
"""Small pushes depend on the store as large ones do."""

pytestmark = pytest.mark.usefixtures("expected_errors")


@dataclass
class Scene:
    server: Server
    proxy: FaultyS3
    bucket: str
    branch: Growing

    async def push(self, way: str) -> dict:
        """Push while the rules hold, and once more without them if it was refused; gives what was said first."""
        server, branch = self.server, self.branch
        history, push_id = branch.next(), next(push_ids)
        said: dict = {}
        with trio.fail_after(PATIENCE_S):
            try:
                said = await WAYS[way](server, history, push_id, branch.slug)
            except RefusedError as refused:
                said = refused.said
        if said["type"] != "R":
            assert said["retryable"] is True, said
            self.proxy.rules.clear()
            await branch.is_unseen(server, history)
            again = await WAYS[way](server, history, push_id, branch.slug)
            assert again["type"] == "R", again
        branch.grown(history)
        return said


@pytest.fixture
async def scene(request: pytest.FixtureRequest, s3_server: S3Server, tmp_path: Path) -> AsyncIterator[Scene]:
    """A daemon over a bucket behind the proxy, with a branch that has begun."""
    async with faulty_s3(s3_server) as proxy:
        store, bucket = getattr(request, "param", PATIENT), s3_server.new_bucket()
        async with over_s3(
            proxy.as_server, tmp_path, bucket=bucket, store=store, store__direct=False, **SETTINGS
        ) as server:
            for slug in ("x", "other"):
                await server.make_repository(slug=slug)
            other = Push()
            other.commit({f"f{number}": foreign(number) for number in range(PUSHES_MOST)})
            assert (await push(server, other.frames(), repository="alice/other"))["type"] == "R"
            branch = Growing("x")
            await branch.push(server)
            yield Scene(server, proxy, bucket, branch)


def anything(_: Asked) -> bool:
    return True


def writes(asked: Asked) -> bool:
    return asked.method in {"PUT", "POST", "DELETE"}


def reads(asked: Asked) -> bool:
    return asked.method == "GET" and bool(asked.key)


def first_of_each(applies: Callable[[Asked], bool], fault: Fault, times: int = 1) -> Rule:
    """The first requests of each kind to each key."""
    seen: Counter[tuple[str, str, str]] = Counter()

    def rule(asked: Asked) -> Fault | None:
        if not applies(asked):
            return None
        seen[asked.method, asked.key, "".join(sorted(asked.query))] += 1
        return fault if seen[asked.method, asked.key, "".join(sorted(asked.query))] <= times else None

    return rule


def every(n: int, applies: Callable[[Asked], bool], fault: Fault) -> Rule:
    """Each n-th of the requests something is true of, the first one among them."""
    met = -1

    def rule(asked: Asked) -> Fault | None:
        nonlocal met
        met += applies(asked)
        return fault if applies(asked) and met % n == 0 else None

    return rule


SURVIVED = {
    "F1 bursts of 503": lambda: every(2, anything, Fault(refuse=503)),
    "F1 bursts of 500": lambda: every(3, anything, Fault(refuse=500)),
    "F2 no answer after the write": lambda: every(2, writes, Fault(lose_answer=True)),
    "F2 an error after the write": lambda: every(2, writes, Fault(answer_instead=500)),
    "F3 answers that are cut": lambda: first_of_each(reads, Fault(cut_answer_at=3)),
    "F5 a conflict": lambda: every(3, writes, Fault(refuse=409)),
    "F30 uploads that are cut": lambda: every(2, writes, Fault(cut_request_at=10)),
}


@pytest.mark.parametrize("name", SURVIVED)
async def test_F1_F2_F3_F5_F30_a_fault_that_passes_is_not_noticed(scene: Scene, name: str) -> None:
    """Every second or third request fails: by any way a push is accepted at once, and can be fetched at once."""
    scene.proxy.rules = [SURVIVED[name]()]
    for way in WAYS:
        said = await scene.push(way)
        assert said["type"] == "R", said
        await scene.branch.can_be_fetched(scene.server)
    assert scene.proxy.faults
    scene.proxy.rules = []
    await scene.branch.is_whole(scene.server, scene.server.services.index)


ENDURED = {
    "F1 a store that is down": Fault(refuse=503),
    "F2 writes that are done and hang": Fault(hang=True),
    "F5 every write is refused as precondition failed": Fault(refuse=412),
    "F8 credentials are not taken any more": Fault(refuse=403),
    "F10 a store that is full": Fault(refuse=507),
}


@pytest.mark.parametrize("scene", [IMPATIENT], ids=["impatient"], indirect=True)
@pytest.mark.parametrize("name", ENDURED)
async def test_F1_F2_F5_F8_F10_a_fault_that_stays_ends_a_push_with_store_unavailable(scene: Scene, name: str) -> None:
    """Within the time that retries have; nothing of the push is seen, and it is accepted when the store is back."""
    way = "mpack" if "hang" in name else "stream"
    scene.proxy.rules = [s3_faults.always(lambda asked: writes(asked) and asked.method != "DELETE", ENDURED[name])]
    said = await scene.push(way)
    assert (said["type"], said["error"]) == ("X", "store_unavailable"), said
    await scene.branch.is_whole(scene.server, scene.server.services.index)


@pytest.mark.parametrize("scene", [IMPATIENT], ids=["impatient"], indirect=True)
@pytest.mark.parametrize("refused", [503, 403])
async def test_R8_F1_F8_reads_that_fail_are_told_as_that_and_never_as_something_missing(
    scene: Scene, refused: int
) -> None:
    """Also where waiting does not help, as with credentials that are not taken any more."""
    server, branch = scene.server, scene.branch
    branch.copy.commits.clear()
    scene.proxy.rules = [s3_faults.always(reads, Fault(refuse=refused))]
    answer = await fetch(server, [branch.head])
    assert (answer.status, answer.error) == (503, "store_unavailable"), answer.value
    scene.proxy.rules = []
    await branch.is_whole(server, server.services.index)


@pytest.mark.parametrize("scene", [IMPATIENT], ids=["impatient"], indirect=True)
async def test_F3_a_flipped_bit_is_never_delivered(scene: Scene) -> None:
    """In any answer of the store on the way to a clone: it is read again, or the clone fails; no wrong byte arrives."""
    server, branch = scene.server, scene.branch
    for way in WAYS:
        await scene.push(way)
    for at in (0, 40, 100, 5000):
        flips = first_of_each(lambda asked: reads(asked) and not asked.under("fetch/"), Fault(flip_answer_at=at))
        scene.proxy.rules = [flips]
        answer = await fetch(server, [branch.head], depth=at + 1)  # another answer each time: none is made already
        assert answer.status == 200 or answer.error in {"damaged", "object_damaged", "store_unavailable"}, answer.value
        scene.proxy.rules = []
    await branch.is_whole(server, server.services.index)


async def test_F4_a_pack_the_store_has_lost_is_an_error_and_no_partial_clone(scene: Scene) -> None:
    """The store says that it has taken it, and has not: the clone says what is missing, and never leaves it out."""
    server = scene.server
    history = Push()
    history.commit({"f": random.Random(4).randbytes(200_000)})
    blobs = s3_faults.always(lambda asked: asked.under("objects/", "packs/") and writes(asked), Fault(swallow=True))
    scene.proxy.rules = [blobs]
    said = await WAYS["stream"](server, history, next(push_ids), "other")
    scene.proxy.rules = []
    if said["type"] == "R":
        answer = await fetch(server, [history.head], repository="alice/other")
        assert answer.status >= 400, answer.value
        blob = next(iter(history.blobs))
        assert (await ask(server, "GET", f"/alice/other/o/{blob}", token="alice")).status >= 400
    await scene.branch.is_whole(server, server.services.index)


def part(number: int, fault: Fault) -> Rule:
    return once(lambda asked: asked.query.get("partNumber") == [str(number)], fault)


def completion(fault: Fault) -> Rule:
    return once(lambda asked: asked.method == "POST" and "uploadId" in asked.query, fault)


LARGE = [
    [part(1, Fault(refuse=500)), part(2, Fault(cut_request_at=MIB)), completion(Fault(lose_answer=True))],
    [part(1, Fault(lose_answer=True)), part(2, Fault(refuse=503)), completion(Fault(answer_instead=500))],
]


async def test_F6_an_upload_in_parts_comes_through(scene: Scene) -> None:
    """Parts that are lost and a completion that is called twice; nothing is left over of what was begun."""
    for seed, rules in enumerate(LARGE):
        history = Push(f"large-{seed}")
        history.commit({"large": random.Random(seed).randbytes(17 * MIB)})
        scene.proxy.rules = rules
        said = await WAYS["mpack"](scene.server, history, next(push_ids), "other")
        assert said["type"] == "R", said
        assert len(scene.proxy.faults) == 3 * (seed + 1)
        copy = await clone(scene.server, history.head, repository="alice/other")
        assert copy.blobs == history.blobs
    client = scene.proxy.server.client()
    assert client.list_multipart_uploads(Bucket=scene.bucket).get("Uploads", []) == []


async def test_F11_a_slow_store_only_takes_its_time(scene: Scene) -> None:
    """Twenty milliseconds for each request: what matters is how many have to wait for each other."""
    scene.proxy.latency_s = 0.02
    began = trio.current_time()
    for way in WAYS:
        assert (await scene.push(way))["type"] == "R"
    await scene.branch.can_be_fetched(scene.server)
    assert trio.current_time() - began < PATIENCE_S
    scene.proxy.latency_s = 0.0
    await scene.branch.is_whole(scene.server, scene.server.services.index)
