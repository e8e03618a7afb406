"""A server that means ill: what it sends is counted before it is kept, and proved before it counts."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from museworkd.client.errors import ClientError, IntegrityError, TransferError
from museworkd.client.fetch import FetchReport, fetch
from museworkd.client.fetch import clone as client_clone
from museworkd.client.pack_intake import WHOLE_BYTES
from museworkd.client.progress import Quiet
from museworkd.client.repository import LocalRepository
from museworkd.client.transport import ANSWER_BYTES, Api, Remote
from museworkd.client.verify import verify
from tests.containers import COMMITS, OBJECTS, OBJECTS_ZSTD, SNAPSHOTS, TAGS, mpack, pack, record_section
from tests.muse import Push
from tests.scripted import Scripted, scripted

MIB = 1024 * 1024
MISSING = "sha256:" + "1" * 64


@pytest.fixture
async def hostile():
    async with scripted() as server:
        yield server


def history(commits: int = 1) -> Push:
    made = Push()
    for number in range(commits):
        made.commit({"a.txt": b"hello", "b.txt": b"world", "n": str(number).encode()}, message=f"m{number}")
    return made


def sections(made: Push, **changes: bytes) -> list[tuple[int, bytes]]:
    return [
        (OBJECTS, changes.get("objects", pack(made.blobs.items()))),
        (SNAPSHOTS, record_section(made.snapshots)), (COMMITS, record_section(made.commits)),
    ]  # fmt: skip


def refs(server: Scripted, head: str, **more: object) -> None:
    server.say({"domain": "code", "default_branch": "main", "branch_heads": {"main": head}, **more})


def offer(server: Scripted, data: bytes, body: object = None, **more: object) -> None:
    """Answer a fetch with a pack, and its download."""
    server.say({
        "mpack_id": "sha256:" + hashlib.sha256(data).hexdigest(), "mpack_url": f"{server.url}/pack",
        "size_bytes": len(data), "commit_count": 1, "object_count": 2, **more,
    })  # fmt: skip
    server.say(data if body is None else body)


async def clone(server: Scripted, target: Path, **options: int) -> FetchReport:
    return await client_clone(Remote(f"{server.url}/a/b", None), target, Quiet(), **options)


async def cloned(server: Scripted, target: Path, head: str, data: bytes, **more: object) -> FetchReport:
    refs(server, head)
    refs(server, head)
    offer(server, data, **more)
    return await clone(server, target)


async def proved(target: Path) -> int:
    with LocalRepository.find(target) as repository:
        report = await verify(repository, Quiet())
        assert report.problems == []
        return report.blobs


def endless() -> Iterator[bytes]:
    return itertools.repeat(b" " * 65536)


async def test_T8_an_encoded_answer_is_refused_unread(hostile, tmp_path) -> None:
    hostile.say(gzip.compress(b" " * (64 * MIB)), content_encoding="gzip", content_type="application/json")
    tracemalloc.start()
    try:
        with pytest.raises(IntegrityError, match="encoded"):
            await clone(hostile, tmp_path / "here")
        assert tracemalloc.get_traced_memory()[1] < 8 * MIB
    finally:
        tracemalloc.stop()
    assert hostile.heads[0][1]["accept-encoding"] == "identity"


@pytest.mark.parametrize("status", [200, 500])
async def test_T8_an_endless_answer_is_read_to_its_limit(hostile, tmp_path, status: int) -> None:
    hostile.say(endless(), status=status, content_type="application/json")
    with pytest.raises(ClientError, match="longer than" if status == 200 else "the server answered 500"):
        await clone(hostile, tmp_path / "here")
    assert hostile.streamed_bytes < ANSWER_BYTES + 16 * MIB
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("status", [200, 404])
async def test_T8_an_endless_download_is_read_to_its_limit(hostile, tmp_path, monkeypatch, status: int) -> None:
    monkeypatch.setattr("museworkd.client.fetch.ASKED_AGAIN", 0)
    made = history()
    data = mpack(sections(made))
    refs(hostile, made.head)
    refs(hostile, made.head)
    offer(hostile, data, body=itertools.chain([data], endless()))
    hostile.answers[-1] = (status, *hostile.answers[-1][1:])
    with pytest.raises(ClientError, match="sent more" if status == 200 else "the server answered 404"):
        await clone(hostile, tmp_path / "here")
    assert hostile.streamed_bytes < 16 * MIB
    assert not (tmp_path / "here").exists()


async def test_a_download_that_is_cut_goes_on_and_one_that_begins_anew_for_ever_is_given_up(
    hostile, tmp_path, monkeypatch
) -> None:
    """F30: the last piece of each answer is what the client has not had; a server without ranges brings no headway."""
    monkeypatch.setattr("museworkd.client.fetch.RESUME_PAUSE_S", 0)
    made = history()
    data = mpack(sections(made))
    third = len(data) // 3
    for _ in range(2):
        refs(hostile, made.head)
    offer(hostile, data, iter([data[:third]]))
    hostile.say(data[third:], status=206)
    await clone(hostile, tmp_path / "here")
    assert hostile.heads[-1][1]["range"] == f"bytes={third}-"
    assert await proved(tmp_path / "here") == len(made.blobs)
    for _ in range(2):
        refs(hostile, made.head)
    offer(hostile, data, iter([data[:third]]))
    for number in range(50):
        hostile.say(iter([data[: third - number % 2]]))
    with pytest.raises(TransferError):
        await clone(hostile, tmp_path / "there")
    assert len(hostile.answers) > 40


async def test_T8_a_download_that_no_disk_holds_is_not_begun(hostile, tmp_path) -> None:
    made = history()
    with pytest.raises(ClientError, match="has room for"):
        await cloned(hostile, tmp_path / "here", made.head, mpack(sections(made)), size_bytes=1 << 60)
    assert len(hostile.heads) == 3


def zeros(size: int, stated: bool = True) -> tuple[str, bytes]:
    """A compressed object of many zero bytes, and its id."""
    hasher = hashlib.sha256(b"blob %d\0" % size)
    compressor = zstandard.ZstdCompressor().compressobj(size if stated else -1)
    out = b""
    for _ in range(size // MIB):
        hasher.update(bytes(MIB))
        out += compressor.compress(bytes(MIB))
    return "sha256:" + hasher.hexdigest(), out + compressor.flush()


@pytest.mark.parametrize("stated", [True, False])
async def test_T8_a_large_content_is_inflated_to_disk(hostile, tmp_path, stated: bool) -> None:
    size = 48 * MIB
    oid, compressed = zeros(size, stated)
    made = history()
    data = mpack([*sections(made), (OBJECTS_ZSTD, pack([(oid, compressed)]))])
    tracemalloc.start()
    try:
        await cloned(hostile, tmp_path / "here", made.head, data)
        assert tracemalloc.get_traced_memory()[1] < size // 2
    finally:
        tracemalloc.stop()
    assert await proved(tmp_path / "here") == len(made.blobs) + 1


@pytest.mark.parametrize("size", [2 * MIB, WHOLE_BYTES + MIB])
async def test_T8_what_inflates_to_something_else_leaves_nothing(hostile, tmp_path, size: int) -> None:
    made = history()
    _, compressed = zeros(size)
    data = mpack([*sections(made), (OBJECTS_ZSTD, pack([(MISSING, compressed)]))])
    await cloned(hostile, tmp_path / "here", made.head, mpack(sections(made)))
    made.commit({"more": b"more"})
    refs(hostile, made.head)
    offer(hostile, data)
    with LocalRepository.find(tmp_path / "here") as repository:
        before = sorted(repository.packs.iterdir())
        with pytest.raises(IntegrityError, match="does not hash to its id"):
            await fetch(repository, Remote(f"{hostile.url}/a/b", None), Quiet())
        assert sorted(repository.packs.iterdir()) == before


async def test_T8_what_inflates_to_more_than_there_is_room_for_is_refused(hostile, tmp_path, monkeypatch) -> None:
    made = history()
    data = mpack([*sections(made), (OBJECTS_ZSTD, pack([zeros(8 * MIB)]))])
    monkeypatch.setattr("museworkd.client.pack_intake.room_in", lambda _: 4 * MIB)
    with pytest.raises(IntegrityError, match="bomb"):
        await cloned(hostile, tmp_path / "here", made.head, data)


async def test_objects_of_both_sections_are_kept(hostile, tmp_path) -> None:
    made = history()
    (one, raw), *rest = made.blobs.items()
    compressed = [(oid, zstandard.ZstdCompressor().compress(content)) for oid, content in rest]
    data = mpack([(OBJECTS_ZSTD, pack(compressed)), *sections(made, objects=pack([(one, raw)]))])
    report = await cloned(hostile, tmp_path / "here", made.head, data)
    assert report.blobs == len(made.blobs)
    assert await proved(tmp_path / "here") == len(made.blobs)


async def test_a_history_that_is_cut_unasked_is_refused(hostile, tmp_path) -> None:
    made = history(2)
    del made.commits[0], made.snapshots[0]
    with pytest.raises(IntegrityError, match="cut, which was not asked for"):
        await cloned(hostile, tmp_path / "here", made.head, mpack(sections(made)), shallow=[made.head])
    assert not (tmp_path / "here").exists()


async def test_a_shallow_repository_is_not_left_so_when_all_is_asked_for(hostile, tmp_path) -> None:
    made = history(3)
    cut = Push(commits=made.commits[2:], snapshots=made.snapshots[2:], blobs=made.blobs)
    refs(hostile, made.head)
    refs(hostile, made.head)
    offer(hostile, mpack(sections(cut)), shallow=[made.head])
    assert (await clone(hostile, tmp_path / "here", depth=1)).shallow == 1
    refs(hostile, made.head)
    offer(hostile, mpack(sections(cut)))
    with LocalRepository.find(tmp_path / "here") as repository:
        with pytest.raises(IntegrityError):
            await fetch(repository, Remote(f"{hostile.url}/a/b", None), Quiet())
        assert len(repository.index.shallow()) == 1


async def test_a_cut_names_only_what_came(hostile, tmp_path) -> None:
    made = history(1)
    refs(hostile, made.head)
    refs(hostile, made.head)
    offer(hostile, mpack(sections(made)), shallow=[MISSING])
    assert (await clone(hostile, tmp_path / "here", depth=1)).shallow == 0


def tag(name: str, commit: str) -> dict:
    return {"tag_id": "1", "repo_id": "r", "commit_id": commit, "tag": name, "created_at": ""}


async def test_tags_are_set_with_the_branches(hostile, tmp_path) -> None:
    made = history()
    tags = record_section([tag("v1", made.head)])
    await cloned(hostile, tmp_path / "here", made.head, mpack([*sections(made), (TAGS, tags)]))
    with LocalRepository.find(tmp_path / "here") as repository:
        assert list(repository.tags()) == ["v1"]


@pytest.mark.parametrize(("name", "commit"), [("v1", MISSING), ("v1\n", None), ("\x1b[2J", None), ("x" * 2000, None)])
async def test_a_tag_that_is_wrong_is_damage_and_sets_nothing(hostile, tmp_path, name: str, commit: str | None) -> None:
    made = history()
    await cloned(hostile, tmp_path / "here", made.head, mpack(sections(made)))
    first = made.head
    made.commit({"more": b"more"})
    tags = record_section([tag("good", made.head), tag(name, commit or made.head)])
    refs(hostile, made.head)
    offer(hostile, mpack([*sections(made), (TAGS, tags)]))
    with LocalRepository.find(tmp_path / "here") as repository:
        with pytest.raises(IntegrityError, match="tag") as caught:
            await fetch(repository, Remote(f"{hostile.url}/a/b", None), Quiet())
        assert str(caught.value).isprintable()
        assert repository.tags() == {}
        assert [head.hex() for head in repository.remote_branches("origin").values()] == [first.removeprefix("sha256:")]
        assert len(repository.index.commit_ids()) == 1


@pytest.mark.parametrize(
    "wrong",
    [{"branch_heads": {"": MISSING}}, {"branch_heads": {"\x1b[2J": MISSING}}, {"branch_heads": {"../x": MISSING}},
     {"branch_heads": {"a": "\x1b[2J"}}, {"default_branch": ""}, {"default_branch": "a\nb"}, {"default_branch": 7},
     {"domain": "\x1b[2J"}, {"domain": ""}, {"domain": []}, {"branch_heads": []}],
)  # fmt: skip
async def test_T26_odd_names_of_a_server_are_refused_with_a_sentence(hostile, tmp_path, wrong: dict) -> None:
    refs(hostile, MISSING, **wrong)
    refs(hostile, MISSING, **wrong)
    with pytest.raises(ClientError) as caught:
        await clone(hostile, tmp_path / "here")
    assert str(caught.value).isprintable()
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("url", ["http://[", "file:///etc/passwd", "nothing", "http://\x1b[2J/", "http://h:99999/"])
async def test_an_odd_url_of_a_server_is_an_error_with_a_sentence(hostile, tmp_path, url: str) -> None:
    made = history()
    with pytest.raises(ClientError) as caught:
        await cloned(hostile, tmp_path / "here", made.head, mpack(sections(made)), mpack_url=url)
    assert str(caught.value).isprintable()


async def test_counts_that_are_none_are_no_remark(hostile, tmp_path) -> None:
    made = history()
    await cloned(hostile, tmp_path / "here", made.head, mpack(sections(made)), commit_count="\x1b[2J", object_count=-1)
    assert await proved(tmp_path / "here") == len(made.blobs)


@pytest.mark.parametrize("host", ["example.org", "10.0.0.7", "[2001:db8::1]", "127.0.0.1.example.org", "localhost.org"])
def test_a_token_is_not_sent_in_plain_text_to_another_machine(host: str, monkeypatch) -> None:
    monkeypatch.delenv("MUSEWORKD_PLAIN_HTTP_HOSTS", raising=False)
    with pytest.raises(ClientError, match="not sent over plain http") as caught:
        Remote(f"http://{host}:1337/a/b", "secret")
    assert "secret" not in str(caught.value)
    Remote(f"https://{host}/a/b", "secret")
    Remote(f"http://{host}/a/b", None)
    monkeypatch.setenv("MUSEWORKD_PLAIN_HTTP_HOSTS", f"other, {host.strip('[]').upper()}")
    Remote(f"http://{host}/a/b", "secret")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "LOCALHOST", "[::1]"])
def test_a_token_is_sent_in_plain_text_on_this_machine(host: str) -> None:
    Remote(f"http://{host}:1337/a/b", "secret")


@pytest.mark.parametrize("token", ["a\nb: c", "t\u00f6ken", "a\x00"])
def test_a_token_that_is_none_is_not_repeated(token: str) -> None:
    with pytest.raises(ClientError) as caught:
        Remote("http://127.0.0.1/a/b", token)
    assert token not in str(caught.value)


async def test_a_redirect_takes_no_token_elsewhere(hostile) -> None:
    hostile.say(b"", status=302, location="http://127.0.0.1:9/")
    async with Api(Remote(f"{hostile.url}/a/b", "secret")) as api:
        with pytest.raises(ClientError, match="302"):
            await api.get("refs")


def planted(tmp_path: Path) -> Path:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").write_text("mine")
    return outside


@pytest.mark.parametrize("link", [".muse/packs", ".muse/refs/remotes", ".muse/refs/remotes/origin", ".muse/refs/tags"])
async def test_links_planted_in_a_repository_are_not_written_through(hostile, tmp_path, link: str) -> None:
    made = history()
    outside = planted(tmp_path)
    await cloned(hostile, tmp_path / "here", made.head, mpack(sections(made)))
    place = tmp_path / "here" / link
    place.rename(tmp_path / "moved")
    place.symlink_to(outside)
    with pytest.raises(ClientError, match="symbolic link"), LocalRepository.find(tmp_path / "here"):
        pass
    assert [path.name for path in outside.iterdir()] == ["mine"]


async def test_a_file_that_is_a_link_gives_way(hostile, tmp_path, monkeypatch) -> None:
    made = history()
    outside = planted(tmp_path)
    monkeypatch.setattr("os.getpid", lambda: 77)
    await cloned(hostile, tmp_path / "here", made.head, mpack(sections(made)))
    muse = tmp_path / "here" / ".muse"
    origin = muse / "refs" / "remotes" / "origin"
    links = [muse / "packs" / ".new-77", muse / "refs" / "tags" / ".v1.77", origin / ".main.77"]
    with LocalRepository.find(tmp_path / "here") as repository:
        for link in [*links, muse / ".incoming-77"]:
            link.symlink_to(outside / "mine")
        made.commit({"more": b"more"})
        refs(hostile, made.head)
        offer(hostile, mpack([*sections(made), (TAGS, record_section([tag("v1", made.head)]))]))
        await fetch(repository, Remote(f"{hostile.url}/a/b", None), Quiet())
    assert (outside / "mine").read_text() == "mine"


async def test_a_link_in_the_place_of_an_unfinished_repository_is_not_emptied(hostile, tmp_path) -> None:
    outside = planted(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / ".muse.incomplete").symlink_to(outside)
    with pytest.raises(ClientError, match="in the way"), LocalRepository.fresh(tmp_path / "here"):
        pass
    assert (outside / "mine").read_text() == "mine"
