"""Record what this version says to the database, for the versions that come after it.

Run before a release with a new migration: ``tools/conversations.py`` writes ``tests/golden/conversations/NNNN.txt.xz`` for
the schema as it is, from the behaviour suite over PostgreSQL. Of all tests those are kept that say something the others
do not, with an answer, and that can be said again with the same answers. A file of a released schema is never written again.
"""

from __future__ import annotations

import lzma
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import psycopg  # noqa: E402 - after the path

from storage.migrate import known_migrations, migrate  # noqa: E402
from storage.postgres.database import DatabaseSettings  # noqa: E402
from storage.postgres.embedded import EmbeddedPostgres  # noqa: E402
from tests.conversations import FOLDER, Conversation, Differs, Speaker, kept, read  # noqa: E402
from tests.recording import TARGET  # noqa: E402

MOST_BYTES = 100_000
"""Of one conversation, written."""
_WEIGHT_BYTES = 2_000
"""What a conversation costs beside its size."""


def recorded(scratch: Path) -> list[Conversation]:
    """Run the behaviour suite and give what each test has said."""
    target = scratch / "recorded"
    subprocess.run(
        [sys.executable, "-m", "pytest", "tests/behaviour", "-q", "-p", "tests.recording", "-p", "no:cacheprovider",
         "-k", "postgres"],
        cwd=ROOT, check=True, env={**os.environ, TARGET: str(target), "PGTZ": "UTC"},
    )  # fmt: skip
    found = []
    for number, part in enumerate(target.read_text().split("\f\n")[:-1]):
        if len(part) <= MOST_BYTES:
            path = scratch / str(number)
            path.write_bytes(lzma.compress(part.encode()))
            found += read(path)
    return found


def truncate(url: str) -> None:
    """Empty all tables."""
    with psycopg.connect(url) as connection:
        names = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        tables = ", ".join(name for (name,) in names if name != "schema_migrations")
        connection.execute(f"TRUNCATE {tables} RESTART IDENTITY")


def holds(url: str, conversation: Conversation) -> bool:
    """Tell whether a conversation can be said again; notes what differs every time."""
    try:
        for learning in (True, True, False):
            truncate(url)
            with Speaker(url, learning=learning) as speaker:
                speaker.say(conversation)
    except (Differs, psycopg.Error) as why:
        print(f"not kept: {conversation.name}: {str(why)[-200:]!r}")
        return False
    return True


def chosen(url: str, conversations: list[Conversation]) -> list[Conversation]:
    """Choose conversations that say everything, those first that say much in few words."""
    examples = {said.has() for one in conversations for said in one.said}
    left = {
        (statement, is_vain) for statement, is_vain in examples if not is_vain or (statement, False) not in examples
    }
    taken: list[Conversation] = []
    sizes = {one.name: len(kept([one])) for one in conversations}
    waiting = [(one, {said.has() for said in one.said}) for one in conversations]
    while left and waiting:
        best = max(waiting, key=lambda pair: len(pair[1] & left) / (_WEIGHT_BYTES + sizes[pair[0].name]))
        waiting.remove(best)
        new = best[1] & left
        if not new:
            break
        if holds(url, best[0]):
            taken.append(best[0])
            left -= new
    for statement, is_vain in sorted(left):
        words = " in vain" if is_vain else ""
        print(f"said{words} in no conversation that is kept:", " ".join(statement.split())[:150])
    return sorted(taken, key=lambda one: one.name)


def main() -> None:
    """Record the schema of this checkout."""
    path = FOLDER / f"{known_migrations()[-1].version:04}.txt.xz"
    if path.exists() and "--again" not in sys.argv:
        raise SystemExit(f"{path.name} is there already: what was released stays as it is (--again while it is not)")
    with tempfile.TemporaryDirectory(prefix="conversations-") as scratch:
        Path(scratch).chmod(0o755)
        said = recorded(Path(scratch))
        server = EmbeddedPostgres(Path(scratch) / "data")
        server.start()
        try:
            with psycopg.connect(server.conninfo, autocommit=True) as connection:
                connection.execute("ALTER SYSTEM SET fsync = off")  # it is thrown away
                connection.execute("SELECT pg_reload_conf()")
            migrate(DatabaseSettings(server.conninfo))
            taken = chosen(server.conninfo, said)
        finally:
            server.destroy()
    FOLDER.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lzma.compress(kept(taken).encode()))
    print(f"{path.relative_to(ROOT)}: {len(taken)} conversations of {len(said)}, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
