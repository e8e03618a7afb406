"""Real git repositories with everything an importer can meet, made deterministically by ``git fast-import``."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

ENVIRONMENT = {
    **os.environ,
    "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_AUTHOR_NAME": "Ada", "GIT_AUTHOR_EMAIL": "ada@example.org",
    "GIT_COMMITTER_NAME": "Ada", "GIT_COMMITTER_EMAIL": "ada@example.org",
    "GIT_AUTHOR_DATE": "1700000000 +0100", "GIT_COMMITTER_DATE": "1700000000 +0100",
}  # fmt: skip


def git(repository: Path, *arguments: str, data: bytes | None = None) -> str:
    done = subprocess.run(
        ["git", "-C", str(repository), *arguments], input=data, capture_output=True, check=True, env=ENVIRONMENT
    )
    return done.stdout.decode().strip()


class FastImport:
    """Builds a ``git fast-import`` stream."""

    def __init__(self) -> None:
        self._out = bytearray()
        self._mark = 0
        self._time = 1_700_000_000

    def commit(
        self, branch: str, files: dict[bytes, tuple[str, bytes] | None], parents: list[int] | None = None,
        message: bytes = b"a message\n", author: bytes = b"Ada <ada@example.org>", encoding: bytes | None = None,
        zone: bytes = b"+0130",
    ) -> int:  # fmt: skip
        """Add a commit; ``files`` are changes against the first parent, ``None`` deletes. Gives its mark."""
        self._mark += 1
        self._time += 61
        out = self._out
        out += b"commit refs/heads/%b\nmark :%d\n" % (branch.encode(), self._mark)
        out += b"author %b %d %b\ncommitter %b %d %b\n" % (author, self._time, zone, author, self._time, zone)
        if encoding is not None:
            out += b"encoding %b\n" % encoding
        out += b"data %d\n%b\n" % (len(message), message)
        for number, parent in enumerate(parents or []):
            out += b"%b :%d\n" % (b"from" if number == 0 else b"merge", parent)
        if parents == []:
            out += b"deleteall\n"
        for path, entry in files.items():
            if entry is None:
                out += b"D %b\n" % quoted(path)
            elif entry[0] == "160000":
                out += b"M 160000 %b %b\n" % (entry[1], quoted(path))
            else:
                out += b"M %b inline %b\ndata %d\n%b\n" % (entry[0].encode(), quoted(path), len(entry[1]), entry[1])
        return self._mark

    def reset(self, ref: str, mark: int) -> None:
        self._out += b"reset %b\nfrom :%d\n\n" % (ref.encode(), mark)

    def tag(self, name: str, mark: int) -> None:
        message = b"a tag\n"
        self._out += b"tag %b\nfrom :%d\n" % (name.encode(), mark)
        self._out += b"tagger Ada <ada@example.org> 1700000000 +0000\ndata %d\n%b\n" % (len(message), message)

    def into(self, path: Path) -> Path:
        path.mkdir(parents=True)
        git(path, "init", "--quiet", "--bare", "--initial-branch=main")
        git(path, "fast-import", "--quiet", data=bytes(self._out))
        return path


def quoted(path: bytes) -> bytes:
    return b'"%b"' % b"".join(b"\\%03o" % c if c < 0x20 or c >= 0x7F or c in b'"\\' else bytes([c]) for c in path)


def ordinary(path: Path, commits: int = 60, seed: int = 7) -> Path:
    """A project like many: branches, merges, renames, deletions, an executable, a link, binary and empty files."""
    rng = random.Random(seed)
    stream = FastImport()
    names = [f"{d}/{n}.py".encode() for d in ("src", "src/core", "docs", "tests") for n in "abcdef"]
    marks: list[int] = []
    for number in range(commits):
        parents = [marks[-1]] if marks else None
        if len(marks) > 4 and rng.random() < 0.2:
            parents = [marks[-1], rng.choice(marks[-4:-1])]
        files: dict[bytes, tuple[str, bytes] | None] = {}
        for name in rng.sample(names, 3):
            kind = rng.randrange(6)
            if kind == 0:
                files[name] = ("100644", b"")
            elif kind == 1:
                files[name] = ("100755", b"#!/bin/sh\necho %d\n" % number)
            elif kind == 2:
                files[name] = ("100644", rng.randbytes(2000))
            else:
                files[name] = ("100644", b"line %d\n" % number * rng.randrange(1, 200))
        if number == 5:
            files[b"link"] = ("120000", b"src/a.py")
        if number == 20:
            files[b"link"] = ("100644", b"a file now\n")
        if number > 10 and rng.random() < 0.2:
            files[rng.choice(names)] = None
        marks.append(stream.commit("main", files, parents, b"commit %d\n\nWhy: because.\n" % number))
    stream.reset("refs/heads/feature/one", marks[len(marks) // 2])
    stream.reset("refs/heads/Feature/Two", marks[len(marks) // 3])
    return stream.into(path)


def strange(path: Path) -> Path:
    """Everything odd that git allows."""
    s = FastImport()
    root = s.commit("main", {
        b"empty": ("100644", b""),
        b"big.bin": ("100644", random.Random(3).randbytes(6_000_000)),
        b"caf\xc3\xa9/na\xc3\xafve.txt": ("100644", b"utf-8 path\n"),
        b"latin-\xe9.txt": ("100644", b"not utf-8\n"),
        b"back\\slash": ("100644", b"backslash\n"),
        b"new\nline\ttab": ("100644", b"control\n"),
        b'quote"d': ("100644", b"quote\n"),
        b".muse/config": ("100644", b"client metadata\n"),
        b"C:/drive": ("100644", b"drive\n"),
        b"aux.txt": ("100644", b"reserved on Windows\n"),
        b"README": ("100644", b"upper\n"), b"readme": ("100644", b"lower\n"),
        b"trailing. ": ("100644", b"trailing\n"),
        b"run.sh": ("100755", b"#!/bin/sh\n"),
        b"link": ("120000", b"../outside"),
        b"zeros": ("100644", b"\0" * 300_000),
        b"d" * 250 + b"/" + b"e" * 250: ("100644", b"long\n"),
    }, [])  # fmt: skip
    utf = s.commit("main", {b"a": ("100644", b"1")}, [root], "größe 日本\n".encode())
    latin = s.commit("main", {b"a": ("100644", b"2")}, [utf], b"gr\xf6\xdfe\n", encoding=b"ISO-8859-1",
                     author=b"J\xf6rg <j@example.org>")  # fmt: skip
    raw = s.commit("main", {b"a": ("100644", b"3")}, [latin], b"\xff\xfe not text\n", author=b"\xff <x@example.org>")
    silent = s.commit("main", {}, [raw], b"")  # an empty commit with an empty message
    swap = s.commit("main", {b"run.sh": ("100644", b"#!/bin/sh\n"), b"link": None, b"empty": None,
                             b"empty/file": ("100644", b"a directory now\n")}, [silent])  # fmt: skip
    submodule = s.commit("main", {b"lib": ("160000", b"1" * 40)}, [swap], zone=b"-1145")
    moved = s.commit("main", {b"lib": ("160000", b"2" * 40)}, [submodule])
    gone = s.commit("main", {b"lib": ("100644", b"a file now\n")}, [moved])
    side = s.commit("side", {b"side": ("100644", b"s")}, [root])
    other = s.commit("other", {b"other": ("100644", b"o")}, [root])
    orphan = s.commit("orphan", {b"unrelated": ("100644", b"history")}, [])
    octopus = s.commit("main", {b"side": ("100644", b"s"), b"other": ("100644", b"o")}, [gone, side, other, orphan])
    emptied = s.commit("bare", {}, [], b"a tree without files\n")
    lost = s.commit("temporary", {b"only": ("100644", b"below a tag")}, [utf])
    s.tag("annotated", latin)
    s.tag("below-a-tag", lost)
    s.reset("refs/tags/light", octopus)
    s.reset("refs/heads/deep/er/name", emptied)
    repository = s.into(path)
    git(repository, "update-ref", "-d", "refs/heads/temporary")
    return repository


def bundle(repository: Path, target: Path) -> Path:
    git(repository, "bundle", "create", "--quiet", str(target), "--all")
    return target
