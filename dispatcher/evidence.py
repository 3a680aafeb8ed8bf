"""Against whom an outcome speaks: the destination, one URL as one API key calls it, or nobody."""

from __future__ import annotations

import enum
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from dispatcher.deliverer import Answered
from storage.query_records import url_mark

if TYPE_CHECKING:
    from dispatcher.deliverer import Outcome

#: A failure rate counts when there were at least this many attempts ...
MIN_ATTEMPTS: Final = 20
#: ... within so many seconds, counted in so many parts.
WINDOW_SECONDS: Final = 60.0
_PARTS: Final = 6
#: Keys and URLs of a destination that are remembered because they failed, the latest ones.
_MAX_MARKS: Final = 64

#: No connection, or none that can be used: whoever calls there meets the same.
_HOST_FAILURES: Final = frozenset(
    {"DNS_ERROR", "CONNECTION_REFUSED", "CONNECTION_FAILED", "TLS_ERROR", "TIMEOUT"}
    | {"PROTOCOL_ERROR"}
)


class Blame(enum.Enum):
    """What an attempt's outcome speaks against."""

    #: It is a success, or a matter of this one query.
    NOTHING = enum.auto()
    #: Scheme, host and port, whoever calls there about whatever.
    HOST = enum.auto()
    #: This URL, as this API key calls it.
    URL = enum.auto()


def blame(outcome: Outcome) -> Blame:
    """Return what *outcome* speaks against."""
    if isinstance(outcome, Answered):
        if outcome.status in (429, 503):
            return Blame.HOST
        return Blame.URL if outcome.status >= 500 else Blame.NOTHING
    if outcome.cut_short:
        return Blame.URL  # by the query's own deadline, of which the host knows nothing
    return Blame.HOST if outcome.reason in _HOST_FAILURES else Blame.NOTHING


def is_overload(outcome: Outcome) -> bool:
    """Return whether fewer attempts at once may help."""
    if isinstance(outcome, Answered):
        return outcome.status in (429, 503)
    return outcome.reason == "TIMEOUT" and not outcome.cut_short


class FailureRate:
    """How many attempts of the last minute failed, in a few numbers."""

    __slots__ = ("_parts",)

    def __init__(self) -> None:
        #: Number of the part of a minute, attempts, failures.
        self._parts: list[list[int]] = []

    def record(self, *, failed: bool, now: int) -> None:
        """Add an attempt that ended at *now* (milliseconds)."""
        part = round(now * _PARTS / (WINDOW_SECONDS * 1000))
        if not self._parts or self._parts[-1][0] != part:
            self._parts = [each for each in self._parts if part - _PARTS < each[0] < part]
            self._parts.append([part, 0, 0])
        self._parts[-1][1] += 1
        self._parts[-1][2] += failed

    @property
    def is_high(self) -> bool:
        """Whether half of enough attempts failed."""
        attempts = sum(part[1] for part in self._parts)
        return attempts >= MIN_ATTEMPTS and 2 * sum(part[2] for part in self._parts) >= attempts


class Marks:
    """Which API keys and which of their URLs failed lately; bounded."""

    __slots__ = ("_marks",)

    def __init__(self) -> None:
        self._marks: OrderedDict[int, None] = OrderedDict()

    def record(self, key_id: str, url: str, *, failed: bool) -> None:
        """Remember a failure; forget it after a success."""
        for mark in (hash(key_id), url_mark(key_id, url)):
            self._marks.pop(mark, None)
            if failed:
                self._marks[mark] = None
        while len(self._marks) > _MAX_MARKS:
            self._marks.popitem(last=False)

    def has_key(self, key_id: str) -> bool:
        """Return whether *key_id* failed lately."""
        return hash(key_id) in self._marks

    def urls(self) -> frozenset[int]:
        """Return the marks, among them those of URLs (`url_mark`)."""
        return frozenset(self._marks)
