"""What snapshots make the server keep: chains stay short, and small records do not stand for large contents."""

from __future__ import annotations

import random

import msgpack
import pytest
import trio

from actors.manifests import KEPT_BYTES, ManifestCache
from actors.snapshot_builder import SnapshotBuilder
from storage.memory.index import MemoryIndex
from storage.rows import SnapshotRow
from storage.snapshots import (
    DEPTH_MOST,
    Changes,
    Entries,
    are_sound,
    build_manifest,
    pack_changes,
    unpack_changes,
)
from tests.unit.refusals import refused
from wire.canonical import canonical_bytes, canonical_with_map
from wire.errors import Code
from wire.ids import Kind, Scheme, format_id
from wire.limits import Limits
from wire.manifest import AT_ONCE, Manifest, empty
from wire.path_map import BlobMap, PathMap
from wire.paths import PathPolicy
from wire.records import Snapshot, SnapshotDelta, parse_snapshot_delta

TYPED = Scheme.TYPED
BLOB = b"b" * 32


class History:
    """Builds snapshots one after the other and keeps their rows as an index would."""

    def __init__(self, files: int = 2_000) -> None:
        self.builder = SnapshotBuilder(TYPED, PathPolicy.PORTABLE, Limits())
        self.bases: dict[bytes, Manifest] = {}
        self.rows: dict[bytes, SnapshotRow] = {}
        self.written = 0
        manifest = empty().apply({f"src/{number % 40}/module{number:06}.py": BLOB for number in range(files)})
        self.root = manifest.snapshot_id(TYPED)
        self._keep(self.builder.build(Snapshot(self.root, dict(manifest.items()), (), {}), self.bases).row)

    def add(self, base: bytes, path: str, remove: tuple[str, ...] = ()) -> bytes:
        snapshot_id = self.bases[base].apply({path: BLOB}, remove).snapshot_id(TYPED)
        item = SnapshotDelta(snapshot_id, base, {path: BLOB}, remove, (), {})
        built = self.builder.build(item, self.bases, ask=True)
        self.written += len(built.canonical(TYPED, Limits()))
        self._keep(built.row)
        return snapshot_id

    def _keep(self, row: SnapshotRow) -> None:
        self.written += len(row.delta) + len(row.full or b"")
        self.rows.setdefault(row.snapshot_id, row)

    def chain(self, snapshot_id: bytes) -> list[SnapshotRow]:
        rows = [self.rows[snapshot_id]]
        while rows[-1].full is None and rows[-1].base_id is not None:
            rows.append(self.rows[rows[-1].base_id])
        return rows

    def check(self, snapshot_id: bytes) -> None:
        chain = self.chain(snapshot_id)
        assert len(chain) <= DEPTH_MOST + 1
        assert build_manifest(chain, PathPolicy.PORTABLE).snapshot_id(TYPED) == snapshot_id


def test_siblings_of_a_deep_snapshot_do_not_each_cost_a_full_content():
    history = History()
    base = history.root
    for number in range(DEPTH_MOST):
        base = history.add(base, f"z{number:04}")
    before = history.written
    siblings = [history.add(base, f"zz{number:04}") for number in range(200)]
    assert history.written - before < 400_000  # one full content is 180 kB, and 100 kB as a record
    for sibling in siblings[::20]:
        history.check(sibling)


def test_children_of_many_deep_siblings_do_not_either():
    history = History()
    base = history.root
    for number in range(DEPTH_MOST - 1):
        base = history.add(base, f"z{number:04}")
    deep = [history.add(base, f"y{number:04}") for number in range(100)]
    before = history.written
    children = [history.add(one, f"zz{number:04}") for number, one in enumerate(deep)]
    assert history.written - before < 400_000
    for child in children[::10]:
        history.check(child)


