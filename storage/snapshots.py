"""How snapshots are kept in the index: packed changes to a base, and now and then the full content.

One packed form serves both: a full content is changes to the empty manifest. What a reader needs most, the
changes from one commit's snapshot to the next, is therefore always at hand; the full contents only bound how many
changes must be applied to rebuild a manifest.

Few changes are msgpack: ``[upsert, remove, directories, checksum]``. Many are msgpack in another order, ``[remove,
directories, upsert]``, in one zstd frame with its checksum: written and read piece by piece, they are never in memory
but compressed. What is read back differently than it was written is found out without rebuilding a manifest.
"""

from __future__ import annotations

import io
import itertools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgpack
import zstandard

from storage.history_rows import SnapshotRow
from wire.limits import DEFAULT_LIMITS, Limits
from wire.manifest import AT_ONCE, Manifest
from wire.manifest import empty as empty_manifest
from wire.path_map import WalkedMap
from wire.paths import PathPolicy

DEPTH_MOST = 48
"""Deltas to apply at most; git's default chain limit is 50."""
_FULL_RATIO = 2
"""A full content is stored as well once the deltas since the last one amount to this part of it: 1/2."""


REBASED_PART = 8
"""Where a chain is full, changes to a snapshot further away are stored only up to this part of the whole: 1/8."""
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_LEVEL = 1
_READ_BYTES = 64 * 1024
_CHECKED, _CHECKSUM_HEAD, _CHECKSUM_BYTES = b"\x94", b"\xce", 5
"""How msgpack begins an array of four, and a number of four bytes: the checksum, which ends it."""
_TOKEN_BYTES = 1024 * 1024
"""Of one path at most, and far more than any has."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What turns a base manifest into another one."""

    upsert: Mapping[str, bytes]
    remove: Sequence[str]
    directories: tuple[str, ...]


def pack_changes(changes: Changes) -> bytes:
    """Write changes in the stored form."""
    if len(changes.upsert) + len(changes.remove) <= AT_ONCE:
        body = b"".join(
            map(msgpack.packb, (dict(changes.upsert.items()), list(changes.remove), list(changes.directories)))
        )
        return _CHECKED + body + _checksum(body)
    file = io.BytesIO()  # gives its bytes without a copy
    compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True).compressobj()
    for piece in _many_pieces(changes):
        file.write(compressor.compress(piece))
    file.write(compressor.flush())
    return file.getvalue()


def _checksum(body: bytes) -> bytes:
    return _CHECKSUM_HEAD + zlib.crc32(body).to_bytes(4, "big")


def _many_pieces(changes: Changes) -> Iterator[bytes]:
    packer = msgpack.Packer(autoreset=False)
    packer.pack_array_header(3)
    for texts in (changes.remove, changes.directories):
        packer.pack_array_header(len(texts))
        for start in range(0, len(texts), AT_ONCE):
            for text in texts[start : start + AT_ONCE]:
                packer.pack(text)
            yield packer.bytes()
            packer.reset()
    packer.pack_map_header(len(changes.upsert))
    entries = iter(changes.upsert.items())
    while part := list(itertools.islice(entries, AT_ONCE)):
        for path, blob in part:
            packer.pack(path)
            packer.pack(blob)
        yield packer.bytes()
        packer.reset()
    yield packer.bytes()


def unpack_changes(packed: bytes) -> Changes:
    """Read stored changes; many entries are read whenever they are walked over, to their end and their checksum.

    Raises:
        ValueError, msgpack.UnpackException: these are none, or not what was written, as far as is seen at once.
    """
    if packed[:1] == _CHECKED:
        body = packed[1:-_CHECKSUM_BYTES]
        if packed[-_CHECKSUM_BYTES:] != _checksum(body):
            raise ValueError("stored changes are damaged: the checksum is another one")
        packed = b"\x93" + body
    if packed[:4] == _ZSTD_MAGIC:
        reader = _reader(packed)
        remove, directories, count = _before_entries(reader)
        return Changes(PackedEntries(packed, count), remove, directories)
    upsert, remove, directories = msgpack.unpackb(
        packed, max_map_len=len(packed), max_array_len=len(packed), max_str_len=len(packed), max_bin_len=len(packed)
    )
    return Changes(upsert, remove, tuple(directories))


def large_changes(packed: bytes) -> bool:
    """Tell whether stored changes are many, which take a while to read."""
    return packed[:4] == _ZSTD_MAGIC


