"""The work behind pushes over a real S3 store: promoted, completed, made ahead, folded, collected and scrubbed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clones import clone
from tests.growing import WAYS, Growing, foreign, push_ids
from tests.handler_runs import run, services_of
from tests.http_client import push
from tests.muse import Push
from tests.s3_deployments import over_s3
from tests.s3_server import S3Server

pytestmark = pytest.mark.usefixtures("expected_errors")

PUSHES = 6


async def test_jobs_over_s3_lose_nothing_and_leave_nothing(
    s3_server: S3Server, tmp_path: Path, database_url: str
) -> None:
    """Every job of a branch that grew by every way of pushing; a clone is whole after each of them."""
    bucket = s3_server.new_bucket()
    async with over_s3(s3_server, tmp_path, database_url, bucket=bucket, store__direct=False) as server:
        repositories = {slug: (await server.make_repository(slug=slug)).number for slug in ("x", "other")}
        other = Push()
        other.commit({f"f{number}": foreign(number) for number in range(70)})
        assert (await push(server, other.frames(), repository="alice/other"))["type"] == "R"
        branch, index = Growing("x"), server.services.index
        for number in range(PUSHES):
            await branch.push(server, list(WAYS.values())[number % len(WAYS)])
        await branch.is_whole(server, index)
        services, number = services_of(server), repositories["x"]

        for repo in repositories.values():
            await run(services, "content.promote", repo)
        assert len(s3_server.keys(bucket, "objects/")) >= len(other.blobs)
        await branch.is_whole(server, index)

        made = await run(services, "fetch.mpack.prebuild", number, {"branch": "main"})
        assert s3_server.keys(bucket, "fetch/"), made
        await branch.is_whole(server, index)

        folded = await run(services, "mpack.gc", repositories["other"])
        assert folded["packs"] >= 1, folded
        assert (await clone(server, other.head, repository="alice/other")).blobs == other.blobs

        before = s3_server.keys(bucket, "objects/")
        for _ in range(2):
            collected = await run(services, "gc", 0, {"keep_s": 0.0})
        assert (await clone(server, other.head, repository="alice/other")).blobs == other.blobs
        await branch.is_whole(server, index)
        assert len(s3_server.keys(bucket, "objects/")) <= len(before), collected

        scrubbed = await run(services, "scrub", 0)
        assert scrubbed["findings"] == [], scrubbed
        assert min(scrubbed["packs"], scrubbed["records"], scrubbed["bytes"]) > 0, scrubbed
        assert s3_server.keys(bucket, "staging/") == {}


async def test_a_push_of_every_way_is_whole_through_the_store_itself(
    s3_server: S3Server, tmp_path: Path, database_url: str
) -> None:
    """The same branch with URLs that lead to the store, over PostgreSQL, looked at after each push."""
    async with over_s3(s3_server, tmp_path, database_url) as server:
        for slug in ("x", "other"):
            await server.make_repository(slug=slug)
        other = Push()
        other.commit({f"f{number}": foreign(number) for number in range(9)})
        assert (await push(server, other.frames(), repository="alice/other"))["type"] == "R"
        branch = Growing("x")
        for way in WAYS.values():
            await branch.push(server, way)
            await branch.can_be_fetched(server)
        await branch.is_whole(server, server.services.index)
        again = branch.next()
        push_id = next(push_ids)
        said = [await WAYS["mpack"](server, again, push_id, "x") for _ in range(2)]
        assert said[0]["head"] == said[1]["head"] == again.head
