"""Damage to what huge snapshots are kept in, apart from their rows: found, told with all else, and mended."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from storage.postgres import large_bodies
from tests.clones import clone
from tests.deployments import deployed
from tests.fsck_runs import checked, told
from tests.http_client import push
from tests.muse import Push

pytestmark = pytest.mark.usefixtures("expected_errors")
FLIP = "UPDATE large_bodies SET content = set_byte(content, 0, (get_byte(content, 0) + 1) % 256)"
ONE_BODY = "one body is flipped"
FULL = "the whole content of one that has changes is lost"
DAMAGES = {
    "all parts are flipped": FLIP,
    ONE_BODY: f"{FLIP} WHERE body_id = (SELECT min(body_id) FROM large_bodies)",
    "parts are lost": "DELETE FROM large_bodies WHERE part = 1",
    FULL: """
        UPDATE snapshots SET depth = 0, "full" = '\\xc1'::bytea || snapshot_id || '\\x0000000000000800'::bytea
        WHERE snapshot_id = (SELECT min(snapshot_id) FROM snapshots WHERE base_id IS NOT NULL)
    """,
    "all parts are lost": "DELETE FROM large_bodies",
}


def history() -> Push:
    made = Push()
    for number in range(3):
        made.commit({f"a/{n:02}": b"%d" % (n * max(1, number * (n % 2 + 1))) for n in range(40)})
    made.commit({f"a/{n:02}": b"%d" % n for n in range(39)} | {"small": b"change"})
    return made


@pytest.mark.parametrize(("way", "damage"), [*(("repair", damage) for damage in DAMAGES), ("clone", ONE_BODY)])
async def test_damaged_parts_are_told_and_mended(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str, way: str
) -> None:
    """``fsck`` goes on to what is sound, ``--repair`` makes the rows anew from the records; so does whoever clones."""
    monkeypatch.setattr(large_bodies, "APART_BYTES", 64)
    monkeypatch.setattr(large_bodies, "PART_BYTES", 512)
    made = history()
    async with deployed(database_url, tmp_path) as server:
        await server.make_repository()
        assert (await push(server, made.frames()))["type"] == "R"
        whole = await checked(server, deep=True)
        assert told(whole) == []
    with psycopg.connect(database_url) as beside:
        beside.execute(DAMAGES[damage])
    async with deployed(database_url, tmp_path) as server:  # which has nothing in memory yet
        if way == "repair":
            for deep in (False, True):
                found = await checked(server, deep=deep)
                assert told(found) == ["snapshot_wrong"]
                assert found.checked["snapshots"] == whole.checked["snapshots"]
            mended = await checked(server, repair=True)
            assert all(one.mended for one in mended.found)
        assert (await clone(server, made.head, repository="alice/x")).blobs == made.blobs
        if way == "repair":
            assert told(await checked(server, deep=True)) == []
    if damage == FULL:  # its changes were right, and stay
        with psycopg.connect(database_url) as beside:
            kept = 'SELECT count(*) FROM snapshots WHERE base_id IS NOT NULL AND "full" IS NOT NULL'
            assert beside.execute(kept).fetchone() == (1,)
