"""Commit signatures: what was signed is what is stored (protocol §1, threat T7)."""

from __future__ import annotations

import base64
import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests import muse
from tests.unit.refusals import refused
from wire.errors import Code
from wire.ids import Scheme
from wire.records import parse_commit
from wire.signatures import check_signature, is_signed, signed_text

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(b"o" * 32)
PROVENANCE = ("author", "agent_id", "model_id", "toolchain_id", "prompt_hash")
NAMERS = {Scheme.TYPED: muse.typed, Scheme.PLAIN: muse.plain}


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def text_of(record: dict, commit_id: str | None = None) -> bytes:
    fields = [commit_id or record["commit_id"], *(record.get(key) or "" for key in PROVENANCE)]
    return hashlib.sha256("\0".join(fields).encode()).hexdigest().encode()


def unsigned(scheme: Scheme = Scheme.TYPED, **fields: object) -> dict:
    provenance = {"agent_id": "agent-1", "model_id": "m-2", "toolchain_id": "t-3", "prompt_hash": "ff00"}
    return muse.make_commit(
        muse.blob_id(b"", NAMERS[scheme]), name=NAMERS[scheme], format_version=8,
        **{"signer_public_key": base64url(public(KEY)), **provenance, **fields},
    )  # fmt: skip


def sign(record: dict, key: Ed25519PrivateKey = KEY, commit_id: str | None = None) -> dict:
    return {**record, "signature": base64url(key.sign(text_of(record, commit_id)))}


def check(record: dict, scheme: Scheme = Scheme.TYPED) -> None:
    check_signature(parse_commit(record, scheme), scheme)


@pytest.mark.parametrize("scheme", Scheme)
def test_a_signed_commit_verifies(scheme):
    check(sign(unsigned(scheme)), scheme)


def test_the_signed_text_is_the_hexadecimal_hash_of_the_provenance():
    record = unsigned()
    text = signed_text(parse_commit(record, Scheme.TYPED), record["commit_id"])
    assert text == text_of(record)
    assert len(text) == 64


def test_absent_provenance_is_signed_as_empty_text():
    for absent in (None, ""):
        check(sign(unsigned(**dict.fromkeys(PROVENANCE, absent))))
    record = unsigned()
    check(sign({key: value for key, value in record.items() if key not in PROVENANCE[1:]}))


def test_an_unsigned_commit_passes_and_is_told_from_a_signed_one():
    record = unsigned()
    for lacking in (record, {**record, "signature": None}, {**record, "signature": ""}):
        assert not is_signed(parse_commit(lacking, Scheme.TYPED))
        check(lacking)
    assert is_signed(parse_commit(sign(record), Scheme.TYPED))


def test_a_prefix_is_allowed_on_signature_and_key():
    record = sign(unsigned(signer_public_key="ed25519:" + base64url(public(KEY))))
    check(record)
    check({**record, "signature": "ed25519:" + record["signature"]})


def test_padding_does_no_harm():
    record = sign(unsigned(signer_public_key=base64.urlsafe_b64encode(public(KEY)).decode()))
    check({**record, "signature": record["signature"] + "=="})


def test_the_bare_commit_id_may_have_been_signed():
    record = unsigned()
    check(sign(record, commit_id=muse.bare(record["commit_id"])))


@pytest.mark.parametrize("scheme", Scheme)
@pytest.mark.parametrize("key", PROVENANCE[1:])
@pytest.mark.parametrize("value", ["another", None, "", ["agent-1"], {"a": 1}, 5, True])
def test_changed_provenance_no_longer_verifies(scheme, key, value):
    with refused(Code.BAD_SIGNATURE):
        check({**sign(unsigned(scheme)), key: value}, scheme)


@pytest.mark.parametrize("key", PROVENANCE[1:])
@pytest.mark.parametrize("value", [["evil"], {"a": 1}, 5, True, b"evil"], ids=ascii)
def test_what_is_not_text_cannot_pass_for_absent_provenance(key, value):
    signed = sign(unsigned(**{key: None}))
    check(signed)
    with refused(Code.BAD_SIGNATURE):
        check({**signed, key: value})


def test_provenance_cannot_be_moved_over_a_nul():
    signed = sign(unsigned(agent_id="a\0b", model_id="c"))
    for change in ({}, {"agent_id": "a", "model_id": "b\0c"}):
        with refused(Code.BAD_SIGNATURE):
            check({**signed, **change})


def test_the_author_of_a_plain_commit_is_covered_by_the_signature():
    with refused(Code.BAD_SIGNATURE):
        check({**sign(unsigned(Scheme.PLAIN)), "author": "Mallory"}, Scheme.PLAIN)


def test_a_signature_of_another_commit_or_key_does_not_verify():
    first, second = sign(unsigned()), unsigned(message="another")
    with refused(Code.BAD_SIGNATURE):
        check({**second, "signature": first["signature"]})
    with refused(Code.BAD_SIGNATURE):
        check(sign(unsigned(), OTHER_KEY))


@pytest.mark.parametrize(
    "signature", ["", "A", "!", "ü", "A" * 85, "A" * 87, "ed25519:", "ed25519:ed25519:" + "A" * 86]
)
def test_a_signature_that_is_none_is_refused(signature):
    if not signature:
        signature = "="
    with refused(Code.BAD_SIGNATURE):
        check({**sign(unsigned()), "signature": signature})


@pytest.mark.parametrize(
    "signature", [5, True, b"x" * 64, ["x"], {"a": 1}, "x" * 100_000], ids=lambda value: ascii(value)[:20]
)
def test_a_signature_of_the_wrong_type_is_refused(signature):
    with refused(Code.BAD_SIGNATURE):
        check({**sign(unsigned()), "signature": signature})


@pytest.mark.parametrize("key", [None, "", "A", "ed25519:", "not base64!", base64url(b"k" * 31), base64url(b"k" * 33)])
def test_a_signed_commit_needs_a_sound_key(key):
    with refused(Code.BAD_SIGNATURE):
        check(sign(unsigned(signer_public_key=key)))


@pytest.mark.parametrize(
    "key", [b"\xff" * 32, b"\0" * 32, b"\x01" + b"\0" * 31, bytes(range(32))], ids=lambda key: key.hex()
)
def test_a_key_that_is_32_bytes_of_anything_is_refused(key):
    with refused(Code.BAD_SIGNATURE):
        check({**unsigned(signer_public_key=base64url(key)), "signature": base64url(bytes(64))})


def test_the_key_id_must_be_that_of_the_key():
    record = sign(unsigned())
    right = "sha256:" + hashlib.sha256(public(KEY)).hexdigest()
    for key_id in (right, None, ""):
        check({**record, "signer_key_id": key_id})
    for key_id in (right.removeprefix("sha256:"), right.upper(), "sha256:" + "0" * 64, 5, [right]):
        with refused(Code.BAD_SIGNATURE):
            check({**record, "signer_key_id": key_id})


def test_a_refusal_names_the_commit():
    record = {**sign(unsigned()), "agent_id": "x"}
    with refused(Code.BAD_SIGNATURE) as caught:
        check(record)
    assert caught.value.facts["id"] == record["commit_id"]
