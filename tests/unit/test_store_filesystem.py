"""What is particular to the store in a directory: torn files, sudden death, full disks, unmounted volumes."""

from __future__ import annotations

import errno
import hashlib
import os
import select
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from storage.environment import SeededEnvironment
from storage.errors import ObjectDamaged, ObjectMissing, StoreFull, StoreUnavailable
from storage.object_store import ReadRange
from storage.objects import filesystem
from storage.objects.durability import Durability, _SharedSync
from storage.objects.filesystem import FilesystemStore
from storage.objects.verifying import VerifyingStore
from tests.unit.writer_process import WriterProcess, batch_of

MARKER = "museworkd-store"
MOST = 8 * 1024 * 1024


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


def key_of(content: bytes) -> str:
    digest = hashlib.sha256(content).hexdigest()
    return f"objects/plain/{digest[:2]}/{digest[2:]}"


def temporary_files(root: Path) -> list[Path]:
    return list((root / "tmp").iterdir())


async def stored(store: FilesystemStore) -> dict[str, int]:
    return {found.key: found.size async for found in store.scan("")}


# ---- damaged files


@pytest.fixture
async def torn(file_store: FilesystemStore, root: Path) -> tuple[FilesystemStore, str, bytes]:
    """A store whose one object lost its second half."""
    content = bytes(range(256)) * 4000
    await file_store.put_batch([(key_of(content), content)])
    os.truncate(root / key_of(content), len(content) // 2)
    return file_store, key_of(content), content


async def test_R9_F3_a_torn_file_is_noticed_by_every_way_of_reading(torn: tuple[FilesystemStore, str, bytes]) -> None:
    store, key, content = torn
    verifying = VerifyingStore(store)
    with pytest.raises(ObjectDamaged):
        await verifying.get(key, MOST)
    with pytest.raises(ObjectDamaged):
        await store.get_ranges([ReadRange(key, len(content) - 10, 10)])
    received = b""
    with pytest.raises(ObjectDamaged):  # noqa: PT012 - on the way
        async with verifying.stream(key) as pieces:
            async for piece in pieces:
                received += piece
    assert len(received) < len(content) // 2


async def test_a_put_over_a_torn_file_mends_it(torn: tuple[FilesystemStore, str, bytes]) -> None:
    store, key, content = torn
    await store.put_batch([(key, content)])
    assert await VerifyingStore(store).get(key, MOST) == content


async def test_put_file_over_a_torn_file_mends_it(torn: tuple[FilesystemStore, str, bytes], tmp_path: Path) -> None:
    store, key, content = torn
    (tmp_path / "whole").write_bytes(content)
    await store.put_file(key, tmp_path / "whole")
    assert await VerifyingStore(store).get(key, MOST) == content


async def test_a_file_cut_while_it_is_streamed_is_damage(file_store: FilesystemStore, root: Path) -> None:
    content = bytes(1_000_000)
    await file_store.put_batch([("notes/one", content)])
    with pytest.raises(ObjectDamaged):  # noqa: PT012 - on the way
        async with file_store.stream("notes/one") as pieces:
            await anext(aiter(pieces))
            os.truncate(root / "notes/one", 400_000)
            async for _ in pieces:
                pass


async def test_writes_of_a_few_bytes_at_a_time_make_a_whole_file(
    file_store: FilesystemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: whole_write(fd, data[:7]))
    await file_store.put_batch([("notes/one", bytes(range(100)))])
    monkeypatch.undo()
    assert await file_store.get("notes/one", MOST) == bytes(range(100))


# ---- sudden death


async def check_after_death(root: Path, seed: int, acknowledged: int) -> None:
    """Whole objects only, all that was acknowledged, and a store that works on."""
    store = await FilesystemStore.open(root)
    for key in await stored(store):
        assert key_of(await store.get(key, MOST)) == key
    for number in range(acknowledged):
        for key, content in batch_of(seed, number):
            assert await store.get(key, MOST) == content
    await store.sweep_temporary(older_than_s=-60)
    assert temporary_files(root) == []
    for number in range(acknowledged + 2):
        await store.put_batch(batch_of(seed, number))
    assert len(await stored(store)) == 64 * (acknowledged + 2)


@pytest.mark.parametrize(
    ("step", "number", "durability"),
    [
        ("half", 10, "group"), ("settle", 1, "group"), ("rename", 1, "group"), ("rename", 33, "each"),
        ("settle directories", 1, "group"), ("acknowledged", 1, "each"), ("write", 64 + 5, "each"),
        ("rename", 2 * 64, "group"), ("acknowledged", 3, "group"),
    ],
)  # fmt: skip
async def test_F20_a_process_killed_at_any_step_leaves_whole_objects(
    root: Path, step: str, number: int, durability: str
) -> None:
    writer = WriterProcess(root, number, 3, durability)
    writer.kill_before(step, number)
    assert writer.acknowledged == {"acknowledged": number}.get(step, (number - 1) // 64)
    await check_after_death(root, number, writer.acknowledged)


@pytest.mark.parametrize("acknowledged", [1, 4, 9])
async def test_a_process_killed_in_full_flight_leaves_whole_objects(root: Path, acknowledged: int) -> None:
    writer = WriterProcess(root, acknowledged, 10_000, paced=False)
    while writer.acknowledged < acknowledged:
        assert writer.step()
    writer.kill()
    await check_after_death(root, acknowledged, writer.acknowledged)


async def test_two_processes_may_write_the_same_keys_at_once(root: Path) -> None:
    writers = [WriterProcess(root, 7, 12, durability, paced=False) for durability in ("group", "each")]
    assert [writer.finish() for writer in writers] == [0, 0]
    assert temporary_files(root) == []
    store = await FilesystemStore.open(root)
    for number in range(12):
        for key, content in batch_of(7, number):
            assert await store.get(key, MOST) == content
    assert len(await stored(store)) == 12 * 64


# ---- what is durable when


class Recorder:
    """Writes down, in order, what reaches the operating system."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[tuple[str, Path]] = []
        calls = {"fsync": os.fsync, "fdatasync": os.fdatasync}
        replace, unlink, write_new, syncfs = os.replace, os.unlink, filesystem.write_new, _SharedSync._call

        def synced(name: str, fd: int) -> None:
            self.events.append((name, Path(f"/proc/self/fd/{fd}").readlink()))
            calls[name](fd)

        def replaced(source: Path, target: Path) -> None:
            self.events.append(("rename", Path(target)))
            replace(source, target)

        def unlinked(path: Path) -> None:
            self.events.append(("unlink", Path(path)))
            unlink(path)

        def written(path: Path, content: bytes) -> None:
            self.events.append(("write", path))
            write_new(path, content)

        def all_synced(shared: _SharedSync) -> OSError | None:
            self.events.append(("syncfs", Path()))
            return syncfs(shared)

        monkeypatch.setattr(os, "fsync", lambda fd: synced("fsync", fd))
        monkeypatch.setattr(os, "fdatasync", lambda fd: synced("fdatasync", fd))
        monkeypatch.setattr(os, "replace", replaced)
        monkeypatch.setattr(os, "unlink", unlinked)
        monkeypatch.setattr(filesystem, "write_new", written)
        monkeypatch.setattr(_SharedSync, "_call", all_synced)

    def take(self) -> list[tuple[str, Path]]:
        taken, self.events = self.events, []
        return taken


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return Recorder(monkeypatch)


async def test_a_batch_is_synced_before_it_is_renamed_and_again_before_the_put_returns(
    root: Path, recorder: Recorder
) -> None:
    store = await FilesystemStore.open(root, Durability.GROUP)
    recorder.take()
    await store.put_batch(batch_of(1, 1))
    assert [what for what, _ in recorder.take()] == ["write"] * 64 + ["syncfs"] + ["rename"] * 64 + ["syncfs"]


async def test_each_file_is_synced_before_its_rename_and_each_directory_after(root: Path, recorder: Recorder) -> None:
    store = await FilesystemStore.open(root, Durability.EACH)
    recorder.take()
    batch = batch_of(1, 1)
    await store.put_batch(batch)
    events = recorder.take()
    assert [what for what, _ in events[: 3 * 64]] == ["write"] * 64 + ["fdatasync"] * 64 + ["rename"] * 64
    assert {path for _, path in events[:64]} == {path for _, path in events[64 : 2 * 64]}
    directories = {(root / key).parent for key, _ in batch}
    assert {what for what, _ in events[3 * 64 :]} == {"fsync"}
    assert sorted(path for _, path in events[3 * 64 :]) == sorted(directories)


@pytest.mark.parametrize("durability", list(Durability))
async def test_a_few_files_are_synced_one_by_one(root: Path, recorder: Recorder, durability: Durability) -> None:
    store = await FilesystemStore.open(root, durability)
    recorder.take()
    await store.put_batch(batch_of(1, 1)[:3])
    assert [what for what, _ in recorder.take()] == (["write"] * 3 + ["fdatasync"] * 3 + ["rename"] * 3 + ["fsync"] * 3)


async def test_a_file_handed_over_is_synced_before_and_its_directory_after(
    root: Path, recorder: Recorder, tmp_path: Path
) -> None:
    store = await FilesystemStore.open(root)
    (tmp_path / "file").write_bytes(b"content")
    key = key_of(b"content")
    recorder.take()
    await store.put_file(key, tmp_path / "file")
    assert recorder.take() == [
        ("fsync", tmp_path / "file"), ("rename", root / key), ("fsync", (root / key).parent),
    ]  # fmt: skip


async def test_a_file_handed_over_twice_is_durable_the_second_time_too(
    root: Path, recorder: Recorder, tmp_path: Path
) -> None:
    store = await FilesystemStore.open(root)
    (tmp_path / "file").write_bytes(b"content")
    key = key_of(b"content")
    await store.put_file(key, tmp_path / "file")
    recorder.take()
    await store.put_file(key, tmp_path / "file")
    assert recorder.take() == [("fsync", root / key), ("fsync", (root / key).parent)]


@pytest.mark.parametrize("made_by", ["this process", "another process"])
async def test_a_new_directory_is_durable_with_its_first_file(root: Path, recorder: Recorder, made_by: str) -> None:
    store = await FilesystemStore.open(root)
    if made_by == "another process":  # which has not come as far as its sync
        (root / "notes/deep").mkdir(parents=True)
    recorder.take()
    await store.put_batch([("notes/deep/one", b"x")])
    synced = [path for what, path in recorder.take() if what == "fsync"]
    assert set(synced) == {root, root / "notes", root / "notes/deep"}
    await store.put_batch([("notes/deep/two", b"x")])
    assert [path for what, path in recorder.take() if what == "fsync"] == [root / "notes/deep"]


async def test_a_new_store_is_durable_before_its_first_object(root: Path, recorder: Recorder, tmp_path: Path) -> None:
    await FilesystemStore.open(tmp_path / "new" / "store")
    synced = {path for what, path in recorder.take() if what == "fsync"}
    store = tmp_path / "new" / "store"
    shards = {store / "objects", store / "objects/typed", store / "objects/plain"}
    assert synced == {tmp_path, tmp_path / "new", store, store / MARKER, *shards}


class Gate:
    """Stands in for ``syncfs``: each call waits to be told how it ends."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, shared: _SharedSync) -> None:
        self.calls = 0
        self.begun = threading.Semaphore(0)
        self.waiting = threading.Semaphore(0)
        self.endings: list[OSError | None] = []
        self.ended = threading.Semaphore(0)
        monkeypatch.setattr(shared, "_call", self._call)
        wait = shared._changed.wait
        monkeypatch.setattr(shared._changed, "wait", lambda: (self.waiting.release(), wait()))

    def end(self, error: OSError | None = None) -> None:
        self.endings.append(error)
        self.ended.release()

    def _call(self) -> OSError | None:
        self.calls += 1
        self.begun.release()
        self.ended.acquire()
        return self.endings.pop(0)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def test_writers_that_wait_together_share_one_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: ThreadPoolExecutor
) -> None:
    shared = _SharedSync(tmp_path)
    gate = Gate(monkeypatch, shared)
    first = threads.submit(shared.sync, 0)
    gate.begun.acquire()
    others = [threads.submit(shared.sync, 0) for _ in range(5)]
    for _ in others:
        gate.waiting.acquire()
    gate.end()
    first.result(10)
    gate.begun.acquire()  # the call under way began before the others had come: they need another one
    assert not any(other.done() for other in others)
    gate.end()
    for other in others:
        other.result(10)
    assert gate.calls == 2


def test_a_failed_sync_fails_everybody_whose_bytes_it_may_have_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: ThreadPoolExecutor
) -> None:
    shared = _SharedSync(tmp_path)
    gate = Gate(monkeypatch, shared)
    had_written = shared.mark()
    first = threads.submit(shared.sync, shared.mark())
    gate.begun.acquire()
    second = threads.submit(shared.sync, had_written)  # its bytes may have been written back, and lost, by this call
    gate.waiting.acquire()
    gate.end(OSError(errno.EIO, "lost"))
    gate.begun.acquire()
    gate.end()
    for writer in (first, second):
        with pytest.raises(OSError, match="lost"):
            writer.result(10)
    writes_later = shared.mark()
    with pytest.raises(OSError, match="lost"):  # wrote before, comes late
        _sync_through(gate, threads, shared, had_written)
    _sync_through(gate, threads, shared, writes_later)


