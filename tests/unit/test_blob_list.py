"""The blobs of a fetch: each once, in order, without those the client has, in little memory."""

from __future__ import annotations

import random
import tracemalloc

from actors.fetch.blob_list import BlobList


def test_each_blob_is_listed_once_in_order_and_none_that_was_excluded():
    rng = random.Random(5)
    ids = [rng.randbytes(32) for _ in range(5_000)]
    blobs = BlobList()
    blobs.exclude_all(ids[:1_000] + ids[:10])
    blobs.add_all(rng.choices(ids, k=3_000))
    expected: dict[bytes, None] = {}
    blobs.add_all(ids)
    assert len(blobs) == 4_000
    listed = [one for part in blobs.parts(700) for one in part]
    blobs.finish()
    assert [one for part in blobs.parts(999) for one in part] == listed
    expected = dict.fromkeys(listed)
    assert len(expected) == len(listed) == 4_000
    assert set(listed) == set(ids[1_000:])


def test_a_list_of_a_hundred_thousand_takes_some_fifty_bytes_for_each():
    tracemalloc.start()
    try:
        blobs = BlobList()
        blobs.add_all(number.to_bytes(32, "big") for number in range(100_000))
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert kept < 60 * 100_000
