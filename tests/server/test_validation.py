from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf import duration_pb2
from hypothesis import given
from hypothesis import strategies as st

from picback.v1 import image_pb2, query_pb2
from server.errors import RequestError
from server.validation import Validation

if TYPE_CHECKING:
    from collections.abc import Callable


def _refused_fields(check: Callable[[Validation], object]) -> list[str]:
    validation = Validation()
    check(validation)
    return [violation.field for violation in validation._violations]


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("a", True),
        ("x" * 1000, True),
        ("🐶" * 1000, True),  # characters count, not bytes
        ("e\u0301" * 500, True),
        (" dog ", True),
        ("line\nline", True),
        ("", False),
        ("\u3000\t", False),  # white space of any script
        ("x" * 1001, False),
        ("dog\0", False),
    ],
)
def test_a_text_has_1_to_1000_characters_and_something_to_read(text: str, good: bool) -> None:  # noqa: FBT001 - a column of the table
    assert good == (not _refused_fields(lambda validation: validation.text(text)))


@given(st.text(max_size=1100))
def test_a_text_is_never_changed(text: str) -> None:
    assert text == Validation().text(text)


@pytest.mark.parametrize(
    ("seconds", "nanos", "milliseconds"),
    [
        (1, 0, 1000),
        (1, 500_000_000, 1500),
        (2_592_000, 0, 2_592_000_000),
        (0, 999_999_999, None),
        (2_592_000, 1_000_000, None),
        (-1, 0, None),
        (2**63 - 1, 0, None),
        (-(2**63), 0, None),
        (5, 1_000_000_000, None),  # nanos of a Duration stay below a second
        (5, -(2**31), None),
        (2_592_000, 1, None),
    ],
)
def test_give_up_after_is_from_a_second_to_thirty_days(
    seconds: int, nanos: int, milliseconds: int | None
) -> None:
    duration = duration_pb2.Duration(seconds=seconds, nanos=nanos)
    refused = _refused_fields(lambda validation: validation.give_up_after(duration))

    assert (["give_up_after"] if milliseconds is None else []) == refused
    if milliseconds is not None:
        assert milliseconds == Validation().give_up_after(duration)


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**31), 2**31 - 1))
def test_no_duration_breaks_anything(seconds: int, nanos: int) -> None:
    duration = duration_pb2.Duration(seconds=seconds, nanos=nanos)

    assert 0 <= Validation().give_up_after(duration) <= 2_592_000_000


@pytest.mark.parametrize(
    ("given_", "used"), [(0, 50), (1, 1), (1000, 1000), (1001, 1000), (2**31 - 1, 1000)]
)
def test_a_page_size_is_brought_into_range(given_: int, used: int) -> None:
    assert used == Validation().page_size(given_)


@pytest.mark.parametrize(("given_", "used"), [(0, 10), (1, 1), (100, 100)])
def test_a_limit_of_0_is_10(given_: int, used: int) -> None:
    assert used == Validation().limit(given_)


def test_states_are_those_of_the_contract() -> None:
    names = {Validation().state("state", value) for value in query_pb2.QueryState.values() if value}

    assert {"QUEUED", "DELIVERING", "DELIVERED", "FAILED", "CANCELLED", "UNMATCHED"} == names
    assert Validation().state("state", query_pb2.QUERY_STATE_UNSPECIFIED) is None


@given(
    st.lists(
        st.builds(
            image_pb2.Tag,
            name=st.text(max_size=120),
            confidence=st.floats(width=32) | st.sampled_from([0.0, 1.0, 0.5]),
        ),
        max_size=110,
    )
)
def test_tags_that_pass_are_canonical_and_in_range(tags: list[image_pb2.Tag]) -> None:
    validation = Validation()
    found = validation.tags("tags", tags)
    refused = _refused_fields(lambda validation: validation.tags("tags", tags))

    assert all(1 <= confidence <= 1_000_000 for confidence in found.values())
    assert all(0 < len(name) <= 100 and name == name.strip() for name in found)
    assert bool(refused) == (len(found) < len(tags))


def test_a_name_is_found_twice_however_it_is_written() -> None:
    tags = [image_pb2.Tag(name=name) for name in ("ﬁre  Engine", "FIRE ENGINE")]

    assert ["tags[1].name"] == _refused_fields(lambda validation: validation.tags("tags", tags))


@pytest.mark.parametrize("value", ["", "x" * 128, "0f-_./:~!", "{uuid}"])
def test_a_request_id_may_be_any_visible_ascii(value: str) -> None:
    assert value == Validation().request_id(value)
    assert not _refused_fields(lambda validation: validation.request_id(value))


def test_the_message_names_the_first_field_and_how_many_more() -> None:
    validation = Validation()
    for check, value in ((validation.text, ""), (validation.limit, -1), (validation.page_size, -1)):
        any_check: Any = check
        any_check(value)

    with pytest.raises(RequestError, match=r"^text: must not be empty \(and 2 more\)$") as caught:
        validation.finish()

    assert "FIELD_INVALID" == caught.value.reason
    assert ["text", "limit", "page_size"] == [each.field for each in caught.value.violations]


def test_nothing_wrong_is_no_error() -> None:
    validation = Validation()

    validation.text("a dog")

    validation.finish()
