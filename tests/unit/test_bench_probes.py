"""The bench pushes each way on its own, lets ready bodies loose at once, and judges what it was promised."""

from __future__ import annotations

import subprocess
from pathlib import Path

import msgpack
import pytest

from actors.spool import SpoolDirectory
from bench import git_wire, plain_client
from bench.__main__ import parse
from bench.bodies import Body, grouped, make_bodies
from bench.crowd import check_result
from bench.many import unknown_ids
from bench.muse_daemon import held_connections, place_of
from bench.peers import BenchError, Content, Sample
from bench.report import figures_of
from bench.rounds import Plan, Results, Rounds
from bench.targets import (
    AT_ONCE,
    CROWD_PUSH,
    ERRORS,
    FETCH,
    FIRST_PUSH,
    HOLD_MAX,
    HOLD_P99,
    HOLDS,
    MPACK,
    OPERATIONS,
    PRESIGNED,
    PROBES,
    STREAM,
    TARGETS,
    TIMES_ALONE,
    WAYS,
    judge,
)
from bench.upload import hash_alone, random_pieces
from bench.workloads import GIT_ENVIRONMENT, Shape, git, write_git
from museworkd.client.outgoing import COMMIT, DELTA, FULL
from tests import muse
from wire.frames import NEED_DATA, CommitPackEnd, FrameReader, Grammar, Header, Object, Record
from wire.ids import Kind, Scheme, hash_bytes, parse_id


def test_what_is_promised_always_is_judged_by_the_worst_run_and_at_least_means_at_least() -> None:
    results = Results()
    for times_alone, errors in ((1.4, 0.0), (1.6, 1.0), (1.7, 0.0)):
        results.add("CROWD", CROWD_PUSH, "ours", [Sample(1.0, figures={TIMES_ALONE: times_alone, ERRORS: errors})])
    for p99, most in ((10.0, 20.0), (60.0, 499.0), (11.0, 30.0)):
        results.add("S", HOLDS, "ours", [Sample(figures={HOLD_P99: p99, HOLD_MAX: most})])
    judged = {j.target.metric: (j.value, j.reached) for j in judge(figures_of(results), "ours", "git")}
    assert judged[TIMES_ALONE] == (1.6, True)
    assert judged[ERRORS] == (1.0, False)
    assert judged[HOLD_P99] == (60.0, False)
    assert judged[HOLD_MAX] == (499.0, True)
    [target] = [target for target in TARGETS if target.metric == TIMES_ALONE]
    assert target.text.startswith("≥ 1.5 ")


def test_every_operation_can_be_named_on_the_command_line_and_probes_are_workloads() -> None:
    options = parse(["--workloads", "S", *PROBES, "--operations", *(name.replace(" ", "-") for name in OPERATIONS)])
    assert options.operations == list(OPERATIONS)
    assert (options.workloads, options.probes, options.real) == (["S"], list(PROBES), [])
    assert parse([]).probes == list(PROBES)
    for wrong in (["--workloads", "XXL"], ["--operations", "64-pulls"]):
        with pytest.raises(SystemExit):
            parse(wrong)


class _Peer:
    """Writes down what it is asked to do."""

    def __init__(self, name: str, *, one_way: bool) -> None:
        self.name = name
        self.one_way = one_way
        self.done: list[str] = []

    def start(self) -> None:
        self.done.append("start")

    def stop(self) -> Sample | None:
        self.done.append("stop")
        return None if self.one_way else Sample(figures={HOLD_MAX: 1.0})

    def create(self, repository: str) -> None:
        pass

    def push_by(self, content: Content, repository: str, way: str) -> Sample:
        if repository != "warm":
            self.done.append(way)
        return Sample(1.0)


def _ways(results: Results, runs: int = 2) -> tuple[_Peer, _Peer]:
    ours, git_peer = _Peer("ours", one_way=False), _Peer("git", one_way=True)
    content = Content("S", Path(), Path(), None, None)
    rounds = Rounds([ours, git_peer], content, Path(), results)  # type: ignore[list-item]
    rounds.ways(Plan(content, frozenset({STREAM, PRESIGNED, MPACK}), 5, runs, 0, None))
    return ours, git_peer


