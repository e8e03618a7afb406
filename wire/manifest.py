"""Manifests: path → blob id, immutable and cheap to derive from one another.

A manifest is kept as the very bytes its id is the hash of (protocol §1), cut into sorted blocks of some dozens
of entries. Applying a delta copies the list of blocks and rewrites only the blocks it touches; all others
are shared with the base. So a history of 1,000 commits over a 5,000-file tree neither sorts nor encodes a
manifest again: per commit it edits a few blocks and hashes the joined text.

Safety of paths against one another is kept in sorted blocks of folded names beside them (see ``wire.path_names``), and
checked for added paths only. A very large manifest keeps its blocks compressed, which makes its id cost more time.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Iterator, Mapping

from wire.compact import TextCodec
from wire.errors import Code, Refusal
from wire.ids import Kind, Scheme, hasher_for
from wire.limits import DEFAULT_LIMITS, Limits
from wire.path_names import BLOCK_ENTRIES, SPLIT_ENTRIES, PathNames, check_directories
from wire.paths import PathPolicy, check_path

_HASH_BLOCKS = 128
AT_ONCE = 4_096
"""Entries changed at once: what is derived in between is given back before the next."""
_BLOCK_OVERHEAD_BYTES = 128
"""The object itself, its first entry, and its two places in lists."""
_TEXT_OVERHEAD_BYTES = 64
COMPACT_FROM_BYTES = 16 * 1024 * 1024
"""Text of a manifest whose blocks are kept compressed: some 150,000 files."""
_ENTRY_TEXT_BYTES = 100
"""Of an ordinary one: what will be large is kept compressed from its first entry on."""


class Manifest:
    """An immutable, checked snapshot content; make one from :data:`EMPTY` with :meth:`apply`."""

    __slots__ = ("_blocks", "_compact", "_count", "_firsts", "_joined_bytes", "_names", "directories", "policy")

    def __init__(
        self, blocks: list[bytes], firsts: list[bytes], count: int, joined_bytes: int,
        directories: tuple[str, ...], policy: PathPolicy | None, names: PathNames, compact: bool,
    ) -> None:  # fmt: skip
        self._blocks = blocks
        self._firsts = firsts
        self._count = count
        self._joined_bytes = joined_bytes  # of the blocks, each with one separator
        self._names = names
        self._compact = compact
        self.directories = directories
        self.policy = policy

    def __len__(self) -> int:
        return self._count

    @property
    def text_bytes(self) -> int:
        """Length in bytes of the file entries' text: a measure of the memory a manifest stands for."""
        return max(self._joined_bytes - 1, 0)

    def parts(self) -> Iterator[tuple[int, int]]:
        """Give what it keeps in memory as (identity, bytes): parts that two manifests share have one identity."""
        for block in itertools.chain(self._blocks, self._names.blocks):
            yield id(block), len(block) + _BLOCK_OVERHEAD_BYTES
        yield id(self.directories), sum(len(path) + _TEXT_OVERHEAD_BYTES for path in self.directories)

    def items(self) -> Iterator[tuple[str, bytes]]:
        """Give ``(path, digest)`` in manifest order."""
        for block in self._texts():
            parts = block.decode().split("\0")
            yield from zip(parts[::2], map(bytes.fromhex, parts[1::2]), strict=True)

    def paths(self) -> Iterator[str]:
        """Give the paths in manifest order."""
        for block in self._texts():
            for path in block.split(b"\0")[::2]:
                yield path.decode()

    def blobs(self) -> Iterator[bytes]:
        """Give the blob ids in manifest order, one for each path."""
        for block in self._texts():
            for digest in block.split(b"\0")[1::2]:
                yield bytes.fromhex(digest.decode())

    def get(self, path: str) -> bytes | None:
        """Look one path up."""
        key = path.encode()
        at = bisect.bisect_right(self._firsts, key) - 1
        if at < 0:
            return None
        found = _parse_block(self._codec().read(self._blocks[at])).get(key)
        return None if found is None else bytes.fromhex(found.decode())

    def snapshot_id(self, scheme: Scheme) -> bytes:
        """Compute the id of the snapshot with this content."""
        tail = _directory_text(self.directories)
        size = self.text_bytes + len(tail) + (1 if tail and self._count else 0)
        hasher = hasher_for(Kind.SNAPSHOT, size, scheme)
        codec = self._codec()
        for start in range(0, len(self._blocks), _HASH_BLOCKS):
            if start:
                hasher.update(b"\0")
            hasher.update(b"\0".join(codec.read_all(self._blocks[start : start + _HASH_BLOCKS])))
        if tail:
            hasher.update(b"\0" + tail if self._count else tail)
        return hasher.digest()

    def apply(
        self,
        upsert: Mapping[str, bytes],
        remove: Iterable[str] = (),
        directories: tuple[str, ...] = (),
        limits: Limits = DEFAULT_LIMITS,
    ) -> Manifest:
        """Derive a new manifest: remove paths, then set paths, then replace the directory list.

        Raises:
            Refusal: ``unsafe_path`` for a path that is unsafe alone or beside the others, ``too_large`` above
                the entry or text limit.
        """
        removed, derived = list(remove), self
        if (len(self) + len(upsert)) * _ENTRY_TEXT_BYTES > COMPACT_FROM_BYTES:
            derived = self._compacted()
        if len(upsert) + len(removed) > AT_ONCE:  # removals first: of what is left, any two that collide stay
            for start in range(0, len(removed), AT_ONCE):
                derived = self._changed(derived, {}, removed[start : start + AT_ONCE], limits)
            if isinstance(upsert, dict):  # in order, each slice touches few blocks
                paths = sorted(upsert)
                for start in range(0, len(paths), AT_ONCE):
                    part = {path: upsert[path] for path in paths[start : start + AT_ONCE]}
                    derived = self._changed(derived, part, (), limits)
            else:
                entries = iter(upsert.items())
                while part := dict(itertools.islice(entries, 2 * AT_ONCE)):
                    derived = self._changed(derived, part, (), limits)
        elif upsert or removed:
            derived = self._changed(derived, upsert, removed, limits)
        return self._with_directories(derived, self, tuple(sorted(directories)), limits)

    @staticmethod
    def _changed(base: Manifest, upsert: Mapping[str, bytes], remove: Iterable[str], limits: Limits) -> Manifest:
        changes: dict[bytes, bytes | None] = {path.encode("utf-8", "surrogatepass"): None for path in remove}
        for path, digest in upsert.items():
            changes[path.encode("utf-8", "surrogatepass")] = digest.hex().encode()
        blocks, firsts = list(base._blocks), list(base._firsts)
        added, removed, joined_bytes = _edit(blocks, firsts, changes, base._codec())
        count = base._count + len(added) - len(removed)
        joined_bytes += base._joined_bytes
        if count > limits.manifest_entries:
            raise Refusal(Code.TOO_LARGE, f"a manifest has {count} entries, the limit is {limits.manifest_entries}")
        if joined_bytes > limits.manifest_text_bytes:
            raise Refusal(
                Code.TOO_LARGE, f"a manifest's text has {joined_bytes} bytes, the limit is {limits.manifest_text_bytes}"
            )
        names = base._names
        if base.policy is not None and (added or removed):
            added_paths = [_decode_path(path) for path in added]
            for path in added_paths:
                check_path(path, base.policy, limits)
            names = names.edited([path.decode() for path in removed], added_paths, base.policy)
        derived = Manifest(blocks, firsts, count, joined_bytes, base.directories, base.policy, names, base._compact)
        return derived._compacted() if joined_bytes > COMPACT_FROM_BYTES else derived

    def _compacted(self) -> Manifest:
        """Give the same manifest, its blocks compressed."""
        if self._compact:
            return self
        codec = TextCodec(compact=True)
        return Manifest(
            [codec.write(block) for block in self._blocks], self._firsts, self._count, self._joined_bytes,
            self.directories, self.policy, self._names.compacted(), True,
        )  # fmt: skip

    @staticmethod
    def _with_directories(derived: Manifest, base: Manifest, directories: tuple[str, ...], limits: Limits) -> Manifest:
        if (
            directories
            and derived.policy is not None
            and (directories != base.directories or derived._names is not base._names)
        ):
            check_directories(directories, derived._names, derived.policy, limits)
        if directories == derived.directories:
            return derived
        return Manifest(
            derived._blocks, derived._firsts, derived._count, derived._joined_bytes, directories, derived.policy,
            derived._names, derived._compact,
        )  # fmt: skip

    def _codec(self) -> TextCodec:
        return TextCodec(compact=self._compact)

    def _texts(self) -> Iterator[bytes]:
        return self._codec().read_all(self._blocks)

    def changes_to(self, target: Manifest) -> tuple[dict[str, bytes], list[str]]:
        """Give ``(upsert, remove)`` that turn this manifest into ``target``; shared blocks cost nothing."""
        found = self.few_changes_to(target, len(self) + len(target))
        assert found is not None
        return found

    def few_changes_to(self, target: Manifest, most: int) -> tuple[dict[str, bytes], list[str]] | None:
        """Give the same, or ``None`` if it is more than ``most`` entries."""
        ours, theirs = (set(self._blocks), set(target._blocks)) if self._compact is target._compact else (set(), set())
        old = _entries(self._codec().read_all(block for block in self._blocks if block not in theirs))
        new = _entries(target._codec().read_all(block for block in target._blocks if block not in ours))
        upsert: dict[str, bytes] = {}
        remove: list[str] = []
        before, after = next(old, None), next(new, None)
        while before is not None or after is not None:
            if len(upsert) + len(remove) > most:
                return None
            if after is None or (before is not None and before[0] < after[0]):
                assert before is not None
                remove.append(before[0].decode())
                before = next(old, None)
                continue
            if before is None or after[0] < before[0] or after[1] != before[1]:
                upsert[after[0].decode()] = bytes.fromhex(after[1].decode())
            if before is not None and before[0] == after[0]:
                before = next(old, None)
            after = next(new, None)
        return upsert, remove


