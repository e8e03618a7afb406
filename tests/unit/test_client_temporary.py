"""A command's temporary files: nobody else's are removed, and those of a killed one are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from museworkd.client.repository import LocalRepository
from museworkd.client.temporary import sweep, temporary_directory


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[LocalRepository]:
    with LocalRepository.fresh(tmp_path):
        pass
    with LocalRepository(tmp_path) as opened:
        yield opened


def test_a_sweep_leaves_what_is_in_use_and_takes_what_is_not(repository):
    """The lock tells: it dies with its process, the files do not."""
    parent = repository.directory / "tmp"
    left = parent / "of-a-killed-one"
    left.mkdir(parents=True)
    (left / "spool").write_bytes(b"left")
    with temporary_directory(repository) as mine:
        (mine / "spool").write_bytes(b"mine")
        sweep(repository)
        assert list(parent.iterdir()) == [mine]
        assert (mine / "spool").read_bytes() == b"mine"
    assert not parent.exists()


def test_nothing_is_left_of_a_block_that_fails_or_of_two_at_once(repository):
    """The last one to leave removes the directory of all."""

    def fail() -> None:
        with temporary_directory(repository) as outer:
            with temporary_directory(repository) as inner:
                assert outer != inner
            assert outer.is_dir()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not (repository.directory / "tmp").exists()


def test_a_link_among_temporary_files_is_not_followed(repository, tmp_path_factory):
    """A sweep removes nothing that lies elsewhere."""
    outside = tmp_path_factory.mktemp("outside")
    (outside / "mine").write_bytes(b"mine")
    (repository.directory / "tmp").mkdir()
    (repository.directory / "tmp" / "link").symlink_to(outside)
    sweep(repository)
    assert (outside / "mine").read_bytes() == b"mine"
