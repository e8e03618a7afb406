"""The public 0.1.x client as its server sees it: bodies as it sends them, one connection a request (protocol §9).

A push asks which contents are missing, sends those by four connections, then everything else in one body with every
manifest whole. Bodies are made before anything is measured: what that client takes to make them is its own affair.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass

import msgpack
import trio

from bench.muse_daemon import MuseDaemon, place_of
from bench.peers import CLIENT_TIMEOUT_S, BenchError, Sample
from bench.workloads import BRANCH, History, Shape
from museworkd.client.connection import Connection, Target
from museworkd.client.errors import ClientError

CHUNK_OBJECTS = 400
CONNECTIONS = 4
ANSWER_BYTES = 64 * 1024 * 1024
"""That client takes no more."""
_HEADERS = {
    "accept": "application/x-msgpack, application/json", "connection": "close", "content-type": "application/x-msgpack",
    "user-agent": "muse/0.1.4",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class PlainPush:
    """One push of a whole history."""

    head: str
    commits: int
    ids: list[str]
    question: bytes
    objects: list[bytes]
    """Bodies of ``push/objects``."""
    bundle: bytes


def make_push(shape: Shape) -> PlainPush:
    """Make all bodies of a first push of a shape."""
    contents: dict[str, bytes] = {}
    manifest: dict[str, str] = {}
    commits: list[dict[str, object]] = []
    packer = msgpack.Packer(use_bin_type=True)
    snapshots = []
    for number, changes in enumerate(History(shape).commits()):
        for change in changes:
            blob_id = hashlib.sha256(change.content).hexdigest()
            contents[blob_id] = change.content
            manifest[change.path] = blob_id
        snapshot = _snapshot(manifest)
        snapshots.append(packer.pack(snapshot))  # packed at once: as Python objects they are five times as large
        commits.append(_commit(str(snapshot["snapshot_id"]), commits[-1] if commits else None, number))
    ids = list(contents)
    parts = [ids[at : at + CHUNK_OBJECTS] for at in range(0, len(ids), CHUNK_OBJECTS)]
    objects = [
        msgpack.packb({"objects": [{"object_id": i, "content": contents[i], "path": ""} for i in part]})
        for part in parts
    ]
    head = str(commits[-1]["commit_id"])
    bundle = b"".join(
        [
            packer.pack_map_header(3), packer.pack("bundle"), packer.pack_map_header(4),
            packer.pack("commits"), packer.pack(commits),
            packer.pack("snapshots"), packer.pack_array_header(len(snapshots)), *snapshots,
            packer.pack("objects"), packer.pack([]),
            packer.pack("branch_heads"), packer.pack({BRANCH: head}),
            packer.pack("branch"), packer.pack(BRANCH), packer.pack("force"), packer.pack(False),
        ]
    )  # fmt: skip
    return PlainPush(head, len(commits), ids, msgpack.packb({"object_ids": ids}), objects, bundle)


def push(daemon: MuseDaemon, repository: str, made: PlainPush) -> Sample:
    """Push; the repository has to be at its head afterwards."""
    sample = _measured(daemon, repository, _push, made)
    if daemon.heads(repository) != {BRANCH: made.head}:
        raise BenchError("after a 0.1.x push the branch is elsewhere")
    return sample


def clone(daemon: MuseDaemon, repository: str, made: PlainPush) -> Sample:
    """Ask for everything, as that client's clone does; each content that comes has to hash to its id."""
    return _measured(daemon, repository, _clone, made)


class _Client:
    def __init__(self, daemon: MuseDaemon, repository: str) -> None:
        self._url = daemon.url_of(repository)
        self._headers = {**_HEADERS, "authorization": f"Bearer {daemon.token(place_of(repository)[0])}"}

    async def ask(self, method: str, endpoint: str, body: bytes = b"") -> dict[str, object]:
        """Make one request over a connection of its own."""
        target = Target.of(f"{self._url}/{endpoint}")
        async with Connection(target) as connection:
            await connection.ask(method, target.path, self._headers, body)
            answer = await connection.receive_all(ANSWER_BYTES)
            if connection.status != 200:
                raise BenchError(f"{endpoint} was answered {connection.status}: {answer[:300]!r}")
        return dict(msgpack.unpackb(answer, max_bin_len=ANSWER_BYTES))


