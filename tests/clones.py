"""Clones read from the protocol page alone: every byte of an assembled mpack is looked at, every id recomputed.

Shares no code with the server, so that what it serves wrongly cannot be read rightly by the same mistake.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import msgpack

from tests.containers import COMMITS, OBJECTS, SNAPSHOTS
from tests.http_client import Answer, ask
from tests.muse import blob_id, commit_id, plain, snapshot_id, typed
from tests.servers import Server


@dataclass
class Clone:
    """What a client has after applying one or more fetches; ids in their text form."""

    name: object = typed
    blobs: dict[str, bytes] = field(default_factory=dict)
    snapshots: dict[str, dict] = field(default_factory=dict)
    """As sent; what a delta changes is in ``manifests``."""
    manifests: dict[str, dict[str, str]] = field(default_factory=dict)
    commits: dict[str, dict] = field(default_factory=dict)

    def files(self, commit: str) -> dict[str, bytes]:
        """The files of a commit, every one of which must be there."""
        manifest = self.manifests[self.commits[commit]["snapshot_id"]]
        return {path: self.blobs[oid] for path, oid in manifest.items()}

    def apply(self, data: bytes) -> tuple[int, int]:
        """Take an mpack in, each record only with what it needs at hand; gives its numbers of commits and blobs."""
        sections = read_sections(data)
        assert sections.keys() <= {OBJECTS, SNAPSHOTS, COMMITS}
        objects, commits = read_pack(sections[OBJECTS]), read_records(sections[COMMITS])
        for oid, content in objects:
            known = oid if self.name is typed else oid.removeprefix("sha256:")
            assert blob_id(content, self.name) == known
            self.blobs[known] = content
        for record in read_records(sections[SNAPSHOTS]):
            self._take_snapshot(record)
        for record in commits:
            assert commit_id(record, self.name) == record["commit_id"]
            assert record["snapshot_id"] in self.manifests
            self.commits[record["commit_id"]] = record
        return len(commits), len(objects)

    def _take_snapshot(self, record: dict) -> None:
        if "manifest" in record:
            manifest = dict(record["manifest"])
        else:
            base = record["parent_snapshot_id"]
            manifest = dict(self.manifests[base]) if base is not None else {}
            for path in record["delta_remove"]:
                del manifest[path]
            manifest |= record["delta_upsert"]
        assert snapshot_id(manifest, record.get("directories", ()), self.name) == record["snapshot_id"]
        assert set(manifest.values()) <= self.blobs.keys()
        self.snapshots[record["snapshot_id"]] = record
        self.manifests[record["snapshot_id"]] = manifest


def read_sections(data: bytes) -> dict[int, bytes]:
    assert data[:5] == b"MUSE\x01"
    assert hashlib.sha256(data[:-32]).digest() == data[-32:]
    entries = [struct.unpack_from("<BQQ", data, 6 + 17 * at) for at in range(data[5])]
    end = 6 + 17 * len(entries)
    for _, offset, length in entries:
        assert offset == end
        end += length
    assert end == len(data) - 32
    return {kind: data[offset : offset + length] for kind, offset, length in entries}


def read_pack(data: bytes) -> list[tuple[str, bytes]]:
    assert data[:5] == b"MUSE\x01"
    assert hashlib.sha256(data[:-32]).digest() == data[-32:]
    (count,) = struct.unpack_from("<Q", data, 5)
    at, found = 13, []
    for _ in range(count):
        oid, (size,) = data[at : at + 71].decode(), struct.unpack_from("<Q", data, at + 71)
        at += 79 + size
        found.append((oid, data[at - size : at]))
    assert at == len(data) - 32
    return found


def read_records(data: bytes) -> list[dict]:
    (count,) = struct.unpack_from("<Q", data, 0)
    at, found = 8, []
    for _ in range(count):
        (size,) = struct.unpack_from("<Q", data, at)
        found.append(msgpack.unpackb(data[at + 8 : at + 8 + size]))
        at += 8 + size
    assert at == len(data)
    return found


async def fetch(
    server: Server, want: Iterable[str], have: Iterable[str] = (), *, repository: str = "alice/x",
    token: str | None = "alice", **members: object,
) -> Answer:  # fmt: skip
    """Ask for a fetch."""
    body = {"want": list(want), "have": list(have), **members}
    return await ask(server, "POST", f"/{repository}/fetch/mpack", token=token, msgpack=body)


async def download(server: Server, answer: Mapping[str, object]) -> bytes:
    """Get the mpack an answer to a fetch points to, without any authorisation."""
    got = await ask(server, "GET", answer["mpack_url"])
    assert (got.status, got.complete) == (200, True)
    assert len(got.body) == answer["size_bytes"]
    assert "sha256:" + hashlib.sha256(got.body).hexdigest() == answer["mpack_id"]
    return got.body


def target_of(answer: Mapping[str, object]) -> str:
    parts = urlsplit(answer["mpack_url"])
    return f"{parts.path}?{parts.query}"


async def clone(
    server: Server, head: str, *, repository: str = "alice/x", token: str | None = "alice", into: Clone | None = None
) -> Clone:
    """Fetch a head with everything it reaches, or what ``into`` does not have of it."""
    into = into or Clone(plain if ":" not in head else typed)
    answer = await fetch(server, [head], list(into.commits), repository=repository, token=token)
    assert answer.status == 200, answer
    assert into.apply(await download(server, answer.value)) == (
        answer.value["commit_count"],
        answer.value["object_count"],
    )
    assert head in into.commits
    for record in into.commits.values():
        assert {record.get(key) for key in ("parent_commit_id", "parent2_commit_id")} - {None} <= into.commits.keys()
    return into
