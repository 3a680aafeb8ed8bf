"""Checks of request fields. All that is wrong with a request is told at once."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from analysis.taggers import canonical
from dispatcher import CallbackUrlError, parse_destination
from picback.v1 import error_pb2, query_pb2
from server.errors import RequestError, Violation
from storage.query_filters import QueryFilter

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.timestamp_pb2 import Timestamp

    from picback.v1 import image_pb2, image_service_pb2

#: Longest text of a query, in characters.
LONGEST_TEXT: Final = 1_000
#: Longest callback URL, in characters.
LONGEST_URL: Final = 2_048
_LONGEST_REQUEST_ID: Final = 128
_MOST_TAGS: Final = 100
_DEFAULT_PAGE: Final = 50
_MOST_PER_PAGE: Final = 1_000
_DEFAULT_LIMIT: Final = 10
_MOST_MATCHES: Final = 100
#: Bounds of give_up_after, in seconds.
_GIVE_UP_AFTER: Final = (1, 30 * 24 * 3600)
#: Seconds of a Timestamp: the years 1 to 9999. Source: google/protobuf/timestamp.proto.
_TIMESTAMP_SECONDS: Final = (-62_135_596_800, 253_402_300_799)


class Validation:
    """Collects what is wrong with one request; `finish` refuses it if anything is."""

    def __init__(self) -> None:
        self._violations: list[Violation] = []

    def finish(self) -> None:
        """Let a good request pass.

        Raises:
            RequestError: FIELD_INVALID, with every violation.
        """
        if self._violations:
            first = self._violations[0]
            more = len(self._violations) - 1
            raise RequestError(
                "FIELD_INVALID",
                f"{first.field}: {first.description}" + (f" (and {more} more)" if more else ""),
                violations=self._violations,
            )

    def refuse(self, field: str, description: str) -> None:
        """Note what is wrong with a field."""
        self._violations.append(Violation(field, description))

    def content(self, content: bytes) -> None:
        """Check that an image's bytes are there; what they are is for the decoder to say."""
        if not content:
            self.refuse("content", "must not be empty")

    def text(self, text: str) -> str:
        """Check the text of a query."""
        if not text.strip():
            self.refuse("text", "must not be empty")
        elif len(text) > LONGEST_TEXT:
            self.refuse("text", f"must have at most {LONGEST_TEXT:,} characters, not {len(text):,}")
        elif "\0" in text:
            self.refuse("text", "must not contain the character NUL")
        return text

    def callback_url(self, url: str) -> str:
        """Check that a callback URL is there and not over-long; the URL guard reads it."""
        if not url:
            self.refuse("callback_url", "must not be empty")
        elif len(url) > LONGEST_URL:
            self.refuse("callback_url", f"must have at most {LONGEST_URL:,} characters")
        return url

    def id(self, field: str, value: str) -> str:
        """Check that an id is there; whether it exists is for storage to say."""
        if not value:
            self.refuse(field, "must not be empty")
        return value

    def request_id(self, value: str) -> str:
        """Check a request_id; empty means that the caller gave none."""
        if len(value) > _LONGEST_REQUEST_ID or not all("!" <= each <= "~" for each in value):
            self.refuse(
                "request_id", f"must be at most {_LONGEST_REQUEST_ID} visible ASCII characters"
            )
        return value

    def tags(self, field: str, tags: Sequence[image_pb2.Tag]) -> dict[str, int]:
        """Check tags of a caller; return canonical name -> confidence in millionths."""
        found: dict[str, int] = {}
        self._count(field, tags)
        for index, tag in enumerate(tags[:_MOST_TAGS]):
            name = self._name(f"{field}[{index}].name", tag.name)
            confidence = tag.confidence or 1.0  # 0 or unset means 1
            if math.isnan(confidence) or not 0 < confidence <= 1:
                self.refuse(f"{field}[{index}].confidence", "must be from 0 to 1")
            elif name in found:
                self.refuse(f"{field}[{index}].name", "stands in the list twice")
            elif name:
                # A float of 32 bits holds about 7 digits: 0.9 arrives as 0.89999998.
                found[name] = max(1, round(confidence * 1_000_000))
        return found

    def names(self, field: str, names: Sequence[str]) -> list[str]:
        """Check names of tags; return them canonical."""
        self._count(field, names)
        return [
            self._name(f"{field}[{index}]", name) for index, name in enumerate(names[:_MOST_TAGS])
        ]

    def disjoint(self, field: str, names: Iterable[str], others: Iterable[str]) -> None:
        """Check that no name is asked to be both set and removed."""
        for name in sorted(set(names) & set(others)):
            self.refuse(field, f"{name!r} stands in both lists")

    def page_size(self, size: int) -> int:
        """Check a page size; return the one to use."""
        if size < 0:
            self.refuse("page_size", "must not be negative")
        return min(size, _MOST_PER_PAGE) or _DEFAULT_PAGE

    def state(self, field: str, state: int) -> str | None:
        """Check a state to filter by; return its name in storage, None for any."""
        if state == query_pb2.QUERY_STATE_UNSPECIFIED:
            return None
        if state not in query_pb2.QueryState.values():
            self.refuse(field, f"must be a QueryState, not {state}")
            return None
        return query_pb2.QueryState.Name(query_pb2.QueryState.ValueType(state)).removeprefix(
            "QUERY_STATE_"
        )

    def query_filter(
        self,
        prefix: str,
        conditions: image_service_pb2.QueryFilter | image_service_pb2.ListQueriesRequest,
        *,
        allowed: Iterable[str] = (),
    ) -> QueryFilter:
        """Check the conditions of a filter by queries; return it as storage has it.

        Args:
            prefix: Of the fields' names, where the filter is a message of its own.
            conditions: The message.
            allowed: States that the filter may be for; none: all.
        """
        state = self.state(f"{prefix}state", conditions.state)
        reason = conditions.failure_reason
        if reason and not hasattr(error_pb2, f"ERROR_REASON_{reason}"):
            self.refuse(f"{prefix}failure_reason", "must be a name of ErrorReason")
        elif reason and state not in (None, "FAILED"):
            self.refuse(f"{prefix}failure_reason", "only FAILED queries have one")
        states = (state or "FAILED",) if reason else (state,) if state else ()
        if allowed and any(each not in allowed for each in states):
            field = f"{prefix}state" if state else f"{prefix}failure_reason"
            self.refuse(field, f"only queries that are {', '.join(allowed)} can be changed so")
        after, before = (
            self._time(f"{prefix}{field}", getattr(conditions, field))
            if conditions.HasField(field)
            else None
            for field in ("created_after", "created_before")
        )
        if after is not None and before is not None and before <= after:
            self.refuse(f"{prefix}created_before", "must be later than created_after")
        return QueryFilter(
            key_id=conditions.key or None,
            states=states,
            destination=self._destination(f"{prefix}destination", conditions.destination),
            created_after=after,
            created_before=before,
            failure_reason=reason or None,
        )

    def on_unmatched(self, choice: int) -> str:
        """Check what to do when nothing matches; return its name in storage."""
        if choice not in query_pb2.OnUnmatched.values():
            self.refuse("on_unmatched", f"must be an OnUnmatched, not {choice}")
        return "END" if choice == query_pb2.ON_UNMATCHED_END else "DELIVER"

    def limit(self, limit: int) -> int:
        """Check a number of matches; return the one to use."""
        if not 0 <= limit <= _MOST_MATCHES:
            self.refuse("limit", f"must be from 0 to {_MOST_MATCHES}")
        return limit or _DEFAULT_LIMIT

    def give_up_after(self, duration: Duration) -> int:
        """Check how long a query may take; return milliseconds."""
        shortest, longest = _GIVE_UP_AFTER
        # Compared in parts: ToMilliseconds of a hostile Duration can overflow.
        seconds = duration.seconds + duration.nanos / 1e9
        if not shortest <= seconds <= longest or abs(duration.nanos) >= 1_000_000_000:
            self.refuse("give_up_after", f"must be from {shortest} s to {longest:,} s (30 days)")
            return 0
        return round(seconds * 1000)

    def _destination(self, field: str, name: str) -> str | None:
        if not name:
            return None
        try:
            return parse_destination(name)
        except CallbackUrlError:
            self.refuse(field, "must be SCHEME://HOST:PORT")
            return None

    def _time(self, field: str, timestamp: Timestamp) -> int:
        """Return the first millisecond since the epoch that is not before *timestamp*."""
        earliest, latest = _TIMESTAMP_SECONDS
        if not earliest <= timestamp.seconds <= latest or not 0 <= timestamp.nanos < 1_000_000_000:
            self.refuse(field, "must be a time of the years 1 to 9999")
            return 0
        return max(0, 1000 * timestamp.seconds - (-timestamp.nanos // 1_000_000))

    def _name(self, field: str, name: str) -> str:
        try:
            return canonical(name)
        except ValueError as error:
            self.refuse(field, str(error))
            return ""

    def _count(self, field: str, values: Sequence[object]) -> None:
        if len(values) > _MOST_TAGS:
            self.refuse(field, f"must have at most {_MOST_TAGS} entries, not {len(values)}")
