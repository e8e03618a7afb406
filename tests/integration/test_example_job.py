"""The example package in ``docs/examples/jobs-example``: installed, its type of jobs is there and does what it says."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

from actors.jobs.registry import Registry, UnusableHandler
from tests.deployments import with_history
from tests.handler_runs import services_of
from tests.insight_histories import attempt
from tests.muse import Push
from tests.servers import Server

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "jobs-example"
TYPE = "example.authors"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an installer leaves: the package on the path, and its metadata made of its ``pyproject.toml``."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())
    about, packages = project["project"], project["tool"]["setuptools"]["packages"]
    site = tmp_path / "site"
    metadata = site / f"{about['name'].replace('-', '_')}-{about['version']}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {about['name']}\nVersion: {about['version']}\n")
    lines = []
    for group, entries in about["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
    for package in packages:
        (site / package).symlink_to(EXAMPLE / package)
        for module in [name for name in sys.modules if name.split(".")[0] == package]:
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(str(site))


@pytest.fixture
def registry(installed: None) -> Registry:
    made = Registry()
    assert made.load_entry_points() == [TYPE]
    return made


def authored(*authors: str) -> Push:
    history = Push()
    for number, author in enumerate(authors):
        history.commit({"f": b"%d" % number}, author=author)
    return history


def test_its_type_is_there_once_it_is_installed(registry: Registry) -> None:
    assert registry.types() == [TYPE]
    assert registry.limits() == {TYPE: 1}
    with pytest.raises(UnusableHandler):
        registry.load_entry_points()


def test_without_it_there_is_none() -> None:
    assert Registry().load_entry_points() == []


async def test_it_counts_authors(server: Server, registry: Registry) -> None:
    await with_history(server, authored("Ada", "Bob", "Ada", "Cleo", "Ada"))
    result = await registry.get(TYPE)(attempt(services_of(server), TYPE, 1))
    assert result == {"commits": 5, "authors": 3, "most": {"Ada": 3, "Bob": 1, "Cleo": 1}}


async def test_it_goes_on_where_it_was_cut(twin: Server, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["museworkd_example_jobs.authors"]
    monkeypatch.setattr(module, "BATCH", 2)
    monkeypatch.setattr(module, "KEPT_EVERY", 1)
    await with_history(twin, authored("Ada", "Bob", "Ada", "Bob", "Ada"))
    first = attempt(services_of(twin), TYPE, 1)
    whole = await registry.get(TYPE)(first)
    assert first.times_kept == 2
    second = attempt(services_of(twin), TYPE, 1, first.kept)
    assert await registry.get(TYPE)(second) == whole
    assert second.times_kept == 0  # it began with the last batch


async def test_an_empty_repository_has_no_authors(twin: Server, registry: Registry) -> None:
    await twin.make_repository()
    assert await registry.get(TYPE)(attempt(services_of(twin), TYPE, 1)) == {"commits": 0, "authors": 0}