@pytest.mark.soak
def test_a_long_history_keeps_short_chains_and_few_full_contents():
    history = History()
    base = history.root
    for number in range(400):
        base = history.add(base, f"z{number:04}")
        history.check(base)
    assert sum(row.full is not None for row in history.rows.values()) <= 2


def test_a_chain_stays_short_on_rows_that_somebody_else_has_stored_deeper():
    history = History()
    base = history.root
    for number in range(40):
        base = history.add(base, f"z{number:04}")
    other = SnapshotBuilder(TYPED, PathPolicy.PORTABLE, Limits())
    other.cost.learn_depths({base: history.rows[base].depth})
    manifest = history.bases[base]
    other.build(Snapshot(base, dict(manifest.items()), (), {}), history.bases)  # whole: by itself it would be 0 deep
    history.builder = other
    for number in range(60):
        base = history.add(base, f"y{number:04}")
        history.check(base)


def test_a_snapshot_sent_again_as_a_full_one_does_not_hide_how_deep_it_is():
    history = History()
    base = history.root
    for number in range(3 * DEPTH_MOST):
        base = history.add(base, f"z{number:04}")
        if number % 47 == 46:
            item = SnapshotDelta(base, None, dict(history.bases[base].items()), (), (), {})
            history.builder.build(item, history.bases)
        history.check(base)


@pytest.mark.parametrize("between", ["nothing", "changes", "another history", "a refused one"])
def test_a_full_snapshot_is_compared_with_the_one_before_it_whatever_came_in_between(between):
    """What is stored rebuilds to its id, also when the one before was not the last that came whole."""
    history = History(200)
    tree = dict(history.bases[history.root].items())
    base = history.root
    if between == "changes":
        base = history.add(base, "between")
        tree["between"] = BLOB
    elif between == "another history":  # a push that goes on from what the repository has says so to the builder
        another = SnapshotBuilder(TYPED, PathPolicy.PORTABLE, Limits())
        base = history.bases[base].apply({"z": BLOB}).snapshot_id(TYPED)
        row = another.build(Snapshot(base, {**tree, "z": BLOB}, (), {}), history.bases).row
        history.rows[base], history.builder.last = row, base
        tree["z"] = BLOB
    elif between == "a refused one":
        wrong = Snapshot(b"w" * 32, {"wrong": BLOB}, (), {})
        with refused(Code.BAD_RECORD_ID):
            history.builder.build(wrong, history.bases)
    del tree[min(path for path in tree if path.startswith("src/"))]
    tree["new"] = b"n" * 32
    snapshot_id = empty().apply(tree).snapshot_id(TYPED)
    built = history.builder.build(Snapshot(snapshot_id, dict(tree), (), {}), history.bases)
    history.rows[snapshot_id] = built.row
    assert (built.row.base_id, dict(built.added)) == (base, {"new": b"n" * 32})
    history.check(snapshot_id)


def test_a_delta_onto_itself_is_refused():
    own = format_id(BLOB, TYPED)
    with refused(Code.MALFORMED):
        parse_snapshot_delta({"snapshot_id": own, "parent_snapshot_id": own, "delta_upsert": {}}, TYPED)


@pytest.mark.parametrize("count", [1, AT_ONCE, AT_ONCE + 1, 3 * AT_ONCE])
def test_large_contents_are_stored_in_the_same_form_as_small_ones(count):
    manifest = empty().apply({f'd{number % 7}/é"{number}': BLOB for number in range(count)}, (), ("empty",))
    record = {"snapshot_id": "x", "note": {"$bytes": "no"}, "zeta": [1, {"$x": b"2"}], "a": None}
    whole = {**record, "manifest": {path: format_id(blob, TYPED) for path, blob in manifest.items()}}
    pieces = canonical_with_map({**record, "manifest": {}}, "manifest", Entries(manifest), TYPED)
    assert b"".join(pieces) == canonical_bytes(Kind.SNAPSHOT, whole)
    packed = pack_changes(Changes(Entries(manifest), ("gone",), manifest.directories))
    assert unpack_changes(packed) == Changes(dict(manifest.items()), ["gone"], manifest.directories)
    row = SnapshotRow(b"", None, 0, packed, None)
    assert build_manifest([row], PathPolicy.PORTABLE).snapshot_id(TYPED) == manifest.snapshot_id(TYPED)


