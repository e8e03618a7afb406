"""A local Muse repository: the ``.muse`` directory of a work tree.

::

    repo.json       id scheme, domain and format version
    refs/heads/…    one file a branch; names are percent-encoded, so that no file system confuses two of them
    refs/remotes/<remote>/…
    refs/tags/…
    HEAD            the branch the work tree is on
    remotes.json    name → URL
    packs/          blobs: pack files
    index.sqlite    commits, snapshots and where blobs lie
    checked-out     the commit whose files were written into the work tree; none: nothing was
    tmp/            files of commands that run

Refs are written last and atomically, so whatever a ref names is whole. A repository that an import or a clone makes is
filled as ``.muse.incomplete`` and gets its name when it is whole: one that was killed is no repository, and the same
command can be run again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self
from urllib.parse import quote, unquote

from museworkd.client.blob_packs import PackFiles, open_anew
from museworkd.client.errors import ClientError, IntegrityError
from museworkd.client.local_index import SMALLEST_BYTES, LocalIndex
from storage.objects.durability import sync_directory
from wire.errors import Refusal
from wire.ids import Scheme, format_id, parse_id

FORMAT = 1
_DIRECTORY = ".muse"
_INCOMPLETE = ".muse.incomplete"
_UNESCAPED = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_")
_NAME_MOST = 200
_LONG = "%long-"


class LocalRepository:
    """Make one with :meth:`fresh`, open one with :meth:`find`; close when done."""

    def __init__(self, root: Path, directory: str = _DIRECTORY) -> None:
        self.root = root
        self.directory = root / directory
        _refuse_links(self.directory)
        try:
            facts = json.loads((self.directory / "repo.json").read_text("utf-8"))
            if facts["format"] != FORMAT:
                raise ClientError(f"{self.directory} has format {facts['format']}, this client knows {FORMAT}")
            self.scheme = Scheme(facts["scheme"])
            self.domain = str(facts["domain"])
        except FileNotFoundError:
            raise _no_repository(root, f"{root} is not a Muse repository") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise IntegrityError(f"{self.directory}/repo.json is damaged: {error}") from error
        self.packs = self.directory / "packs"
        index = self.directory / "index.sqlite"
        if directory == _DIRECTORY and (not index.exists() or index.stat().st_size < SMALLEST_BYTES):
            raise IntegrityError(f"the repository's index {index} is gone: make a fresh clone")
        self.index = LocalIndex(index, fresh=directory == _INCOMPLETE)
        self.files = PackFiles(self.packs, self.scheme)

    @classmethod
    @contextmanager
    def fresh(cls, root: Path, domain: str = "code", default_branch: str = "main") -> Iterator[Self]:
        """Make a repository for a block that fills it; it gets its name when the block is done.

        The directory may exist, a repository in it may not. A block that fails leaves nothing behind; what one that
        was killed left is replaced.
        """
        if root.exists() and not root.is_dir():
            raise ClientError(f"{root} exists and is not a directory")
        _check_unused(root)
        directory = root / _INCOMPLETE
        if directory.is_symlink():
            raise ClientError(f"{directory} is in the way: it is a symbolic link")
        ours = not root.exists() or (directory.exists() and is_vacant(root))
        directory.mkdir(parents=True, exist_ok=True)
        with _claimed(directory):
            _check_unused(root)  # by now: the command that had the claim may just have been done
            try:
                _empty(directory)
                with cls._filled(root, domain, default_branch) as repository:
                    yield repository
                    repository.index.settle()
                directory.rename(root / _DIRECTORY)
                sync_directory(root)
            except BaseException:
                shutil.rmtree(root if ours else directory, ignore_errors=True)
                raise

    @classmethod
    def _filled(cls, root: Path, domain: str, default_branch: str) -> Self:
        directory = root / _INCOMPLETE
        for part in ("packs", "refs/heads", "refs/remotes", "refs/tags"):
            (directory / part).mkdir(parents=True)
        _write(directory / "HEAD", f"{default_branch}\n")
        _write(directory / "remotes.json", "{}\n")
        facts = {"format": FORMAT, "scheme": Scheme.TYPED.value, "domain": domain}
        _write(directory / "repo.json", json.dumps(facts, indent=1) + "\n")
        return cls(root, _INCOMPLETE)

    @classmethod
    def find(cls, start: Path) -> LocalRepository:
        """Open the repository a directory lies in."""
        for root in [start.absolute(), *start.absolute().parents]:
            if (root / _DIRECTORY / "repo.json").exists():
                return cls(root)
        raise _no_repository(start, f"neither {start} nor a directory above it is a Muse repository")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all files."""
        self.files.close()
        self.index.close()

    @property
    def head_branch(self) -> str:
        """The branch the work tree is on."""
        try:
            return (self.directory / "HEAD").read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise IntegrityError(f"{self.directory}/HEAD is damaged: {error}") from error

    def set_head_branch(self, branch: str) -> None:
        """Put the work tree on a branch."""
        _write(self.directory / "HEAD", branch + "\n")

    @property
    def checked_out(self) -> bytes | None:
        """The commit whose files the work tree was given."""
        path = self.directory / "checked-out"
        try:
            return parse_id(path.read_text("utf-8").strip(), self.scheme)
        except FileNotFoundError:
            return None
        except (Refusal, OSError, UnicodeDecodeError) as error:
            raise IntegrityError(f"{path} is damaged") from error

    def set_checked_out(self, commit_id: bytes) -> None:
        """Note whose files the work tree is given, before the first is written."""
        _write(self.directory / "checked-out", format_id(commit_id, self.scheme) + "\n")

    def branches(self) -> dict[str, bytes]:
        """Give the local branches with their heads."""
        return self._refs("heads")

    def remote_branches(self, remote: str) -> dict[str, bytes]:
        """Give what is known of a remote's branches."""
        return self._refs(f"remotes/{quote(remote, safe='')}")

    def tags(self) -> dict[str, bytes]:
        """Give the tags."""
        return self._refs("tags")

    def set_branch(self, branch: str, head: bytes) -> None:
        """Move a local branch."""
        self._set_ref("heads", branch, head)

    def set_remote_branch(self, remote: str, branch: str, head: bytes | None) -> None:
        """Note where a remote's branch is; ``None``: it is gone."""
        self._set_ref(f"remotes/{quote(remote, safe='')}", branch, head)

    def set_tag(self, tag: str, head: bytes) -> None:
        """Set a tag."""
        self._set_ref("tags", tag, head)

    def remotes(self) -> dict[str, str]:
        """Give the remotes' URLs by name."""
        path = self.directory / "remotes.json"
        try:
            found = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise IntegrityError(f"{path} is damaged: {error}") from error
        if not isinstance(found, dict) or not all(isinstance(url, str) for url in found.values()):
            raise IntegrityError(f"{path} is damaged: it is not a map of names to URLs")
        return found

    def set_remote(self, name: str, url: str) -> None:
        """Name a remote."""
        _write(self.directory / "remotes.json", json.dumps({**self.remotes(), name: url}, indent=1) + "\n")

    def _refs(self, kind: str) -> dict[str, bytes]:
        directory = self.directory / "refs" / kind
        found = {}
        for path in sorted(directory.iterdir()) if directory.is_dir() else []:
            if path.name.startswith("."):
                continue
            try:
                head, _, name = path.read_text("utf-8").rstrip("\n").partition("\n")
                found[name or unquote(path.name)] = parse_id(head, self.scheme)
            except (Refusal, OSError, UnicodeDecodeError) as error:
                raise IntegrityError(f"{path} is damaged") from error
        return found

    def _set_ref(self, kind: str, name: str, head: bytes | None) -> None:
        directory = self.directory / "refs" / kind
        directory.mkdir(parents=True, exist_ok=True)
        if not name:
            raise ClientError("a branch or tag has a name, this one is empty")
        path = directory / encode_ref(name)
        if head is None:
            path.unlink(missing_ok=True)
        else:
            named = f"{name}\n" if path.name.startswith(_LONG) else ""
            _write(path, f"{format_id(head, self.scheme)}\n{named}")


