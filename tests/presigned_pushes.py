"""Pushing object by object, step by step as protocol §6 has it, with what each step answered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tests.http_client import Answer, ask, push
from tests.muse import Push
from tests.servers import Server


async def presign(
    server: Server, blobs: Mapping[str, bytes], slug: str = "x", token: str = "alice", **more: object
) -> Answer:
    body = {"object_ids": list(blobs), "sizes": {i: len(content) for i, content in blobs.items()}, **more}
    return await ask(server, "POST", f"/alice/{slug}/push/presign", token=token, msgpack=body)


async def put(server: Server, url: str, content: bytes, **headers: str) -> Answer:
    return await ask(server, "PUT", url, body=content, headers=headers)


async def confirm(server: Server, ids: Iterable[str], slug: str = "x", token: str = "alice", **more: object) -> Answer:
    body = {"object_ids": list(ids), **more}
    return await ask(server, "POST", f"/alice/{slug}/push/confirm", token=token, msgpack=body)


async def upload(server: Server, blobs: Mapping[str, bytes], slug: str = "x") -> dict[str, str]:
    """Upload what the repository does not have; gives the URLs."""
    answer = await presign(server, blobs, slug)
    assert answer.status == 200, answer.value
    urls = answer.value["presigned_urls"]
    for object_id, url in urls.items():
        assert (await put(server, url, blobs[object_id])).status in {200, 204}
    return urls


async def hold(server: Server, blobs: Mapping[str, bytes], slug: str = "x") -> dict[str, str]:
    """Upload and confirm; gives the URLs."""
    urls = await upload(server, blobs, slug)
    answer = await confirm(server, urls, slug)
    assert (answer.status, answer.value) == (200, {"confirmed": list(urls), "rejected": []})
    return urls


def records_only(history: Push, **header: object) -> bytes:
    """The frames of a push that brings no objects."""
    return b"".join([history.header(**header), history.commit_frame(), history.end(n_objects=0)])


async def push_presigned(server: Server, history: Push, slug: str = "x", **header: object) -> dict[str, object]:
    await hold(server, history.blobs, slug)
    return await push(server, records_only(history, **header), repository=f"alice/{slug}")