def _sync_through(gate: Gate, threads: ThreadPoolExecutor, shared: _SharedSync, since: int) -> None:
    done = threads.submit(shared.sync, since)
    gate.begun.acquire()
    gate.end()
    done.result(10)


async def test_a_batch_whose_sync_failed_is_not_stored(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await FilesystemStore.open(root)
    monkeypatch.setattr(_SharedSync, "_call", lambda shared: OSError(errno.EIO, "lost"))
    with pytest.raises(StoreUnavailable, match="lost") as caught:
        await store.put_batch(batch_of(1, 1))
    assert not caught.value.temporary
    assert await stored(store) == {}
    assert temporary_files(root) == []


# ---- full and broken disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    mount = tmp_path / "small"
    mount.mkdir()
    arguments = ["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "none", str(mount)]
    if os.geteuid() != 0 or subprocess.run(arguments, capture_output=True, check=False).returncode != 0:
        pytest.skip("file systems cannot be mounted here")
    yield mount
    subprocess.run(["umount", "--lazy", str(mount)], check=True)


async def test_F10_a_full_disk_is_told_as_such_and_leaves_nothing_behind(small_disk: Path) -> None:
    store = await FilesystemStore.open(small_disk / "store")
    await store.put_batch([("notes/one", bytes(1_000_000))])
    with pytest.raises(StoreFull):
        await store.put_batch([(f"notes/{n}", bytes(100_000)) for n in range(20)])
    assert temporary_files(small_disk / "store") == []
    assert await stored(store) == {"notes/one": 1_000_000}
    await store.delete(["notes/one"])
    await store.put_batch([("notes/two", bytes(1_500_000))])
    assert await store.size("notes/two") == 1_500_000


async def test_a_full_disk_leaves_a_file_handed_over_where_it_was(small_disk: Path, tmp_path: Path) -> None:
    store = await FilesystemStore.open(small_disk / "store")
    (tmp_path / "file").write_bytes(bytes(5_000_000))
    with pytest.raises(StoreFull):
        await store.put_file("notes/one", tmp_path / "file")
    assert (tmp_path / "file").stat().st_size == 5_000_000
    assert temporary_files(small_disk / "store") == []
    assert await stored(store) == {}


@pytest.mark.parametrize(
    ("number", "expected", "temporary"),
    [
        (errno.ENOSPC, StoreFull, False), (errno.EDQUOT, StoreFull, False), (errno.EIO, StoreUnavailable, False),
        (errno.EROFS, StoreUnavailable, False), (errno.EMFILE, StoreUnavailable, True),
        (errno.ESTALE, StoreUnavailable, True),
    ],
    ids=lambda value: errno.errorcode.get(value) if isinstance(value, int) and value > 1 else "",
)  # fmt: skip
async def test_an_error_of_the_system_says_whether_it_is_worth_another_try(
    file_store: FilesystemStore, root: Path, monkeypatch: pytest.MonkeyPatch, number: int, expected: type[Exception],
    temporary: bool,
) -> None:  # fmt: skip
    whole_write, written = os.write, []

    def write(fd: int, data: memoryview) -> int:
        written.append(fd)
        if len(written) == 3:
            raise OSError(number, os.strerror(number))
        return whole_write(fd, data)

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(expected) as caught:
        await file_store.put_batch([(f"notes/{n}", b"x") for n in range(5)])
    assert caught.value.temporary is temporary
    assert temporary_files(root) == []
    assert await stored(file_store) == {}


async def test_a_rename_that_fails_leaves_whole_objects_and_no_temporary_files(
    file_store: FilesystemStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, done = os.replace, []

    def replaced(source: Path, target: Path) -> None:
        if len(done) == 20:
            raise OSError(errno.EIO, "broken")
        done.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", replaced)
    with pytest.raises(StoreUnavailable):
        await file_store.put_batch(batch_of(3, 3))
    assert temporary_files(root) == []
    assert set(await stored(file_store)) == {key for key, _ in batch_of(3, 3)[:20]}


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory on another file system."""
    for candidate in (Path("/dev/shm"), Path("/run"), Path.home()):
        if candidate.is_dir() and candidate.stat().st_dev != tmp_path.stat().st_dev and os.access(candidate, os.W_OK):
            path = candidate / f"museworkd-test-{os.getpid()}"
            path.mkdir()
            yield path
            for left in path.iterdir():
                left.unlink()
            path.rmdir()
            return
    pytest.skip("there is no other file system here")


async def test_a_file_from_another_disk_is_copied_durably_and_then_removed(
    root: Path, other_disk: Path, recorder: Recorder
) -> None:
    store = await FilesystemStore.open(root)
    path = other_disk / "file"
    path.write_bytes(bytes(3_000_000))
    recorder.take()
    await store.put_file("packs/one", path)
    assert not path.exists()
    assert await store.get("packs/one", MOST) == bytes(3_000_000)
    assert temporary_files(root) == []
    events = recorder.take()
    copied = next(source for what, source in events if what == "fsync" and source.parent == root / "tmp")
    order = [
        events.index(wanted)
        for wanted in [("fsync", copied), ("fsync", root / "packs"), ("unlink", path)]
    ]  # fmt: skip
    renamed = max(at for at, event in enumerate(events) if event == ("rename", root / "packs/one"))
    assert order[0] < renamed < order[1] < order[2]


# ---- whose directory it is


async def test_a_directory_with_something_else_in_it_is_refused(root: Path) -> None:
    root.mkdir()
    (root / "thesis.txt").write_text("mine")
    with pytest.raises(StoreUnavailable, match="not empty") as caught:
        await FilesystemStore.open(root)
    assert not caught.value.temporary
    assert [path.name for path in root.iterdir()] == ["thesis.txt"]


async def test_a_file_where_the_directory_should_be_is_refused(root: Path) -> None:
    root.write_text("a file")
    with pytest.raises(StoreUnavailable):
        await FilesystemStore.open(root)


async def test_a_store_interrupted_while_it_was_made_is_completed(root: Path) -> None:
    root.mkdir()
    (root / "tmp").mkdir()
    (root / MARKER).touch()
    (root / "objects").mkdir()
    store = await FilesystemStore.open(root)
    await store.put_batch(batch_of(1, 1))
    assert len(await stored(store)) == 64


async def test_several_may_open_a_new_store_at_once(root: Path) -> None:
    stores: list[FilesystemStore] = []

    async def open_one() -> None:
        stores.append(await FilesystemStore.open(root))

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(open_one)
    for number, store in enumerate(stores):
        await store.put_batch(batch_of(number, 0))
    assert len(await stored(stores[0])) == 6 * 64


async def test_contents_outlive_the_store_object(root: Path) -> None:
    await (await FilesystemStore.open(root)).put_batch([("notes/one", b"x")])
    assert await (await FilesystemStore.open(root)).get("notes/one", MOST) == b"x"


@pytest.mark.parametrize("left", ["nothing", "an empty mount point", "a store without its marker"])
async def test_an_unmounted_volume_is_unavailable_and_nothing_on_it_is_missing(
    file_store: FilesystemStore, root: Path, tmp_path: Path, left: str
) -> None:
    await file_store.put_batch([("notes/one", b"x")])
    (tmp_path / "file").write_bytes(b"x")
    if left == "a store without its marker":
        (root / MARKER).rename(tmp_path / MARKER)
        (root / "notes/one").rename(tmp_path / "one")
    else:
        root.rename(tmp_path / "away")
    if left == "an empty mount point":
        root.mkdir()

    async def streamed() -> None:
        async with file_store.stream("notes/one"):
            pass

    async def scanned() -> None:
        async for _ in file_store.scan("notes"):
            pass

    calls = [
        lambda: file_store.get("notes/one", MOST),
        lambda: file_store.get_ranges([ReadRange("notes/one", 0, 1)]),
        lambda: file_store.size("notes/one"),
        lambda: file_store.delete(["notes/one"]),
        lambda: file_store.put_batch([("other/one", b"x")]),
        lambda: file_store.put_file("other/two", tmp_path / "file"),
        streamed,
        scanned,
    ]
    for call in calls:
        with pytest.raises(StoreUnavailable):
            await call()
    assert (tmp_path / "file").exists()
    if left != "nothing":
        assert not list(root.glob("other/*"))


async def test_a_volume_that_comes_back_is_read_again(file_store: FilesystemStore, root: Path, tmp_path: Path) -> None:
    await file_store.put_batch([("notes/one", b"x")])
    root.rename(tmp_path / "away")
    with pytest.raises(StoreUnavailable):
        await file_store.get("notes/one", MOST)
    (tmp_path / "away").rename(root)
    assert await file_store.get("notes/one", MOST) == b"x"
    with pytest.raises(ObjectMissing):
        await file_store.get("notes/two", MOST)


async def test_the_stores_own_files_are_not_listed(file_store: FilesystemStore, root: Path) -> None:
    (root / "tmp" / "1-abc").write_bytes(b"left over")
    await file_store.put_batch([("notes/one", b"x")])
    assert await stored(file_store) == {"notes/one": 1}


async def test_only_old_temporary_files_are_swept(root: Path) -> None:
    environment = SeededEnvironment(1)
    store = await FilesystemStore.open(root, environment=environment)
    now = environment.now().timestamp()
    for name, age_s in (("old", 1001), ("older", 90_000), ("young", 999), ("new", 0)):
        (root / "tmp" / name).write_bytes(b"x")
        os.utime(root / "tmp" / name, (now - age_s, now - age_s))
    assert await store.sweep_temporary(older_than_s=1000) == 2
    assert {path.name for path in temporary_files(root)} == {"young", "new"}


# ---- reading


@pytest.mark.parametrize(
    ("ranges", "reads"),
    [
        ([(0, 100), (100, 100), (200, 100)], 1),
        ([(200, 100), (0, 100), (100, 100)], 1),
        ([(0, 5000), (1000, 10), (4000, 5000)], 1),
        ([(0, 100), (16_000, 100)], 1),
        ([(0, 100), (20_000, 100)], 2),
        ([(at, 1_000_000) for at in range(0, 6_000_000, 1_000_000)], 2),
        ([(0, 5_000_000)], 1),
        ([], 0),
    ],
)
async def test_neighbouring_ranges_are_read_at_once(
    file_store: FilesystemStore, monkeypatch: pytest.MonkeyPatch, ranges: list[tuple[int, int]], reads: int
) -> None:
    content = os.urandom(6_000_000)
    await file_store.put_batch([("packs/one", content)])
    pread, sizes = os.pread, []

    def counted(fd: int, size: int, offset: int) -> bytes:
        sizes.append(size)
        return pread(fd, size, offset)

    monkeypatch.setattr(os, "pread", counted)
    found = await file_store.get_ranges([ReadRange("packs/one", offset, size) for offset, size in ranges])
    assert found == [content[offset : offset + size] for offset, size in ranges]
    assert len(sizes) == reads
    assert all(size <= 5_000_000 for size in sizes)


# ---- a disk that hangs


@pytest.fixture
async def hanging(file_store: FilesystemStore, root: Path) -> AsyncIterator[Path]:
    """The path of ``notes/hanging``, which nobody can open before somebody opens it for writing."""
    await file_store.put_batch([("notes/one", b"x")])
    path = root / "notes/hanging"
    os.mkfifo(path)
    return path


async def test_a_call_on_a_hanging_disk_can_be_cancelled(file_store: FilesystemStore, hanging: Path) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(file_store.get, "notes/hanging", MOST)
        await wait_all_tasks_blocked()
        assert file_store.statistics().running == 1
        nursery.cancel_scope.cancel()
    assert await file_store.get("notes/one", MOST) == b"x"
    os.close(os.open(hanging, os.O_WRONLY))


async def test_a_file_opened_for_a_caller_who_has_gone_is_closed(file_store: FilesystemStore, hanging: Path) -> None:
    async def read() -> None:
        async with file_store.stream("notes/hanging"):
            pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    fd = os.open(hanging, os.O_WRONLY)  # lets the other end open
    poll = select.poll()
    poll.register(fd, 0)
    closed = await trio.to_thread.run_sync(poll.poll, 10_000)
    os.close(fd)
    assert closed == [(fd, select.POLLERR)]
