"""The ways of a fetch, as a client walks them: one file, frames at its own pace, or all in one answer."""

from __future__ import annotations

import hashlib
from contextlib import aclosing
from typing import Any

import trio

from actors.fetch.assemble import fetch
from actors.fetch.frames import fetch_frames, prepared
from storage.layout import fetch_pack_key
from tests.clones import Clone
from tests.muse import blob_id, commit_id, unpack_frames
from tests.simulation.daemon import Cut, Daemon
from wire.frames import FrameWriter, Grammar
from wire.ids import Scheme, parse_id

_PATIENCE_S = 20.0
_PAUSES = 3
_READS_S = (0, 0, 0, 1, 40)
"""What a reader of frames leaves between one and the next."""


class Fetcher:
    """Fetches for a client."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def into(self, clone: Clone, want: list[str]) -> None:
        """Fetch what a clone lacks, trying again with another answer when one cannot be had."""
        client, rng = self._client, self._client.rng
        if client.scheme is Scheme.PLAIN and rng.random() < 0.7:
            await client.plain.fetch_into(clone, want)
        elif rng.random() < 0.3:
            pace_s = 0 if client.world.weather.calm else rng.choice(_READS_S)
            body = await client.ask(lambda daemon: (self._frames, daemon, want, list(clone.commits), pace_s))
            take_frames(clone, body)
        else:
            body = await client.ask(lambda daemon: (self._pack, daemon, want, list(clone.commits)))
            if body is not None:
                clone.apply(body)
        client.world.trace.say(client.name, f"fetched {len(want)} heads")

    def _ids(self, texts: list[str]) -> list[bytes]:
        return [parse_id(text, self._client.scheme) for text in texts]

    async def _pack(self, daemon: Daemon, want: list[str], have: list[str]) -> bytes | None:
        """Protocol §8."""
        repository = await self._client.found(daemon)
        ids, known = self._ids(want), self._ids(have)
        answer = await fetch(daemon.fetch, daemon.supervisor.start, repository, ids, known, None, _PATIENCE_S)
        if answer.mpack_id is None:
            return None
        async with daemon.store.stream(fetch_pack_key(answer.mpack_id)) as pieces:
            body = b"".join([piece async for piece in pieces])
        if hashlib.sha256(body).digest() != answer.mpack_id:
            raise Cut  # the real client sees it too, and downloads it again
        return body

    async def _frames(self, daemon: Daemon, want: list[str], have: list[str], pace_s: float) -> bytes:
        """``fetch/stream``, by a reader that may be slow."""
        repository = await self._client.found(daemon)
        heard = bytearray()
        async with prepared(daemon.fetch, repository, self._ids(want), self._ids(have), None) as made:
            pauses = iter([pace_s] * _PAUSES)
            async with aclosing(fetch_frames(daemon.fetch, made, FrameWriter(Grammar.FETCH))) as frames:
                async for frame in frames:
                    heard += frame
                    await trio.sleep(next(pauses, 0))
        return bytes(heard)


def take_frames(clone: Clone, body: bytes) -> None:
    """Take frames in, each record only with what it needs at hand, every id recomputed."""
    frames = unpack_frames(body)
    assert frames[-1]["type"] == "E"
    objects = commits = 0
    for frame in frames:
        if frame["type"] == "O":
            assert blob_id(frame["content"], clone.name) == frame["object_id"]
            clone.blobs[frame["object_id"]] = frame["content"]
            objects += 1
        for record in [*frame.get("snapshots", ()), *frame.get("snapshot_deltas", ())]:
            clone._take_snapshot(record)
        for record in frame.get("commits", ()):
            assert commit_id(record, clone.name) == record["commit_id"]
            assert record["snapshot_id"] in clone.manifests
            clone.commits[record["commit_id"]] = record
            commits += 1
    assert (frames[-1]["n_objects"], frames[-1]["n_commits"]) == (objects, commits)
