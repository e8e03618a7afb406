"""The three ways of a push, as a client walks them: by stream, by one file, and object by object."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import trio

from actors.push.confirm import Confirmation
from actors.push.context import PushRequest
from actors.push.header import parse_header
from actors.push.unpack import UnpackActor, Upload
from actors.supervisor import Draining
from storage.layout import staged_mpack_key, staged_object_key
from storage.rows import PushState, Right
from tests.containers import copy, delta, insert, stored_zlib
from tests.mpack_pushes import mpack_of
from tests.muse import Push, frame, make_commit, make_snapshot, unpack_frames
from tests.simulation.daemon import Cut, Daemon
from tests.simulation.witness import Operation
from wire.errors import Code, Refusal
from wire.frames import Header
from wire.ids import Scheme, parse_id

_SYNC_S = 20.0
_POLLS = 10
_POLL_S = 15.0
_ANSWER_S = 200.0
_UPLOADS = 3


class Sender:
    """Sends pushes for a client."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._world = client.world

    async def by_stream(self, operation: Operation, push: Push) -> Mapping[str, Any]:
        """Protocol §5."""
        return await self._stream(operation, push, list(self._object_frames(operation, push)))

    def _object_frames(self, operation: Operation, push: Push) -> Iterator[bytes]:
        """Give a push's objects, some as changes to one that the repository should have, or that comes before them."""
        rng, library = self._client.rng, self._client.library
        bases = [oid for made in library.closure([operation.new]).values() for oid in made.manifest.values()]
        bases = sorted({oid for oid in bases if oid not in push.blobs}) if rng.random() < 0.5 else []
        for oid, content in push.blobs.items():
            if bases and rng.random() < 0.7:
                base = rng.choice(bases)
                changes = stored_zlib(_appended(library.blobs[base], content))
                yield frame("O", object_id=oid, encoding="delta+zlib", base=base, content=changes)
            else:
                yield frame("O", object_id=oid, encoding="raw", content=content)
            bases.append(oid)

    async def by_presigned(self, operation: Operation, push: Push) -> Mapping[str, Any]:
        """Protocol §6: what the repository lacks is uploaded and confirmed, then the push names it."""
        ids = {oid: parse_id(oid, Scheme.TYPED) for oid in push.blobs}
        if ids:
            await self._client.once(lambda daemon: (self._confirmed, daemon, push, ids, operation.push_id))
        return await self._stream(operation, push, [])

    async def _confirmed(self, daemon: Daemon, push: Push, ids: Mapping[str, bytes], push_id: uuid.UUID) -> None:
        repo, handle = self._client.repository.number, self._client.name
        for _ in range(_UPLOADS):
            now = daemon.environment.now()
            there = await daemon.index.stored_blobs(repo, Scheme.TYPED, list(ids.values()), now, (push_id, handle))
            lacking = {oid: digest for oid, digest in ids.items() if digest not in there}
            if not lacking:
                return
            staged = [(staged_object_key(repo, d, Scheme.TYPED), push.blobs[oid]) for oid, d in lacking.items()]
            await daemon.store.put_batch(staged)
            confirmation = Confirmation(daemon.push, daemon.confirm, repo, Scheme.TYPED)
            await confirmation.run(list(lacking.values()), {})
            if not confirmation.rejected:
                return
        raise Cut

    async def by_mpack(self, operation: Operation, push: Push) -> Mapping[str, Any]:
        """Protocol §7: one file is uploaded and unpacked."""
        data = mpack_of(push, zstd=self._client.rng.random() < 0.3)
        return await self._client.once(lambda daemon: (self._unpacked, daemon, operation, data))

    async def _unpacked(self, daemon: Daemon, operation: Operation, data: bytes) -> Mapping[str, Any]:
        mpack_id = hashlib.sha256(data).digest()
        request = await self.request(daemon)
        await daemon.store.put_batch([(staged_mpack_key(request.repository.number, mpack_id), data)])
        members = self._members(operation)
        plan = parse_header(
            Header(operation.branch, operation.new, members), request, daemon.environment, daemon.push.limits
        )
        actor = UnpackActor(daemon.push, request, plan, Upload(mpack_id, None))
        try:
            await daemon.supervisor.start(actor)
        except Draining:
            raise Cut from None
        with trio.move_on_after(_SYNC_S):
            await actor.done.wait()
        if actor.verdict is None:
            return await self._polled(daemon, operation)
        if isinstance(actor.verdict, Refusal):
            self._forgive(actor.verdict)
            raise actor.verdict
        return actor.verdict

    async def _polled(self, daemon: Daemon, operation: Operation) -> Mapping[str, Any]:
        """Ask what has become of the push; one that was interrupted is sent again."""
        assert operation.push_id is not None
        for _ in range(_POLLS):
            await trio.sleep(_POLL_S)
            found = await daemon.index.find_push(operation.repo, operation.push_id)
            if found is None or (found.state is PushState.OPEN and found.verdict is not None):
                raise Cut
            if found.state is PushState.ACCEPTED:
                return found.verdict or {}
            if found.state is PushState.REFUSED:
                verdict = dict(found.verdict or {})
                raise Refusal(Code.from_text(str(verdict.get("error"))) or Code.INTERNAL, str(verdict.get("detail")))
        raise Cut

    def _forgive(self, refusal: Refusal) -> None:
        """A file that was read wrongly may be sent again: its refusal is not kept."""
        garbled = {"store garbles", "store forgets"} & self._world.weather.kinds
        if garbled and refusal.code in {Code.BAD_OBJECT_HASH, Code.MALFORMED}:
            raise Cut

    async def request(self, daemon: Daemon) -> PushRequest:
        """Do what comes before a push: find the repository, and the right."""
        repository = await self._client.found(daemon)
        request_id = f"{self._client.name}-{self._world.witness.moment()}"
        return PushRequest(repository, self._client.name, Right.WRITE, request_id)

    def _members(self, operation: Operation) -> dict[str, Any]:
        members: dict[str, Any] = {"version": 2, "branch": operation.branch, "head": operation.new}
        members |= {"force": operation.force, "push_id": str(operation.push_id)}
        if operation.expected is not None:
            members["expected_head"] = operation.expected[0]
        return members

    async def _stream(self, operation: Operation, push: Push, objects: list[bytes]) -> Mapping[str, Any]:
        pieces = [
            frame("H", **self._members(operation)), *objects, push.commit_frame(),
            frame("E", n_objects=len(objects), n_commits=len(push.commits)),
        ]  # fmt: skip
        return await self.stream_bytes(b"".join(pieces))

    async def stream_bytes(self, body: bytes) -> Mapping[str, Any]:
        """Send a whole body in pieces of any size, or a part of it; gives the members of the result frame."""
        rng = self._client.rng
        daemon: Daemon = self._world.some_daemon(rng)
        with trio.move_on_after(_ANSWER_S):
            request = await daemon.call(self.request, daemon)
            connection = daemon.connect(request)
            cut_at = rng.randrange(len(body) + 1) if self._world.weather.strikes("cuts") else None
            deaf = cut_at is None and self._world.weather.strikes("cuts")
            heard = bytearray()
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._feed, connection, body, cut_at)
                    async for piece in connection.answers:
                        heard += piece
                    nursery.cancel_scope.cancel()
            except* trio.ClosedResourceError:
                raise Cut from None
            finally:
                connection.cut()
            if connection.at_door is not None:
                raise connection.at_door
            frames = unpack_frames(bytes(heard))
            if deaf or not frames or frames[-1]["type"] == "P":
                raise Cut
            if frames[-1]["type"] == "R":
                return frames[-1]
            refusal = Refusal(Code.from_text(frames[-1]["error"]) or Code.INTERNAL, frames[-1]["detail"])
            daemon.see(refusal)
            raise refusal
        raise Cut

    async def _feed(self, connection: Any, body: bytes, cut_at: int | None) -> None:
        rng = self._client.rng
        size = rng.choice([64, 1000, 65536])
        slow = rng.random() < 0.1
        for at in range(0, len(body) if cut_at is None else cut_at, size):
            await connection.send(body[at : at + size if cut_at is None else min(at + size, cut_at)])
            if slow:
                await trio.sleep(rng.choice([0.1, 1.0]))
        if cut_at is not None:
            self._world.trace.say(self._client.name, f"cuts at byte {cut_at} of {len(body)}")
            connection.cut()
        else:
            await connection.send(b"")

    async def claim_strange(self, blob_id: str, heads: Mapping[str, str]) -> None:
        """Push a commit that names a blob this repository was never sent."""
        client, rng = self._client, self._client.rng
        manifest, name = {"stolen.txt": blob_id}, client.library.name
        snapshot = make_snapshot(manifest, name=name)
        push = Push("stolen", name=name)
        push.snapshots = [snapshot]
        push.commits = [make_commit(snapshot["snapshot_id"], [], name, message=f"by {client.name} {rng.random()}")]
        operation = self._world.witness.begins(
            Operation(
                client.name, client.repository.number, "stolen", push.head, False, None,
                uuid.UUID(bytes=rng.randbytes(16), version=4), self._world.witness.moment(),
            )
        )  # fmt: skip
        try:
            await self._stream(operation, push, [])
        except (Cut, Refusal) as error:
            refused = isinstance(error, Refusal) and error.code is Code.MISSING_OBJECTS
            self._world.witness.ends(operation, "refused" if refused else "unknown")
        else:
            self._world.witness.ends(operation, "acknowledged")
            self._world.violated("I3", f"{client.name} claimed blob {blob_id} of another repository")


def _appended(base: bytes, content: bytes) -> bytes:
    """Give a content as a delta: what it begins with like its base, and the rest."""
    same = next(
        (at for at, (a, b) in enumerate(zip(base, content, strict=False)) if a != b), min(map(len, (base, content)))
    )
    rest = content[same:]
    copied = [copy(0, same)] if same else []
    return delta(len(base), len(content), *copied, *(insert(rest[at : at + 127]) for at in range(0, len(rest), 127)))
