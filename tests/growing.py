"""A branch that grows by small pushes which meet every stage: a new, an empty and a foreign blob, deltas, two commits.

Each push comes by one of the ways of protocol §5 to §7. Around a push that failed, what must be true is looked at:
nothing of it is visible, what was acknowledged before is whole, and sent again it is accepted.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from storage.index import Index
from tests import mpack_pushes, presigned_pushes
from tests.clones import Clone, clone, fetch
from tests.http_client import Answer, AnswerCutError, ask, push
from tests.mpack_pushes import mpack_of
from tests.muse import Push, blob_id, last_frame, make_commit, make_snapshot
from tests.servers import Server
from wire.ids import Scheme, parse_id

FOREIGN = 200
"""Contents another repository has, each brought here by one push."""


class RefusedError(Exception):
    """A step of a push was refused."""

    def __init__(self, said: Mapping[str, object]) -> None:
        self.said = said


async def by_stream(server: Server, history: Push, push_id: str, slug: str) -> dict:
    return await stream(server, history.frames(push_id=push_id), slug)


async def by_mpack(server: Server, history: Push, push_id: str, slug: str) -> dict:
    data = mpack_of(history)
    signed = told(await mpack_pushes.presign(server, data, slug))
    if signed["upload_url"] is not None:
        told(await mpack_pushes.put(server, signed["upload_url"], data))
    return {"type": "R", **told(await mpack_pushes.unpack(server, data, history, slug, push_id=push_id))}


async def by_presigned(server: Server, history: Push, push_id: str, slug: str) -> dict:
    signed = told(await presigned_pushes.presign(server, history.blobs, slug, push_id=push_id))
    for blob, url in signed["presigned_urls"].items():
        told(await presigned_pushes.put(server, url, history.blobs[blob]))
    if signed["presigned_urls"]:
        confirmed = told(await presigned_pushes.confirm(server, signed["presigned_urls"], slug))
        assert confirmed["rejected"] == [], confirmed
    return await stream(server, presigned_pushes.records_only(history, push_id=push_id), slug)


async def stream(server: Server, frames: bytes, slug: str) -> dict:
    answer = await ask(server, "POST", f"/alice/{slug}/push/stream", token="alice", body=frames)
    if answer.status != 200:
        return {"type": "X", **told(answer)}
    if not answer.complete:
        raise AnswerCutError
    return last_frame(answer.body)


def told(answer: Answer) -> dict:
    """What a whole answer says; a refusal is raised."""
    if not answer.complete:
        raise AnswerCutError
    if answer.status >= 300:
        raise RefusedError({"type": "X", **answer.value})
    return answer.value if answer.body else {}


Way = Callable[[Server, Push, str, str], Awaitable[dict]]
WAYS: dict[str, Way] = {"stream": by_stream, "mpack": by_mpack, "presigned": by_presigned}


def foreign(number: int) -> bytes:
    return b"what another repository has, number %d" % number


async def another_repository(server: Server) -> None:
    """Push what the pushes of growing branches share with it."""
    history = Push()
    history.commit({f"f{number}": foreign(number) for number in range(FOREIGN)})
    said = await push(server, history.frames(), repository="alice/other")
    assert said["type"] == "R", said


@dataclass
class Growing:
    """The branch ``main`` of a repository, as it must be on the server."""

    slug: str
    head: str | None = None
    snapshot: str | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    number: int = 0
    copy: Clone = field(default_factory=Clone)
    """What a client has that fetched after each push."""
    coming: dict[str, bytes] = field(default_factory=dict)

    def next(self) -> Push:
        """Make the next push; it is part of the branch once :meth:`grown` says so."""
        self.number += 1
        number, history = self.number, Push()
        base, files, head = self.snapshot, dict(self.files), self.head
        changes = [
            {"foreign": foreign(number), f"d/empty {number}": b""},
            {f"new {number % 3}": b"new in %s by push %d" % (self.slug.encode(), number)},
        ]
        for change in changes:
            removed = [path for path in files if path.startswith("d/empty") and path not in change][:1]
            files = {path: content for path, content in (files | change).items() if path not in removed}
            target = make_snapshot({path: blob_id(content) for path, content in files.items()})["snapshot_id"]
            upsert = {path: blob_id(content) for path, content in change.items()}
            record = {
                "snapshot_id": target, "parent_snapshot_id": base, "delta_upsert": upsert, "delta_remove": removed,
            }  # fmt: skip
            history.deltas.append(record)
            history.blobs |= {blob_id(content): content for content in change.values()}
            history.commits.append(make_commit(target, [head] if head else [], message=f"push {number}"))
            base, head = target, history.head
        self.coming = files
        return history

    def grown(self, history: Push) -> None:
        """The server has said that it has the push."""
        self.head, self.snapshot, self.files = history.head, history.deltas[-1]["snapshot_id"], self.coming

    async def push(self, server: Server, way: Way = by_stream) -> None:
        """Make a push that nothing happens to."""
        history = self.next()
        said = await way(server, history, next(push_ids), self.slug)
        assert said["type"] == "R", said
        self.grown(history)

    async def can_be_fetched(self, server: Server) -> None:
        """What a client lacks of the branch is there, and proves."""
        await clone(server, self.head, repository=f"alice/{self.slug}", into=self.copy)
        assert self.copy.files(self.head) == self.files

    async def is_unseen(self, server: Server, history: Push) -> None:
        """The branch is where it was acknowledged to be, and nothing of a push that was not accepted can be seen."""
        assert await heads(server, self.slug) == {"main": self.head}
        assert (await fetch(server, [history.head], repository=f"alice/{self.slug}")).error == "not_found"
        for blob in list(history.blobs)[:: len(history.blobs) - 1]:  # the foreign one and the new one
            assert (await ask(server, "GET", f"/alice/{self.slug}/o/{blob}", token="alice")).status == 404

    async def is_whole(self, server: Server, index: Index) -> None:
        """A fresh clone has everything, and the branch's log is a chain with one line for each push."""
        if self.head not in self.copy.commits:
            await self.can_be_fetched(server)
        fresh = await clone(server, self.head, repository=f"alice/{self.slug}")
        assert len(fresh.commits) == 2 * self.number
        assert fresh.commits == self.copy.commits
        assert fresh.blobs == self.copy.blobs
        assert fresh.manifests == self.copy.manifests
        found = await index.find_repository("alice", self.slug)
        log = await index.branch_log(found.number, "main")
        assert [entry.old for entry in log] == [None, *(entry.new for entry in log[:-1])]
        assert log[-1].new == parse_id(self.head, Scheme.TYPED)
        assert len(log) == self.number


async def heads(server: Server, slug: str) -> dict[str, str]:
    answer = await ask(server, "GET", f"/alice/{slug}/refs", token="alice")
    assert answer.status == 200, answer
    return answer.value["branch_heads"]


push_ids = map(str, map(uuid.UUID, map("{:032x}".format, itertools.count(1000))))
"""New ones, the same in every run of one test alone."""
