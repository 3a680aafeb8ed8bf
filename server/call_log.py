"""One log line for each call, and no more than some a second for those that are refused unread."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from server import logs

if TYPE_CHECKING:
    from collections.abc import Callable

    import grpc

logger = logging.getLogger(__name__)

#: Most lines a second about calls that one key, or callers without one, had refused for one reason.
_MAX_REFUSALS_PER_SECOND: Final = 20
#: Longest name of a method in a line: callers without a key may write what they like there.
_MAX_METHOD_CHARACTERS: Final = 60


class CallLog:
    """Writes `rpc.finished` and, for lines that were left out, `rpc.suppressed`. Safe to share.

    Args:
        now: Seconds of a clock that only goes forward.
    """

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._second = 0
        self._refusals: Counter[tuple[str, str]] = Counter()

    def finished(
        self,
        method: str,
        *,
        code: grpc.StatusCode,
        reason: str,
        key_id: str,
        request_id: str,
        started: float,
    ) -> None:
        """Write the line of a call that its handler has ended."""
        logs.info(
            logger,
            "rpc.finished",
            {
                "method": method.rpartition("/")[2][:_MAX_METHOD_CHARACTERS],
                "code": code.name,
                "reason": reason,
                "key": key_id,
                "request_id": request_id,
                "ms": round((time.monotonic() - started) * 1000, 1),
            },
        )

    def refused(
        self, method: str, *, code: grpc.StatusCode, reason: str, key_id: str, request_id: str
    ) -> None:
        """Write the line of a call that no handler has seen, or count it."""
        self.flush()
        with self._lock:
            self._refusals[reason, key_id] += 1
            if self._refusals[reason, key_id] > _MAX_REFUSALS_PER_SECOND:
                return
        self.finished(
            method,
            code=code,
            reason=reason,
            key_id=key_id,
            request_id=request_id,
            started=time.monotonic(),
        )

    def flush(self) -> None:
        """Write how many lines were left out in a second that is over."""
        second = int(self._now())
        if second == self._second:
            return
        with self._lock:
            refusals, self._refusals, self._second = self._refusals, Counter(), second
        for (reason, key_id), count in refusals.items():
            if count > _MAX_REFUSALS_PER_SECOND:
                logger.info(
                    "rpc.suppressed",
                    extra={
                        "reason": reason,
                        "key": key_id,
                        "lines": count - _MAX_REFUSALS_PER_SECOND,
                    },
                )
