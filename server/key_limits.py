"""What one API key may use, so that others are served: calls per second, and queries that wait."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final

from server.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Callable

#: After how many milliseconds a caller with too many queries should try again.
_QUEUE_RETRY_MS: Final = 10_000


class KeyLimits:
    """Counts each key's calls by a token bucket, which holds the calls of one second.

    `count_call` is used by gRPC's serving thread alone.

    Args:
        calls_per_second: Most calls of a key in a second; 0 for no limit.
        queued_queries: Most queries of a key that are not final; 0 for no limit.
        count_queued: How many of a key's queries are not final.
        now: Seconds of a clock that only goes forward.
    """

    def __init__(
        self,
        *,
        calls_per_second: float,
        queued_queries: int,
        count_queued: Callable[[str], int],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rate = calls_per_second
        self._capacity = max(1.0, calls_per_second)
        self._queued_queries = queued_queries
        self._count_queued = count_queued
        self._now = now
        self._buckets: dict[str, tuple[float, float]] = {}

    def count_call(self, key_id: str) -> None:
        """Count a call of *key_id*.

        Raises:
            RequestError: LIMIT_EXCEEDED; it was one too many, and is not counted.
        """
        if not self._rate:
            return
        now = self._now()
        tokens, at = self._buckets.get(key_id, (self._capacity, now))
        tokens = min(self._capacity, tokens + (now - at) * self._rate)
        if tokens < 1:
            raise RequestError(
                "LIMIT_EXCEEDED",
                f"the API key may make {self._rate:g} calls per second",
                metadata={"limit": "calls_per_second"},
                retry_after_ms=math.ceil((1 - tokens) / self._rate * 1000),
            )
        self._buckets[key_id] = (tokens - 1, now)

    def check_queued(self, key_id: str) -> None:
        """Check that *key_id* may submit another query.

        Raises:
            RequestError: LIMIT_EXCEEDED.
        """
        if self._queued_queries and self._count_queued(key_id) >= self._queued_queries:
            raise RequestError(
                "LIMIT_EXCEEDED",
                f"the API key has {self._queued_queries:,} queries that are not final",
                metadata={"limit": "queued_queries"},
                retry_after_ms=_QUEUE_RETRY_MS,
            )
