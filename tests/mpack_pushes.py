"""Pushing by one file, step by step as protocol §7 has it, with what each step answered."""

from __future__ import annotations

import hashlib
import uuid
from urllib.parse import urlsplit

from tests import containers
from tests.http_client import Answer, ask
from tests.muse import Push
from tests.servers import Server

MPACK = "application/x-muse-pack"


def mpack_of(history: Push, *, zstd: bool = False, records_first: bool = False) -> bytes:
    objects = list(history.blobs.items())
    if zstd:
        section = (containers.OBJECTS_ZSTD, containers.pack([(i, containers.stored_zstd(c)) for i, c in objects]))
    else:
        section = (containers.OBJECTS, containers.pack(objects))
    records = [
        (containers.SNAPSHOTS, containers.record_section([*history.snapshots, *history.deltas])),
        (containers.COMMITS, containers.record_section(history.commits)),
    ]
    return containers.mpack([*records[::-1], section] if records_first else [section, *records])


def bundle_of(history: Push, encoding: str = "raw") -> bytes:
    encode = {"raw": bytes, "zlib": containers.stored_zlib, "zstd": containers.stored_zstd}[encoding]
    objects = [{"object_id": i, "content": encode(c), "encoding": encoding} for i, c in history.blobs.items()]
    return containers.bundle({
        "commits": history.commits, "snapshots": history.snapshots, "objects": objects, "branch_heads": {},
    })  # fmt: skip


def key_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def target_of(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.path}?{parts.query}"


async def presign(server: Server, data: bytes, slug: str = "x", path: str = "push/mpack-presign") -> Answer:
    body = {"mpack_key": key_of(data), "size_bytes": len(data)}
    return await ask(server, "POST", f"/alice/{slug}/{path}", token="alice", json=body)


async def put(server: Server, target: str, data: bytes, start: int = 0, total: int | None = None) -> Answer:
    headers = {"content-type": MPACK}
    if total is not None:
        headers["content-range"] = f"bytes {start}-{start + len(data) - 1}/{total}"
    return await ask(server, "PUT", target, body=data, headers=headers)


async def upload(server: Server, data: bytes, slug: str = "x") -> None:
    answer = await presign(server, data, slug)
    assert answer.status == 200, answer.value
    if answer.value["upload_url"] is not None:
        assert (await put(server, answer.value["upload_url"], data)).status in {200, 204}


async def unpack(server: Server, data: bytes, history: Push, slug: str = "x", **more: object) -> Answer:
    body = {
        "mpack_key": key_of(data), "branch": history.branch, "head": history.head, "force": False,
        "push_id": str(uuid.uuid4()), **more,
    }  # fmt: skip
    return await ask(server, "POST", f"/alice/{slug}/push/unpack-mpack", token="alice", json=body)


async def push_mpack(server: Server, data: bytes, history: Push, slug: str = "x", **more: object) -> Answer:
    await upload(server, data, slug)
    return await unpack(server, data, history, slug, **more)