def test_each_way_of_a_first_push_has_a_server_of_its_own_and_git_pushes_once_beside_them() -> None:
    results = Results()
    ours, git_peer = _ways(results)
    stream, presigned, mpack = WAYS.values()
    order = [stream, presigned, mpack, presigned, mpack, stream]  # another one begins each time
    assert ours.done == [part for way in order for part in ("start", way, "stop")]
    assert git_peer.done == ["start", "stream", "stop"] * 2
    assert {key: len(samples) for key, samples in results.samples.items()} == {
        **{("S", operation, peer): 2 for operation in WAYS for peer in ("ours", "git")},
        ("S", HOLDS, "ours"): 6,
    }


def test_a_first_push_that_went_by_mpack_is_not_repeated_as_one() -> None:
    results = Results()
    results.add("S", FIRST_PUSH, "ours", [Sample(1.0, requests=["POST /bench/first/push/unpack-mpack 200 9.0 ms"])])
    ours, _ = _ways(results, 1)
    assert "mpack" not in ours.done
    assert "presigned" in ours.done


def test_a_fetch_brings_ten_commits_into_a_clone_made_before_them(tmp_path: Path) -> None:
    done: list[tuple[object, ...]] = []

    class Fetching(_Peer):
        def clone(self, content: Content, repository: str, target: Path) -> Sample:
            target.mkdir()
            done.append(("clone", repository))
            return Sample(9.0)

        def push_increment(self, content: Content, repository: str, commit: str) -> Sample:
            done.append(("push", commit))
            return Sample(9.0)

        def fetch(self, content: Content, target: Path, commit: str) -> Sample:
            done.append(("fetch", commit, target.is_dir()))
            return Sample(1.0)

    peer, results = Fetching("ours", one_way=False), Results()
    content = Content("S", Path(), Path(), None, None)
    rounds = Rounds([peer], content, tmp_path, results)  # type: ignore[list-item]
    plan = Plan(content, frozenset({FETCH}), 1, 1, 0, None)
    rounds._on_top(plan, [peer], {"ours": iter([str(number) for number in range(20)])})  # type: ignore[list-item]
    assert done == [("clone", "first"), ("push", "9"), ("fetch", "9", True)]
    assert [sample.wall_s for sample in results.samples["S", FETCH, "ours"]] == [1.0]
    assert not (tmp_path / "clone").exists()


