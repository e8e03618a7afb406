"""The public 0.1.x client (protocol §9) of a simulated deployment: the routes it meets, and what it does with them.

Its requests go through the routes' own functions, with a body that arrives in pieces and may be cut. It knows no push
id: what it sends again is another push, so after an answer that was lost, a refusal may be of what has happened.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgpack
import trio

from museworkd.http.exchange import ClientDisconnected, Exchange
from museworkd.http.id_lists import ID_LISTS_MIB
from museworkd.http.plain_fetch import fetch
from museworkd.http.plain_push import filter_objects, push, push_objects
from museworkd.http.recent_repositories import RecentRepositories
from museworkd.http.services import HttpServices
from museworkd.http.settings import HttpSettings
from museworkd.http.signed_urls import UrlSigner
from museworkd.http.small_uploads import SmallUploads
from museworkd.http.uploads import Uploads
from storage.rows import Repository
from storage.slots import Slots
from tests.clones import Clone
from tests.muse import Push, blob_id, commit_id, plain, snapshot_id
from tests.simulation.daemon import Cut, Daemon
from tests.simulation.witness import Operation
from wire.errors import Code, Refusal

Route = Callable[[HttpServices, Exchange, Mapping[str, str]], Awaitable[None]]

_SLOTS = 4
_PRESIGN_S = 600
_CHUNKS = (1, 2, 400)
_HEADERS = [(b"accept", b"application/x-msgpack, application/json"), (b"content-type", b"application/x-msgpack")]


def http_of(daemon: Daemon) -> HttpServices:
    """Give the HTTP floor's services of a daemon."""
    return HttpServices(
        index=daemon.index, store=daemon.store, environment=daemon.environment, supervisor=daemon.supervisor,
        push=daemon.push, fetch=daemon.fetch, large_bodies=Slots(_SLOTS), id_lists=Slots(ID_LISTS_MIB),
        confirms=daemon.confirm, signer=UrlSigner(b"s" * 32), uploads=Uploads(daemon.spool_dir / "uploads"),
        small_uploads=SmallUploads(daemon.store), recent=RecentRepositories(daemon.index), limits=daemon.world.limits,
        settings=HttpSettings(), public_url=None, presign_s=_PRESIGN_S,
    )  # fmt: skip


