"""What the names of the tests tick off: regressions (R), threats (T) and faults (F), by number.

``python -m tests.proofs`` writes ``tests/README.md``; a test keeps it current.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS / "README.md"
NUMBERS = {
    "R": ("Regressions never to repeat", [
        "stored without hashing", "skipped because another repository has it", "records served by id without rights",
        "side doors that check no rights", "private bytes with a public cache header",
        "a branch moves without compare-and-swap", "fast-forward judged from what was sent",
        "a store error read as not found", "a torn write kept", "the whole body in memory",
        "cyclic, parentless or forged commits", "empty files vanish", "directories or delta bases lost",
        "a malformed body is a 500", "objects wait for a worker", "a second branch re-sends or re-writes",
    ]),
    "T": ("Threats", [
        "claiming what one does not hold", "oracles across owners", "reading by id across repositories",
        "a signed URL used for something else", "overwriting after verification", "replay of a signed request",
        "signatures not checked", "compression bombs", "msgpack bombs", "unsafe paths", "disguised metadata names",
        "paths that collide", "id confusion", "graph attacks", "slow bodies, heads and readers", "exhaustion",
        "work before authorisation", "request smuggling", "fetching client-given URLs", "secrets told",
        "private bytes in shared caches", "private names told", "SQL injection", "job payloads",
        "open consoles and metrics", "terminal escapes and HTML", "unpinned dependencies", "quota evasion",
        "branch-name tricks", "database and store of different ages",
    ]),
    "F": ("Faults", [
        "store: bursts of 503", "store: time-out after the write", "store: a cut or flipped read",
        "store: an acknowledged put is gone", "store: a conditional write conflicts", "store: multipart parts lost",
        "store: listings lag", "store: credentials expire", "store: clock skew", "store: full", "store: slow but alive",
        "index: connection lost around COMMIT", "index: serialization failure, deadlock", "index: fail-over",
        "index: pool exhausted", "index: LISTEN connection dies", "index: statement time-out", "index: disk full",
        "index: two versions over one schema", "SIGKILL at every step", "SIGTERM during an upload", "memory limit",
        "watchdog", "loop blocked", "cancellation at every checkpoint", "an actor that crashes in a loop",
        "a worker that wakes up late", "half-open connection, resume on a second", "disconnect at every byte",
        "a proxy that cuts", "duplicated and reordered requests", "retry of a push that succeeded",
        "old client, new server", "a proxy that buffers bodies", "a slow reader of a clone",
        "a push between mark and delete", "a branch deleted under a fetch", "two collectors",
        "a collector killed between tombstone and delete", "a copy during collection",
    ]),
}  # fmt: skip
_TEST = re.compile(r"^(?:async )?def (test_\w+)", re.MULTILINE)
_NUMBER = re.compile(r"_([RTF])([1-9]\d?)(?=_)")


def tests() -> Iterator[tuple[Path, str]]:
    """Give every test function with its file."""
    for path in sorted(TESTS.rglob("test_*.py")):
        for name in _TEST.findall(path.read_text("utf-8")):
            yield path.relative_to(TESTS), name


def ticked() -> dict[str, list[tuple[Path, str]]]:
    """Give the tests of each number, such as ``R6``."""
    found: dict[str, list[tuple[Path, str]]] = {}
    for path, name in tests():
        for letter, number in dict.fromkeys(_NUMBER.findall(name)):
            found.setdefault(f"{letter}{number}", []).append((path, name))
    return found


def page() -> str:
    """Write the page."""
    found = ticked()
    out = (
        "<!-- Written by `python -m tests.proofs` from the names of the tests. -->\n\n# What the tests prove\n\n"
        "A test says in its name which numbers it ticks off and in its docstring which promise it keeps. What has no\n"
        "test yet is not built yet, or not proved. `make test` runs everything; one file alone runs with\n"
        "`.venv/bin/python -m pytest tests/…`.\n"
    )
    for letter, (title, names) in NUMBERS.items():
        out += f"\n## {title}\n\n| | | tests |\n|---|---|---|\n"
        for number, name in enumerate(names, 1):
            files = dict.fromkeys(path for path, _ in found.get(f"{letter}{number}", []))
            links = ", ".join(f"[{path.stem.removeprefix('test_')}]({path.as_posix()})" for path in files)
            out += f"| {letter}{number} | {name} | {links or 'not yet'} |\n"
    return out


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
