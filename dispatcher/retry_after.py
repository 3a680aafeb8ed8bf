"""The Retry-After header, read with the distrust that a foreign header deserves."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_SECONDS = re.compile(r"[0-9]{1,10}")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTH = rf"(?P<month>{'|'.join(_MONTHS)})"
_TIME = r"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
# RFC 9110, section 5.6.7: what senders must use, and two older forms that recipients must accept.
_DATES = (
    re.compile(
        rf"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), (?P<day>[0-9]{{2}}) {_MONTH} (?P<year>[0-9]{{4}})"
        rf" {_TIME} GMT"
    ),
    re.compile(
        r"(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day, "
        rf"(?P<day>[0-9]{{2}})-{_MONTH}-(?P<year>[0-9]{{2}}) {_TIME} GMT"
    ),
    re.compile(
        rf"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) {_MONTH} (?P<day>[0-9 ][0-9]) {_TIME}"
        r" (?P<year>[0-9]{4})"
    ),
)


def parse_retry_after(values: Iterable[str], *, now: float) -> float | None:
    """Return how many seconds a receiver asks us to wait.

    Args:
        values: The header's values as they came, one for each of its lines (RFC 9110, section
            10.2.3). Equal ones count as one: a proxy may have added its own.
        now: Seconds since the epoch, for a value that is a date.

    Returns:
        At least 0 and not limited upwards; None if there is no header, or none that makes sense.
    """
    different = {value.strip(" \t") for value in values}
    if len(different) != 1:
        return None
    value = different.pop()
    if _SECONDS.fullmatch(value):
        return float(value)
    at = _date(value, now=now)
    return None if at is None else max(0.0, at.timestamp() - now)


def _date(value: str, *, now: float) -> datetime | None:
    match = next(filter(None, (form.fullmatch(value) for form in _DATES)), None)
    if match is None:
        return None
    year = int(match["year"])
    if len(match["year"]) == 2:  # at most 50 years ahead, says RFC 9110
        this_year = datetime.fromtimestamp(now, UTC).year
        year += this_year // 100 * 100
        year -= 100 if year > this_year + 50 else 0
    try:
        return datetime(
            year,
            _MONTHS.index(match["month"]) + 1,
            int(match["day"]),
            int(match["hour"]),
            int(match["minute"]),
            int(match["second"]),
            tzinfo=UTC,
        )
    except ValueError:  # the 31st of February
        return None
