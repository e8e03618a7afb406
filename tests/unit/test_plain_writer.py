"""The answer an old client gets is the same map in both forms, and a large content in it is never whole in memory."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path

import msgpack
import pytest

from actors.fetch.plain_writer import ANSWER_MOST_BYTES, PlainWriter
from actors.spool import SpoolDirectory
from wire.errors import Code, Refusal


async def pieces(content: bytes, size: int) -> AsyncIterator[bytes]:
    for at in range(0, len(content), size):
        yield content[at : at + size]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 1_000])
@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 10, 1_001])
async def test_a_content_in_pieces_is_written_as_if_it_were_whole(tmp_path: Path, size: int, length: int) -> None:
    content = bytes(at % 251 for at in range(length))
    item = {"object_id": "a" * 64, "content": content, "path": 'é "quoted"/x'}
    found = {}
    for packed in (True, False):
        spool = SpoolDirectory(tmp_path, "x").new()
        writer = PlainWriter(spool, packed, 2)
        await writer.begin()
        await writer.open_list("objects", 3)
        await writer.item(item)
        await writer.large_object(item["object_id"], item["path"], length, pieces(content, size))
        await writer.item(item)
        await writer.close_list()
        await writer.member("branch_heads", {"main": "b"})
        await writer.end()
        found[packed] = spool.whole()
    assert msgpack.unpackb(found[True]) == {"objects": [item] * 3, "branch_heads": {"main": "b"}}
    told = {**item, "content": base64.b64encode(content).decode()}
    assert json.loads(found[False]) == {"objects": [told] * 3, "branch_heads": {"main": "b"}}


async def test_what_that_client_does_not_take_is_refused_before_it_is_read(tmp_path: Path) -> None:
    writer = PlainWriter(SpoolDirectory(tmp_path, "x").new(), True, 1)

    async def unread() -> AsyncIterator[bytes]:
        raise AssertionError
        yield b""

    with pytest.raises(Refusal) as refused:
        await writer.large_object("a" * 64, "p", ANSWER_MOST_BYTES + 1, unread())
    assert refused.value.code is Code.TOO_LARGE
