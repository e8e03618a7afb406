"""The corpus, and some thousands of mutations of it: nothing but refusals, within bounded memory."""

from __future__ import annotations

import random
import tracemalloc

import pytest

from tests.fuzz import make_corpus
from tests.fuzz.mutation import mutate
from tests.fuzz.run import CORPUS, corpus_of
from tests.fuzz.targets import TARGETS, settle

MUTATIONS = 1500
MOST_BYTES = 100 * 1024 * 1024
"""Above what the msgpack decoder reserves at the worst: 10,000 places for each of 1,024 open arrays."""


def test_every_target_has_a_corpus_and_the_script_makes_it():
    assert {path.name for path in CORPUS.iterdir() if path.is_dir()} == set(TARGETS) == set(make_corpus.build())
    for target, files in make_corpus.build().items():
        for name, content in files.items():
            assert (CORPUS / target / name).read_bytes() == content, f"{target}/{name}"


@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus_is_settled_within_bounded_memory(target):
    outcomes = set()
    for data in corpus_of(target):
        tracemalloc.start()
        try:
            outcomes.add(settle(TARGETS[target], data)[0])
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < MOST_BYTES
    assert outcomes == {"given", "refused"}  # seeds of both kinds: mutation starts from either side


@pytest.mark.parametrize("target", TARGETS)
def test_mutations_of_the_corpus_are_settled(target):
    rng, corpus = random.Random(target), corpus_of(target)
    for _ in range(MUTATIONS):
        data = mutate(rng, corpus)
        try:
            settle(TARGETS[target], data)
        except BaseException as error:
            error.add_note(f"the input: {data!r}")
            raise
