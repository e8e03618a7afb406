"""Manifests: what is derived step by step is what would be built from scratch (protocol §1, threats T10-T12)."""

from __future__ import annotations

import random
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import muse
from tests.unit.chunkings import examples
from tests.unit.refusals import refused
from wire import manifest as manifest_module
from wire.errors import Code
from wire.ids import Kind, Scheme, format_id, hash_bytes
from wire.limits import Limits
from wire.manifest import Manifest, check_id, empty
from wire.paths import PathPolicy, fold, path_problem

NAMERS = {Scheme.TYPED: muse.typed, Scheme.PLAIN: muse.plain}
BLOBS = [hash_bytes(Kind.BLOB, b"%d" % n, Scheme.TYPED) for n in range(12)]
PORTABLE, RELAXED = PathPolicy.PORTABLE, PathPolicy.RELAXED

NAMES = st.sampled_from(["a", "b", "A", "é", "e\u0301", "ß", "ss", "a.b", "a-b", "z", "\U0001f600"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
BLOB = st.sampled_from(BLOBS)
CHANGES = st.tuples(st.dictionaries(PATHS, BLOB, max_size=6), st.lists(PATHS, max_size=4))


def text_id(files: dict[str, bytes], directories=(), scheme: Scheme = Scheme.TYPED) -> str:
    """The id the mini client gives this content."""
    oids = {path: format_id(blob, scheme) for path, blob in files.items()}
    return muse.snapshot_id(oids, directories, NAMERS[scheme])


def build(files: dict[str, bytes], directories=(), policy: PathPolicy = PORTABLE) -> Manifest:
    return empty(policy).apply(files, (), tuple(directories))


def check_is(manifest: Manifest, files: dict[str, bytes], directories=()) -> None:
    """Everything a manifest says of itself is what ``files`` say."""
    listed = sorted(files.items())
    assert list(manifest.items()) == listed
    assert list(manifest.paths()) == [path for path, _ in listed]
    assert list(manifest.blobs()) == [blob for _, blob in listed]
    assert len(manifest) == len(files)
    assert manifest.directories == tuple(sorted(directories))
    assert manifest.text_bytes == len("\0".join(f"{path}\0{blob.hex()}" for path, blob in listed).encode())
    assert all(manifest.get(path) == blob for path, blob in listed)
    for scheme in Scheme:
        assert format_id(manifest.snapshot_id(scheme), scheme) == text_id(files, directories, scheme)


def is_safe(paths: set[str], policy: PathPolicy) -> bool:
    """The rules for paths beside one another, by comparing every pair."""
    if any(path_problem(path, policy) for path in paths):
        return False
    keys = [fold(path) if policy is PORTABLE else path for path in paths]
    return not any(
        one == other or other.startswith(one + "/")
        for at, one in enumerate(keys)
        for number, other in enumerate(keys)
        if at != number
    )


@pytest.mark.parametrize("scheme", Scheme)
def test_the_empty_manifest(scheme):
    check_is(empty(), {})
    assert empty().snapshot_id(scheme) == hash_bytes(Kind.SNAPSHOT, b"", scheme)


def test_golden_snapshots():
    assert empty().snapshot_id(Scheme.TYPED).hex().startswith("be9d5d3870b85")
    files = {
        "a.txt": bytes.fromhex("5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"),
        "b.txt": bytes.fromhex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
    }
    expected = "6a74a2dd1647067accb3c510a5e99ec9a0396379feff0f74feba3c336ff89fa2"
    assert build(files).snapshot_id(Scheme.PLAIN).hex() == expected
    assert text_id(files, scheme=Scheme.PLAIN) == expected


@given(st.lists(CHANGES, max_size=8), st.sampled_from(PathPolicy))
@examples(250)
def test_a_manifest_of_deltas_equals_one_built_from_scratch_and_unsafe_ones_are_refused(deltas, policy):
    files: dict[str, bytes] = {}
    manifest = empty(policy)
    for upsert, remove in deltas:
        after = {path: blob for path, blob in files.items() if path not in remove} | upsert
        if not is_safe(set(after), policy):
            with refused(Code.UNSAFE_PATH):
                manifest.apply(upsert, remove)
            check_is(manifest, files)  # a refused change leaves no trace
            continue
        manifest, files = manifest.apply(upsert, remove), after
        check_is(manifest, files)
    check_is(build(files, policy=policy), files)


@given(st.integers(0, 2**32))
@examples(12)
def test_a_large_manifest_of_deltas_equals_one_built_from_scratch(seed):
    rng = random.Random(seed)
    files: dict[str, bytes] = {}
    manifest = empty()
    for _ in range(8):
        fresh = {f"{rng.randrange(9)}/{rng.randrange(90)}/{rng.randrange(900)}": rng.choice(BLOBS)}
        fresh |= {f"{rng.randrange(9)}/{rng.randrange(90)}/n{n}": rng.choice(BLOBS) for n in range(rng.randrange(300))}
        gone = rng.sample(sorted(files), k=rng.randrange(len(files) + 1)) if rng.random() < 0.6 else []
        manifest = manifest.apply(fresh, gone)
        files = {path: blob for path, blob in files.items() if path not in gone} | fresh
        check_is(manifest, files)


@given(st.integers(0, 2**32), st.sampled_from(PathPolicy))
@examples(12)
def test_a_manifest_kept_compressed_is_what_a_plain_one_is(seed, policy):
    rng = random.Random(seed)
    plain, compact, files = empty(policy), empty(policy), {}
    for step in range(5):
        fresh = {f"{rng.randrange(9)}/{rng.randrange(90)}/n{n}": rng.choice(BLOBS) for n in range(rng.randrange(300))}
        gone = rng.sample(sorted(files), k=rng.randrange(len(files) // 2 + 1))
        files = {path: blob for path, blob in files.items() if path not in gone} | fresh
        before, plain = plain, plain.apply(fresh, gone)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(manifest_module, "COMPACT_FROM_BYTES", 2_000 * step)  # from the first step on, or later
            compact = compact.apply(fresh, gone)
        check_is(compact, files)
        assert before.changes_to(compact) == before.changes_to(plain)
        assert compact.changes_to(before) == plain.changes_to(before)
        for one in (plain, compact):
            for path in (f"{rng.choice(sorted(files) or ['a'])}/below", "n" * 300):
                with refused(Code.UNSAFE_PATH):
                    one.apply({path: BLOBS[0]} if files or "/" not in path else {"..": BLOBS[0]})


def test_a_large_manifest_takes_less_than_half_of_its_text(monkeypatch):
    monkeypatch.setattr(manifest_module, "COMPACT_FROM_BYTES", 100_000)
    blobs = [hash_bytes(Kind.BLOB, b"%d" % n, Scheme.TYPED) for n in range(9_000)]
    files = {f"src/package{n % 500:05}/module{n:06}.py": blob for n, blob in enumerate(blobs)}
    manifest = build(files)
    assert sum(size for _, size in manifest.parts()) < manifest.text_bytes / 2
    assert sum(size for _, size in build({"a": BLOBS[0]}).parts()) < 500


@pytest.mark.parametrize("most", [0, 9, 10, 11, 600])
def test_few_changes_are_all_of_them_or_none(most):
    base = build({f"f{n:04}": BLOBS[0] for n in range(600)})
    target = base.apply({f"f{n:04}": BLOBS[1] for n in range(7)}, [f"f{n:04}" for n in range(590, 593)])
    assert base.few_changes_to(target, most) == (base.changes_to(target) if most >= 10 else None)
    assert base.few_changes_to(base, 0) == ({}, [])


@given(st.dictionaries(PATHS, BLOB, max_size=8), st.dictionaries(PATHS, BLOB, max_size=8))
@examples(100)
def test_changes_to_another_manifest_lead_there_and_are_no_more_than_needed(old, new):
    if not (is_safe(set(old), RELAXED) and is_safe(set(new), RELAXED)):
        return
    base, target = build(old, policy=RELAXED), build(new, policy=RELAXED)
    upsert, remove = base.changes_to(target)
    check_is(base.apply(upsert, remove), new)
    assert upsert == {path: blob for path, blob in new.items() if old.get(path) != blob}
    assert sorted(remove) == sorted(set(old) - set(new))


@given(st.integers(0, 2**32))
@examples(25)
def test_changes_between_large_manifests_lead_there(seed):
    rng = random.Random(seed)
    files = {f"d{rng.randrange(20)}/{rng.randrange(9999)}": rng.choice(BLOBS) for _ in range(800)}
    base = build(files)
    upsert = {path: rng.choice(BLOBS) for path in rng.sample(sorted(files), k=30)} | {
        f"x/{n}": BLOBS[0] for n in range(5)
    }
    remove = rng.sample(sorted(files), k=rng.randrange(400))
    derived = base.apply(upsert, remove)
    unrelated = build(dict(derived.items()))
    for target in (derived, unrelated):
        assert base.apply(*base.changes_to(target)).snapshot_id(Scheme.TYPED) == target.snapshot_id(Scheme.TYPED)
        assert target.apply(*target.changes_to(base)).snapshot_id(Scheme.TYPED) == base.snapshot_id(Scheme.TYPED)
    assert base.changes_to(derived)[0].keys() <= upsert.keys()
    assert derived.changes_to(derived) == ({}, [])


def test_a_manifest_never_changes():
    base = build({f"f{n:04}": BLOBS[0] for n in range(500)})
    before = list(base.items())
    base.apply({f"f{n:04}": BLOBS[1] for n in range(0, 500, 7)} | {"new/x": BLOBS[2]}, [f"f{n:04}" for n in range(300)])
    check_is(base, dict(before))


def test_order_is_by_code_point_not_by_utf16_nor_by_directory():
    files = dict.fromkeys(["a/b", "a-b", "a.b", "\uffee", "\U0001f600", "a0", "ab"], BLOBS[0])
    assert list(build(files).paths()) == ["a-b", "a.b", "a/b", "a0", "ab", "\uffee", "\U0001f600"]
    check_is(build(files), files)


def test_a_path_that_is_not_there_is_not_found():
    manifest = build({"b/c": BLOBS[0], "d": BLOBS[1]})
    for path in ("", "a", "b", "b/", "b/c/", "c", "e", "é"):
        assert manifest.get(path) is None
    assert empty().get("a") is None


def test_removing_what_is_not_there_changes_nothing():
    manifest = build({"a/b": BLOBS[0]}).apply({}, ["a", "x", "a/b/c", "", "\ud800"])
    check_is(manifest, {"a/b": BLOBS[0]})


def test_a_path_both_removed_and_set_is_set():
    check_is(build({"a": BLOBS[0]}).apply({"a": BLOBS[1]}, ["a"]), {"a": BLOBS[1]})
    check_is(empty().apply({"a": BLOBS[1]}, ["a"]), {"a": BLOBS[1]})


@pytest.mark.parametrize(
    ("held", "added"),
    [
        ("readme", "README"), ("a/B", "a/b"), ("\u00e9", "e\u0301"), ("stra\u00dfe", "STRASSE"), ("a", "a/b"),
        ("a/b", "a"), ("a/b/c", "a"), ("A", "a/b"), ("x/a/b", "X/A"), ("a/b", "A/B/c/d"), ("\u212a", "k"),
    ],
    ids=ascii,
)  # fmt: skip
def test_paths_that_cannot_live_beside_one_another_are_refused(held, added):
    if path_problem(held, PORTABLE) or path_problem(added, PORTABLE):
        with refused(Code.UNSAFE_PATH):
            build({held: BLOBS[0], added: BLOBS[1]})
        return
    for manifest, path in ((build({held: BLOBS[0]}), added), (build({added: BLOBS[0]}), held)):
        with refused(Code.UNSAFE_PATH):
            manifest.apply({path: BLOBS[1]})
        check_is(manifest.apply({path: BLOBS[1]}, list(manifest.paths())), {path: BLOBS[1]})
    with refused(Code.UNSAFE_PATH):
        build({held: BLOBS[0], added: BLOBS[0]})


def test_files_beside_a_directory_of_a_similar_name_are_fine():
    files = dict.fromkeys(["a/b", "a.txt", "ab", "a/bc", "a/b.d/e", "a b"], BLOBS[0])
    check_is(build(files), files)


def test_a_relaxed_repository_may_hold_paths_that_differ_in_case_only_but_not_a_file_that_is_a_directory():
    files = {"readme": BLOBS[0], "README": BLOBS[1], "a/b": BLOBS[2], "A": BLOBS[3]}
    manifest = build(files, policy=RELAXED)
    check_is(manifest, files)
    for path in ("a", "A/x", "readme/x"):
        with refused(Code.UNSAFE_PATH):
            manifest.apply({path: BLOBS[0]})


@pytest.mark.parametrize("path", ["../a", "/a", "a\\b", "a\0b", ".git/x", "", "a//b", "\ud800", "a/\udfff", "x" * 5000])
@pytest.mark.parametrize("policy", PathPolicy)
def test_an_unsafe_path_is_refused(path, policy):
    for manifest in (empty(policy), build({"m": BLOBS[0]}, policy=policy)):
        with refused(Code.UNSAFE_PATH):
            manifest.apply({"fine": BLOBS[0], path: BLOBS[0]})


def test_a_name_that_was_freed_can_be_used_again():
    manifest = build({"a/b/c": BLOBS[0], "a/b/d": BLOBS[1]})
    manifest = manifest.apply({"A": BLOBS[2]}, ["a/b/c", "a/b/d"])
    manifest = manifest.apply({"a/B/x": BLOBS[3]}, ["A"])
    check_is(manifest, {"a/B/x": BLOBS[3]})
    with refused(Code.UNSAFE_PATH):
        manifest.apply({"a/b": BLOBS[0]})


def test_directories_belong_to_the_content_and_are_kept():
    files = {"src/a": BLOBS[0]}
    manifest = build(files, ["src", "empty/inner", "empty"])
    check_is(manifest, files, ["src", "empty", "empty/inner"])
    check_is(manifest.apply({}, ["src/a"], manifest.directories), {}, ["src", "empty", "empty/inner"])
    check_is(manifest.apply({"b": BLOBS[1]}), {**files, "b": BLOBS[1]})  # a delta states the whole new list
    assert manifest.snapshot_id(Scheme.TYPED) != build(files).snapshot_id(Scheme.TYPED)


@pytest.mark.parametrize(
    ("files", "directories"),
    [
        (["a"], ["a"]), (["a"], ["A"]), (["a"], ["a/b"]), (["a"], ["A/b/c"]), ([], ["x", "X"]), ([], ["x", "x"]),
        ([], ["\u00e9", "\u00c9"]), ([], [".."]), ([], ["/x"]), ([], [".git"]), ([], ["a\0b"]), ([], [""]),
        ([], ["con"]),
    ],
    ids=ascii,
)  # fmt: skip
def test_unsafe_directories_are_refused(files, directories):
    manifest = build(dict.fromkeys(files, BLOBS[0]))
    with refused(Code.UNSAFE_PATH):
        manifest.apply({}, (), tuple(directories))


def test_a_file_cannot_take_the_place_of_a_directory_that_stays():
    manifest = build({"a/b": BLOBS[0]}, ["empty/inner"])
    for path in ("empty", "EMPTY/inner"):
        with refused(Code.UNSAFE_PATH):
            manifest.apply({path: BLOBS[0]}, (), manifest.directories)
    check_is(manifest.apply({"empty": BLOBS[0]}), {"a/b": BLOBS[0], "empty": BLOBS[0]})


def test_limits_on_entries_and_text_hold_also_step_by_step():
    limits = Limits(manifest_entries=3, manifest_text_bytes=5 * 68)
    manifest = empty()
    for path in ("aa", "bb", "cc"):
        manifest = manifest.apply({path: BLOBS[0]}, limits=limits)
    with refused(Code.TOO_LARGE):
        manifest.apply({"dd": BLOBS[0]}, limits=limits)
    check_is(manifest.apply({"dd": BLOBS[0]}, ["aa"], limits=limits), dict.fromkeys(["bb", "cc", "dd"], BLOBS[0]))
    with refused(Code.TOO_LARGE):
        manifest.apply({"d" * 200: BLOBS[0]}, ["aa"], limits=limits)


def test_a_wrong_snapshot_id_is_refused():
    manifest = build({"a": BLOBS[0]})
    for scheme in Scheme:
        check_id(manifest, manifest.snapshot_id(scheme), scheme)
    with refused(Code.BAD_RECORD_ID):
        check_id(manifest, manifest.snapshot_id(Scheme.PLAIN), Scheme.TYPED)
    with refused(Code.BAD_RECORD_ID):
        check_id(manifest, empty().snapshot_id(Scheme.TYPED), Scheme.TYPED)


class Work:
    """Counts what the manifest module does: entries it decodes, encodes and sorts, and paths it checks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.decoded = self.encoded = self.sorted = self.checked = 0
        originals = {name: getattr(manifest_module, name) for name in ("_parse_block", "_cut_blocks", "check_path")}

        def parse_block(block):
            entries = originals["_parse_block"](block)
            self.decoded += len(entries)
            return entries

        def cut_blocks(entries, reorder):
            self.encoded += len(entries)
            return originals["_cut_blocks"](entries, reorder)

        def check_path(path, *arguments):
            self.checked += 1
            return originals["check_path"](path, *arguments)

        def count_sorted(items, **options):
            result = sorted(items, **options)
            self.sorted += len(result)
            return result

        monkeypatch.setattr(manifest_module, "_parse_block", parse_block)
        monkeypatch.setattr(manifest_module, "_cut_blocks", cut_blocks)
        monkeypatch.setattr(manifest_module, "check_path", check_path)
        monkeypatch.setattr(manifest_module, "sorted", count_sorted, raising=False)

    def reset(self) -> None:
        self.decoded = self.encoded = self.sorted = self.checked = 0


def tree_of(files: int) -> dict[str, bytes]:
    return {f"src/package{n % 50:02}/module{n:05}.py": BLOBS[n % len(BLOBS)] for n in range(files)}


@pytest.mark.parametrize(("files", "commits"), [(5_000, 1_000), (20_000, 100)])
def test_the_work_of_a_commit_is_proportional_to_its_change_and_not_to_the_tree(monkeypatch, files, commits):
    tree = tree_of(files)
    manifest = build(tree)
    work = Work(monkeypatch)
    rng = random.Random(files)
    paths = sorted(tree)
    for number in range(commits):
        gone = paths.pop(rng.randrange(len(paths)))
        upsert = {rng.choice(paths): rng.choice(BLOBS) for _ in range(2)}
        upsert[f"src/package{number % 50:02}/added{number:05}.py"] = BLOBS[0]
        base, manifest = manifest, manifest.apply(upsert, [gone])
        del tree[gone]
        tree |= upsert
        changed = len(upsert) + 1
        assert work.checked == 1  # the added path
        assert work.decoded <= changed * 128  # only blocks that a change falls into, each of a bounded size
        assert work.encoded <= changed * 128 + 1
        assert work.sorted <= changed * 129 + 1
        work.reset()
        if number % 50 == 0:
            upserted, removed = base.changes_to(manifest)
            assert upserted.keys() <= upsert.keys()
            assert removed == [gone]
            assert work.decoded <= 2 * changed * 129
            assert format_id(manifest.snapshot_id(Scheme.TYPED), Scheme.TYPED) == text_id(tree)
            work.reset()
    check_is(manifest, tree)


def test_unchanged_blocks_are_shared_with_the_base():
    base = build(tree_of(5_000))
    derived = base.apply({"src/package07/module00007.py": BLOBS[11]})
    ours = {id(block) for block in base._blocks}
    assert sum(id(block) not in ours for block in derived._blocks) == 1


@pytest.mark.parametrize("policy", PathPolicy)
def test_a_directory_named_like_an_object_id_is_refused(policy):
    named = BLOBS[0].hex()
    assert text_id({"dir": BLOBS[0]}) == text_id({}, [named])  # one text, two contents
    with refused(Code.UNSAFE_PATH):
        build({}, [named], policy)
    with refused(Code.UNSAFE_PATH):
        build({"a": BLOBS[1]}, ["x", named], policy)
    check_is(build({}, [named.upper(), "d" * 63, f"x/{named}"], RELAXED), {}, [named.upper(), "d" * 63, f"x/{named}"])


def test_paths_of_thousands_of_components_cost_no_more_than_their_bytes():
    files = {f"{number:06}/" + "a/" * 2044 + "b": BLOBS[0] for number in range(100)}
    tracemalloc.start()
    try:
        manifest = build(files)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10 * sum(map(len, files))  # a text for each prefix would be a thousand times as much
    check_is(manifest, files)
    with refused(Code.UNSAFE_PATH):
        manifest.apply({f"{3:06}/a/A": BLOBS[0], f"{3:06}/a": BLOBS[0]})


@pytest.mark.soak
def test_a_tree_of_a_hundred_thousand_files_takes_little_more_than_its_text():
    files = {f"src/package{n % 20_000:05}/module{n:06}.py": BLOBS[n % len(BLOBS)] for n in range(100_000)}
    tracemalloc.start()
    try:
        manifest = build(files)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 2 * manifest.text_bytes
    assert peak < 25_000_000


@given(st.sets(PATHS, max_size=40), st.sampled_from(PathPolicy))
@examples(60)
def test_a_manifest_built_in_slices_is_judged_like_one_built_at_once(paths, policy):
    files = dict.fromkeys(sorted(paths, reverse=True), BLOBS[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest_module, "AT_ONCE", 2)
        if is_safe(set(paths), policy):
            gone, left = sorted(paths)[::2], sorted(paths)[1::2]
            check_is(build(files, policy=policy).apply({}, gone), dict.fromkeys(left, BLOBS[0]))
        else:
            with refused(Code.UNSAFE_PATH):
                build(files, policy=policy)
