"""Running git on a repository that somebody else may have prepared.

A repository's own configuration can name programs: for transports, hooks, the file-system monitor, pagers, filters.
Only plumbing that reads is run here, and nothing that such a configuration could start is left a way:

* every inherited ``GIT_*`` variable is dropped, so that neither a hook's ``GIT_DIR`` nor anything else redirects it;
* no transport is allowed at all, and git does not fetch what a partial clone lacks;
* replacement objects and grafts, which would show another history than the one that is hashed, are off;
* settings that name programs are overridden on the command line, which outranks the repository;
* output goes to pipes, so that no pager is begun, and names of refs and objects travel by stdin, never as arguments.

Whose repository it is, git itself checks while it looks for it (``safe.directory``). A ``--git-dir`` that is given
switches that check off: :func:`find_repository` looks first, and everything else is told what it found.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import IO

from museworkd.client.errors import ClientError
from museworkd.client.transport import printable

_SENTENCE_MOST = 400
_ENVIRONMENT = {
    "GIT_ALLOW_PROTOCOL": "none",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_GRAFT_FILE": os.devnull,
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_PAGER": "cat",
    "GIT_TERMINAL_PROMPT": "0",
    "LC_ALL": "C",
}
"""``GIT_ALLOW_PROTOCOL`` outranks every ``protocol.*.allow`` of a configuration; a protocol ``none`` does not exist."""
_OVERRIDDEN = (
    "core.hooksPath=/dev/null", "core.fsmonitor=false", "core.pager=cat", "core.sshCommand=false", "core.askPass=false",
    "core.gitProxy=false", "core.alternateRefsCommand=false", "core.editor=false", "credential.helper=",
    "diff.external=false", "gpg.program=false", "protocol.allow=never", "uploadpack.packObjectsHook=",
    "maintenance.auto=false", "gc.auto=0",
)  # fmt: skip
_TRUE = {"", "true", "yes", "on", "1"}


def find_repository(source: Path) -> Path:
    """Give the git directory of a repository or work tree.

    Raises:
        ClientError: there is none, git does not trust its owner, or it is a clone that fetches what it lacks.
    """
    done = _run(["-C", str(source.absolute()), "rev-parse", "--absolute-git-dir"])
    if done.returncode != 0:
        said = sentence(done.stderr)
        if "not a git repository" in said:
            raise ClientError(f"{source} is not a git repository")
        raise ClientError(f"git does not read {source}: {said}")
    directory = Path(os.fsdecode(done.stdout.removesuffix(b"\n")))
    _refuse_partial(source, directory)
    return directory


def run_git(directory: Path, *arguments: str, check: bool = True, stdin: IO[bytes] | None = None) -> bytes | None:
    """Run a git command and give its output; ``None`` when it fails and ``check`` is off."""
    done = _run(_at(directory, arguments), stdin)
    if done.returncode == 0:
        return done.stdout
    if check:
        raise ClientError(f"git {arguments[0]} failed: {sentence(done.stderr)}")
    return None


def start_git(directory: Path, *arguments: str, stdin: IO[bytes] | int) -> subprocess.Popen[bytes]:
    """Start a git command whose output is read as it comes; what it lacks shows in the output, not on a terminal."""
    return subprocess.Popen(
        _command(_at(directory, arguments)), stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env=_environment(),
    )  # fmt: skip


def make_repository(directory: Path, object_format: str) -> None:
    """Make an empty bare repository without hooks or anything else of a template."""
    name = str(directory.absolute())
    done = _run(["init", "--quiet", "--bare", "--template=", f"--object-format={object_format}", "--", name])
    if done.returncode != 0:
        raise ClientError(f"git init failed: {sentence(done.stderr)}")


def sentence(output: bytes) -> str:
    """Put what git says on one line that is safe for a terminal."""
    return printable(" ".join(output.decode(errors="backslashreplace").split()))[:_SENTENCE_MOST]


def _refuse_partial(source: Path, directory: Path) -> None:
    """Refuse a repository that leaves objects to a remote: to read it, git would have to run what it names."""
    pattern = r"^(extensions\.partialclone|remote\..*\.promisor)$"
    out = run_git(directory, "config", "--null", "--get-regexp", pattern, check=False) or b""
    for entry in out.split(b"\0")[:-1]:
        key, _, value = entry.decode(errors="replace").partition("\n")
        if key == "extensions.partialclone" or value.lower() in _TRUE:
            raise ClientError(f"{source} is a partial clone, whose objects are elsewhere; import a full clone of it")


def _at(directory: Path, arguments: tuple[str, ...]) -> list[str]:
    return ["-C", str(directory), f"--git-dir={directory}", *arguments]


def _command(arguments: list[str]) -> list[str]:
    return ["git", "--no-pager", *(part for setting in _OVERRIDDEN for part in ("-c", setting)), *arguments]


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return kept | _ENVIRONMENT


def _run(arguments: list[str], stdin: IO[bytes] | None = None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        _command(arguments), capture_output=True, check=False, env=_environment(),
        stdin=stdin if stdin is not None else subprocess.DEVNULL,
    )  # fmt: skip
