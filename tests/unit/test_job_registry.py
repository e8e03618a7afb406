"""Which types of jobs a daemon can do, and what it says of a package whose handler it cannot use."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest

from actors.jobs.builtin import BUILT_IN, builtin_registry
from actors.jobs.registry import Registry, UnusableHandler
from museworkd.assembly import make_services, make_work
from museworkd.config import Config, ConfigError
from storage.memory.index import MemoryIndex
from storage.objects.memory import MemoryStore

ROOT = Path(__file__).parents[2]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Install a package with some entry points for this process."""

    def install(entries: str, module: str) -> None:
        facts = tmp_path / "broken_jobs-1.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-jobs\nVersion: 1\n")
        (facts / "entry_points.txt").write_text(f"[museworkd.jobs]\n{entries}\n")
        (tmp_path / "broken_jobs.py").write_text(module)
        monkeypatch.syspath_prepend(str(tmp_path))
        importlib.invalidate_caches()
        monkeypatch.delitem(sys.modules, "broken_jobs", raising=False)

    return install


def test_a_package_adds_its_types(package) -> None:
    package("my.job = broken_jobs:run", "async def run(context): return {'n': 1}")
    registry = builtin_registry()
    assert registry.load_entry_points() == ["my.job"]
    assert registry.types() == sorted([*BUILT_IN, "my.job"])
    assert registry.limits()["my.job"] == 1
    assert registry.get("my.job").__module__ == "broken_jobs"


@pytest.mark.parametrize(
    ("entries", "module"),
    [
        ("gc = broken_jobs:run", "async def run(context): return {}"), ("a = broken_jobs:run", "run = 7"),
        ("a = broken_jobs:gone", ""), ("a = broken_jobs:run", "import nothing_of_that_name"), ("a = nowhere:run", ""),
    ],
)  # fmt: skip
async def test_a_package_that_cannot_be_used_is_a_matter_of_configuration(
    package, tmp_path: Path, entries: str, module: str
) -> None:
    package(entries, module)
    with pytest.raises(UnusableHandler, match=re.escape(repr(entries.partition(" ")[0]))):
        builtin_registry().load_entry_points()
    config = Config(data_dir=tmp_path / "data")
    services, _ = await make_services(config, MemoryIndex(), MemoryStore())
    with pytest.raises(ConfigError):
        make_work(config, services)


def test_a_type_without_handler_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        Registry().get("a")


def test_every_type_is_in_the_reference() -> None:
    page = (ROOT / "docs" / "reference" / "jobs.md").read_text("utf-8")
    assert [type_ for type_ in BUILT_IN if f"`{type_}`" not in page] == []
