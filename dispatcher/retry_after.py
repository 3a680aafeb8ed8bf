"""The Retry-After header, read with the distrust that a foreign header deserves."""

from __future__ import annotations

import re
from datetime import UTC, datetime

_SECONDS = re.compile(r"[0-9]{1,10}")
# RFC 9110, section 5.6.7: senders must use this form alone.
_HTTP_DATE = re.compile(
    r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), ([0-9]{2}) (Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
    r" ([0-9]{4}) ([0-9]{2}):([0-9]{2}):([0-9]{2}) GMT"
)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def parse_retry_after(value: str | None, *, now: float) -> float | None:
    """Return how many seconds a receiver asks us to wait.

    Args:
        value: The header as it came (RFC 9110, section 10.2.3), None without one.
        now: Seconds since the epoch, for a value that is a date.

    Returns:
        At least 0 and not limited upwards; None if there is no header, or none that makes sense.
    """
    value = (value or "").strip(" \t")
    if _SECONDS.fullmatch(value):
        return float(value)
    match = _HTTP_DATE.fullmatch(value)
    if match is None:
        return None
    day, month, year, hour, minute, second = match.groups()
    try:
        at = datetime(
            int(year),
            _MONTHS.index(month) + 1,
            int(day),
            int(hour),
            int(minute),
            int(second),
            tzinfo=UTC,
        )
    except ValueError:  # the 31st of February
        return None
    return max(0.0, at.timestamp() - now)