def is_vacant(root: Path) -> bool:
    """Tell whether a clone may go there: nothing is, or only what is left of one that was killed."""
    if not root.exists():
        return True
    return root.is_dir() and all(path.name == _INCOMPLETE for path in root.iterdir())


def _check_unused(root: Path) -> None:
    directory = root / _DIRECTORY
    if (directory / "repo.json").exists():
        raise ClientError(f"{root} is a Muse repository already")
    if directory.exists() or directory.is_symlink():
        raise ClientError(f"{directory} is in the way")


def _refuse_links(directory: Path) -> None:
    """Refuse a repository that leads elsewhere: what is written into it would be written there.

    Refs and packs are looked at where their directories are; the files in those are replaced, never written into.
    """
    remotes = directory / "refs" / "remotes"
    for parent in (directory, directory / "refs", remotes):
        for path in (parent, *(parent.iterdir() if parent.is_dir() and not parent.is_symlink() else ())):
            if path.is_symlink():
                raise ClientError(f"{path} is a symbolic link, which no repository has: nothing is written through it")


def _no_repository(root: Path, sentence: str) -> ClientError:
    if (root / _INCOMPLETE).is_dir():
        return ClientError(f"{root} holds an import or clone that was not finished; run that command again")
    return ClientError(sentence)


@contextmanager
def _claimed(directory: Path) -> Iterator[None]:
    """Keep other commands out of a repository that is being filled; a lock dies with its process."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ClientError(f"another command is filling {directory.parent}") from None
        yield
    finally:
        os.close(fd)


def _empty(directory: Path) -> None:
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def encode_ref(name: str) -> str:
    """Give a file name for a ref: upper case is escaped too, for file systems that ignore case.

    A name too long for a file is replaced by its hash, and stands in the file's second line.
    """
    escaped = "".join(c if c in _UNESCAPED else "".join(f"%{byte:02X}" for byte in c.encode()) for c in name)
    return escaped if len(escaped) <= _NAME_MOST else _LONG + hashlib.sha256(name.encode()).hexdigest()


def _write(path: Path, text: str) -> None:
    """Replace a small file atomically and durably."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with open_anew(fresh) as file:
        file.write(text.encode("utf-8"))
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    sync_directory(path.parent)
