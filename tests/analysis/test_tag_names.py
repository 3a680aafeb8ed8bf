"""What a tag is called, and in which order tags stand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.taggers import MAX_NAME_LENGTH, Tag, best_first, canonical, millionths


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dog", "dog"),
        ("  Golden   RETRIEVER ", "golden retriever"),
        ("Cafe\u0301", "café"),  # composed
        ("\uff24\uff4f\uff47", "dog"),  # full width
        ("no\u00a0person", "no person"),  # no-break space
        ("\u0130zmir", "i\u0307zmir"),  # dotted capital I comes apart and stays so
        ("ÉCOLE", "école"),
        ("狗", "狗"),
        ("t-shirt", "t-shirt"),
        ("x" * MAX_NAME_LENGTH, "x" * MAX_NAME_LENGTH),
        ("e\u0301" * MAX_NAME_LENGTH, "é" * MAX_NAME_LENGTH),  # counted when composed
    ],
)
def test_a_name_is_normalised(name: str, expected: str) -> None:
    assert expected == canonical(name)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "empty"),
        (" \u00a0\u2003", "empty"),
        ("x" * (MAX_NAME_LENGTH + 1), "more than 100"),
        ("x" * 1_000_000, "more than 100"),
        ("\ufdfa" * 6, "more than 100"),  # one character that NFKC makes eighteen
        ("dog\n", "control"),
        ("a\tb", "control"),
        ("a\0b", "control"),
        ("\x7f", "control"),
        ("\x85", "control"),  # of Latin-1, and white space to str.split
        ("\ud800", "surrogate"),
    ],
)
def test_an_impossible_name_is_refused(name: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        canonical(name)


@given(st.text(min_size=1, max_size=60))
def test_a_canonical_name_stays_as_it_is(name: str) -> None:
    try:
        once = canonical(name)
    except ValueError:
        return

    assert once == canonical(once)
    assert 0 < len(once) <= MAX_NAME_LENGTH


def test_tags_stand_best_first_and_equals_by_name() -> None:
    tags = [Tag("b", 5), Tag("c", 9), Tag("a", 5)]

    assert (Tag("c", 9), Tag("a", 5), Tag("b", 5)) == best_first(tags)


@pytest.mark.parametrize(
    ("confidence", "expected"),
    [
        (0.0, 0),
        (1.0, 1_000_000),
        (0.1, 100_000),
        (2.0, 1_000_000),
        (-0.5, 0),
        (float("nan"), 0),
        (float("inf"), 1_000_000),
        (0.5 / 2**20, 0),  # 0.4768 millionths
        (2.5e-6, 2),  # a half goes to the even neighbour
    ],
)
def test_confidences_are_rounded_to_millionths(confidence: float, expected: int) -> None:
    assert expected == millionths(confidence)
