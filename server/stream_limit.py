"""How many streams may be open at once, since each holds a thread."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

from server.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterator


class StreamLimit:
    """At most *total* streams, and *per_key* of one key. Safe to share.

    There must be more threads than *total*, so that one more stream can be refused.
    """

    def __init__(self, method: str, *, total: int, per_key: int) -> None:
        self._method = method
        self._total = total
        self._per_key = per_key
        self._lock = threading.Lock()
        self._open: Counter[str] = Counter()

    @contextmanager
    def open(self, key_id: str) -> Iterator[None]:
        """Count a stream while the block runs.

        Raises:
            RequestError: OVERLOADED; there are too many.
        """
        with self._lock:
            if self._open[key_id] >= self._per_key or self._open.total() >= self._total:
                raise RequestError("OVERLOADED", f"too many open {self._method} calls")
            self._open[key_id] += 1
        try:
            yield
        finally:
            with self._lock:
                self._open[key_id] -= 1
                if not self._open[key_id]:
                    del self._open[key_id]
