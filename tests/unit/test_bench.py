"""The bench measures what it says: histories of their shape and with the same ids everywhere, right figures."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from bench.accounting import TreeMeter
from bench.chart import Bar, draw
from bench.figures import median, percentile, ratio, steepest, summarize
from bench.peers import Request, Sample, add_requests
from bench.report import as_json, figures_of
from bench.rounds import Results
from bench.targets import CLONE, FIRST_PUSH, HOLD_MAX, HOLDS, INCREMENT, MIB, judge
from bench.workloads import EDITED_LINES, GROWING, LINE_BYTES, SHAPES, History, git, take_bundle, write_git

TABLE = {
    "S": (10, 28, 28_672),
    "M": (100, 218, 446_464),
    "L": (500, 1_048, 4_292_608),
    "L-full": (500, 25_000, 102_400_000),
    "XL-text": (1_000, 5_095, 52_172_800),
    "XL-random": (1_000, 5_095, 52_172_800),
    "XL-grow": (1_000, 5_000, 51_200_000),
    "HUGE": (20_000, 200_990, 2_058_137_600),
}
"""Commits, objects and bytes of contents; records come on top."""


def test_the_workloads_have_the_sizes_that_targets_are_about() -> None:
    assert {s.name: (s.commits, s.objects, s.content_bytes) for s in SHAPES.values()} == TABLE


@pytest.mark.parametrize("name", ["S", "M", "L"])
def test_a_history_has_as_many_distinct_contents_of_the_size_as_its_shape_says(name: str) -> None:
    shape = SHAPES[name]
    commits = list(History(shape).commits())
    assert len(commits) == shape.commits
    assert [len(changes) for changes in commits] == [shape.files] + [shape.changed] * (shape.commits - 1)
    contents = {change.content for changes in commits for change in changes}
    assert len(contents) == shape.objects
    assert {len(content) for content in contents} == {shape.file_bytes}
    assert len({change.path for changes in commits for change in changes}) == shape.files


def test_histories_of_many_objects_differ_in_their_length_only() -> None:
    assert sorted(GROWING) == [1_000, 10_000, 50_000]
    assert {(shape.files, shape.file_bytes, shape.changed, shape.text) for shape in GROWING.values()} == {
        (50, 256, 50, False)
    }


def test_a_text_that_changes_keeps_all_but_a_few_lines() -> None:
    first, *further = History(SHAPES["S"]).commits()
    before = {change.path: change.content for change in first}
    for changes in further:
        for change in changes:
            old, new = before[change.path].splitlines(), change.content.splitlines()
            assert {len(line) for line in new} == {LINE_BYTES - 1}
            assert 1 <= sum(a != b for a, b in zip(old, new, strict=True)) <= EDITED_LINES
            before[change.path] = change.content


def test_random_contents_are_replaced_whole() -> None:
    history = History(SHAPES["XL-random"]).commits()
    first, second = next(history), next(history)
    before = {change.path: change.content for change in first}
    for change in second:
        assert sum(a == b for a, b in zip(before[change.path], change.content, strict=True)) < 200


def test_a_growing_tree_only_adds() -> None:
    shape = SHAPES["XL-grow"]
    history = History(shape).commits()
    paths = [change.path for _ in range(100) for change in next(history)]
    assert len(paths) == len(set(paths)) == 500
    assert shape.objects == 5_000


HEAD_OF_S = "b8a7eab66ca04e706ea0229f589467b767484a14"


def test_the_same_history_has_the_same_ids_on_every_run_and_machine(tmp_path: Path) -> None:
    first = write_git(SHAPES["S"], tmp_path / "first", more=2)
    second = write_git(SHAPES["S"], tmp_path / "second", packed=True)
    assert git(first, "rev-parse", "main") == git(second, "rev-parse", "main") == HEAD_OF_S
    assert git(first, "rev-list", "--count", "main..more") == "2"
    assert git(first, "rev-parse", "more~2") == HEAD_OF_S
    assert git(first, "diff", "--name-only", "more~1", "more").count("\n") == 0


def test_a_git_repository_holds_the_shape_loose_or_packed(tmp_path: Path) -> None:
    shape = SHAPES["M"]
    for packed in (False, True):
        repository = write_git(shape, tmp_path / str(packed), packed=packed)
        listed = git(repository, "cat-file", "--batch-all-objects", "--batch-check").splitlines()
        sizes = [int(size) for _, kind, size in map(str.split, listed) if kind == "blob"]
        assert (len(sizes), sum(sizes)) == (shape.objects, shape.content_bytes)
        counts = dict(line.split(": ") for line in git(repository, "count-objects", "-v").splitlines())
        assert (int(counts["count"]) == 0, int(counts["packs"]) == 0) == (packed, not packed)


@pytest.mark.parametrize("listed", [["HEAD", "--all"], ["--branches"]], ids=["with HEAD", "without HEAD"])
def test_a_bundle_gives_its_default_branch(tmp_path: Path, listed: list[str]) -> None:
    source = write_git(SHAPES["S"], tmp_path / "source", more=3)
    git(source, "branch", "-m", "main", "master")
    git(source, "symbolic-ref", "HEAD", "refs/heads/master")
    git(source, "bundle", "create", "--quiet", str(tmp_path / "b.bundle"), *listed)
    taken = take_bundle(tmp_path / "b.bundle", tmp_path / "taken")
    assert git(taken, "for-each-ref", "--format=%(refname)") == "refs/heads/main"
    assert git(taken, "rev-parse", "main") == HEAD_OF_S


def test_medians_and_percentiles() -> None:
    assert median([3.0]) == 3.0
    assert median([5.0, 1.0, 3.0]) == 3.0
    assert median([4.0, 1.0, 2.0, 3.0]) == 2.5
    hundred = [float(n) for n in range(100, 0, -1)]
    assert (percentile(hundred, 50), percentile(hundred, 99), percentile(hundred, 100)) == (50.0, 99.0, 100.0)
    assert percentile([1.0, 2.0, 3.0], 99) == 3.0
    found = summarize([2.0, 1.0, 9.0])
    assert (found.count, found.median, found.p99, found.least, found.most) == (3, 2.0, 9.0, 1.0, 9.0)
    for wrong in ([], [1.0]):
        with pytest.raises(ValueError):
            percentile(wrong, 0)
    with pytest.raises(ValueError):
        median([])


def test_a_ratio_needs_both_sides() -> None:
    assert ratio(1.0, 2.0) == 0.5
    assert ratio(None, 2.0) is ratio(1.0, None) is ratio(1.0, 0.0) is None


def test_targets_are_held_against_what_was_measured_only() -> None:
    results = Results()
    results.add(
        "XL-random", FIRST_PUSH, "ours", [Sample(1.0, server_cpu_s=0.9, server_peak_bytes=n * MIB) for n in (1, 65)]
    )
    results.add("XL-random", FIRST_PUSH, "git", [Sample(2.0), Sample(2.0)])
    results.add("XL-random", CLONE, "ours", [Sample(1.0)])
    results.add("S", INCREMENT, "ours", [Sample(1.0, server_ms=10.0)] * 98 + [Sample(1.0, server_ms=60.0)] * 2)
    judged = {
        (j.workload, j.target.operation, j.target.metric, j.target.p99): (j.value, j.reached)
        for j in judge(figures_of(results), "ours", "git")
    }
    assert judged["XL-random", FIRST_PUSH, "wall_s", False] == (0.5, True)
    assert judged["XL-random", FIRST_PUSH, "server_cpu_s", False] == (0.9, False)
    assert judged["XL-random", FIRST_PUSH, "server_peak_bytes", False] == (65.0 * MIB, False)
    assert judged["XL-random", CLONE, "wall_s", False] == (None, None)
    assert judged["S", INCREMENT, "server_ms", False] == (10.0, True)
    assert judged["S", INCREMENT, "server_ms", True] == (60.0, False)
    assert not [key for key in judged if key[0] == "L"]


def test_a_slope_is_that_of_the_steepest_step() -> None:
    assert steepest([(1.0, 5.0), (10.0, 50.0), (100.0, 500.0)]) == pytest.approx(1.0)
    # a dear beginning hides nothing: the last step grows by the square
    assert steepest([(100.0, 300.0), (1.0, 2.9), (10.0, 3.0)]) == pytest.approx(2.0)
    for wrong in ([(1.0, 1.0)], [(1.0, 1.0), (2.0, 0.0)]):
        with pytest.raises(ValueError):
            steepest(wrong)


def test_only_requests_for_the_repository_are_counted() -> None:
    sample = Sample(1.0)
    found = [Request("GET", "/a/x/refs", 200, 1.5, 10, 20), Request("POST", "/a/y/push/stream", 200, 9.0, 99, 99)]
    add_requests(sample, [*found, found[0]], "/a/x/")
    assert (sample.server_ms, sample.sent_bytes, sample.received_bytes) == (3.0, 20, 40)


def test_every_sample_is_in_the_json() -> None:
    results = Results()
    results.add("S", CLONE, "ours", [Sample(1.0), Sample(3.0, sent_bytes=0)])
    document = as_json(results, figures_of(results), [], {"commit": "abc"})
    [measured] = document["measured"]
    assert measured["samples"] == [{"wall_s": 1.0}, {"wall_s": 3.0, "sent_bytes": 0}]
    assert measured["summary"]["wall_s"]["median"] == 2.0
    results.add("S", HOLDS, "ours", [Sample(figures={HOLD_MAX: 4.0})])
    held = as_json(results, figures_of(results), [], {})["measured"][1]
    assert held["samples"] == [{"figures": {HOLD_MAX: 4.0}}]
    assert held["summary"][HOLD_MAX]["most"] == 4.0
    assert document["commit"] == "abc"


def test_the_chart_is_well_formed_and_cuts_bars_that_are_too_long() -> None:
    text = draw("<ours> & git", [Bar("S: clone", 1.0, 2.0, 1.0), Bar("L: no-op push", 30.0, 1.0, None)])
    root = ET.fromstring(text)
    assert "0.50" in text
    assert "30.00" in text
    width = float(root.attrib["width"])
    for bar in root.iter("{http://www.w3.org/2000/svg}rect"):
        if not bar.attrib["width"].endswith("%"):
            assert float(bar.attrib["x"]) + float(bar.attrib["width"]) <= width


def test_the_meter_without_control_groups_counts_children_that_were_waited_for() -> None:
    meter = TreeMeter()
    meter.add(os.getpid())
    before = meter.cpu_s()
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.2: pass"], check=True)
    assert meter.cpu_s() - before >= 0.15