def test_what_git_is_asked_by_hand_is_what_git_understands(tmp_path: Path) -> None:
    """Its own upload-pack answers with the whole history; a pack that is cut, damaged or another is told."""
    made = write_git(Shape("asked", 5, 4, 200, 2, text=True), tmp_path / "git", packed=True)
    head = git(made, "rev-parse", "main")
    objects = len(git(made, "rev-list", "--objects", "main").splitlines())

    def say(request: bytes) -> bytes:
        command = ["git", "upload-pack", "--stateless-rpc", str(made)]
        environment = {**GIT_ENVIRONMENT, "GIT_PROTOCOL": "version=2"}
        return subprocess.run(command, input=request, env=environment, capture_output=True, check=True).stdout

    assert say(git_wire.LIST_REFS)[4:44].decode() == head
    answer = say(git_wire.want(head))
    git_wire.check_pack(answer, objects)
    at = answer.index(b"PACK") + 30
    damaged = answer[:at] + bytes([answer[at] ^ 1]) + answer[at + 1 :]
    for wrong, count in ((answer, objects + 1), (damaged, objects), (answer[: len(answer) // 2], objects), (b"", 0)):
        with pytest.raises(BenchError):
            git_wire.check_pack(wrong, count)


def test_the_bodies_of_the_old_client_are_those_of_the_protocol() -> None:
    """Every id is recomputed from the protocol page; every manifest is whole; no blob comes twice."""
    shape = Shape("old", 30, 500, 20, 40, text=False)
    made = plain_client.make_push(shape)
    body = msgpack.unpackb(made.bundle)
    bundle = body["bundle"]
    assert (body["branch"], body["force"], bundle["objects"]) == ("main", False, [])
    assert bundle["branch_heads"] == {"main": made.head}
    assert [muse.commit_id(commit, muse.plain) for commit in bundle["commits"]] == [
        commit["commit_id"] for commit in bundle["commits"]
    ]
    for commit, snapshot in zip(bundle["commits"], bundle["snapshots"], strict=True):
        assert muse.snapshot_id(snapshot["manifest"], (), muse.plain) == snapshot["snapshot_id"]
        assert snapshot["snapshot_id"] == commit["snapshot_id"]
        assert len(snapshot["manifest"]) == shape.files
    sent = [item for part in made.objects for item in msgpack.unpackb(part)["objects"]]
    assert [item["object_id"] for item in sent] == made.ids == msgpack.unpackb(made.question)["object_ids"]
    assert all(muse.blob_id(item["content"], muse.plain) == item["object_id"] for item in sent)
    assert [len(msgpack.unpackb(part)["objects"]) for part in made.objects][:-1] == [400] * (len(made.objects) - 1)
    assert len(made.ids) == shape.objects


def test_how_long_connections_were_held_is_read_from_what_the_daemon_says_last() -> None:
    said = '{"event": "database", "transactions": 9, "retries": 1, "hold_p50_ms": 1.5, "hold_p99_ms": 7.0, %s}'
    lines = ["Traceback", '{"event": "stopped"}', '["database"]', said % '"hold_max_ms": 8.5']
    found = held_connections([said % '"hold_max_ms": 99.0', *lines])
    assert found is not None
    assert (found.wall_s, found.figures[HOLD_P99], found.figures[HOLD_MAX]) == (None, 7.0, 8.5)
    assert held_connections([*lines[:3], '{"event": "database"}']) is None


def test_a_repository_is_the_usual_owners_unless_it_says_whose() -> None:
    assert (place_of("first"), place_of("other/first")) == (("bench", "first"), ("other", "first"))


TINY = Shape("tiny", 3, 4, 300, 2, text=True)


def test_bodies_are_whole_pushes_without_a_content_in_common(tmp_path: Path) -> None:
    seen: set[bytes] = set()
    for body in make_bodies(TINY, 2, tmp_path / "place"):
        reader = FrameReader(Grammar.PUSH)
        reader.receive_data(body.frames)
        events = list(iter(reader.next_event, NEED_DATA))
        [header] = [event for event in events if isinstance(event, Header)]
        objects = [event for event in events if isinstance(event, Object)]
        records = [event for event in events if isinstance(event, Record)]
        assert (header.branch, header.head) == ("main", body.head)
        assert (body.commits, body.objects) == (TINY.commits, TINY.objects) == (3, len(objects))
        assert len(records) == 2 * TINY.commits
        assert any(isinstance(event, CommitPackEnd) for event in events)
        ids = {parse_id(event.object_id, Scheme.TYPED) for event in objects}
        assert not ids & seen
        seen |= ids
    assert len(seen) == 2 * TINY.objects
    assert not (tmp_path / "place").exists()


async def test_records_are_framed_by_kind_in_their_order(tmp_path: Path) -> None:
    async with SpoolDirectory(tmp_path, "spool") as spools:
        spool = spools.new()
        for tag, packed in (
            (FULL, b"a"),
            (FULL, b"b"),
            (DELTA, b"c"),
            (FULL, b"d" * 200_000),
            (FULL, b"e"),
            (COMMIT, b"f"),
        ):
            await spool.append(tag + len(packed).to_bytes(8, "little") + packed)
        assert [{key: [r[:1] for r in records] for key, records in lists.items()} for lists in grouped(spool)] == [
            {"snapshots": [b"a", b"b"]}, {"snapshot_deltas": [b"c"]}, {"snapshots": [b"d"]}, {"snapshots": [b"e"]},
            {"commits": [b"f"]},
        ]  # fmt: skip


def test_a_push_that_did_not_end_with_its_result_is_an_error() -> None:
    body = Body("sha256:00", 2, 5, b"")
    right = {"type": "R", "branch": "main", "head": body.head, "commits_written": 2}
    progress = msgpack.packb({"type": "P", "stage": "put"})
    check_result(progress + msgpack.packb(right), body)
    for last in ({**right, "head": "sha256:01"}, {**right, "commits_written": 1}, {"type": "X", "error": "draining"}):
        with pytest.raises(BenchError):
            check_result(progress + msgpack.packb(last), body)
    with pytest.raises(BenchError):
        check_result(b"", body)


def test_ids_nobody_has_are_distinct_and_the_uploaded_content_is_the_same_every_time() -> None:
    ids = unknown_ids(1_000)
    assert len({parse_id(text, Scheme.TYPED) for text in ids}) == 1_000
    pieces = random_pieces(1, 3, 64)
    assert pieces == random_pieces(1, 3, 64) != random_pieces(2, 3, 64)
    key, _ = hash_alone(pieces)
    assert parse_id(key, Scheme.TYPED) == hash_bytes(Kind.BLOB, b"".join(pieces), Scheme.PLAIN)
    assert AT_ONCE == 64