def are_sound(packed: bytes) -> bool:
    """Tell whether stored changes are what was written; reads many to their end: for a worker thread then."""
    try:
        changes = unpack_changes(packed)
        if isinstance(changes.upsert, PackedEntries):
            for _ in changes.upsert.pairs():
                pass
    except (ValueError, msgpack.UnpackException):
        return False
    return True


def _reader(packed: bytes) -> msgpack.Unpacker:
    return msgpack.Unpacker(
        _Inflating(packed), raw=False, read_size=_READ_BYTES, max_buffer_size=_TOKEN_BYTES + 2 * _READ_BYTES,
        max_str_len=_TOKEN_BYTES, max_bin_len=_TOKEN_BYTES, max_array_len=2**31 - 1, max_map_len=2**31 - 1,
    )  # fmt: skip


class _Inflating:
    """A zstd frame as a file to read from; damage is a ``ValueError`` as elsewhere."""

    def __init__(self, packed: bytes) -> None:
        self._stream = zstandard.ZstdDecompressor().stream_reader(packed)

    def read(self, size: int) -> bytes:
        try:
            return self._stream.read(size)
        except zstandard.ZstdError as error:
            raise ValueError(f"stored changes are damaged: {error}") from error


def _before_entries(reader: msgpack.Unpacker) -> tuple[list[str], tuple[str, ...], int]:
    """Read up to the entries; gives removals, directories and the number of entries."""
    if reader.read_array_header() != 3:
        raise ValueError("stored changes are three things")
    remove = [reader.unpack() for _ in range(reader.read_array_header())]
    directories = tuple(reader.unpack() for _ in range(reader.read_array_header()))
    return remove, directories, reader.read_map_header()


class PackedEntries(WalkedMap[bytes]):
    """The entries of many stored changes, read from front to back each time."""

    __slots__ = ("_count", "_packed")

    def __init__(self, packed: bytes, count: int) -> None:
        self._packed = packed
        self._count = count

    def pairs(self) -> Iterator[tuple[str, bytes]]:
        """Give the entries in the order they were written."""
        reader = _reader(self._packed)
        _before_entries(reader)
        for _ in range(self._count):
            yield reader.unpack(), reader.unpack()
        try:
            reader.skip()
        except msgpack.OutOfData:  # by now the checksum has been read as well
            return
        raise ValueError("stored changes go on after their end")

    def __len__(self) -> int:
        return self._count


@dataclass(frozen=True, slots=True)
class _Link:
    """What is known of a snapshot's chain."""

    snapshot_id: bytes
    base_id: bytes | None
    """The same object as in the link of the base: of 50,000 snapshots, ids are a good part of what is kept."""
    depth: int
    since: int
    """Bytes of changes since the nearest full content."""


_UNKNOWN = _Link(b"", None, DEPTH_MOST, 0)
"""Of a base nothing is known of: nothing is added to its chain."""


