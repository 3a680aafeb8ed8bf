from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from storage.ids import new_id

#: Milliseconds since the epoch that fit into 48 bits: until the year 10889.
times = st.integers(0, 2**48 - 1)


def test_an_id_is_its_prefix_its_time_and_chance() -> None:
    id_ = new_id("img", now=1, randomness=lambda size: bytes([0xFF]) * size)

    assert "img_0000000001zzzzzzzzzzzzzzzz" == id_


@given(times)
def test_an_id_has_no_character_that_people_confuse(now: int) -> None:
    assert re.fullmatch(r"qry_[0-9a-hjkmnp-tv-z]{26}", new_id("qry", now=now))


@given(times, times)
def test_ids_sort_by_the_time_they_were_made(a: int, b: int) -> None:
    first, second = new_id("img", now=min(a, b)), new_id("img", now=max(a, b))

    assert a == b or first < second


def test_ids_of_the_same_moment_differ() -> None:
    assert 1000 == len({new_id("img", now=0) for _ in range(1000)})
