"""How many queries of each API key are not final, in memory."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class QueuedQueries:
    """Counts by key. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def count(self, key_id: str) -> int:
        """Return how many queries of a key are not final."""
        return self._counts[key_id]

    def reset(self, counts: Mapping[str, int]) -> None:
        """Begin with what is stored."""
        with self._lock:
            self._counts = Counter(counts)

    def add(self, key_id: str, change: int) -> None:
        """Count queries that were accepted or made due again (1), or that became final (-1)."""
        with self._lock:
            self._counts[key_id] += change