async def _push(client: _Client, made: PlainPush) -> None:
    await client.ask("GET", "refs")
    missing = (await client.ask("POST", "filter-objects", made.question))["missing"]
    if missing != made.ids:
        raise BenchError("a new repository has objects already")
    waiting = list(reversed(made.objects))

    async def send() -> None:
        while waiting:
            await client.ask("POST", "push/objects", waiting.pop())

    async with trio.open_nursery() as nursery:
        for _ in range(CONNECTIONS):
            nursery.start_soon(send)
    told = await client.ask("POST", "push", made.bundle)
    if told.get("remote_head") != made.head:
        raise BenchError(f"a 0.1.x push ended with {str(told)[:300]}")


async def _clone(client: _Client, made: PlainPush) -> None:
    await client.ask("GET", "refs")
    told = await client.ask("POST", "fetch", msgpack.packb({"want": [made.head], "have": []}))
    objects, commits = told["objects"], told["commits"]
    assert isinstance(objects, list)
    assert isinstance(commits, list)
    if len(commits) != made.commits or {str(_sound(item)) for item in objects} != set(made.ids):
        raise BenchError(f"a 0.1.x clone has {len(commits)} commits and {len(objects)} objects")


def _sound(item: Mapping[str, object]) -> object:
    content = item["content"]
    assert isinstance(content, bytes)
    if hashlib.sha256(content).hexdigest() != item["object_id"]:
        raise BenchError("a content of a 0.1.x clone does not hash to its id")
    return item["object_id"]


def _measured(daemon: MuseDaemon, repository: str, act: object, made: PlainPush) -> Sample:
    measuring = daemon.measure()
    cpu_s, began = time.process_time(), time.perf_counter()

    async def limited() -> None:
        with trio.fail_after(CLIENT_TIMEOUT_S):
            await act(_Client(daemon, repository), made)  # type: ignore[operator]

    try:
        trio.run(limited)
    except (ClientError, trio.TooSlowError) as error:
        raise BenchError(f"0.1.x: {error}") from error
    except BaseExceptionGroup as group:  # of the connections that send objects
        raise BenchError(f"0.1.x: {group.exceptions[0]}") from group
    sample = Sample(time.perf_counter() - began, client_cpu_s=time.process_time() - cpu_s)
    return measuring.end(sample, f"{daemon.path_of(repository)}/")


def _snapshot(manifest: Mapping[str, str]) -> dict[str, object]:
    text = "\0".join(sorted(f"{path}\0{blob_id}" for path, blob_id in manifest.items()))
    return {
        "snapshot_id": hashlib.sha256(text.encode()).hexdigest(), "manifest": dict(manifest),
        "created_at": "2026-01-02T03:04:05.678901+00:00",
    }  # fmt: skip


def _commit(snapshot_id: str, parent: Mapping[str, object] | None, number: int) -> dict[str, object]:
    parent_id = None if parent is None else str(parent["commit_id"])
    when = f"2026-01-02T{number // 3600 % 24:02}:{number // 60 % 60:02}:{number % 60:02}.678901+00:00"
    fields = [parent_id or "", snapshot_id, f"Change {number}", when]
    return {
        "commit_id": hashlib.sha256("\0".join(fields).encode()).hexdigest(), "repo_id": "0" * 36, "branch": BRANCH,
        "snapshot_id": snapshot_id, "message": fields[2], "committed_at": when, "parent_commit_id": parent_id,
        "parent2_commit_id": None, "author": "Ada <ada@example.org>", "metadata": {}, "structured_delta": None,
        "sem_ver_bump": "none", "breaking_changes": [], "agent_id": "", "model_id": "", "toolchain_id": "",
        "prompt_hash": "", "signature": "", "signer_key_id": "", "format_version": 5, "reviewed_by": [], "test_runs": 0,
    }  # fmt: skip
