"""A local repository that is damaged: every command says so in a sentence, and ``verify`` looks at everything."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from pathlib import Path

import pytest

from actors.spool import SpoolDirectory
from museworkd.client.checkout import checkout
from museworkd.client.errors import ClientError
from museworkd.client.outgoing import find_outgoing
from museworkd.client.progress import Meter, Quiet
from museworkd.client.repository import LocalRepository
from museworkd.client.verify import verify
from storage.errors import StorageError
from tests.git_histories import ordinary
from tests.servers import museworkd
from wire.errors import Refusal

NOWHERE = "http://127.0.0.1:9/ada/engine"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository to copy: imported once for all tests here."""
    directory = tmp_path_factory.mktemp("sound")
    museworkd("git-import", str(ordinary(directory / "git", commits=30)), str(directory / "here"))
    return directory / "here"


@pytest.fixture
def here(sound: Path, work: Path) -> Path:
    return Path(shutil.copytree(sound, work / "here"))


async def prepare(repository: LocalRepository, _: Meter) -> None:
    """What a push does before it sends."""
    async with SpoolDirectory(repository.root / "spool", "spool") as spools:
        await find_outgoing(repository, repository.branches()["main"], set(), spools)


def problems(here: Path) -> list[str]:
    return json.loads(museworkd("verify", str(here), "--json", check=3).stdout)["problems"]


def said(done) -> str:
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize("damage", ["header", "nothing", "gone"])
def test_an_index_that_is_none_is_said_by_every_command(here: Path, damage: str) -> None:
    path = here / ".muse" / "index.sqlite"
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(b"x" * path.stat().st_size if damage == "header" else b"x")
    for command in (["verify", str(here)], ["push", NOWHERE, "-C", str(here)], ["fetch", NOWHERE, "-C", str(here)]):
        line = said(museworkd(*command, check=3))
        assert line.startswith("error: the repository's index ")
        assert line.endswith("make a fresh clone")


def test_an_index_with_damaged_pages_is_found_and_never_gives_a_traceback(here: Path) -> None:
    path = here / ".muse" / "index.sqlite"
    content = bytearray(path.read_bytes())
    for at in range(4096, len(content), 4096):
        content[at : at + 8] = b"\xff" * 8
    path.write_bytes(content)
    assert "damaged" in said(museworkd("verify", str(here), check=3))
    said(museworkd("push", NOWHERE, "-C", str(here), check=3))


@pytest.mark.parametrize("seed", range(40))
async def test_whatever_is_damaged_in_the_index_is_an_error_with_a_sentence(here: Path, seed: int) -> None:
    rng = random.Random(seed)
    path = here / ".muse" / "index.sqlite"
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 3, 30])):
        at = rng.randrange(100, len(content))
        size = rng.choice([1, 4, 60, 5000])
        content[at : at + size] = rng.choice([bytes(size), rng.randbytes(size)])[: len(content) - at]
    path.write_bytes(content)
    for look in (verify, checkout, prepare):
        with contextlib.suppress(ClientError, Refusal, StorageError), LocalRepository.find(here) as repository:
            await look(repository, Quiet())


@pytest.mark.parametrize(
    ("file", "content"),
    [("remotes.json", "[]"), ("remotes.json", '"x"'), ("remotes.json", '{"origin": {"url": 1}}'),
     ("remotes.json", "[" * 100_000), ("remotes.json", "\xff"), ("HEAD", "\xff"), ("repo.json", "[]"),
     ("refs/heads/main", "main")],
)  # fmt: skip
def test_a_file_of_a_wrong_shape_is_said(here: Path, file: str, content: str) -> None:
    (here / ".muse" / file).write_bytes(content.encode("latin-1"))
    remote = [] if file == "remotes.json" else [NOWHERE]
    line = said(museworkd("push", *remote, "-C", str(here), check=3))
    assert line.startswith("error: ")
    assert "damaged" in line


def test_a_head_that_names_no_branch_is_found(here: Path) -> None:
    (here / ".muse" / "HEAD").write_text("nothing\n")
    assert problems(here) == ["HEAD names the branch 'nothing', which does not exist"]


def test_a_wrong_place_in_the_index_is_found(here: Path) -> None:
    with LocalRepository.find(here) as repository, repository.index.transaction():
        repository.index._db.rows("UPDATE blobs SET at = at + 1 WHERE id = (SELECT min(id) FROM blobs)")
    assert problems(here)[0].startswith("the index gives a wrong place for blob ")


def test_a_blob_that_is_in_no_pack_is_found(here: Path) -> None:
    with LocalRepository.find(here) as repository, repository.index.transaction():
        repository.index._db.rows("UPDATE blobs SET pack = 99 WHERE id = (SELECT min(id) FROM blobs)")
        repository.index._db.rows("INSERT INTO blobs SELECT randomblob(32), 1, 5, 5")
    found = problems(here)
    assert any("lie in packs it does not know" in problem for problem in found)
    assert any("where the index says it is" in problem for problem in found)


def test_only_what_is_read_is_written(here: Path) -> None:
    assert {path.suffix for path in (here / ".muse" / "packs").iterdir()} == {".mpack"}


async def test_a_work_tree_that_differs_is_told_apart_from_damage(here: Path) -> None:
    with LocalRepository.find(here) as repository:
        files = await checkout(repository, Quiet())
    whole = json.loads(museworkd("verify", str(here), "--json").stdout)
    assert (whole["work_tree_files"], whole["work_tree_change_count"]) == (files, 0)

    first, second, third, *_ = sorted(path for path in here.rglob("*.py"))
    first.write_bytes(b"changed")
    second.unlink()
    third.unlink()
    third.symlink_to(here / ".muse" / "HEAD")
    (here / "untracked").write_text("mine")
    done = museworkd("verify", str(here), check=1)
    assert "all sound; the work tree differs in 3 paths" in done.stdout
    assert sorted(line.split(" ", 4)[3] for line in done.stderr.splitlines() if line.startswith("work tree")) == sorted(
        ascii(path.relative_to(here).as_posix()) for path in (first, second, third)
    )

    (here / ".muse" / "HEAD").write_text("nothing\n")
    assert problems(here)  # damage of the repository comes first: exit code 3
