"""A push of the public 0.1.x client, written anew as the frames of a stream (protocol §9 and §5).

Its body is one map whose members come in any order, and says last where it goes. So it is read once, into spools:
blobs as object frames, snapshots and commits as records. Then the frames are fed to a push actor like any other push's,
commits with parents first: one set of rules for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from actors.push.proved_pack import packed_record
from actors.spool import Spool, SpoolDirectory
from wire.bundle import BundleEnd
from wire.errors import Code, Refusal, malformed
from wire.frames import VERSION, Event, FrameWriter, Grammar, Object, ObjectBegin, ObjectEnd, ObjectPiece, Record
from wire.ids import Scheme, parse_id
from wire.legacy import BUNDLE, PushBodyReader
from wire.limits import Limits

PIECE_BYTES = 64 * 1024
"""Pieces of at most this size are given to the actor."""
_FRAME_BYTES = 200_000
_CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class _CommitAt:
    """Where a commit's record lies, and what has to come before it."""

    parents: tuple[str, ...]
    offset: int
    size: int


class PlainBody:
    """Take the body's bytes in order, in worker threads; then give the frames."""

    def __init__(self, spools: SpoolDirectory, limits: Limits) -> None:
        self._spools = spools
        self._limits = limits
        self._reader = PushBodyReader(limits)
        self._objects, self._snapshots, self._commits = spools.new(), spools.new(), spools.new()
        self._object_frames = FrameWriter(Grammar.OBJECTS)
        self._at: dict[str, _CommitAt] = {}
        self._snapshot_sizes: list[int] = []
        self._content: Spool | None = None
        self._members: Mapping[str, object] | None = None
        self.objects = 0

    def take(self, data: bytes) -> None:
        """Take the next bytes, ``b""`` at the end; blocking.

        Raises:
            Refusal: ``malformed`` or ``too_large``.
        """
        for event in self._reader.receive_data(data):
            self._event(event)

    @property
    def branch(self) -> object:
        """Where it goes, as the body says."""
        return self._whole.get("branch")

    @property
    def head(self) -> str:
        """The commit the branch is to get: what the bundle says, or the only one nothing else builds on.

        Raises:
            Refusal: ``malformed``: neither tells.
        """
        bundle = self._whole[BUNDLE]
        heads = bundle.get("branch_heads") if isinstance(bundle, dict) else None
        if isinstance(heads, dict) and isinstance(heads.get(self.branch), str):
            return str(heads[self.branch])
        parents = {parent for commit in self._at.values() for parent in commit.parents}
        tips = [commit_id for commit_id in self._at if commit_id not in parents]
        if len(tips) != 1:
            raise malformed(f"the bundle has {len(tips)} newest commits and no branch_heads entry for the branch")
        return tips[0]

    def frames(self) -> Iterator[bytes]:
        """Give the frames of the push in pieces; blocking.

        Raises:
            Refusal: ``malformed``: no branch, no head, or commits in a circle.
        """
        head = {"version": VERSION, "branch": self.branch, "head": self.head, "force": self._force()}
        ordered = self._ordered()
        writer = FrameWriter(Grammar.PUSH)
        yield writer.send("H", head)
        yield from self._objects.pieces()
        yield from self._snapshot_frames(writer)
        yield from self._commit_frames(ordered, writer)
        yield writer.send("E", {"n_objects": self.objects, "n_commits": len(ordered)})

    @property
    def _whole(self) -> Mapping[str, object]:
        if self._members is None:
            raise malformed("the push is cut")
        return self._members

    def _force(self) -> object:
        force = self._whole.get("force")
        return False if force is None else force

    def _event(self, event: Event | BundleEnd) -> None:
        match event:
            case Object(object_id, encoding, base, content):
                self._count()
                _require_whole(base)
                members = {"object_id": object_id, "encoding": encoding, "content": content}
                self._objects.add(self._object_frames.send("O", members))
            case ObjectBegin():
                self._content = Spool(self._spools)
            case ObjectPiece(content):
                assert self._content is not None
                self._content.add(content)
            case ObjectEnd(object_id, encoding, base):
                self._count()
                _require_whole(base)
                self._large(object_id, encoding)
            case Record("commits", record):
                self._commit(record)
            case Record("snapshots", record):
                start = self._snapshots.size
                for piece in packed_record(record):
                    self._snapshots.add(piece)
                self._snapshot_sizes.append(self._snapshots.size - start)
            case Record(kind):
                raise malformed(f"a push of this client has no {kind}")
            case BundleEnd(members):
                self._members = members
            case _:
                raise AssertionError(event)

    def _count(self) -> None:
        self.objects += 1
        if self.objects > self._limits.objects_per_push:
            raise Refusal(Code.TOO_LARGE, f"a push has at most {self._limits.objects_per_push} objects")

    def _large(self, object_id: object, encoding: str) -> None:
        """Write a large content as chunks, now that its id is known."""
        content, self._content = self._content, None
        assert content is not None
        for seq, offset in enumerate(range(0, content.size, _CHUNK_BYTES)):
            piece = content.read(offset, min(_CHUNK_BYTES, content.size - offset))
            last = offset + len(piece) == content.size
            members = {"object_id": object_id, "encoding": encoding, "seq": seq, "last": last, "content": piece}
            self._objects.add(self._object_frames.send("OC", members))
        content.discard()

    def _commit(self, record: object) -> None:
        if not isinstance(record, dict):
            raise malformed("a commit record is not a map")
        commit_id = record.get("commit_id")
        parse_id(commit_id, Scheme.PLAIN, "commit_id")
        parents = tuple(
            record[key] for key in ("parent_commit_id", "parent2_commit_id") if isinstance(record.get(key), str)
        )
        packed = b"".join(packed_record(record))
        if commit_id not in self._at:
            self._at[str(commit_id)] = _CommitAt(parents, self._commits.size, len(packed))
            self._commits.add(packed)

    def _ordered(self) -> list[_CommitAt]:
        """Order the commits, parents first; raises ``malformed`` for a circle."""
        done: dict[str, _CommitAt] = {}
        open_: set[str] = set()
        for first in self._at:
            waiting = [first]
            while waiting:
                commit_id = waiting[-1]
                commit = self._at[commit_id]
                before = [parent for parent in commit.parents if parent in self._at and parent not in done]
                if commit_id in done or not before:
                    done.setdefault(commit_id, commit)
                    open_.discard(commit_id)
                    waiting.pop()
                    continue
                if commit_id in open_:
                    raise malformed("commits build on each other in a circle")
                open_.add(commit_id)
                waiting += before
        return list(done.values())

    def _snapshot_frames(self, writer: FrameWriter) -> Iterator[bytes]:
        with self._snapshots.open() as file:
            sizes = iter(self._snapshot_sizes)
            group: list[bytes] = []
            held = 0
            for size in sizes:
                if group and held + size > _FRAME_BYTES:
                    yield writer.send_records({"snapshots": group})
                    group, held = [], 0
                if size <= _FRAME_BYTES:
                    group.append(file.read(size))
                    held += size
                    continue
                yield writer.send_records_head("snapshots", 1)
                left = size
                while left:
                    piece = file.read(min(left, PIECE_BYTES))
                    left -= len(piece)
                    yield piece
            if group:
                yield writer.send_records({"snapshots": group})

    def _commit_frames(self, ordered: list[_CommitAt], writer: FrameWriter) -> Iterator[bytes]:
        group: list[bytes] = []
        held = 0
        for commit in ordered:
            if group and held + commit.size > _FRAME_BYTES:
                yield writer.send_records({"commits": group})
                group, held = [], 0
            group.append(self._commits.read(commit.offset, commit.size))
            held += commit.size
        if group:
            yield writer.send_records({"commits": group})


def _require_whole(base: object) -> None:
    if base is not None:
        raise malformed("objects of this client are not deltas")
