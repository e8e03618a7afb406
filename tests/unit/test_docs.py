"""What the documentation takes from the code is current, and nothing that can be set or met is left unsaid."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import fields
from pathlib import Path

import pytest

from museworkd.http.app import _REPOSITORY, _ROUTES
from museworkd.http.server import ServerStatistics
from museworkd.telemetry.metrics import Metrics
from storage.object_store import StoreStatistics
from storage.postgres.database import DatabaseStatistics

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("reference", ROOT / "tools" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_written_pages_are_current(reference) -> None:
    assert reference.stale() == []


def test_every_setting_says_what_it_means(reference) -> None:
    assert [f"{section}.{name}" for section, name, _, text in reference.settings() if not text] == []


def test_every_error_code_says_what_it_means(reference) -> None:
    texts = reference.docstrings(reference.errors.Code)
    assert [code.text for code in reference.errors.Code if not texts.get(code.name)] == []


def test_every_route_is_in_the_reference() -> None:
    page = (ROOT / "docs" / "reference" / "http-api.md").read_text("utf-8")
    sources = [path.read_text("utf-8") for path in (ROOT / "museworkd" / "http").glob("*.py")]
    routes = {
        re.sub(r"<(\w+)>", r"{\1}", route).replace("/{slug}", "/{name}")
        for text in sources
        for route in re.findall(r'(?:@app\.\w+|add_url_rule)\("([^"]+)"', text)
    }
    patterns = {re.split(r"\(", pattern.pattern.removeprefix(_REPOSITORY))[0] for _, pattern, _ in _ROUTES}
    routes |= {"/{owner}/{name}" + pattern for pattern in patterns}
    assert len(routes) >= 25
    for route in routes:
        tail = route.removeprefix("/{owner}/{name}")
        assert route in page or f"…{tail}" in page, route


def test_every_metric_is_in_the_reference() -> None:
    """Those that are counted, and the numbers of every source that is asked."""
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text("utf-8")
    named = set(re.findall(r"`(museworkd_\w+|…_\w+)`", page))
    for family in Metrics().registry.collect():
        assert {family.name, f"{family.name}_total"} & named, family.name
    sources = {"database": DatabaseStatistics, "store": StoreStatistics, "http": ServerStatistics}
    for source, statistics in sources.items():
        for entry in fields(statistics):
            assert {f"museworkd_{source}_{entry.name}", f"…_{entry.name}"} & named, (source, entry.name)


def test_links_in_the_pages_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_begins_with_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert text.index("make demo") < text.index("make test") < text.index("make run")
