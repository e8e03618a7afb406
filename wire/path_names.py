"""Whether the paths of a tree can live beside one another: equal after folding, a file where another needs a directory.

The folded names of a manifest's files, in sorted blocks. "/" sorts first there: whatever lies below a name follows it
at once, so that neighbours tell all, and nothing is kept for the directories of a path.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wire.compact import TextCodec
from wire.errors import Code, Refusal
from wire.limits import Limits
from wire.paths import PathPolicy, check_path, fold

BLOCK_ENTRIES = 64
"""Entries of a block that is cut anew."""
SPLIT_ENTRIES = 2 * BLOCK_ENTRIES
"""Entries a block may grow to."""
_AMBIGUOUS = re.compile(r"[0-9a-f]{64}\Z")
"""As a directory its text would be that of a file named ``dir`` with this object id (protocol §1)."""


@dataclass(frozen=True, slots=True)
class PathNames:
    """The folded names of a manifest's files, sorted; immutable like the blocks of the manifest itself."""

    blocks: Sequence[bytes]
    """Names in UTF-8, "/" written as NUL, joined by newlines: no path has either of them."""
    firsts: Sequence[bytes]
    compact: bool = False
    """Whether the blocks are kept compressed."""

    def compacted(self) -> PathNames:
        """Give the same names, compressed."""
        codec = TextCodec(compact=True)
        return self if self.compact else PathNames([codec.write(block) for block in self.blocks], self.firsts, True)

    def edited(self, removed: list[str], added: list[str], policy: PathPolicy) -> PathNames:
        """Remove names, then add names.

        Raises:
            Refusal: ``unsafe_path`` for an added one that cannot live beside the others.
        """
        key, codec = _key_of(policy), TextCodec(compact=self.compact)
        gone = {_name(path, key) for path in removed}
        new = sorted((_name(path, key), path) for path in added)
        for (one, _), (other, path) in itertools.pairwise(new):
            if one == other:
                raise Refusal(Code.UNSAFE_PATH, f"the path {path[:200]!a} equals another path", path=path[:200])
        blocks, firsts = list(self.blocks), list(self.firsts)
        groups: dict[int, tuple[set[bytes], list[bytes]]] = {}
        for name in gone:
            at = max(bisect.bisect_right(firsts, name) - 1, 0)
            groups.setdefault(at, (set(), []))[0].add(name)
        for name, _ in new:
            at = max(bisect.bisect_right(firsts, name) - 1, 0)
            groups.setdefault(at, (set(), []))[1].append(name)
        for at in sorted(groups, reverse=True):
            less, more = groups[at]
            held = codec.read(blocks[at]).split(b"\n") if blocks else []
            names = [name for name in held if name not in less] + more
            names.sort()
            step = len(names) if len(names) <= SPLIT_ENTRIES else BLOCK_ENTRIES
            pieces = [names[start : start + step] for start in range(0, len(names), max(step, 1))]
            blocks[at : at + 1] = [codec.write(b"\n".join(piece)) for piece in pieces]
            firsts[at : at + 1] = [piece[0] for piece in pieces]
        names_now = PathNames(blocks, firsts, self.compact)
        names_now._check(new, codec)
        return names_now

    def at_or_before(self, name: bytes) -> bytes | None:
        """Give the last name that is not behind this one."""
        at = bisect.bisect_right(self.firsts, name) - 1
        if at < 0:
            return None
        names = TextCodec(compact=self.compact).read(self.blocks[at]).split(b"\n")
        return names[bisect.bisect_right(names, name) - 1]

    def _check(self, added: list[tuple[bytes, str]], codec: TextCodec) -> None:
        known, names = -1, [b""]
        for name, path in added:
            at = bisect.bisect_right(self.firsts, name) - 1
            if at != known:
                known, names = at, codec.read(self.blocks[at]).split(b"\n")
            place = bisect.bisect_left(names, name)
            if place:
                before: bytes | None = names[place - 1]
            else:
                before = codec.read(self.blocks[at - 1]).rpartition(b"\n")[2] if at else None
            if place + 1 < len(names):
                after: bytes | None = names[place + 1]
            else:
                after = self.firsts[at + 1] if at + 1 < len(self.firsts) else None
            if name in {before, after}:
                what = "equals another path"
            elif before is not None and name.startswith(before + b"\0"):
                what = "lies below a path that is a file"
            elif after is not None and after.startswith(name + b"\0"):
                what = "equals a directory of other paths"
            else:
                continue
            raise Refusal(Code.UNSAFE_PATH, f"the path {path[:200]!a} {what}", path=path[:200])


def _name(path: str, key: Callable[[str], str]) -> bytes:
    return key(path).replace("/", "\0").encode()


def check_directories(directories: Sequence[str], names: PathNames, policy: PathPolicy, limits: Limits) -> None:
    """Refuse directories that are unsafe alone, beside one another or beside the files (``unsafe_path``)."""
    key = _key_of(policy)
    seen: set[bytes] = set()
    for path in directories:
        name = _name(check_path(path, policy, limits), key)
        if _AMBIGUOUS.match(path):
            raise Refusal(
                Code.UNSAFE_PATH,
                f"the directory {path!a} is named like an object id, and a file 'dir' with that id would read the same",
                path=path,
            )
        if name in seen:
            raise Refusal(Code.UNSAFE_PATH, f"the directory {path[:200]!a} equals another one", path=path[:200])
        seen.add(name)
        file = names.at_or_before(name)
        if file is not None and (name == file or name.startswith(file + b"\0")):
            raise Refusal(
                Code.UNSAFE_PATH, f"the directory {path[:200]!a} needs a path that is a file", path=path[:200]
            )


def _key_of(policy: PathPolicy) -> Callable[[str], str]:
    return fold if policy is PathPolicy.PORTABLE else str