class ChainCost:
    """Decides what a new row is stored as changes to, knowing what has piled up since the last full content.

    Where the chain of the base is as long as it may be, the row is stored as changes to a snapshot nearer to a full
    content: the last one that a relation of it was stored as for the same reason, or else the full content of its own
    chain. So of many snapshots on one base only the first can cost a full content.
    """

    def __init__(self) -> None:
        self._links: dict[bytes, _Link] = {}
        self._stored: dict[bytes, int] = {}
        """Depths of rows that somebody else has stored: they stay as they are."""
        self._relations: dict[bytes, bytes] = {}
        """Snapshot → where a descendant of it was put when its chain was full."""

    def due(self, snapshot_id: bytes, base_id: bytes | None, changes: bytes, manifest: Manifest) -> bool:
        """Tell whether these changes would make the chain of a new row too long or too large."""
        if base_id is None or snapshot_id in self._links:
            return False
        link = self._links.get(base_id, _UNKNOWN)
        return link.depth >= DEPTH_MOST or (link.since + len(changes)) * _FULL_RATIO > manifest.text_bytes + 1024

    def anchor(self, snapshot_id: bytes, base_id: bytes) -> bytes | None:
        """Give what a row that is due may be stored as changes to, if there is anything."""
        last = base_id
        for at in self._chain(base_id):
            found = self._relations.get(at)
            if found is not None and found != snapshot_id:
                return found
            last = at
        link = self._links.get(last, _UNKNOWN)
        return last if last != base_id and not link.depth else None

    def place(self, snapshot_id: bytes, base_id: bytes | None, changes: bytes, manifest: Manifest) -> tuple[int, bool]:
        """Give a new row's depth and whether it carries its full content."""
        known = self._links.get(snapshot_id)
        if known is not None:  # the row that is there stays
            return (known.depth, False) if known.depth else (0, base_id is not None)
        if base_id is None:  # the changes are the full content already
            full, made = False, _Link(snapshot_id, None, 0, 0)
        else:
            full = self.due(snapshot_id, base_id, changes, manifest)
            link = self._links.get(base_id, _UNKNOWN)
            at = link.snapshot_id or base_id
            since = link.since + len(changes)
            made = _Link(snapshot_id, at, 0, 0) if full else _Link(snapshot_id, at, link.depth + 1, since)
        depth = self._stored.get(snapshot_id, made.depth)
        self._links[snapshot_id] = _Link(snapshot_id, made.base_id, depth, made.since)
        return made.depth, full

    def put(self, snapshot_id: bytes, base_id: bytes) -> None:
        """Take note of where a row went that was due on this base."""
        for at in self._chain(base_id):
            self._relations[at] = snapshot_id

    def _chain(self, snapshot_id: bytes) -> Iterator[bytes]:
        at: bytes | None = snapshot_id
        for _ in range(DEPTH_MOST + 1):
            if at is None:
                return
            yield at
            known = self._links.get(at)
            at = None if known is None or not known.depth else known.base_id

    def learn(self, chain: Sequence[SnapshotRow]) -> None:
        """Take note of a stored chain (target first) that new rows may build on."""
        since = sum(len(row.delta) for row in chain[:-1])
        for row, nearer in itertools.zip_longest(chain, chain[1:]):
            whole = nearer is None
            base_id, depth = (None, 0) if whole else (row.base_id, row.depth)
            self._links[row.snapshot_id] = _Link(row.snapshot_id, base_id, depth, since)
            since -= 0 if whole else len(row.delta)

    def learn_depths(self, depths: Mapping[bytes, int]) -> None:
        """Take note of how deep rows are that somebody else has stored; what this push makes of them costs the same."""
        for snapshot_id, depth in depths.items():
            known = self._links.get(snapshot_id)
            if known is None:
                self._stored[snapshot_id] = depth
            elif known.depth != depth:
                self._links[snapshot_id] = _Link(known.snapshot_id, known.base_id, depth, known.since)


def build_manifest(
    chain: Sequence[SnapshotRow], policy: PathPolicy | None, limits: Limits = DEFAULT_LIMITS
) -> Manifest:
    """Rebuild the manifest of a chain's first row; CPU-bound, for a worker thread when the chain is large.

    Raises:
        ValueError: the chain does not reach a full content.
    """
    last = chain[-1]
    manifest = empty_manifest(policy)
    if last.full is not None:
        manifest = apply_packed(manifest, last.full, limits)
    elif last.base_id is None:
        manifest = apply_packed(manifest, last.delta, limits)
    else:
        raise ValueError(f"the chain of snapshot {chain[0].snapshot_id.hex()} is broken at {last.snapshot_id.hex()}")
    for row in reversed(chain[:-1]):
        manifest = apply_packed(manifest, row.delta, limits)
    return manifest


class Entries(WalkedMap[bytes]):
    """A manifest as a map, without copying it."""

    __slots__ = ("_manifest",)

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest

    def pairs(self) -> Iterator[tuple[str, bytes]]:
        """Give the entries in manifest order."""
        return self._manifest.items()

    def __len__(self) -> int:
        return len(self._manifest)

    def __getitem__(self, path: str) -> bytes:
        found = self._manifest.get(path)
        if found is None:
            raise KeyError(path)
        return found


def full_content(manifest: Manifest) -> bytes:
    """Pack a manifest whole."""
    return pack_changes(Changes(Entries(manifest), (), manifest.directories))


def apply_packed(manifest: Manifest, packed: bytes, limits: Limits = DEFAULT_LIMITS) -> Manifest:
    """Apply stored changes; CPU-bound, for a worker thread when they are large."""
    changes = unpack_changes(packed)
    return manifest.apply(changes.upsert, changes.remove, changes.directories, limits)
