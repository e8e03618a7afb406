"""Commit, snapshot, delta and tag records (protocol §1, threats T7, T9, T13)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import containers, muse
from tests.unit.chunkings import examples
from tests.unit.refusals import refused
from wire.canonical import parse_canonical
from wire.errors import Code
from wire.ids import Kind, Scheme, format_id, parse_any_id
from wire.limits import Limits
from wire.records import (
    Snapshot,
    SnapshotDelta,
    delta_record,
    parse_commit,
    parse_snapshot,
    parse_snapshot_delta,
    parse_snapshot_either,
    parse_tag,
    snapshot_record,
)

NAMERS = {Scheme.TYPED: muse.typed, Scheme.PLAIN: muse.plain}
SCHEMES = st.sampled_from(Scheme)
HASHED_TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)

PLAIN_SNAPSHOT = "6a74a2dd1647067accb3c510a5e99ec9a0396379feff0f74feba3c336ff89fa2"
C1 = "41f1b9a94e795654056dd4a13dd7ce431d65053cf9d423168e841b7aaa9589e1"
C2 = "c3f758e0479ccef3eb584fe1420a8476a3c0f9623976d42cab645a171b927f0f"
MERGE = "537acb266a8342e88f3fd61b64ae46d8a109ed35cd39c7547da9049a9d25678a"


def digest(text: str) -> bytes:
    return parse_any_id(text)[1]


def oid(number: int, scheme: Scheme = Scheme.TYPED) -> str:
    return muse.blob_id(b"%d" % number, NAMERS[scheme])


def commit(scheme: Scheme = Scheme.TYPED, parents: list[str] | None = None, **fields: object) -> dict[str, object]:
    """A commit record whose id is right for its hashed fields, and that has any other fields as given."""
    return muse.make_commit(oid(1, scheme), parents, NAMERS[scheme], **fields)


@pytest.mark.parametrize(
    ("commit_id", "parents", "message", "committed_at"),
    [
        (C1, [], "first", "2026-01-02T03:04:05.678901+00:00"),
        (C2, [C1], "second", "2026-01-02T03:04:06+00:00"),
        (MERGE, [C2, C1], "merge", "2026-01-02T03:04:07+00:00"),
        (MERGE, [C1, C2], "merge", "2026-01-02T03:04:07+00:00"),
    ],
)
def test_golden_plain_commits(commit_id, parents, message, committed_at):
    record = muse.make_commit(PLAIN_SNAPSHOT, parents, muse.plain, message=message, committed_at=committed_at)
    assert record["commit_id"] == commit_id
    parsed = parse_commit({**record, "commit_id": commit_id}, Scheme.PLAIN)
    assert parsed.commit_id.hex() == commit_id
    assert [parent.hex() for parent in parsed.parents] == parents


@given(SCHEMES, HASHED_TEXT, HASHED_TEXT, st.none() | HASHED_TEXT, st.none() | HASHED_TEXT, st.integers(0, 2))
@examples(100)
def test_a_commit_id_is_the_one_the_mini_client_computes(scheme, message, committed_at, author, key, parents):
    record = commit(
        scheme, [oid(10 + n, scheme) for n in range(parents)], message=message, committed_at=committed_at,
        author=author, signer_public_key=key,
    )  # fmt: skip
    parsed = parse_commit(record, scheme)
    assert format_id(parsed.commit_id, scheme) == record["commit_id"]
    assert [format_id(parent, scheme) for parent in parsed.parents] == [oid(10 + n, scheme) for n in range(parents)]
    assert format_id(parsed.snapshot_id, scheme) == record["snapshot_id"]


@pytest.mark.parametrize("scheme", Scheme)
def test_a_commit_is_kept_and_stored_with_every_field_as_received(scheme):
    record = commit(
        scheme, metadata={"k": "v"}, structured_delta={"ops": [b"\0", {"$x": 1.5}]}, committed_at=" 2026-1-2 ",
        message="two\r\nlines \u00e9 e\u0301", reviewed_by=["bo"], test_runs=3, repo_id="r", of_the_future={"a": None},
        breaking_changes=None, signature="",
    )  # fmt: skip
    parsed = parse_commit(record, scheme)
    assert parsed.raw == record
    assert parsed.canonical == containers.canonical("commit", record)
    assert parse_canonical(parsed.canonical) == (Kind.COMMIT, record)


def test_an_absent_author_or_key_counts_as_the_empty_text():
    whole = commit(author="", signer_public_key="")
    for key in ("author", "signer_public_key"):
        for lacking in ({k: v for k, v in whole.items() if k != key}, {**whole, key: None}):
            assert parse_commit(lacking, Scheme.TYPED).commit_id == digest(whole["commit_id"])


@pytest.mark.parametrize("key", ["message", "committed_at", "author", "signer_public_key"])
def test_a_changed_hashed_field_no_longer_has_the_id(key):
    record = commit(signer_public_key="k")
    with refused(Code.BAD_RECORD_ID) as caught:
        parse_commit({**record, key: str(record[key]) + " "}, Scheme.TYPED)
    assert caught.value.facts["id"] == record["commit_id"]


def test_changed_parents_or_snapshot_no_longer_have_the_id():
    record = commit(parents=[oid(5), oid(6)])
    for change in ({"snapshot_id": oid(2)}, {"parent_commit_id": oid(7)}, {"parent2_commit_id": None}):
        with refused(Code.BAD_RECORD_ID):
            parse_commit({**record, **change}, Scheme.TYPED)


def test_the_author_is_not_part_of_a_plain_id():
    record = commit(Scheme.PLAIN)
    assert parse_commit({**record, "author": "another"}, Scheme.PLAIN).commit_id == digest(record["commit_id"])


@pytest.mark.parametrize("scheme", Scheme)
@pytest.mark.parametrize("key", ["message", "committed_at"])
def test_a_nul_in_a_hashed_field_is_refused(scheme, key):
    with refused(Code.MALFORMED, "NUL"):
        parse_commit(commit(scheme, **{key: "a\0b"}), scheme)


@pytest.mark.parametrize("key", ["author", "signer_public_key"])
def test_a_nul_in_a_field_only_typed_ids_cover_is_refused(key):
    with refused(Code.MALFORMED, "NUL"):
        parse_commit(commit(**{key: "a\0b"}), Scheme.TYPED)


def test_two_records_cannot_share_an_id_by_moving_a_nul():
    one = commit(message="a", committed_at="b\0c", author="", signer_public_key="")
    other = commit(message="a\0b", committed_at="c", author="", signer_public_key="")
    assert one["commit_id"] == other["commit_id"]
    for record in (one, other):
        with refused(Code.MALFORMED):
            parse_commit(record, Scheme.TYPED)


@pytest.mark.parametrize(
    "change",
    [
        {"commit_id": None}, {"commit_id": 5}, {"commit_id": "sha256:00"}, {"snapshot_id": None}, {"snapshot_id": ""},
        {"parent_commit_id": ""}, {"parent_commit_id": []}, {"parent2_commit_id": "main"}, {"message": None},
        {"message": 5}, {"message": b"bytes"}, {"committed_at": None}, {"committed_at": 1767323045},
        {"author": 5}, {"author": ["a"]}, {"signer_public_key": b"k"}, {"message": "\ud800"}, {"author": "\udfff"},
    ],
    ids=ascii,
)  # fmt: skip
def test_a_commit_of_the_wrong_shape_is_refused(change):
    with refused(Code.MALFORMED):
        parse_commit({**commit(), **change}, Scheme.TYPED)


@pytest.mark.parametrize(
    "change",
    [{"x": float("nan")}, {"structured_delta": {1: 2}}, {"metadata": {"a": "\ud800"}}, {"test_runs": 2**64}],
    ids=ascii,
)
def test_a_commit_with_a_field_that_cannot_be_stored_is_refused(change):
    with refused(Code.MALFORMED):
        parse_commit({**commit(), **change}, Scheme.TYPED)


def test_a_commit_nested_too_deeply_is_refused():
    deep: object = 1
    for _ in range(80):
        deep = {"a": deep}
    with refused(Code.MALFORMED, "nested"):
        parse_commit({**commit(), "structured_delta": deep}, Scheme.TYPED)


@pytest.mark.parametrize(
    "parse", [parse_commit, parse_snapshot, parse_snapshot_delta, parse_snapshot_either, parse_tag]
)
@pytest.mark.parametrize("record", [None, 1, "record", b"record", [], [["a", 1]], {}], ids=ascii)
def test_what_is_not_a_record_is_refused(parse, record):
    with refused(Code.MALFORMED):
        parse(record, Scheme.TYPED)


def test_ids_of_the_other_scheme_are_refused_in_every_field():
    for key in ("commit_id", "snapshot_id", "parent_commit_id", "parent2_commit_id"):
        record = commit(parents=[oid(5), oid(6)])
        with refused(Code.MALFORMED, key):
            parse_commit({**record, key: muse.bare(record[key])}, Scheme.TYPED)
    with refused(Code.MALFORMED):
        parse_snapshot(muse.make_snapshot({"a": oid(1, Scheme.PLAIN)}), Scheme.TYPED)
    with refused(Code.MALFORMED):
        parse_snapshot_delta(delta(parent_snapshot_id=oid(9, Scheme.PLAIN)), Scheme.TYPED)


def test_a_full_snapshot_is_read_and_written_back():
    record = muse.make_snapshot({"a": oid(1), "b/c": oid(2)}, ["empty", "b/d"], note="ü", schema_version=2, more=[b"x"])
    snapshot = parse_snapshot(record, Scheme.TYPED)
    assert snapshot.manifest == {"a": digest(oid(1)), "b/c": digest(oid(2))}
    assert snapshot.directories == ("empty", "b/d")
    assert snapshot.extras == {"created_at": record["created_at"], "note": "ü", "schema_version": 2, "more": [b"x"]}
    assert snapshot_record(snapshot, Scheme.TYPED) == record


def test_a_full_snapshot_may_lack_directories():
    record = muse.make_snapshot({"a": oid(1, Scheme.PLAIN)}, name=muse.plain)
    for lacking in ({**record, "directories": None}, {k: v for k, v in record.items() if k != "directories"}):
        assert parse_snapshot(lacking, Scheme.PLAIN).directories == ()


def delta(**fields: object) -> dict[str, object]:
    return {
        "snapshot_id": oid(20), "parent_snapshot_id": oid(21), "delta_upsert": {"a": oid(1)}, "delta_remove": ["b"],
        **fields,
    }  # fmt: skip


def test_a_delta_is_read_and_written_back():
    for record in (delta(), delta(directories=["x/y"], created_at="now"), delta(parent_snapshot_id=None)):
        assert delta_record(parse_snapshot_delta(record, Scheme.TYPED), Scheme.TYPED) == record


def test_an_older_delta_says_delta_add():
    older = {key.replace("upsert", "add"): value for key, value in delta().items()}
    assert parse_snapshot_delta(older, Scheme.TYPED) == parse_snapshot_delta(delta(), Scheme.TYPED)
    assert "delta_add" not in delta_record(parse_snapshot_delta(older, Scheme.TYPED), Scheme.TYPED)
    with refused(Code.MALFORMED):
        parse_snapshot_delta(delta(delta_add={}), Scheme.TYPED)


def test_a_delta_may_leave_out_what_it_does_not_change():
    bare = parse_snapshot_delta({"snapshot_id": oid(20)}, Scheme.TYPED)
    nils = delta(parent_snapshot_id=None, delta_upsert=None, delta_remove=None, directories=None)
    assert bare == parse_snapshot_delta(nils, Scheme.TYPED)
    assert bare == SnapshotDelta(digest(oid(20)), None, {}, (), (), {})


def test_full_records_and_deltas_are_told_apart_by_the_manifest():
    full = muse.make_snapshot({"a": oid(1)})
    assert isinstance(parse_snapshot_either(full, Scheme.TYPED), Snapshot)
    assert isinstance(parse_snapshot_either(delta(), Scheme.TYPED), SnapshotDelta)
    assert isinstance(parse_snapshot_either(delta(manifest=None), Scheme.TYPED), SnapshotDelta)


def test_a_record_cannot_be_full_and_a_delta_at_once():
    """Kept as an unknown field, the manifest would come back out and turn the delta into a false full record."""
    both = delta(manifest={"a": oid(9)})
    for parse in (parse_snapshot, parse_snapshot_delta, parse_snapshot_either):
        with refused(Code.MALFORMED):
            parse(both, Scheme.TYPED)
    full = muse.make_snapshot({"a": oid(1)})
    for key in ("delta_upsert", "delta_add", "delta_remove"):
        with refused(Code.MALFORMED):
            parse_snapshot_either({**full, key: {}}, Scheme.TYPED)


@pytest.mark.parametrize(
    "change",
    [
        {"delta_upsert": []}, {"delta_upsert": {"a": None}}, {"delta_upsert": {"a": "x"}}, {"delta_upsert": {1: 2}},
        {"delta_upsert": {b"a": oid(1)}}, {"delta_remove": {}}, {"delta_remove": "a"}, {"delta_remove": [1]},
        {"delta_remove": [b"a"]}, {"delta_remove": ["a", "a"]}, {"directories": {"a": 1}}, {"directories": ["a", "a"]},
        {"directories": [None]}, {"snapshot_id": None}, {"parent_snapshot_id": 5}, {"note": float("inf")},
    ],
    ids=ascii,
)  # fmt: skip
def test_a_delta_of_the_wrong_shape_is_refused(change):
    with refused(Code.MALFORMED):
        parse_snapshot_delta(delta(**change), Scheme.TYPED)


@pytest.mark.parametrize(
    "change",
    [
        {"manifest": None}, {"manifest": []}, {"manifest": {"a": 5}}, {"manifest": {"a": oid(1).upper()}},
        {"manifest": {5: oid(1)}}, {"directories": "a"}, {"directories": ["a", "a"]}, {"snapshot_id": 5}, {"x": {1: 1}},
    ],
    ids=ascii,
)  # fmt: skip
def test_a_snapshot_of_the_wrong_shape_is_refused(change):
    with refused(Code.MALFORMED):
        parse_snapshot({**muse.make_snapshot({"a": oid(1)}), **change}, Scheme.TYPED)


def test_lists_above_the_manifest_limit_are_refused():
    limits = Limits(manifest_entries=2)
    three = {"a": oid(1), "b": oid(1), "c": oid(1)}
    for record in (delta(delta_upsert=three), delta(delta_remove=list(three)), delta(directories=list(three))):
        with refused(Code.TOO_LARGE):
            parse_snapshot_delta(record, Scheme.TYPED, limits)
    with refused(Code.TOO_LARGE):
        parse_snapshot({"snapshot_id": oid(1), "manifest": three}, Scheme.TYPED, limits)
    assert parse_snapshot_delta(delta(delta_remove=["a", "b"]), Scheme.TYPED, limits).remove == ("a", "b")


def test_a_tag_names_a_commit():
    record = {"tag_id": "t", "repo_id": "r", "commit_id": oid(1), "tag": "v1", "created_at": "now", "more": 1}
    tag = parse_tag(record, Scheme.TYPED)
    assert (tag.commit_id, tag.tag, tag.raw) == (digest(oid(1)), "v1", record)


@pytest.mark.parametrize(
    "change", [{"tag": ""}, {"tag": None}, {"tag": 5}, {"commit_id": "v1"}, {"x": float("nan")}], ids=ascii
)
def test_a_tag_of_the_wrong_shape_is_refused(change):
    with refused(Code.MALFORMED):
        parse_tag({"commit_id": oid(1), "tag": "v1", **change}, Scheme.TYPED)
