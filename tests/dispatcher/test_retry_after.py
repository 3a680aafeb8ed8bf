"""The Retry-After header: read when it makes sense, ignored when not, never a crash."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dispatcher.retry_after import parse_retry_after

NOW = datetime(2026, 11, 22, 10, 0, 0, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("120", 120),
        (" 120\t", 120),
        ("0120", 120),
        ("9999999999", 9_999_999_999),
        ("Sun, 22 Nov 2026 10:01:30 GMT", 90),
        ("Sun, 22 Nov 2026 09:59:59 GMT", 0),  # past: now
        ("Mon, 22 Nov 2027 10:00:00 GMT", 365 * 86400),
        ("Sunday, 22-Nov-26 10:01:30 GMT", 90),  # as RFC 850 has it
        ("Sunday, 22-Nov-98 10:01:30 GMT", 0),  # 1998: no more than 50 years ahead
        ("Sun Nov 22 10:01:30 2026", 90),  # as C's asctime has it
        ("Tue Dec  1 10:00:00 2026", 9 * 86400),
    ],
)
def test_seconds_and_dates_are_read(value: str, seconds: float) -> None:
    assert seconds == parse_retry_after([value], now=NOW)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "soon",
        "-1",
        "+1",
        "1.5",
        "1e3",
        "0x10",
        "1_000",
        "²",  # str.isdigit says yes
        "１２",  # noqa: RUF001 - int says 12
        "60, 120",  # sent twice
        "12345678901",
        "Sun, 22 Nov 2026 10:01:30",
        "Sun, 22 Nov 2026 10:01:30 +0000",
        "Sunday, 22-Nov-2026 10:01:30 GMT",
        "Sun, 22-Nov-26 10:01:30 GMT",
        "Sun Nov 22 10:01:30 26",
        "Sun Nov 22 10:01:30 2026 GMT",
        "Sun Nov 31 10:01:30 2026",
        "Sun, 31 Feb 2026 10:01:30 GMT",
        "Sun, 22 Nov 2026 24:01:30 GMT",
        "Sun, 22 Nov 0000 10:01:30 GMT",
    ],
)
def test_everything_else_is_ignored(value: str) -> None:
    assert parse_retry_after([value], now=NOW) is None


@pytest.mark.parametrize(
    ("values", "seconds"),
    [
        ([], None),
        (["60", "60"], 60),
        (["60", " 60 ", "60"], 60),
        (["Sun, 22 Nov 2026 10:01:30 GMT"] * 2, 90),
        (["60", "120"], None),
        (["60", ""], None),
    ],
)
def test_equal_lines_count_as_one_and_different_ones_as_none(
    values: list[str], seconds: float | None
) -> None:
    assert seconds == parse_retry_after(values, now=NOW)


@given(st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC)))  # noqa: DTZ001 - bounds must be naive
def test_any_date_that_python_writes_is_read_back(moment: datetime) -> None:
    moment = moment.replace(microsecond=0)

    expected = max(0, moment.timestamp() - NOW)
    assert expected == parse_retry_after([format_datetime(moment, usegmt=True)], now=NOW)


@given(st.text())
@example("\x00")
def test_any_text_is_read_or_ignored(text: str) -> None:
    seconds = parse_retry_after([text], now=NOW)

    assert seconds is None or seconds >= 0
