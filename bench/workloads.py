"""The histories that are measured, made the same way on every machine and every run.

A workload is a git repository written by ``git fast-import``; museworkd gets its own by ``museworkd git-import``, so
both peers hold the same content. Everything comes from a seed: random contents from SHAKE-256, choices from
``random.Random.random``, whose sequence Python promises to keep. A history of the same name has the same ids
everywhere, and figures of two machines or two versions are about the same bytes.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

LINE_BYTES = 64
EDITED_LINES = 3
"""Lines that change in a text file that changes."""
LARGE_BYTES = 40_000_000
"""From here on a workload takes seconds a push, and fewer runs do."""
BRANCH = "main"
MORE_BRANCH = "more"
"""Further commits on top of :data:`BRANCH`, for incremental pushes."""
_FILES_A_DIRECTORY = 50
_BEGAN = 1_700_000_000
_NEVER_PACK = 1_000_000_000
_WORDS = (
    "branch", "commit", "snapshot", "object", "manifest", "record", "offset", "length", "reader", "writer", "buffer",
    "index", "entry", "parent", "header", "digest", "limit", "window", "cursor", "policy", "stream", "packet",
    "verdict", "session",
)  # fmt: skip
_CALLS = ("read", "write", "check", "hash_of", "append", "resolve", "split", "merge", "encode", "decode")
GIT_ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
    "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null", "GIT_TERMINAL_PROMPT": "0",
    "GIT_AUTHOR_NAME": "Ada", "GIT_AUTHOR_EMAIL": "ada@example.org",
    "GIT_COMMITTER_NAME": "Ada", "GIT_COMMITTER_EMAIL": "ada@example.org",
}  # fmt: skip
"""No configuration of this machine's users decides how git does."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How a generated history looks."""

    name: str
    commits: int
    files: int
    """In the first commit."""
    file_bytes: int
    changed: int
    """Files that each further commit changes or, when the tree grows, adds."""
    text: bool
    """Pseudo-source of which some lines are edited; else random bytes, replaced whole."""
    grows: bool = False
    increments: bool = False
    """Whether incremental pushes are measured on it."""
    nightly: bool = False
    """Whether it takes so long that it is measured only when it is asked for by name."""

    @property
    def objects(self) -> int:
        """Blobs of the whole history; no two are equal."""
        return self.files + (self.commits - 1) * self.changed

    @property
    def content_bytes(self) -> int:
        """Bytes of those blobs."""
        return self.objects * self.file_bytes

    @property
    def large(self) -> bool:
        """Whether fewer runs do."""
        return self.content_bytes >= LARGE_BYTES


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("S", 10, 10, 1024, 2, text=True, increments=True),
        Shape("M", 100, 20, 2048, 2, text=True, increments=True),
        Shape("L", 500, 50, 4096, 2, text=True, increments=True),
        Shape("L-full", 500, 50, 4096, 50, text=False),
        Shape("XL-text", 1000, 100, 10240, 5, text=True),
        Shape("XL-random", 1000, 100, 10240, 5, text=False, increments=True),
        Shape("XL-grow", 1000, 5, 10240, 5, text=False, grows=True),
        Shape("HUGE", 20_000, 1_000, 10240, 10, text=False, nightly=True),
    )
}
GROWING = {
    shape.objects: shape
    for shape in (Shape(f"{commits * 50} objects", commits, 50, 256, 50, text=False) for commits in (20, 200, 1000))
}
"""The same kind of history in three lengths, by its number of objects."""
WARM_UP = Shape("warm-up", 3, 4, 1024, 1, text=True)
"""Pushed and cloned before anything is measured, by both peers: neither is measured loading its code."""


@dataclass(frozen=True, slots=True)
class Change:
    """One file of one commit."""

    path: str
    content: bytes


