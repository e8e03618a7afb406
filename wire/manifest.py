"""Manifests: path → blob id, immutable and cheap to derive from one another.

A manifest is kept as the very bytes its id is the hash of (protocol §1), cut into sorted blocks of some dozens
of entries. Applying a delta copies the list of blocks and rewrites only the blocks it touches; all others
are shared with the base. So a history of 1,000 commits over a 5,000-file tree neither sorts nor encodes a
manifest again: per commit it edits a few blocks and hashes the joined text.

Safety of paths against one another (equal after folding, a file where another path needs a directory) is kept
in a persistent map of folded names beside the blocks, and checked for added paths only.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Iterator, Mapping

import immutables

from wire.errors import Code, Refusal
from wire.ids import Kind, Scheme, hasher_for
from wire.limits import DEFAULT_LIMITS, Limits
from wire.paths import PathPolicy, check_path, fold

_BLOCK_ENTRIES = 64
_SPLIT_ENTRIES = 2 * _BLOCK_ENTRIES
_HASH_BLOCKS = 128
_FILE = 0

_Names = immutables.Map[str, int]
"""Folded name → 0 for a file, or the number of children for a directory."""


class Manifest:
    """An immutable, checked snapshot content; make one from :data:`EMPTY` with :meth:`apply`."""

    __slots__ = ("_blocks", "_count", "_firsts", "_joined_bytes", "_names", "directories", "policy")

    def __init__(
        self, blocks: list[bytes], firsts: list[bytes], count: int, joined_bytes: int,
        directories: tuple[str, ...], policy: PathPolicy, names: _Names | None,
    ) -> None:  # fmt: skip
        self._blocks = blocks
        self._firsts = firsts
        self._count = count
        self._joined_bytes = joined_bytes  # of the blocks, each with one separator
        self._names = names
        self.directories = directories
        self.policy = policy

    def __len__(self) -> int:
        return self._count

    @property
    def text_bytes(self) -> int:
        """Length in bytes of the file entries' text: a measure of the memory a manifest stands for."""
        return max(self._joined_bytes - 1, 0)

    def items(self) -> Iterator[tuple[str, bytes]]:
        """Give ``(path, digest)`` in manifest order."""
        for block in self._blocks:
            parts = block.split(b"\0")
            for at in range(0, len(parts), 2):
                yield parts[at].decode(), bytes.fromhex(parts[at + 1].decode())

    def paths(self) -> Iterator[str]:
        """Give the paths in manifest order."""
        for block in self._blocks:
            for path in block.split(b"\0")[::2]:
                yield path.decode()

    def blobs(self) -> Iterator[bytes]:
        """Give the blob ids in manifest order, one for each path."""
        for block in self._blocks:
            for digest in block.split(b"\0")[1::2]:
                yield bytes.fromhex(digest.decode())

    def get(self, path: str) -> bytes | None:
        """Look one path up."""
        key = path.encode()
        at = bisect.bisect_right(self._firsts, key) - 1
        if at < 0:
            return None
        found = _parse_block(self._blocks[at]).get(key)
        return None if found is None else bytes.fromhex(found.decode())

    def snapshot_id(self, scheme: Scheme) -> bytes:
        """Compute the id of the snapshot with this content."""
        tail = _directory_text(self.directories)
        size = self.text_bytes + len(tail) + (1 if tail and self._count else 0)
        hasher = hasher_for(Kind.SNAPSHOT, size, scheme)
        for start in range(0, len(self._blocks), _HASH_BLOCKS):
            if start:
                hasher.update(b"\0")
            hasher.update(b"\0".join(self._blocks[start : start + _HASH_BLOCKS]))
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
        changes: dict[bytes, bytes | None] = {path.encode("utf-8", "surrogatepass"): None for path in remove}
        for path, digest in upsert.items():
            changes[path.encode("utf-8", "surrogatepass")] = digest.hex().encode()
        blocks, firsts = list(self._blocks), list(self._firsts)
        added, removed, joined_bytes = _edit(blocks, firsts, changes)
        count = self._count + len(added) - len(removed)
        joined_bytes += self._joined_bytes
        if count > limits.manifest_entries:
            raise Refusal(Code.TOO_LARGE, f"a manifest has {count} entries, the limit is {limits.manifest_entries}")
        if joined_bytes > limits.manifest_text_bytes:
            raise Refusal(
                Code.TOO_LARGE, f"a manifest's text has {joined_bytes} bytes, the limit is {limits.manifest_text_bytes}"
            )
        names = self._names
        directories = tuple(sorted(directories))
        directories_changed = directories != self.directories
        if added or removed or directories_changed:
            added_paths = [_decode_path(path) for path in added]
            for path in added_paths:
                check_path(path, self.policy, limits)
            names = self._edit_names(added_paths, [path.decode() for path in removed])
            if directories and (directories_changed or added):
                _check_directories(directories, names, self.policy, limits)
        return Manifest(blocks, firsts, count, joined_bytes, directories, self.policy, names)

    def changes_to(self, target: Manifest) -> tuple[dict[str, bytes], list[str]]:
        """Give ``(upsert, remove)`` that turn this manifest into ``target``; shared blocks cost nothing."""
        ours, theirs = set(self._blocks), set(target._blocks)
        old: dict[bytes, bytes] = {}
        for block in self._blocks:
            if block not in theirs:
                old.update(_parse_block(block))
        new: dict[bytes, bytes] = {}
        for block in target._blocks:
            if block not in ours:
                new.update(_parse_block(block))
        upsert = {
            path.decode(): bytes.fromhex(digest.decode()) for path, digest in new.items() if old.get(path) != digest
        }
        return upsert, [path.decode() for path in old if path not in new]

    def _edit_names(self, added: list[str], removed: list[str]) -> _Names:
        base = self._names
        names = (base if base is not None else self._build_names()).mutate()
        key = _key_of(self.policy)
        for path in removed:
            _forget(names, key(path))
        for path in added:
            _enter(names, key(path), path)
        return names.finish()

    def _build_names(self) -> _Names:
        names = immutables.Map[str, int]().mutate()
        key = _key_of(self.policy)
        for path in self.paths():
            _enter(names, key(path), path)
        return names.finish()


