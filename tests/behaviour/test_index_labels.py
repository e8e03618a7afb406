"""Tags and releases, over both indexes."""

from __future__ import annotations

import datetime as dt

from storage.index import Index
from storage.labels import TagRow
from tests.behaviour.test_index import emptied_url, index, tables, url

__all__ = ["emptied_url", "index", "tables", "url"]

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
A, B = bytes([1]) * 32, bytes([2]) * 32


async def test_tags_are_set_replaced_and_listed_by_name(index: Index):
    """What is there already is not counted; one of the same name gives way; repositories are apart."""
    tags = [TagRow("v2", A, b"r2"), TagRow("v1", A, b"r1")]
    assert await index.put_tags(1, tags) == 2
    assert await index.put_tags(1, tags) == 0
    moved = TagRow("v1", B, b"r1")
    assert await index.put_tags(1, [moved, tags[0]]) == 1
    assert await index.list_tags(1) == [moved, tags[0]]
    assert await index.list_tags(2) == []


async def test_releases_come_newest_first_and_are_retracted_once(index: Index):
    """A release that is written again keeps its place; a retracted one is not listed, and comes back when written."""
    for number, name in enumerate("abc"):
        assert await index.put_release(1, name, name.encode(), NOW + dt.timedelta(seconds=number))
    assert not await index.put_release(1, "a", b"again", NOW + dt.timedelta(seconds=9))
    assert await index.list_releases(1) == [b"c", b"b", b"again"]
    assert await index.retract_release(1, "b", NOW)
    assert not await index.retract_release(1, "b", NOW)
    assert not await index.retract_release(2, "a", NOW)
    assert await index.list_releases(1) == [b"c", b"again"]
    assert not await index.put_release(1, "b", b"back", NOW)
    assert await index.list_releases(1) == [b"c", b"back", b"again"]