def empty(policy: PathPolicy | None = PathPolicy.PORTABLE) -> Manifest:
    """Give the empty manifest, from which every other one is derived.

    Without a policy paths are not looked at: for rebuilding what was checked when it came in.
    """
    return Manifest([], [], 0, 0, (), policy, PathNames((), ()), False)


def _edit(
    blocks: list[bytes], firsts: list[bytes], changes: dict[bytes, bytes | None], codec: TextCodec
) -> tuple[list[bytes], list[bytes], int]:
    """Rewrite the touched blocks in place; give added paths, removed paths and the growth in joined bytes."""
    added: list[bytes] = []
    removed: list[bytes] = []
    growth = 0
    groups: dict[int, dict[bytes, bytes | None]] = {}
    for path, digest in changes.items():
        at = max(bisect.bisect_right(firsts, path) - 1, 0)
        groups.setdefault(at, {})[path] = digest
    for at in sorted(groups, reverse=True):  # from the last to the first, so that positions stay good
        block = codec.read(blocks[at]) if blocks else b""
        entries = _parse_block(block)
        reorder = False
        for path, digest in groups[at].items():
            if digest is None:
                if entries.pop(path, None) is not None:
                    removed.append(path)
            else:
                if path not in entries:
                    added.append(path)
                    reorder = True
                entries[path] = digest
        pieces = _cut_blocks(entries, reorder)
        growth += _joined(pieces) - (len(block) + 1 if block else 0)
        blocks[at : at + 1] = [codec.write(text) for text, _ in pieces]
        firsts[at : at + 1] = [first for _, first in pieces]
    return added, removed, growth