def test_many_changes_are_stored_compressed_and_few_as_before():
    many = Changes({f"src/{n:08}": BLOB for n in range(AT_ONCE)}, [f"gone/{n}" for n in range(2)], ("empty",))
    packed = pack_changes(many)
    assert unpack_changes(packed) == many
    assert len(packed) < len(msgpack.packb([dict(many.upsert), many.remove, many.directories])) / 2
    few = Changes({"a": BLOB}, ["b"], ("c",))
    packed = pack_changes(few)
    assert msgpack.unpackb(packed)[:3] == [few.upsert, few.remove, list(few.directories)]
    assert unpack_changes(msgpack.packb(msgpack.unpackb(packed)[:3])) == Changes(few.upsert, few.remove, ("c",))


@pytest.mark.parametrize("count", [1, 40, AT_ONCE + 1])
def test_a_bit_flipped_in_stored_changes_is_found_without_a_manifest(count):
    """Nothing but the changes themselves is needed to see that they are not what was written."""
    rng = random.Random(count)
    packed = pack_changes(Changes({f"src/{n:08}": rng.randbytes(32) for n in range(count)}, ["gone"], ("empty",)))
    assert are_sound(packed)
    for at in {0, 1, 2, 3, 4, len(packed) - 1, *(rng.randrange(len(packed)) for _ in range(60))}:
        flipped = packed[:at] + bytes([packed[at] ^ (1 << rng.randrange(8))]) + packed[at + 1 :]
        assert not are_sound(flipped), at


@pytest.mark.parametrize("damage", [lambda p: p[:-20], lambda p: p[:5], lambda p: p[:60] + bytes(40) + p[100:]])
def test_stored_changes_that_are_damaged_are_found_out(damage):
    packed = damage(pack_changes(Changes({f"src/{n:08}": n.to_bytes(32) for n in range(AT_ONCE + 1)}, [], ())))
    with pytest.raises((ValueError, msgpack.UnpackException)):
        dict(unpack_changes(packed).upsert)


def test_a_map_of_paths_kept_as_bytes_reads_like_a_dictionary():
    entries = {f"d{number % 9}/{number}": format_id(number.to_bytes(32, "big"), TYPED) for number in range(3_000)}
    paths = PathMap()
    for path, object_id in entries.items():
        paths.add(path, object_id)
    assert paths.finish()
    assert paths == entries
    assert list(BlobMap(paths, TYPED).items()) == [(p, bytes.fromhex(i[7:])) for p, i in entries.items()]
    assert paths.held_bytes < 60 * len(entries)  # 71 of them the id's
    twice = PathMap()
    twice.add("a", "x")
    twice.add("a", "y")
    assert not twice.finish()


@pytest.mark.soak
async def test_manifests_at_hand_are_bounded_by_the_bytes_they_do_not_share():
    await trio.lowlevel.checkpoint()
    cache = ManifestCache(MemoryIndex(), TYPED, PathPolicy.PORTABLE, Limits())
    manifest = empty().apply({f"src/{number:08}": BLOB for number in range(20_000)})
    for number in range(100):
        manifest = manifest.apply({f"src/{number:08}": bytes([number]) * 32})
        cache.keep(bytes([number]), manifest)
    assert sum(bytes([number]) in cache for number in range(100)) == 100  # they share nearly everything
    for number in range(30):
        cache.keep(bytes([200, number]), empty().apply({f"{number}/{at:08}": BLOB for at in range(20_000)}))
        assert cache.held_bytes <= KEPT_BYTES + 8 * 1024 * 1024
