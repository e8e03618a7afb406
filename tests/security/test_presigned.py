"""Presigned uploads (threats T1 to T5, T16, T17): a URL is worth one upload, an upload nothing until it is proved."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
import trio.testing

from storage.environment import SeededEnvironment
from storage.memory.index import MemoryIndex
from storage.object_store import ObjectStore
from storage.objects.memory import MemoryStore
from storage.objects.wrapped import WrappedStore
from storage.rows import Right
from tests.clones import clone, fetch
from tests.deployments import bearer, deployed, two_commits, with_history
from tests.http_client import PATIENCE_S, ask, connected, head_bytes, push
from tests.mpack_pushes import target_of
from tests.muse import Push, blob_id, plain
from tests.presigned_pushes import confirm, hold, presign, put, records_only, upload
from tests.servers import Server, serving

pytestmark = pytest.mark.usefixtures("expected_errors")

SMALL, LARGE = b"private\n", b"private\n" * 50_000
BLOBS = {blob_id(SMALL): SMALL, blob_id(LARGE): LARGE}


async def two_repositories(server: Server) -> None:
    await server.make_repository()
    await server.make_repository(slug="y")


async def same_as(server: Server, history: Push, slug: str = "x") -> None:
    assert (await clone(server, history.head, repository=f"alice/{slug}")).blobs == history.blobs


async def test_T1_what_another_repository_holds_cannot_be_claimed(server):
    """Neither held nor accepted there: a push here that names it is refused, a confirmation finds nothing."""
    await two_repositories(server)
    history = two_commits()
    await hold(server, history.blobs)
    said = await push(server, records_only(history), repository="alice/y")
    assert (said["error"], said["missing_count"]) == ("missing_objects", len(history.blobs))
    assert (await push(server, records_only(history)))["type"] == "R"
    said = await push(server, records_only(history), repository="alice/y")
    assert (said["error"], said["missing_count"]) == ("missing_objects", len(history.blobs))
    rejected = (await confirm(server, history.blobs, "y")).value["rejected"]
    assert [r["error"] for r in rejected] == ["missing_objects"] * len(history.blobs)


async def test_T2_a_presign_tells_nothing_of_other_repositories(server):
    """Objects that are held, accepted or uploaded elsewhere are answered like ones nobody has."""
    await two_repositories(server)
    history = await with_history(server, two_commits(), slug="z")
    await hold(server, BLOBS)
    await upload(server, {blob_id(b"u"): b"u"})
    elsewhere = {**history.blobs, **BLOBS, blob_id(b"u"): b"u"}
    nowhere = {blob_id(b"%d" % len(content) + content): b"?" + content for content in elsewhere.values()}
    for blobs in (elsewhere, nowhere):
        said = (await presign(server, blobs, "y")).value
        assert (list(said["presigned_urls"]), said["already_stored"]) == (list(blobs), [])
    there = (await confirm(server, elsewhere, "y")).value
    not_there = (await confirm(server, nowhere, "y")).value
    assert [(r["error"], r["detail"]) for r in there["rejected"]] == [
        (r["error"], r["detail"]) for r in not_there["rejected"]
    ]
    assert there["confirmed"] == not_there["confirmed"] == []


async def test_T3_what_is_held_cannot_be_read(server):
    """Not by the one who uploaded it, until a push has made it part of the repository."""
    await with_history(server, two_commits())
    urls = await hold(server, BLOBS)
    for object_id, url in urls.items():
        assert (await ask(server, "GET", f"/alice/x/o/{object_id}", token="alice")).error == "not_found"
        assert (await ask(server, "GET", target_of(url))).error == "method_not_allowed"
        assert (await fetch(server, [object_id])).error == "not_found"
    answer = await ask(server, "HEAD", target_of(next(iter(urls.values()))))
    assert answer.body == b""


async def test_T4_an_upload_url_is_for_one_method_object_size_scheme_and_repository(server):
    await two_repositories(server)
    object_id = next(iter(BLOBS))
    url = target_of((await presign(server, BLOBS)).value["presigned_urls"][object_id])
    path, _, query = url.partition("?")
    digits = object_id[7:]
    for other in (
        url.replace(digits, blob_id(b"other")[7:]), url.replace("/8?", "/9?"), url.replace("/x/", "/y/"),
        url.replace("/object/", "/plain-object/"), url.replace("/object/", "/mpack/"), path,
        url.replace("expires=", "expires=9"), url.replace("signature=", "signature=0"), f"{path}?{query[:-1]}",
    ):  # fmt: skip
        answer = await ask(server, "PUT", other, body=SMALL)
        assert (answer.status, answer.error) == (403, "forbidden"), other
    for method in ("GET", "POST", "DELETE", "PATCH"):
        assert (await ask(server, method, url, body=SMALL)).status == 405
    for body in (SMALL + b"x", SMALL[:-1], b""):
        assert (await ask(server, "PUT", url, body=body)).error == "malformed"
    assert [r["error"] for r in (await confirm(server, BLOBS)).value["rejected"]] == ["missing_objects"] * 2
    assert (await ask(server, "PUT", url, body=SMALL)).status == 204


async def test_T4_an_upload_url_has_its_time(tmp_path):
    environment = SeededEnvironment(3)
    async with deployed(None, tmp_path, environment) as server:
        await server.make_repository()
        url = (await presign(server, BLOBS)).value["presigned_urls"][blob_id(SMALL)]
        environment.move(server.services.presign_s - 1)
        assert (await put(server, url, SMALL)).status == 204
        environment.move(1)
        assert (await put(server, url, SMALL)).error == "forbidden"


async def test_T4_the_same_digits_are_another_object_in_the_other_scheme(server):
    """An empty repository has no scheme yet: what is uploaded as one content's id is never taken for the other's."""
    await server.make_repository()
    typed_content = b"typed"
    plain_content = b"blob 5\0typed"
    typed_id, plain_id = blob_id(typed_content), blob_id(plain_content, plain)
    assert typed_id == f"sha256:{plain_id}"
    await hold(server, {plain_id: plain_content})
    assert list((await presign(server, {typed_id: typed_content})).value["presigned_urls"]) == [typed_id]
    assert (await confirm(server, [typed_id])).value["rejected"][0]["error"] == "missing_objects"
    history = Push()
    history.commit({"f": typed_content})
    assert (await push(server, records_only(history)))["error"] == "missing_objects"
    await hold(server, history.blobs)
    assert (await push(server, records_only(history)))["type"] == "R"
    await same_as(server, history)


async def test_T5_an_upload_replaced_after_it_was_confirmed_changes_nothing(server):
    """The URL is still good for an upload, and the upload for nothing."""
    await server.make_repository()
    history = Push()
    history.commit({"small": SMALL, "large": LARGE})
    urls = await hold(server, history.blobs)

    async def replace() -> None:
        for object_id, url in urls.items():
            assert (await put(server, url, history.blobs[object_id][::-1])).status == 204

    await replace()
    assert (await confirm(server, urls)).value == {"confirmed": list(urls), "rejected": []}
    assert (await push(server, records_only(history)))["type"] == "R"
    await same_as(server, history)
    await replace()
    assert (await confirm(server, urls)).value == {"confirmed": list(urls), "rejected": []}
    await same_as(server, history)


class Racing(WrappedStore):
    """A store into which somebody uploads something else whenever an upload was looked at."""

    def __init__(self, inner: ObjectStore) -> None:
        super().__init__(inner)
        self.replaced: list[str] = []

    async def get(self, key: str, most: int) -> bytes:
        content = await self.inner.get(key, most)
        await self._replace(key, len(content))
        return content

    async def size(self, key: str) -> int:
        size = await self.inner.size(key)
        await self._replace(key, size)
        return size

    async def copy(self, source: str, target: str) -> None:
        await self.inner.copy(source, target)
        await self._replace(source, 5)

    async def _replace(self, key: str, size: int) -> None:
        if key.startswith("staging/") and "incoming" not in key:
            self.replaced.append(key)
            await self.inner.put_batch([(key, b"?" * size)])


async def test_T5_an_upload_replaced_while_it_is_confirmed_changes_nothing(tmp_path):
    """What was hashed is what is stored."""
    store = Racing(MemoryStore())
    async with serving(MemoryIndex(), store, tmp_path) as server:
        await server.make_repository()
        history = Push()
        history.commit({"small": SMALL, "larger": SMALL * 10_000, "large": LARGE})
        await hold(server, history.blobs)
        assert len(set(store.replaced)) == 3
        assert (await push(server, records_only(history)))["type"] == "R"
        await same_as(server, history)


@pytest.mark.parametrize("route", ["push/presign", "push/confirm"])
async def test_T17_rights_are_checked_before_the_body_is_read(twin, route):
    repository = await twin.make_repository()
    public = await twin.make_repository(slug="public", public=True)
    await twin.services.index.set_collaborator(repository.number, "reader", Right.READ)
    _, read_only = await bearer(twin, "alice", Right.READ)
    length = {"content-length": "1000000", "content-type": "application/json"}
    for slug, options, status in [
        ("x", {}, 401), ("public", {}, 401), ("x", {"token": "bob"}, 404), ("nothing", {"token": "alice"}, 404),
        ("x", {"token": "reader"}, 403), ("public", {"token": "bob"}, 403), ("x", {"headers": read_only}, 403),
    ]:  # fmt: skip
        headers = {**length, **options.pop("headers", {})}
        async with connected(twin) as connection:
            await connection.send(head_bytes("POST", f"/alice/{slug}/{route}", headers=headers, **options))
            assert (await connection.answer("POST")).status == status, (slug, options)
    assert public.number != repository.number


async def test_T3_an_upload_to_a_deleted_repository_leads_nowhere(server):
    """Not into a new one of that name either."""
    await server.make_repository()
    urls = (await presign(server, BLOBS)).value["presigned_urls"]
    assert (await put(server, urls[blob_id(SMALL)], SMALL)).status == 204
    assert (await ask(server, "DELETE", "/api/repos/alice/x", token="alice")).status == 200
    assert (await put(server, urls[blob_id(LARGE)], LARGE)).error == "not_found"
    await server.make_repository()
    assert [r["error"] for r in (await confirm(server, BLOBS)).value["rejected"]] == ["missing_objects"] * 2
    assert list((await presign(server, BLOBS)).value["presigned_urls"]) == list(BLOBS)


class Blocked(WrappedStore):
    """A store whose writes wait until they are let go."""

    def __init__(self, inner: ObjectStore) -> None:
        super().__init__(inner)
        self.go = trio.Event()
        self.batches: list[int] = []

    async def put_batch(self, items: Sequence[tuple[str, bytes]]) -> None:
        self.batches.append(len(items))
        await self.go.wait()
        await self.inner.put_batch(items)


async def test_T16_small_uploads_take_a_bounded_number_of_writes(tmp_path):
    """Those that arrive together are stored together, also when one of their clients goes away meanwhile."""
    store = Blocked(MemoryStore())
    async with serving(MemoryIndex(), store, tmp_path) as server:
        await server.make_repository()
        blobs = {blob_id(b"%d" % number): b"%d" % number for number in range(40)}
        urls = (await presign(server, blobs)).value["presigned_urls"]
        answers = []

        async def send(object_id: str) -> None:
            answers.append((await put(server, urls[object_id], blobs[object_id])).status)

        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as gone:
                async with trio.open_nursery() as leaving:
                    for object_id in list(blobs)[:3]:
                        leaving.start_soon(send, object_id)
                    with trio.fail_after(PATIENCE_S):
                        while sum(store.batches) < 3:
                            await trio.testing.wait_all_tasks_blocked(0.01)
                    for object_id in list(blobs)[3:]:
                        nursery.start_soon(send, object_id)
                    gone.cancel()
            with trio.fail_after(PATIENCE_S):
                while server.services.small_uploads.waiting < len(blobs) - 3:
                    await trio.testing.wait_all_tasks_blocked(0.01)
            store.go.set()
        assert answers == [204] * (len(blobs) - 3)
        assert len(store.batches) < 10
        assert (await confirm(server, list(blobs)[3:])).value["rejected"] == []