class PlainSender:
    """Speaks as that client for one of the run's. ``client`` is whom it speaks for."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._world = client.world
        self._lost = False

    async def by_push(self, operation: Operation, made: Push) -> Mapping[str, Any]:
        """Ask what is missing, send it by several connections, push the rest."""
        rng: random.Random = self._client.rng
        daemon: Daemon = self._world.some_daemon(rng)
        sent_ahead = rng.random() < 0.6
        left = dict(made.blobs)
        if sent_ahead and left:
            left = {}
            asked = await self._ask(daemon, filter_objects, {"object_ids": list(made.blobs)})
            step = rng.choice(_CHUNKS)
            chunks = [asked["missing"][at : at + step] for at in range(0, len(asked["missing"]), step)]
            failed: list[Exception] = []
            async with trio.open_nursery() as nursery:
                for chunk in [*chunks, *(rng.sample(chunks, 1) if chunks and rng.random() < 0.3 else [])]:
                    nursery.start_soon(self._send, daemon, {oid: made.blobs[oid] for oid in chunk}, failed)
            if failed:
                raise failed[0]
        bundle = {"commits": made.commits, "snapshots": made.snapshots, "objects": _objects(left)}
        if rng.random() < 0.8:
            bundle["branch_heads"] = {operation.branch: operation.new}
        body = {"bundle": bundle, "branch": operation.branch, "force": operation.force}
        try:
            answer = await self._ask(daemon, push, body)
        except Cut:
            self._lost = True
            raise
        except Refusal as refusal:
            if self._lost and not refusal.code.retryable:  # of what an answer before it would have said was done
                raise Cut from None
            self._lost = self._lost or refusal.code.retryable  # the database may have done it, and not said so
            raise
        return {"branch": operation.branch, "head": answer["remote_head"]}

    def begin(self) -> None:
        """Begin another push."""
        self._lost = False

    async def _send(self, daemon: Daemon, blobs: Mapping[str, bytes], failed: list[Exception]) -> None:
        try:
            await self._ask(daemon, push_objects, {"objects": _objects(blobs)})
        except (Cut, Refusal) as error:
            failed.append(error)

    async def fetch_into(self, clone: Clone, want: list[str]) -> None:
        """Fetch what a clone lacks."""

        async def answered(daemon: Daemon) -> Any:
            return await self._requested(daemon, fetch, {"want": want, "have": list(clone.commits)})

        take(clone, await self._client.ask(lambda daemon: (answered, daemon)))

    async def _ask(self, daemon: Daemon, route: Route, body: Mapping[str, object]) -> Any:
        with trio.move_on_after(200):
            return await daemon.call(self._requested, daemon, route, body)
        raise Cut

    async def _requested(self, daemon: Daemon, route: Route, body: Mapping[str, object]) -> Any:
        repository: Repository = self._client.repository
        wire = _Wire(self._client.rng, msgpack.packb(body), cut=self._world.weather.strikes("cuts"))
        headers = [*_HEADERS, (b"authorization", b"Bearer " + self._client.secret.encode())]
        scope = {"method": "POST", "raw_path": b"/", "query_string": b"", "headers": headers}
        exchange = Exchange(scope, wire.receive, wire.send, HttpSettings(), self._client.name)
        names = {"owner": repository.owner, "slug": repository.slug}
        try:
            await route(http_of(daemon), exchange, names)
        except ClientDisconnected:
            raise Cut from None
        except ExceptionGroup as group:
            if group.split(ClientDisconnected)[1] is None:
                raise Cut from None
            raise
        answer = msgpack.unpackb(bytes(wire.answer))
        if exchange.status is None or exchange.status >= 400:
            raise Refusal(Code.from_text(str(answer.get("error"))) or Code.INTERNAL, str(answer.get("detail")))
        return answer


class _Wire:
    """A connection: a body in pieces, and what is answered to it."""

    def __init__(self, rng: random.Random, body: bytes, *, cut: bool) -> None:
        size = rng.choice([100, 1000, 65536])
        end = rng.randrange(len(body)) if cut else len(body)
        self._pieces = [body[at : min(at + size, end)] for at in range(0, end, size)]
        self._whole = not cut
        self.answer = bytearray()

    async def receive(self) -> Mapping[str, Any]:
        await trio.lowlevel.checkpoint()
        if self._pieces:
            piece = self._pieces.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(self._pieces) or not self._whole}
        if not self._whole:
            return {"type": "http.disconnect"}
        await trio.sleep_forever()
        raise AssertionError

    async def send(self, message: Mapping[str, Any]) -> None:
        await trio.lowlevel.checkpoint()
        self.answer += message.get("body", b"")


def _objects(blobs: Mapping[str, bytes]) -> list[dict[str, object]]:
    return [{"object_id": oid, "content": content, "path": "a/path"} for oid, content in blobs.items()]


def take(clone: Clone, answer: Mapping[str, Any]) -> None:
    """Take an answer in, every id recomputed."""
    for record in answer["objects"]:
        assert blob_id(record["content"], plain) == record["object_id"]
        clone.blobs[record["object_id"]] = record["content"]
    for record in answer["snapshots"]:
        manifest = record["manifest"]
        assert snapshot_id(manifest, record.get("directories", ()), plain) == record["snapshot_id"]
        assert set(manifest.values()) <= clone.blobs.keys()
        clone.snapshots[record["snapshot_id"]], clone.manifests[record["snapshot_id"]] = record, manifest
    for record in answer["commits"]:
        assert commit_id(record, plain) == record["commit_id"]
        assert record["snapshot_id"] in clone.manifests
        clone.commits[record["commit_id"]] = record