def _joined(pieces: list[tuple[bytes, bytes]]) -> int:
    return sum(len(text) + 1 for text, _ in pieces)


def _cut_blocks(entries: dict[bytes, bytes], reorder: bool) -> list[tuple[bytes, bytes]]:
    paths = sorted(entries) if reorder else list(entries)
    step = len(paths) if len(paths) <= SPLIT_ENTRIES else BLOCK_ENTRIES
    pieces = []
    for start in range(0, len(paths), max(step, 1)):
        part = paths[start : start + step]
        pieces.append((b"\0".join([b"%b\0%b" % (path, entries[path]) for path in part]), part[0]))
    return pieces


def _parse_block(block: bytes) -> dict[bytes, bytes]:
    if not block:
        return {}
    parts = block.split(b"\0")
    return dict(zip(parts[::2], parts[1::2], strict=True))


def _entries(blocks: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
    for block in blocks:
        yield from _parse_block(block).items()


def _decode_path(path: bytes) -> str:
    try:
        return path.decode()
    except UnicodeDecodeError:
        raise Refusal(Code.UNSAFE_PATH, "a path is not valid UTF-8") from None


def _directory_text(directories: tuple[str, ...]) -> bytes:
    return "\0".join("dir\0" + path for path in directories).encode()


def check_id(manifest: Manifest, snapshot_id: bytes, scheme: Scheme) -> None:
    """Refuse a manifest whose id is not the stated one (``bad_record_id``)."""
    found = manifest.snapshot_id(scheme)
    if found != snapshot_id:
        raise Refusal(
            Code.BAD_RECORD_ID,
            f"snapshot {snapshot_id.hex()} does not hash to its id, its content has {found.hex()}",
            id=snapshot_id.hex(),
        )
