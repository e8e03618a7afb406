"""What an accepted push leaves to be done, and what every other push does not."""

from __future__ import annotations

import pytest

from storage.job_rows import LISTED_JOBS, JobFilter
from tests.deployments import two_commits
from tests.http_client import push
from tests.mpack_pushes import key_of, mpack_of, push_mpack
from tests.muse import Push
from tests.servers import Server

pytestmark = pytest.mark.usefixtures("expected_errors")
EVERY = {"fetch.mpack.prebuild", "push.file_last_commits", "intel.structural", "profile.snapshot", "mpack.gc"}


async def waiting(server: Server, number: int) -> dict[str, object]:
    found = await server.services.index.list_jobs(JobFilter(number), LISTED_JOBS)
    types = [job.type for job in found]
    assert len(types) == len(set(types))
    return {job.type: job.payload for job in found}


async def test_pushes_by_stream_enqueue_each_type_once(server):
    repository = await server.make_repository()
    history = Push()
    for number in range(3):
        history.commit({"f": b"%d" % number})
        assert (await push(server, history.frames()))["type"] == "R"
        assert await waiting(server, repository.number) == {kind: {} for kind in {*EVERY, "content.promote"}}


async def test_pushes_by_one_file_are_indexed_pack_by_pack(server):
    repository = await server.make_repository()
    packs = {}
    history = Push()
    for number in range(3):
        history.commit({"f": b"%d" % number})
        data = mpack_of(history)
        answer = await push_mpack(server, data, history)
        assert answer.status == 200
        packs[key_of(data).removeprefix("sha256:")] = answer.value["push_id"]
        assert await waiting(server, repository.number) == {**{kind: {} for kind in EVERY}, "mpack.index": packs}


async def test_a_compressed_file_is_indexed_by_the_pack_made_of_it(server):
    repository = await server.make_repository()
    data = mpack_of(two_commits(), zstd=True)
    assert (await push_mpack(server, data, two_commits())).status == 200
    (pack,) = (await waiting(server, repository.number))["mpack.index"]
    assert pack != key_of(data).removeprefix("sha256:")
    assert pack in {found.key.split("/")[1].partition(".")[0] async for found in server.services.store.scan("packs")}


async def test_a_push_that_is_refused_or_breaks_off_enqueues_nothing(server):
    repository = await server.make_repository()
    history = two_commits()
    for body in [
        history.frames(expected_head=history.head),
        history.header() + b"".join(history.object_frames()),
        history.header() + history.commit_frame() + history.end(n_objects=0),
    ]:
        assert (await push(server, body))["type"] == "X"
    data = mpack_of(history)
    assert (await push_mpack(server, data, history, declared_objects_count=99)).error == "count_mismatch"
    assert await waiting(server, repository.number) == {}
