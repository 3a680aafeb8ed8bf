"""How images, queries and attempts read in the callers' tables."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from picback.v1 import image_pb2, query_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable

    from google.protobuf.descriptor import EnumDescriptor
    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.timestamp_pb2 import Timestamp

    from picback.v1 import error_pb2


def image_state(image: image_pb2.Image) -> str:
    """Return an image's state without its prefix; of one that a newer server has, the number."""
    return _bare_name(image_pb2.ImageState.DESCRIPTOR, image.state, "IMAGE_STATE_")


def query_state(query: query_pb2.Query) -> str:
    """Return a query's state without its prefix; of one that a newer server has, the number."""
    return _bare_name(query_pb2.QueryState.DESCRIPTOR, query.state, "QUERY_STATE_")


def tags(
    given: Iterable[image_pb2.Tag] | Iterable[query_pb2.MatchedTag], *, most: int | None = None
) -> str:
    """Return tags with their confidences: "dog 0.98, grass 0.81"."""
    every = [f"{tag.name} {tag.confidence:.2f}" for tag in given]
    more = [] if most is None or len(every) <= most else [f"+{len(every) - most}"]
    return ", ".join(every[:most] + more)


def size(size_bytes: int) -> str:
    """Return a size in decimal units: "612 bytes", "96 kB", "1.4 MB"."""
    if size_bytes < 1000:
        return f"{size_bytes} bytes"
    if size_bytes < 1_000_000:
        return f"{size_bytes / 1000:.0f} kB"
    return f"{size_bytes / 1_000_000:.1f} MB"


def time(moment: Timestamp) -> str:
    """Return a point in time in UTC, to the second; empty for an unset one."""
    if not moment.seconds:
        return ""
    return datetime.fromtimestamp(moment.seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def span(duration: Duration) -> str:
    """Return a span of time: "7 ms", "1.25 s"."""
    seconds = duration.seconds + duration.nanos / 1e9
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def outcome(attempt: query_pb2.DeliveryAttempt) -> str:
    """Return how an attempt ended: "204", "503 HTTP_STATUS", "TIMEOUT"."""
    status = str(attempt.http_status) if attempt.http_status else ""
    return f"{status} {attempt.failure.reason}".strip() or "under way"


def news(query: query_pb2.Query) -> str:
    """Return what a watcher wants to know: the state, and what led to it."""
    told = [query_state(query)]
    is_unmatched = query.state == query_pb2.QUERY_STATE_UNMATCHED
    if is_unmatched or (query.state == query_pb2.QUERY_STATE_DELIVERING and not query.attempts):
        told.append(matched(query))
    if query.attempts and not is_unmatched:
        last = query.attempts[-1]
        told.append(f"attempt {last.number}: {outcome(last)}")
    if query.HasField("next_attempt_time") and query.attempts:
        told.append(f"next attempt {time(query.next_attempt_time)}")
    if query.failure.reason:
        told.append(failure(query.failure))
    return "  ".join(told)


def matched(query: query_pb2.Query) -> str:
    """Return what a query matched: "img_… 1.93 (dog 0.98, beach 0.95)"."""
    if not query.HasField("match"):
        waits = query.state == query_pb2.QUERY_STATE_QUEUED
        return "" if waits else "nothing matches"
    return f"{query.match.image_id} {query.match.score:.2f} ({tags(query.match.tags)})"


def failure(given: error_pb2.Failure) -> str:
    """Return why something failed: message and reason; empty when it did not."""
    return f"{given.message} ({given.reason})" if given.reason else ""


def count(number: int, singular: str) -> str:
    """Return a number of things: "1 file", "2 files"."""
    return f"{number:,} {singular}" if number == 1 else f"{number:,} {singular}s"


def _bare_name(enum: EnumDescriptor, number: int, prefix: str) -> str:
    value = enum.values_by_number.get(number)
    return str(number) if value is None else value.name.removeprefix(prefix)
