"""The list of what the tests prove is current, names nothing unknown, and lacks no regression."""

from __future__ import annotations

from tests import proofs


def test_the_page_is_current() -> None:
    assert proofs.PAGE.read_text("utf-8") == proofs.page(), "run python -m tests.proofs"


def test_every_regression_has_a_test_of_its_number() -> None:
    assert [number for number in range(1, 17) if f"R{number}" not in proofs.ticked()] == []


def test_every_number_in_a_name_is_one_of_the_list() -> None:
    known = {f"{letter}{n}" for letter, (_, names) in proofs.NUMBERS.items() for n in range(1, len(names) + 1)}
    assert proofs.ticked().keys() <= known


def test_no_name_is_given_twice_in_a_file() -> None:
    """The second one would hide the first, which would prove nothing any more."""
    listed = list(proofs.tests())
    assert len(listed) == len(set(listed))
