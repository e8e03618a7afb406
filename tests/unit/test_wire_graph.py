"""Walking histories: what is reachable from want and not from have, in any batches (threat T14)."""

from __future__ import annotations

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.chunkings import examples
from wire.graph import CommitFacts, RangeWalk

Graph = dict[bytes, CommitFacts]


def name(number: int) -> bytes:
    return number.to_bytes(32, "big")


def graph_of(parents: dict[int, list[int]]) -> Graph:
    """Commits with their generation numbers; parents have smaller numbers than their children."""
    facts: Graph = {}
    for number in sorted(parents):
        ids = tuple(name(parent) for parent in parents[number])
        order = 1 + max((facts[parent].order for parent in ids), default=0)
        facts[name(number)] = CommitFacts(name(number), ids, b"s%d" % number, order)
    return facts


@st.composite
def histories(draw):
    count = draw(st.integers(1, 25))
    return graph_of({
        n: sorted(draw(st.sets(st.integers(max(0, n - 6), n - 1), max_size=2))) if n else [] for n in range(count)
    })  # fmt: skip


def reachable(graph: Graph, tips: set[bytes]) -> set[bytes]:
    seen: set[bytes] = set()
    todo = list(tips)
    while todo:
        commit_id = todo.pop()
        if commit_id not in seen:
            seen.add(commit_id)
            todo += graph[commit_id].parents
    return seen


def walk(graph: Graph, want, have=(), batch: int = 10**9) -> tuple[RangeWalk, list[bytes]]:
    """Run a walk to its end; gives it and every id it asked for, in batches of at most ``batch`` answers."""
    walked = RangeWalk(want, have)
    asked: list[bytes] = []
    answer: Graph = {}
    while needed := walked.advance(answer):
        answer = {commit_id: graph[commit_id] for commit_id in needed[:batch]}
        asked += answer
    return walked, asked


@given(histories(), st.data())
@examples(300)
def test_a_walk_finds_what_want_reaches_and_have_does_not(graph, data):
    commits = st.sets(st.sampled_from(sorted(graph)), max_size=4)
    want, have = data.draw(commits), data.draw(commits)
    batch = data.draw(st.integers(1, 5))
    walked, asked = walk(graph, want, have, batch)
    found = [fact.commit_id for fact in walked.found]
    expected = reachable(graph, want) - reachable(graph, have)
    assert set(found) == expected
    assert len(found) == len(expected)
    assert len(asked) == len(set(asked))
    place = {commit_id: at for at, commit_id in enumerate(found)}
    for fact in walked.found:  # children before parents
        assert all(place[fact.commit_id] < place[parent] for parent in fact.parents if parent in place)
    outside = {parent for commit_id in expected for parent in graph[commit_id].parents} - expected
    assert walked.boundary() == outside


@given(histories(), st.integers(1, 4))
@examples(50)
def test_the_order_of_the_result_does_not_depend_on_the_batches(graph, batch):
    tips = [max(graph)]
    assert walk(graph, tips, (), batch)[0].found == walk(graph, tips)[0].found


def test_nothing_is_asked_for_an_empty_or_common_want():
    graph = graph_of({0: [], 1: [0]})
    assert walk(graph, [])[1] == []
    assert walk(graph, [], [name(1)])[1] == []
    assert walk(graph, [name(1)], [name(1)])[1] == []
    assert walk(graph, [name(0)], [name(1)])[0].found == []


def test_a_walk_stops_where_common_history_begins():
    graph = graph_of({n: [n - 1] if n else [] for n in range(5000)})
    walked, asked = walk(graph, [name(4999)], [name(4989)], batch=1)
    assert [fact.commit_id for fact in walked.found] == [name(n) for n in range(4999, 4989, -1)]
    assert len(asked) <= 12
    assert walked.boundary() == {name(4989)}


def test_a_long_history_is_walked_without_recursion():
    graph = graph_of({n: [n - 1] if n else [] for n in range(20_000)})
    assert len(walk(graph, [name(19_999)])[0].found) == 20_000


def test_a_commit_with_thousands_of_parents_is_walked():
    graph = graph_of({**{n: [] for n in range(3000)}, 3000: list(range(3000))})
    walked, asked = walk(graph, [name(3000)], [name(7)])
    assert len(walked.found) == 3000
    assert len(asked) == 3001


def test_every_commit_of_a_ladder_of_diamonds_is_looked_at_once():
    """A history with 2^1000 paths from its head to its root."""
    parents = {0: []}
    for n in range(1, 3001, 3):
        parents |= {n: [n - 1], n + 1: [n - 1], n + 2: [n, n + 1]}
    graph = graph_of(parents)
    walked, asked = walk(graph, [name(3000)])
    assert len(walked.found) == len(asked) == 3001


def test_a_late_have_takes_back_what_a_want_had_painted():
    """A have below two branches of want is reached last and must still win."""
    graph = graph_of({0: [], 1: [0], 2: [1], 3: [1], 4: [2, 3], 5: [1]})
    assert {fact.commit_id for fact in walk(graph, [name(4)], [name(5)])[0].found} == {name(2), name(3), name(4)}
    assert walk(graph, [name(4)], [name(5)])[0].boundary() == {name(1)}


def test_insertion_numbers_serve_as_well_as_generations():
    rng = random.Random(9)
    parents = {n: sorted(rng.sample(range(n), k=min(n, rng.choice([0, 1, 1, 2])))) for n in range(60)}
    graph = graph_of(parents)
    numbered = {
        commit_id: CommitFacts(commit_id, fact.parents, fact.snapshot_id, int.from_bytes(commit_id, "big"))
        for commit_id, fact in graph.items()
    }
    for want, have in itertools.product(range(0, 60, 11), range(0, 60, 13)):
        found = {fact.commit_id for fact in walk(numbered, [name(want)], [name(have)])[0].found}
        assert found == reachable(graph, {name(want)}) - reachable(graph, {name(have)})
