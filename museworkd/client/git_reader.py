"""Reading a git repository through git's own plumbing: one process for the differences, one for the contents.

Names of branches and tags are bytes to git; here they are text whose bytes that are not UTF-8 are surrogates.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from museworkd.client.errors import ClientError, IntegrityError
from museworkd.client.git_bundle import open_bundle
from museworkd.client.git_process import find_repository, run_git, start_git

_CONTENT_PIECE_BYTES = 1024 * 1024
GITLINK = "160000"


@dataclass(frozen=True, slots=True)
class GitChange:
    """One path that differs from the first parent; ``blob=None`` means it is gone."""

    path: bytes
    mode: str
    blob: str | None


@dataclass(frozen=True, slots=True)
class GitCommit:
    """A commit object, taken apart."""

    sha: str
    tree: str
    parents: tuple[str, ...]
    headers: bytes
    """Everything before the empty line."""
    message: bytes


class GitReader:
    """Read a repository, a work tree or a bundle; use as a context manager."""

    def __init__(self, source: Path) -> None:
        if shutil.which("git") is None:
            raise ClientError("git is not installed")
        if not source.exists():
            raise ClientError(f"{source} does not exist")
        self._source = source
        self._temporary: str | None = None
        self._contents: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._open()
        except BaseException:
            self._clean()
            raise
        return self

    def _open(self) -> None:
        if self._source.is_file():
            self._temporary = tempfile.mkdtemp(prefix="museworkd-git-")
            self._directory = Path(self._temporary) / "repository"
            open_bundle(self._source, self._directory)
        else:
            self._directory = find_repository(self._source)
        if (self._git("rev-parse", "--is-shallow-repository", check=False) or b"").strip() == b"true":
            raise ClientError(f"{self._source} is a shallow clone; run `git fetch --unshallow` there first")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._contents is not None:
            for stream in (self._contents.stdin, self._contents.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
            self._contents.wait()
        self._clean()

    def branches(self) -> dict[str, str]:
        """Give the branches; a detached head without any branch counts as one named ``main``."""
        found = self._refs("refs/heads/")
        if not found:
            head = self._git("rev-parse", "--verify", "--quiet", "HEAD^{commit}", check=False)
            if head:
                found = {"main": head.decode("ascii").strip()}
        return found

    def tags(self) -> dict[str, str]:
        """Give the tags that name commits, annotated ones followed to the commit."""
        out = self._git("for-each-ref", "--format=%(refname)%00%(objecttype)%00%(objectname)%00%(*objecttype)%00"
                        "%(*objectname)", "refs/tags/")  # fmt: skip
        found = {}
        for line in (out or b"").splitlines():
            name, kind, sha, inner_kind, inner = line.decode("utf-8", "surrogateescape").split("\0")
            if kind == "commit" or inner_kind == "commit":
                found[name.removeprefix("refs/tags/")] = inner or sha
        return found

    def head_branch(self) -> str | None:
        """Give the branch HEAD is on."""
        out = self._git("symbolic-ref", "--quiet", "HEAD", check=False)
        if not out:
            return None
        return out.decode("utf-8", "surrogateescape").removesuffix("\n").removeprefix("refs/heads/")

    def detached_head(self) -> str | None:
        """Give the commit of a HEAD that is on no branch."""
        if self.head_branch() is not None:
            return None
        out = self._git("rev-parse", "--verify", "--quiet", "HEAD^{commit}", check=False)
        return out.decode("ascii").strip() if out else None

    def commits(self, tips: list[str]) -> list[tuple[str, tuple[str, ...]]]:
        """Give all commits reachable from ``tips`` with their parents, parents first."""
        with tempfile.TemporaryFile() as wanted:
            wanted.write("".join(f"{tip}\n" for tip in tips).encode())
            wanted.seek(0)
            out = self._git("rev-list", "--topo-order", "--reverse", "--parents", "--stdin", stdin=wanted)
        rows = [line.split() for line in (out or b"").decode("ascii").splitlines()]
        return [(row[0], tuple(row[1:])) for row in rows]

    def changes(self, commits: list[tuple[str, tuple[str, ...]]]) -> Iterator[list[GitChange]]:
        """Give, for each commit in order, what differs from its first parent (from nothing for a root)."""
        with tempfile.TemporaryFile() as wanted:
            for sha, parents in commits:
                wanted.write(f"{sha} {parents[0]}\n".encode() if parents else f"{sha}\n".encode())
            wanted.seek(0)
            process = start_git(
                self._directory, "diff-tree", "--stdin", "-r", "-z", "--raw", "--no-renames", "--full-index",
                "--no-abbrev", "--root", "--always", "--no-ext-diff", "--no-textconv", "--ignore-submodules=none",
                stdin=wanted,
            )  # fmt: skip
            assert process.stdout is not None
            try:
                yield from _parse_changes(process.stdout, [sha for sha, _ in commits])
            finally:
                process.stdout.close()
                process.kill()
                process.wait()

    def commit(self, sha: str) -> GitCommit:
        """Read one commit object."""
        raw = b"".join(self.content(sha, "commit")[1])
        headers, _, message = raw.partition(b"\n\n")
        tree, parents = "", []
        for line in headers.split(b"\n"):
            if line.startswith(b"tree "):
                tree = line[5:].decode("ascii")
            elif line.startswith(b"parent "):
                parents.append(line[7:].decode("ascii"))
            else:
                break
        return GitCommit(sha, tree, tuple(parents), headers, message)

    def content(self, sha: str, kind: str = "blob") -> tuple[int, Iterator[bytes]]:
        """Give an object's size and its content in pieces, which must be taken to the end."""
        process = self._batch()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(sha.encode("ascii") + b"\n")
        process.stdin.flush()
        head = process.stdout.readline().split()
        if len(head) != 3 or head[1].decode() != kind:
            raise IntegrityError(f"git has no {kind} {sha}: the repository is incomplete")
        return int(head[2]), _pieces(process.stdout, int(head[2]))

    def tree(self, sha: str) -> list[tuple[str, bytes, str]]:
        """Read one tree object: ``(mode, name, sha)``."""
        raw = b"".join(self.content(sha, "tree")[1])
        width = len(sha) // 2
        entries = []
        at = 0
        while at < len(raw):
            space, nul = raw.index(b" ", at), raw.index(b"\0", at)
            end = nul + 1 + width
            entries.append((raw[at:space].decode("ascii"), raw[space + 1 : nul], raw[nul + 1 : end].hex()))
            at = end
        return entries

    def _refs(self, prefix: str) -> dict[str, str]:
        out = self._git("for-each-ref", "--format=%(refname)%00%(objectname)", prefix)
        found = {}
        for line in (out or b"").splitlines():
            name, sha = line.decode("utf-8", "surrogateescape").split("\0")
            found[name.removeprefix(prefix)] = sha
        return found

    def _batch(self) -> subprocess.Popen[bytes]:
        if self._contents is None:
            self._contents = start_git(self._directory, "cat-file", "--batch", stdin=subprocess.PIPE)
        return self._contents

    def _git(self, *arguments: str, check: bool = True, stdin: IO[bytes] | None = None) -> bytes | None:
        return run_git(self._directory, *arguments, check=check, stdin=stdin)

    def _clean(self) -> None:
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None


def _parse_changes(stream: IO[bytes], shas: list[str]) -> Iterator[list[GitChange]]:
    """Parse ``diff-tree -z --stdin``: a commit's id, then NUL-ended raw lines and paths."""
    tokens = _tokens(stream)
    token = next(tokens, None)
    for sha in shas:
        if token != sha.encode():
            raise IntegrityError(f"git diff-tree ended before commit {sha}")
        changes: list[GitChange] = []
        token = next(tokens, None)
        while token is not None and token.startswith(b":"):
            _, mode, _, blob, status = token.decode("ascii").split(" ")
            path = next(tokens)
            changes.append(GitChange(path, mode, None if status == "D" else blob))
            token = next(tokens, None)
        yield changes


def _tokens(stream: IO[bytes]) -> Iterator[bytes]:
    rest = b""
    while data := stream.read(256 * 1024):
        *whole, rest = (rest + data).split(b"\0")
        yield from whole


def _pieces(stream: IO[bytes], size: int) -> Iterator[bytes]:
    left = size
    while left:
        piece = stream.read(min(left, _CONTENT_PIECE_BYTES))
        if not piece:
            raise IntegrityError("git cat-file ended early")
        left -= len(piece)
        yield piece
    stream.read(1)  # the newline after every object
