"""Records of storage as messages of the contract. Pure: no look-ups, no decisions."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from google.protobuf import duration_pb2, timestamp_pb2

from picback.v1 import error_pb2, image_pb2, query_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

    from storage.images import Image
    from storage.query_records import Attempt, Match, Query

#: What confidences and scores are counted in.
_MILLIONTHS = 1_000_000


def image(record: Image) -> image_pb2.Image:
    """Return an image as callers see it."""
    return image_pb2.Image(
        id=record.id,
        state=image_pb2.ImageState.Value(f"IMAGE_STATE_{record.state}"),
        media_type=record.media_type,
        size_bytes=record.size_bytes,
        width=record.width,
        height=record.height,
        sha256=record.sha256,
        tags=[
            image_pb2.Tag(
                name=tag.name,
                confidence=tag.confidence / _MILLIONTHS,
                source=image_pb2.TagSource.Value(f"TAG_SOURCE_{tag.source}"),
                model=tag.model,
            )
            for tag in record.tags
        ],
        failure=_failure(record.failure_reason, record.failure_message),
        create_time=_timestamp(record.created_at),
    )


def match(record: Match) -> query_pb2.Match:
    """Return a match with its explanation."""
    return query_pb2.Match(
        image_id=record.image_id,
        score=record.score / _MILLIONTHS,
        tags=[
            query_pb2.MatchedTag(
                name=tag.name, lemma=tag.lemma, confidence=tag.confidence / _MILLIONTHS
            )
            for tag in record.tags
        ],
    )


def query(
    record: Query, *, reader_key_id: str, wall_time: Callable[[int], int] = int
) -> query_pb2.Query:
    """Return a query as the key *reader_key_id* may see it.

    Only the key that submitted it sees what its receiver answered, and its whole callback URL.
    *wall_time* converts the scheduler's time to that of the wall clock.
    """
    matched = record.matched
    is_own = reader_key_id == record.key_id
    return query_pb2.Query(
        id=record.id,
        state=query_pb2.QueryState.Value(f"QUERY_STATE_{record.state}"),
        text=record.text,
        callback_url=record.callback_url if is_own else _masked(record.callback_url),
        lemmas=matched.lemmas if matched else (),
        match=match(matched.match) if matched and matched.match else None,
        attempts=[_attempt(attempt, with_excerpt=is_own) for attempt in record.attempts],
        next_attempt_time=_timestamp(None if record.due_at is None else wall_time(record.due_at)),
        failure=_failure(record.failure_reason, record.failure_message),
        create_time=_timestamp(record.created_at),
        end_time=_timestamp(record.ended_at),
        latest_attempt_number=record.latest_attempt_number,
    )


def _attempt(record: Attempt, *, with_excerpt: bool) -> query_pb2.DeliveryAttempt:
    latency = duration_pb2.Duration()
    latency.FromMilliseconds(record.latency_ms)
    return query_pb2.DeliveryAttempt(
        number=record.number,
        start_time=_timestamp(record.started_at),
        latency=latency,
        http_status=record.http_status,
        failure=_failure(record.failure_reason, record.failure_message),
        response_excerpt=record.excerpt if with_excerpt else "",
    )


def _masked(url: str) -> str:
    """Return *url* with *** for the parts in which credentials travel."""
    parts = urlsplit(url)
    _, at, host = parts.netloc.rpartition("@")
    return parts._replace(
        netloc=f"***@{host}" if at else host,
        query="***" if parts.query else "",
        fragment="***" if parts.fragment else "",
    ).geturl()


def _failure(reason: str | None, message: str | None) -> error_pb2.Failure | None:
    return None if reason is None else error_pb2.Failure(reason=reason, message=message or "")


def _timestamp(milliseconds: int | None) -> timestamp_pb2.Timestamp | None:
    if milliseconds is None:
        return None
    timestamp = timestamp_pb2.Timestamp()
    timestamp.FromMilliseconds(milliseconds)
    return timestamp
