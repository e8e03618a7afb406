"""Make the fuzz corpus: small files, sound and broken, for every target.

``python -m tests.fuzz.make_corpus`` writes them under ``tests/fuzz/corpus/`` and leaves other files there alone: an
input that once broke a decoder stays in the corpus.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path

import msgpack
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests import containers, muse
from tests.containers import COMMITS, OBJECTS, OBJECTS_ZSTD, SNAPSHOTS, TAGS
from tests.golden import make as golden

CORPUS = Path(__file__).parent / "corpus"

H = muse.frame("H", version=2, branch="main", head=None)
E = muse.frame("E", n_objects=0, n_commits=0)
RLE = (b"\0", 128 * 1024)


def build() -> dict[str, dict[str, bytes]]:
    """Give target → file name → content."""
    return {
        "frames_push": frames_push(), "frames_answer": frames_answer(), "pack": pack(), "idx": idx(), "mpack": mpack(),
        "bundle": bundle(), "canonical": canonical(), "body_msgpack": body_msgpack(), "body_json": body_json(),
        "inflate": inflate(), "deltas": deltas(), "records": records(), "names": names(), "ids": ids(),
    }  # fmt: skip


def small_push() -> muse.Push:
    push = muse.Push()
    push.commit({"a.txt": b"hello\n", "empty": b""})
    push.commit({"a.txt": b"hello again\n", "d/e": b"x" * 40}, message="zwei ü")
    return push


def frames_push() -> dict[str, bytes]:
    history = golden.History()
    chunk = {"object_id": "x", "encoding": "raw", "content": b"c"}
    return {
        "every-frame": golden.push_stream(history), "small": small_push().frames(), "empty-push": H + E,
        "plain-ids": golden.push_stream(golden.History(muse.plain)), "cut": small_push().frames()[:300],
        "object": H + muse.frame("O", object_id="x", encoding="zlib", content=b"??") + E,
        "delta": H + muse.frame("O", object_id="x", encoding="delta+zstd", base="y", content=b"") + E,
        "chunks": H + muse.frame("OC", seq=0, last=False, **chunk) + muse.frame("OC", seq=1, last=True, **chunk) + E,
        "chunk-without-end": H + muse.frame("OC", seq=0, last=False, **chunk) + E,
        "chunk-order": H + muse.frame("OC", seq=1, last=False, **chunk), "trailing": H + E + b"\0",
        "type-is-a-list": muse.frame([]), "type-is-deep": b"\x81\xa4type" + b"\x91" * 400 + b"\x90",
        "content-first": H + b"\x83\xa7content\xc4\x01c\xa9object_id\xa1x\xa4type\xa1O" + E,
        "content-in-header": muse.frame("H", content=b"x", version=2),
        "records-in-end": H + muse.frame("E", commits=[]),
        "duplicate-key": b"\x82\xa4type\xa1H\xa4type\xa1H", "extension": H[:-1] + b"\xc7\x01\x05x" + E,
        "array-bomb": b"\x82\xa4type\xa1H\xa1x" + b"\xdd\x7f\xff\xff\xff" * 20,
        "endless-text": b"\x81\xa4type\xdb\xff\xff\xff\xff",
        "large-member": muse.frame("H", version=2, x=["y" * 90] * 120) + E,
        "long-record": H + muse.frame("C", commits=[{"message": "x" * 9000}]) + E,
        "many-objects": H + muse.frame("O", object_id="x", content=b"") * 41 + E,
        "manifest": H + muse.frame("C", snapshots=[{"manifest": {f"p{n}": "o" for n in range(61)}}]) + E,
        "nil-lists": H + muse.frame("C", snapshots=[{"manifest": None, "directories": None}]) + E,
    }  # fmt: skip


def frames_answer() -> dict[str, bytes]:
    progress = muse.frame("P", stage="s", done=1, total=None, message="")
    return {
        "result": golden.answer_stream(golden.History()), "failure": golden.failure_stream(),
        "progress-only": progress * 3,
        "only-an-error": muse.frame("X", error="draining", detail="", request_id="r", retryable=True),
        "trailing": muse.frame("R", push_id="p") + b"x", "push-frame": H, "no-type": b"\x80",
        "type-is-a-map": muse.frame({}),
        "records": muse.frame("R", commits=[1]), "content": muse.frame("P", content=b"x", stage="s", done=0),
        "negative": muse.frame("P", stage="s", done=-1), "nested": b"\x82\xa4type\xa1R\xa1x" + b"\x91" * 200 + b"\x90",
    }  # fmt: skip


def named(*contents: bytes) -> list[tuple[str, bytes]]:
    return [(muse.blob_id(content), content) for content in contents]


def pack() -> dict[str, bytes]:
    sound = containers.pack(named(b"hello\n", b"", b"x" * 300))
    header = b"MUSE\x01"
    return {
        "three": sound, "none": containers.pack([]), "empty-object": containers.pack(named(b"")), "cut": sound[:150],
        "trailing": sound + b"\0", "footer": sound[:-1] + b"\0", "version": containers.sealed(b"MUSE\x02" + bytes(8)),
        "huge-count": containers.sealed(header + struct.pack("<Q", 2**64 - 1)),
        "twice": containers.pack(named(b"a", b"a")),
        "huge-object": containers.sealed(header + struct.pack("<Q", 1) + b"sha256:" + b"a" * 64 + struct.pack("<Q",
        2**63)),
        "no-id": containers.sealed(header + struct.pack("<Q", 1) + b"\xff" * 71 + struct.pack("<Q", 0)),
    }  # fmt: skip


def idx() -> dict[str, bytes]:
    sound = containers.pack_index(named(b"hello\n", b"", b"x" * 300))
    return {
        "three": sound, "none": containers.pack_index([]), "cut": sound[:100], "padded": sound + bytes(87),
        "huge-count": containers.sealed(b"MUSI\x01" + struct.pack("<Q", 2**64 - 1) + sound[13:-32]),
        "no-id": containers.sealed(b"MUSI\x01" + struct.pack("<Q", 1) + b"\xff" * 71 + struct.pack("<QQ", 0, 0)),
        "backwards": containers.sealed(sound[:13] + sound[187:274] + sound[100:187] + sound[13:100]),
    }  # fmt: skip


def mpack() -> dict[str, bytes]:
    push = small_push()
    objects, commits = containers.pack(push.blobs.items()), containers.record_section(push.commits)
    one = containers.record_section([{"a": 1}])

    def tabled(*entries: tuple[int, int, int], body: bytes = one * 2) -> bytes:
        return containers.mpack_of_table(b"".join(struct.pack("<BQQ", *entry) for entry in entries), body)

    return {
        "all-sections": golden.mpack(golden.History()), "plain": golden.mpack(golden.History(muse.plain)),
        "none": containers.mpack([]), "objects": containers.mpack([(OBJECTS, objects)]),
        "objects-and-commits": containers.mpack([(OBJECTS, objects), (COMMITS, commits)]),
        "delta": containers.mpack([(SNAPSHOTS, containers.record_section([golden.History().delta]))]),
        "tags": containers.mpack([(TAGS, one)]), "zstd": containers.mpack([(OBJECTS_ZSTD, containers.pack([]))]),
        "cut": containers.mpack([(COMMITS, commits)])[:200], "unknown-section": containers.mpack([(9, one)]),
        "section-twice": containers.mpack([(COMMITS, one), (COMMITS, one)]),
        "gap": tabled((2, 30, len(one)), body=bytes(7) + one),
        "overlap": tabled((2, 40, len(one)), (3, 41, len(one))), "huge-offset": tabled((2, 2**64 - 1, 8)),
        "huge-length": tabled((2, 23, 2**64 - 1)),
        "other-order": tabled((2, 40 + len(one), len(one)), (3, 40, len(one))),
        "huge-count": containers.mpack([(COMMITS, struct.pack("<Q", 2**64 - 1))]),
        "huge-record": containers.mpack([(SNAPSHOTS, struct.pack("<QQ", 1,
        2**63) + b"\x81\xa8manifest\xdf\xff\xff\xff\xff")]),
        "deep-record": containers.mpack([(TAGS, struct.pack("<QQ", 1, 201) + b"\x91" * 200 + b"\x90")]),
    }  # fmt: skip


def bundle() -> dict[str, bytes]:
    sound = golden.bundle(golden.History())
    return {
        "golden": sound, "plain": golden.bundle(golden.History(muse.plain)), "empty": b"\x80", "cut": sound[:500],
        "trailing": b"\x80\0", "blobs": containers.bundle({"blobs": [{"object_id": "x", "content": b"c",
        "encoding": "zlib"}]}),
        "no-content": containers.bundle({"objects": [{}]}), "objects-is-a-map": containers.bundle({"objects": {}}),
        "encoding-is-a-list": containers.bundle({"objects": [{"content": b"", "encoding": []}]}),
        "many-members": containers.bundle({"objects": [{"content": b"", **{f"k{n}": n for n in range(70)}}]}),
        "large-object": b"\x81\xa7objects\x91\x81\xa7content\xc6\x00\x00\xff\xff", "not-a-map": b"\x90",
        "delta": containers.bundle({"snapshot_deltas": [{"delta_add": {"a": "b"}, "delta_remove": ["c"]}],
        "x": [1, {}]}),
    }  # fmt: skip


def stored(text: bytes, kind: bytes = b"commit") -> bytes:
    return b"%b %d\0" % (kind, len(text)) + text


def canonical() -> dict[str, bytes]:
    history = golden.History()
    return {
        "commit": containers.canonical("commit", history.commits[1]),
        "snapshot": containers.canonical("snapshot", history.full),
        "delta": containers.canonical("snapshot", history.delta), "empty": stored(b"{}"), "list": stored(b"[]"),
        "dollars": stored(b'{"a":{"$bytes":"AP8="},"b":{"$$bytes":1},"c":{"$$":{"$bytes":""}}}'),
        "not-base64": stored('{"a":{"$bytes":"ü"}}'.encode()), "bytes-is-a-list": stored(b'{"a":{"$bytes":[]}}'),
        "deep": stored(b'{"a":' + b"[" * 600 + b"]" * 600 + b"}"),
        "deep-dollars": stored(b'{"$a":' * 400 + b"1" + b"}" * 400),
        "surrogate": stored(b'{"a":"\xed\xa0\x80"}'), "escaped-surrogate": stored(b'{"a":"\\ud800"}'),
        "nan": stored(b'{"a":NaN}'),
        "huge-integer": stored(b'{"a":' + b"9" * 400 + b"}"), "infinity": stored(b'{"a":1e999}'),
        "wrong-size": b"commit 3\0{}",
        "duplicate": stored(b'{"a":1,"a":2}'), "unknown-kind": stored(b"{}", b"tree"), "cut": b"commit 20\0{",
    }  # fmt: skip


def body_msgpack() -> dict[str, bytes]:
    want = {
        "want": [muse.blob_id(b"%d" % n) for n in range(3)],
        "have": [],
        "depth": 1,
        "x": {"y": [None, True, 1.5, b"z"]},
    }
    return {
        "fetch": msgpack.packb(want), "map": b"\x80", "list": b"\x90", "integer-key": b"\x81\x01\x02", "nothing": b"",
        "trailing": b"\x80\x80", "duplicate": b"\x82\xa1a\x01\xa1a\x01", "deep": b"\x91" * 500 + b"\x90",
        "deeper-than-the-decoder": b"\x91" * 3000 + b"\x90", "array-bomb": b"\xdd\xff\xff\xff\xff" * 4,
        "map-bomb": b"\xdf\xff\xff\xff\xff", "open-arrays": b"\xdd\x00\x00\x0f\xa0" * 900,
        "timestamp": b"\xd6\xff\0\0\0\0",
        "extension": b"\xc7\x00\x05", "empty-timestamp": b"\xc7\x00\xff", "not-utf8": b"\xa1\xff", "reserved": b"\xc1",
        "nan": b"\xcb\x7f\xf8" + bytes(6), "integers": msgpack.packb({"a": 2**64 - 1, "b": -(2**63)}),
    }  # fmt: skip


def body_json() -> dict[str, bytes]:
    return {
        "fetch": json.dumps({"want": [muse.blob_id(b"")], "have": [],
        "x": [None, True, -1.5e3, "ü"]}).encode(), "nothing": b"",
        "escapes": b'{"\\u00fc\\n":"\\ud83d\\ude00"}', "half-a-pair": b'"\\ud83d"', "raw-surrogate": b'"\xed\xa0\x80"',
        "utf16": '{"a":"\\ud800"}'.encode("utf-16"), "byte-order-mark": b"\xef\xbb\xbf{}",
        "duplicate": b'{"a":1,"a":1}',
        "nan": b"[NaN]", "infinity": b"[-Infinity]", "large-float": b"[1e999]",
        "large-integer": b"[" + b"9" * 4301 + b"]",
        "deep": b"[" * 300 + b"]" * 300, "very-deep": b"[" * 20_000, "deep-map": b'{"a":' * 300, "trailing": b"{}{}",
        "not-utf8": b'"\xff"', "control": b'"\x01"',
    }  # fmt: skip


def inflate() -> dict[str, bytes]:
    zstd = containers.stored_zstd(b"some content, " * 20)
    return {
        "zlib": containers.stored_zlib(b"some content, " * 20), "zlib-empty": containers.stored_zlib(b""),
        "zlib-fixed": b"\x78\x9c\x4b\xaf\xca\x2c\x00\x00\x04\x5d\x01\xc1",
        "zlib-cut": containers.stored_zlib(b"abc")[:-2],
        "zlib-trailing": containers.stored_zlib(b"abc") + b"x", "zlib-dictionary": b"\x78\xbb\x00\x00\x00\x01\x03\x00",
        "zstd": zstd, "zstd-empty": containers.stored_zstd(b""),
        "zstd-empty-trailing": containers.stored_zstd(b"") + b"x",
        "zstd-unstated": containers.zstd_frame([b"abc", b"def"]), "zstd-run": containers.zstd_frame([(b"a", 30_000)]),
        "zstd-cut": zstd[:-3], "zstd-bomb": containers.zstd_frame([RLE] * 40), "zstd-two": zstd + zstd,
        "zstd-lie": containers.zstd_frame([RLE] * 20, stated=10),
        "zstd-huge": containers.zstd_frame([b"x"], stated=2**63),
        "zstd-window": containers.zstd_frame([b"x"], window_log=31),
        "zstd-dictionary": containers.zstd_frame([b"x"], dictionary=9),
        "zstd-empty-lie": containers.zstd_frame([b""], stated=33_554_432),
        "skippable": b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + zstd, "nothing": b"", "magic": b"\x28\xb5\x2f\xfd",
        "too-long-raw": bytes(range(256)) * 60 * 3,
    }  # fmt: skip


def deltas() -> dict[str, bytes]:
    copy, insert, delta = containers.copy, containers.insert, containers.delta
    return {
        "copy": delta(512, 512, copy(0, 512)),
        "edit": delta(512, 211, copy(0, 100), insert(b"something"), copy(410, 102)),
        "insert": delta(512, 3, insert(b"new")), "empty": delta(512, 0), "default-size": delta(512, 65536, b"\x80"),
        "beyond": delta(512, 9, copy(510, 9)), "other-base": delta(511, 0), "bomb": delta(512, 2**60), "nothing": b"",
        "repeated": delta(512, 10_240, *[copy(0, 512)] * 20), "lie": delta(512, 5, copy(0, 512)),
        "reserved": delta(512, 1, b"\0"),
        "long-header": b"\x80" * 30, "cut": delta(512, 20, copy(0, 20))[:-1],
        "short-copy": delta(512, 2, b"\x91\x05\x02"),
    }  # fmt: skip


def signed_commit() -> dict[str, object]:
    key = Ed25519PrivateKey.from_private_bytes(b"f" * 32)
    public = base64.urlsafe_b64encode(key.public_key().public_bytes_raw()).decode().rstrip("=")
    record = muse.make_commit(muse.blob_id(b""), format_version=8, agent_id="a", signer_public_key=public)
    text = "\0".join([record["commit_id"], record["author"], "a", "", "", ""])
    signature = key.sign(hashlib.sha256(text.encode()).hexdigest().encode())
    return {**record, "signature": base64.urlsafe_b64encode(signature).decode().rstrip("=")}


def records() -> dict[str, bytes]:
    typed, plain = golden.History(), golden.History(muse.plain)
    deep: object = 1
    for _ in range(100):
        deep = [deep]

    def changed(record: Mapping[str, object], **fields: object) -> bytes:
        return msgpack.packb({**record, **fields})

    commit, delta = typed.commits[1], typed.delta
    return {
        "commit": msgpack.packb(commit), "merge": msgpack.packb(typed.commits[2]),
        "signed": msgpack.packb(signed_commit()),
        "plain-commit": msgpack.packb(plain.commits[2]), "full": msgpack.packb(typed.full),
        "plain-full": msgpack.packb(plain.full),
        "delta": msgpack.packb(delta), "plain-delta": msgpack.packb(plain.delta), "tag": msgpack.packb(typed.tags[0]),
        "json-commit": json.dumps(typed.commits[0]).encode(), "json-delta": json.dumps(delta).encode(),
        "bare-delta": msgpack.packb({"snapshot_id": delta["snapshot_id"]}), "list": b"\x90",
        "older-delta": msgpack.packb({"snapshot_id": delta["snapshot_id"], "delta_add": {"a": muse.blob_id(b"")}}),
        "both": changed(typed.full, delta_upsert={}), "nul-character": changed(commit, message="a\0b"),
        "deep": changed(commit, x=deep),
        "unsafe": changed(typed.full, manifest={"../x": muse.blob_id(b"")}),
        "large-integer": b'{"message":123456789012345678901}',
        "collision": changed(typed.full, manifest={"a": muse.blob_id(b""), "A": muse.blob_id(b"")}),
        "list-for-text": changed(commit, author=[], agent_id={}), "list-for-id": changed(commit, commit_id=[[]]),
        "signature-is-text": changed(signed_commit(), signature="ü"),
        "key-is-a-number": changed(signed_commit(), signer_public_key=5),
    }  # fmt: skip


def names() -> dict[str, bytes]:
    lines = {
        "sound": ["a", "b/c", "src/ünï.txt", "docs/a b"], "one": ["main"], "case": ["README", "readme"],
        "dots": ["..", "a/../b"],
        "prefix": ["a", "a/b"], "metadata": [".git/x", ".GIT", ".g\u200cit", "git~1", ".muse."],
        "empty": ["", "a//b", "/"],
        "reserved": ["con", "aux.c", "com1", "x:y", "C:/x", "a.", "b "],
        "forms": ["e\u0301", "\u00e9", "\u212b", "ß", "ss"],
        "branches": ["feature/x", "a.lock", "@{", "-x", "a..b", "x~1", "a b"],
        "many": [f"d{n % 7}/f{n}" for n in range(61)],
        "fine-in-a-relaxed-one": ["A", "a", "con", "x:y", "b."], "long": ["x" * 256, "y/" * 2100],
        "control": ["a\x01", "\x7f"],
    }  # fmt: skip
    files = {name: "\n".join(texts).encode() for name, texts in lines.items()}
    return files | {"not-utf8": b"a\xff\nb", "surrogate": b"\xed\xa0\x80", "nul-character": b"a\0b"}


def ids() -> dict[str, bytes]:
    text = "0123456789abcdef" * 4
    texts = {
        "typed": "sha256:" + text, "plain": text, "upper": text.upper(), "short": text[1:],
        "long": text + "0", "prefix": "sha256:",
        "twice": "sha256:sha256:" + text, "other": "sha512:" + text, "space": text[:30] + "    " + text[34:],
        "line": text + "\n",
        "fullwidth": "\uff10" * 64, "nothing": "", "nul-character": text[:63] + "\0",
    }  # fmt: skip
    return {name: value.encode() for name, value in texts.items()} | {"not-utf8": b"\xff" * 64}


if __name__ == "__main__":
    for target, files in build().items():
        (CORPUS / target).mkdir(parents=True, exist_ok=True)
        for file_name, content in files.items():
            (CORPUS / target / file_name).write_bytes(content)
        print(target, len(files))