def empty(policy: PathPolicy = PathPolicy.PORTABLE) -> Manifest:
    """Give the empty manifest, from which every other one is derived."""
    return Manifest([], [], 0, 0, (), policy, immutables.Map())


def _edit(
    blocks: list[bytes], firsts: list[bytes], changes: dict[bytes, bytes | None]
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
        block = blocks[at] if blocks else b""
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
        blocks[at : at + 1] = [text for text, _ in pieces]
        firsts[at : at + 1] = [first for _, first in pieces]
    return added, removed, growth


def _joined(pieces: list[tuple[bytes, bytes]]) -> int:
    return sum(len(text) + 1 for text, _ in pieces)


def _cut_blocks(entries: dict[bytes, bytes], reorder: bool) -> list[tuple[bytes, bytes]]:
    paths = sorted(entries) if reorder else list(entries)
    step = len(paths) if len(paths) <= _SPLIT_ENTRIES else _BLOCK_ENTRIES
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


def _decode_path(path: bytes) -> str:
    try:
        return path.decode()
    except UnicodeDecodeError:
        raise Refusal(Code.UNSAFE_PATH, "a path is not valid UTF-8") from None


def _directory_text(directories: tuple[str, ...]) -> bytes:
    return "\0".join("dir\0" + path for path in directories).encode()


def _key_of(policy: PathPolicy) -> Callable[[str], str]:
    return fold if policy is PathPolicy.PORTABLE else str


def _enter(names: immutables.MapMutation[str, int], key: str, path: str) -> None:
    if key in names:
        what = "another path" if names[key] == _FILE else "a directory of other paths"
        raise Refusal(Code.UNSAFE_PATH, f"the path {path[:200]!a} equals {what}", path=path[:200])
    names[key] = _FILE
    parent = key.rpartition("/")[0]
    while parent:
        children = names.get(parent)
        if children == _FILE:
            raise Refusal(
                Code.UNSAFE_PATH, f"the path {path[:200]!a} lies below a path that is a file", path=path[:200]
            )
        names[parent] = (children or 0) + 1
        if children is not None:
            break
        parent = parent.rpartition("/")[0]


def _forget(names: immutables.MapMutation[str, int], key: str) -> None:
    if names.get(key) != _FILE:
        return
    del names[key]
    parent = key.rpartition("/")[0]
    while parent:
        children = names.get(parent, 0) - 1
        if children > 0:
            names[parent] = children
            break
        if children == 0:
            del names[parent]
        parent = parent.rpartition("/")[0]


def _check_directories(directories: tuple[str, ...], names: _Names, policy: PathPolicy, limits: Limits) -> None:
    key = _key_of(policy)
    seen: set[str] = set()
    for path in directories:
        name = key(check_path(path, policy, limits))
        if name in seen:
            raise Refusal(Code.UNSAFE_PATH, f"the directory {path[:200]!a} equals another one", path=path[:200])
        seen.add(name)
        while name:
            if names.get(name) == _FILE:
                raise Refusal(
                    Code.UNSAFE_PATH, f"the directory {path[:200]!a} needs a path that is a file", path=path[:200]
                )
            name = name.rpartition("/")[0]


def check_id(manifest: Manifest, snapshot_id: bytes, scheme: Scheme) -> None:
    """Refuse a manifest whose id is not the stated one (``bad_record_id``)."""
    found = manifest.snapshot_id(scheme)
    if found != snapshot_id:
        raise Refusal(
            Code.BAD_RECORD_ID,
            f"snapshot {snapshot_id.hex()} does not hash to its id, its content has {found.hex()}",
            id=snapshot_id.hex(),
        )
