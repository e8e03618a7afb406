"""What is an S3-compatible store's own: what its refusals mean, what is tried again, how many requests are made."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio

from storage.environment import SeededEnvironment, SystemEnvironment
from storage.errors import ObjectDamaged, ObjectMissing, StoreFull, StoreUnavailable
from storage.object_store import ReadRange
from storage.objects.retrying import RetryingStore, RetryPolicy
from storage.objects.s3 import S3Store
from storage.objects.s3_credentials import LOOK_AGAIN_S, CredentialSource
from storage.objects.s3_reads import COALESCE_GAP_BYTES, COALESCE_MOST_BYTES
from storage.objects.verifying import VerifyingStore
from tests.behaviour.test_object_store import key_of, listed, operations, put, read_stream
from tests.s3_faults import Asked, Fault, FaultyS3, always, faulty_s3, once
from tests.s3_server import S3Server
from tests.s3_stores import make_store

MIB = 1024 * 1024
MOST = 16 * MIB
REFUSED_PORT = "http://127.0.0.1:9"


def anything(asked: Asked) -> bool:
    return True


def through(proxy: FaultyS3, **settings: object) -> S3Store:
    return make_store(proxy.as_server, **settings)


# ---- which refusals mean what


async def test_no_operation_takes_a_bucket_that_is_not_there_for_a_missing_key(
    s3_server: S3Server, tmp_path: Path
) -> None:
    """Regression R8: every operation says that the bucket is not there, and none is worth trying again."""
    store = make_store(s3_server, "no-such-bucket-anywhere")
    (tmp_path / "file").write_bytes(b"x")
    for name, call in operations(store, "notes/one", tmp_path / "file").items():
        if name.endswith("of nothing"):
            continue
        with pytest.raises(StoreUnavailable, match="bucket does not exist") as caught:
            await call()
        assert not caught.value.temporary, name
    with pytest.raises(StoreUnavailable, match="bucket does not exist"):
        await store.copy("notes/one", "notes/two")
    with pytest.raises(StoreUnavailable, match="bucket does not exist"):
        await store.sweep_temporary(0)


@pytest.mark.parametrize("wrong", ["access_key", "secret_key"])
async def test_credentials_that_are_not_accepted_are_told_and_not_retried(
    ceph_server: S3Server, tmp_path: Path, wrong: str
) -> None:
    keys = {"access_key": ceph_server.access_key, "secret_key": ceph_server.secret_key} | {wrong: "not-the-right-one"}
    variables = {"AWS_ACCESS_KEY_ID": keys["access_key"], "AWS_SECRET_ACCESS_KEY": keys["secret_key"]}
    environment = SystemEnvironment()
    settings = make_store(ceph_server).settings
    store = S3Store(settings, CredentialSource(environment, None, variables), environment)
    (tmp_path / "file").write_bytes(b"x")
    for name, call in operations(store, "notes/one", tmp_path / "file").items():
        if name.endswith("of nothing"):
            continue
        with pytest.raises(StoreUnavailable, match=r"access key|secret key") as caught:
            await call()
        assert not caught.value.temporary, name
        assert "not-the-right-one" not in str(caught.value), name
        assert ceph_server.secret_key not in str(caught.value), name


async def test_a_service_that_cannot_be_reached_may_be_tried_again(s3_server: S3Server, tmp_path: Path) -> None:
    store = make_store(s3_server, endpoint=REFUSED_PORT)
    (tmp_path / "file").write_bytes(b"x")
    for name, call in operations(store, "notes/one", tmp_path / "file").items():
        if name.endswith("of nothing"):
            continue
        with pytest.raises(StoreUnavailable) as caught:
            await call()
        assert caught.value.temporary, name
    assert (tmp_path / "file").exists()


CLASSES = [
    (500, StoreUnavailable, True),
    (503, StoreUnavailable, True),
    (409, StoreUnavailable, True),
    (403, StoreUnavailable, False),
    (507, StoreFull, False),
]


@pytest.mark.parametrize(("status", "kind", "temporary"), CLASSES)
async def test_F1_F8_F10_each_class_of_answer_has_its_error(
    s3_server: S3Server, tmp_path: Path, status: int, kind: type[Exception], temporary: bool
) -> None:
    async with faulty_s3(s3_server) as proxy:
        store = through(proxy)
        proxy.rules = [always(anything, Fault(refuse=status))]
        (tmp_path / "file").write_bytes(b"x")
        for name, call in operations(store, "notes/one", tmp_path / "file").items():
            if name.endswith("of nothing"):
                continue
            with pytest.raises(kind) as caught:
                await call()
            assert caught.value.temporary is temporary, name  # type: ignore[attr-defined]
        assert (tmp_path / "file").exists()


async def test_a_404_without_a_code_is_no_missing_key(s3_server: S3Server, tmp_path: Path) -> None:
    """Some other web server at that address knows nothing of keys."""

    async def other(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some(65536)
            await stream.send_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 9\r\nconnection: close\r\n\r\nnot here\n")

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, other, listeners)
        store = make_store(
            s3_server, "some-bucket", endpoint=f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        )
        for call in (lambda: store.get("notes/one", 10), lambda: store.size("notes/one")):
            with pytest.raises(StoreUnavailable, match="no S3 service") as caught:
                await call()
            assert not caught.value.temporary
        nursery.cancel_scope.cancel()


# ---- what is tried again


@pytest.mark.parametrize(
    "fault",
    [Fault(refuse=503), Fault(lose_answer=True), Fault(cut_answer_at=0), Fault(answer_instead=500)],
    ids=["503", "lost answer", "cut answer", "500 after it was done"],
)
async def test_F1_F2_F3_one_failure_of_each_request_is_survived(
    s3_server: S3Server, tmp_path: Path, fault: Fault
) -> None:
    """Every second request fails; each operation comes to its end, and what it did is right."""
    async with faulty_s3(s3_server) as proxy:
        policy = RetryPolicy(first_delay_s=0.001, longest_delay_s=0.01)
        store = VerifyingStore(RetryingStore(through(proxy), SystemEnvironment(), policy))
        proxy.rules = [lambda asked: fault if asked.number % 2 else None]
        contents = [random.Random(seed).randbytes(2000) for seed in range(30)]
        await store.put_batch([(key_of(content), content) for content in contents])
        large = random.Random(99).randbytes(3 * MIB)
        (tmp_path / "file").write_bytes(large)
        await store.put_file("notes/large", tmp_path / "file")
        assert await store.get_ranges([ReadRange(key_of(c), 0, len(c)) for c in contents]) == contents
        assert b"".join(await read_stream(store, "notes/large")) == large
        await store.copy("notes/large", "notes/copy")
        await store.delete(["notes/large"])
        proxy.rules = []
        assert await listed(store, "notes") == {"notes/copy": len(large)}
        assert proxy.faults


async def test_F3_a_stream_goes_on_where_its_connection_broke(s3_server: S3Server) -> None:
    content = random.Random(1).randbytes(6 * MIB)
    async with faulty_s3(s3_server) as proxy:
        store = through(proxy)
        await store.put_batch([("notes/one", content)])
        for place in [(0, len(content)), (1000, 5 * MIB), (0, 5 * MIB)]:
            proxy.rules = [once(lambda asked: asked.method == "GET", Fault(cut_answer_at=MIB + 5), times=3)]
            before = len(proxy.faults)
            found = b"".join(await read_stream(store, "notes/one", *place))
            assert found == content[place[0] : place[0] + place[1]]
            assert len(proxy.faults) == before + 3


async def test_F3_a_stream_never_mixes_two_contents(s3_server: S3Server) -> None:
    """The connection breaks and the key has another content by then: an error, and not the rest of the other."""
    old, new = b"o" * (4 * MIB), b"n" * (4 * MIB)
    async with faulty_s3(s3_server) as proxy:
        store = through(proxy)
        await store.put_batch([("notes/one", old)])
        proxy.rules = [always(lambda asked: asked.method == "GET", Fault(cut_answer_at=2 * MIB))]
        received = bytearray()
        with pytest.raises(StoreUnavailable, match="replaced"):  # noqa: PT012 - it is raised inside
            async with store.stream("notes/one") as pieces:
                async for piece in pieces:
                    if not received:
                        await store.put_batch([("notes/one", new)])
                    received += piece
        assert received == old[: len(received)]


async def test_a_stream_that_never_gets_anywhere_ends(s3_server: S3Server) -> None:
    async with faulty_s3(s3_server) as proxy:
        store = through(proxy)
        await store.put_batch([("notes/one", b"x" * MIB)])
        proxy.rules = [always(lambda asked: asked.method == "GET", Fault(cut_answer_at=0))]
        with trio.fail_after(60), pytest.raises(StoreUnavailable):
            await read_stream(store, "notes/one")


async def test_a_store_that_hangs_is_given_up(s3_server: S3Server) -> None:
    """The worker thread comes back too, though nobody waits for it."""
    async with faulty_s3(s3_server) as proxy:
        store = through(proxy, call_timeout_s=0.2)
        proxy.rules = [always(lambda asked: asked.method == "PUT", Fault(hang=True))]
        with trio.move_on_after(0.1) as scope:
            await store.put_batch([("notes/one", b"x")])
        assert scope.cancelled_caught
        assert store.statistics().running == 1  # it ends by the client's own timeout


# ---- how many requests are made


async def test_no_request_only_asks_whether_something_is_there(s3_server: S3Server, tmp_path: Path) -> None:
    """One request for each: a put, a get, a size, a stream, a copy; and never a HEAD."""
    async with faulty_s3(s3_server) as proxy:
        store = VerifyingStore(through(proxy))
        content = b"x" * 5000
        (tmp_path / "file").write_bytes(content)
        calls = {
            "put": lambda: put(store, content),
            "get": lambda: store.get(key_of(content), MOST),
            "size": lambda: store.size(key_of(content)),
            "stream": lambda: read_stream(store, key_of(content)),
            "copy": lambda: store.copy(key_of(content), "notes/copy"),
            "put_file": lambda: store.put_file("notes/file", tmp_path / "file"),
            "scan": lambda: listed(store, "notes"),
            "delete": lambda: store.delete([f"notes/{n}" for n in range(900)]),
        }
        for name, call in calls.items():
            before = len(proxy.asked)
            await call()
            assert len(proxy.asked) == before + 1, name
        assert "HEAD" not in proxy.counts()


async def test_neighbouring_ranges_take_one_request(s3_server: S3Server) -> None:
    content = random.Random(3).randbytes(COALESCE_MOST_BYTES + 2 * MIB)
    async with faulty_s3(s3_server) as proxy:
        store = through(proxy)
        await store.put_batch([("notes/one", content)])
        near = [(at * 5000, 4000) for at in range(100)]
        for places, requests in [
            (near, 1),
            (list(reversed(near)), 1),
            ([(0, 10), (0, 10), (5, 10)], 1),
            ([(0, 10), (10 + COALESCE_GAP_BYTES, 10)], 1),
            ([(0, 10), (11 + COALESCE_GAP_BYTES, 10)], 2),
            ([(0, COALESCE_MOST_BYTES), (COALESCE_MOST_BYTES, 10)], 2),
            ([(0, len(content))], 1),
            ([(100, 0)], 1),
            ([(len(content), 0)], 1),
        ]:
            before = len(proxy.asked)
            found = await store.get_ranges([ReadRange("notes/one", offset, size) for offset, size in places])
            assert found == [content[offset : offset + size] for offset, size in places]
            assert len(proxy.asked) == before + requests, places


async def test_a_listing_goes_on_over_its_pages(s3_server: S3Server) -> None:
    store = make_store(s3_server, prefix="some/where")
    keys = {f"notes/{n:04}": 1 for n in range(1_100)}
    await store.put_batch([(key, b"x") for key in keys])
    assert await listed(store) == keys
    await store.delete(keys)
    assert await listed(store) == {}


async def test_a_prefix_keeps_stores_of_one_bucket_apart(s3_server: S3Server) -> None:
    bucket = s3_server.new_bucket()
    one, two = make_store(s3_server, bucket, prefix="one"), make_store(s3_server, bucket, prefix="one-more/deep")
    for store, content in ((one, b"first"), (two, b"second")):
        await store.put_batch([("notes/one", content)])
    assert await one.get("notes/one", 10) == b"first"
    assert await listed(one) == {"notes/one": 5}
    await two.delete(["notes/one"])
    assert await listed(one) == {"notes/one": 5}
    with pytest.raises(ObjectMissing):
        await two.get("notes/one", 10)
    rows = s3_server.client().list_objects_v2(Bucket=bucket)["Contents"]  # type: ignore[attr-defined]
    assert [row["Key"] for row in rows] == ["one/notes/one"]


async def test_a_part_of_an_empty_content_is_damage(s3_server: S3Server) -> None:
    store = make_store(s3_server)
    await store.put_batch([("notes/empty", b"")])
    with pytest.raises(ObjectDamaged):
        await store.get_ranges([ReadRange("notes/empty", 0, 1)])
    with pytest.raises(ObjectDamaged):
        await read_stream(store, "notes/empty", 0, 1)


# ---- credentials


def _write(path: Path, access_key: str, secret_key: str) -> None:
    path.write_text(f"[default]\naws_access_key_id = {access_key}\naws_secret_access_key = {secret_key}\n")


async def test_F8_credentials_that_are_exchanged_are_taken_up_at_once(ceph_server: S3Server, tmp_path: Path) -> None:
    """The old ones are refused while a new file lies there already: the same calls succeed, for each kind of client."""
    file = tmp_path / "credentials"
    environment = SystemEnvironment()
    settings = make_store(ceph_server).settings
    (tmp_path / "file").write_bytes(b"x")
    for name in operations(make_store(ceph_server), "notes/one", tmp_path / "file"):
        _write(file, "outdated", "outdated")
        source = CredentialSource(environment, file)
        source.current()
        _write(file, ceph_server.access_key, ceph_server.secret_key)
        store = S3Store(settings, source, environment)
        (tmp_path / "file").write_bytes(b"x")
        await make_store(ceph_server, settings.bucket).put_batch([("notes/one", b"x")])
        await operations(store, "notes/one", tmp_path / "file")[name]()


def test_credentials_come_from_the_first_place_that_has_any(tmp_path: Path) -> None:
    environment = SeededEnvironment(1)
    variables = {"AWS_ACCESS_KEY_ID": "of-environment", "AWS_SECRET_ACCESS_KEY": "s", "AWS_SESSION_TOKEN": "t"}
    from_variables = CredentialSource(environment, None, variables).current()
    assert (from_variables.access_key, from_variables.secret_key, from_variables.token) == ("of-environment", "s", "t")
    variables["CREDENTIALS_DIRECTORY"] = str(tmp_path)
    assert CredentialSource(environment, None, variables).current().access_key == "of-environment"
    _write(tmp_path / "s3", "of-systemd", "s")
    of_systemd = CredentialSource(environment, None, variables).current()
    assert (of_systemd.access_key, of_systemd.token) == ("of-systemd", None)
    _write(tmp_path / "named", "of-file", "s")
    assert CredentialSource(environment, tmp_path / "named", variables).current().access_key == "of-file"


def test_a_credentials_file_is_looked_at_again_and_survives_being_exchanged(tmp_path: Path) -> None:
    environment = SeededEnvironment(1)
    file = tmp_path / "s3"
    _write(file, "first", "s")
    source = CredentialSource(environment, file)
    assert source.current().access_key == "first"
    _write(file, "second", "s")
    assert source.current().access_key == "first"
    environment.move(LOOK_AGAIN_S)
    assert source.current().access_key == "second"
    file.unlink()
    environment.move(LOOK_AGAIN_S)
    assert source.current().access_key == "second"


@pytest.mark.parametrize(
    "text",
    ["", "[default]\n", "[default]\naws_access_key_id = secret-one\n", "secret-one\n", "[other]\na = secret-one"],
)
def test_a_credentials_file_without_any_is_told_without_its_text(tmp_path: Path, text: str) -> None:
    """Threat T20: what stands in the file may be a secret."""
    (tmp_path / "s3").write_text(text)
    with pytest.raises(StoreUnavailable) as caught:
        CredentialSource(SeededEnvironment(1), tmp_path / "s3").current()
    assert str(tmp_path / "s3") in str(caught.value)
    assert "secret-one" not in str(caught.value) + repr(caught.value.__cause__)


def test_credentials_do_not_show_their_secrets() -> None:
    variables = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "hidden", "AWS_SESSION_TOKEN": "hidden"}
    assert "hidden" not in repr(CredentialSource(SeededEnvironment(1), None, variables).current())