class History:
    """Makes the commits of a shape, one after another."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        # not for secrets: the same history is wanted every time
        self._random = random.Random(f"museworkd bench {shape.name}")  # noqa: S311
        self._texts: dict[int, list[bytes]] = {}
        self._lines = 0
        self._contents = 0
        self._number = 0

    def commits(self) -> Iterator[list[Change]]:
        """Give each commit of the shape as the files it writes."""
        shape = self._shape
        yield [self._change(number) for number in range(shape.files)]
        for commit in range(1, shape.commits):
            if shape.grows:
                first = shape.files + (commit - 1) * shape.changed
                yield [self._change(number) for number in range(first, first + shape.changed)]
            else:
                yield [self._change(number) for number in self._some(shape.changed)]

    def more(self, count: int) -> Iterator[list[Change]]:
        """Give further commits of one file each; after :meth:`commits`."""
        for _ in range(count):
            yield [self._change(self._below(self._shape.files))]

    def _below(self, end: int) -> int:
        return int(self._random.random() * end)

    def _some(self, count: int) -> list[int]:
        numbers = list(range(self._shape.files))
        for at in range(count):
            other = at + self._below(len(numbers) - at)
            numbers[at], numbers[other] = numbers[other], numbers[at]
        return sorted(numbers[:count])

    def _change(self, number: int) -> Change:
        content = self._text(number) if self._shape.text else self._noise()
        suffix = "py" if self._shape.text else "bin"
        return Change(f"part{number // _FILES_A_DIRECTORY:03d}/file{number:05d}.{suffix}", content)

    def _noise(self) -> bytes:
        self._contents += 1
        return hashlib.shake_256(f"{self._shape.name} {self._contents}".encode()).digest(self._shape.file_bytes)

    def _text(self, number: int) -> bytes:
        lines = self._texts.get(number)
        if lines is None:
            lines = self._texts[number] = [self._line() for _ in range(self._shape.file_bytes // LINE_BYTES)]
        else:
            for _ in range(EDITED_LINES):
                lines[self._below(len(lines))] = self._line()
        return b"".join(lines)

    def _line(self) -> bytes:
        """Give a line that occurs once, so that no two files are ever equal."""
        self._lines += 1
        first, second, call = (words[self._below(len(words))] for words in (_WORDS, _WORDS, _CALLS))
        text = f"    {first}_{self._lines:x} = {call}({second}, {first})"
        return text[: LINE_BYTES - 1].ljust(LINE_BYTES - 1).encode() + b"\n"


def write_git(shape: Shape, path: Path, more: int = 0, *, packed: bool = False, quickly: bool = False) -> Path:
    """Write a shape as a bare git repository; ``more`` commits follow on :data:`MORE_BRANCH`.

    Objects lie loose, as commits leave them, so that a push has to pack them; ``packed``: as ``git gc`` leaves them;
    ``quickly``: as they are written fastest, for what git never pushes.
    """
    git(None, "init", "--quiet", "--bare", f"--initial-branch={BRANCH}", str(path))
    how = ["core.compression=0", "fastimport.unpackLimit=1"] if quickly else [f"fastimport.unpackLimit={_NEVER_PACK}"]
    settings = [argument for setting in how for argument in ("-c", setting)]
    process = subprocess.Popen(
        ["git", "-C", str(path), *settings, "fast-import", "--quiet"],
        stdin=subprocess.PIPE, env=GIT_ENVIRONMENT,
    )  # fmt: skip
    assert process.stdin is not None
    history = History(shape)
    number = 0
    with process.stdin as stream:
        for changes in history.commits():
            number += 1
            _write_commit(stream, BRANCH, number, changes, "")
        for at, changes in enumerate(history.more(more)):
            number += 1
            _write_commit(stream, MORE_BRANCH, number, changes, "" if at else f"from refs/heads/{BRANCH}\n")
    if process.wait() != 0:
        raise RuntimeError(f"git fast-import of {shape.name} failed")
    if packed:
        git(path, "repack", "-a", "-d", "-q")
    return path


def _write_commit(stream: IO[bytes], branch: str, number: int, changes: list[Change], start: str) -> None:
    when = f"Ada <ada@example.org> {_BEGAN + 60 * number} +0000"
    message = f"Change {number}: what the bench does\n"
    head = f"commit refs/heads/{branch}\nauthor {when}\ncommitter {when}\ndata {len(message)}\n{message}\n{start}"
    stream.write(head.encode())
    for change in changes:
        stream.write(b"M 100644 inline %b\ndata %d\n" % (change.path.encode(), len(change.content)))
        stream.write(change.content + b"\n")


def git(repository: Path | None, *arguments: str) -> str:
    """Run git and give what it says."""
    where = [] if repository is None else ["-C", str(repository)]
    done = subprocess.run(["git", *where, *arguments], capture_output=True, env=GIT_ENVIRONMENT, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"git {arguments[0]} failed: {done.stderr.decode(errors='replace').strip()[-500:]}")
    return done.stdout.decode().strip()


def take_bundle(bundle: Path, path: Path) -> Path:
    """Make a bare repository of a bundle's (or repository's) default branch, named :data:`BRANCH`.

    A bundle need not say what its default branch is: then it is a usual one, or the first.
    """
    found = [line.split("\t") for line in git(None, "ls-remote", str(bundle)).splitlines()]
    refs = {name: sha for sha, name in found}
    branches = sorted(name for name in refs if name.startswith("refs/heads/"))
    usual = [f"refs/heads/{name}" for name in ("main", "master")]
    preferred = [name for name in usual if name in branches] + branches
    if not preferred:
        raise RuntimeError(f"{bundle} has no branches")
    branch = next((name for name in preferred if refs[name] == refs.get("HEAD")), preferred[0])
    git(None, "init", "--quiet", "--bare", f"--initial-branch={BRANCH}", str(path))
    git(path, "fetch", "--quiet", "--no-tags", str(bundle.absolute()), f"{branch}:refs/heads/{BRANCH}")
    return path
