"""Tells waiting threads that a row has changed, so that nobody has to poll."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Changes:
    """Wakes whoever watches an id. A hint only: the truth is in the database.

    Safe to use from any thread. An event is set, never queued: several changes that
    follow each other closely may wake a watcher once.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watchers: dict[str, set[threading.Event]] = {}

    @contextmanager
    def watch(self, id_: str) -> Iterator[threading.Event]:
        """Yield an event that is set at every change of *id_* while the block runs.

        Enter the block before reading the row: then no change can fall between.
        """
        event = threading.Event()
        with self._lock:
            self._watchers.setdefault(id_, set()).add(event)
        try:
            yield event
        finally:
            with self._lock:
                watchers = self._watchers[id_]
                watchers.discard(event)
                if not watchers:
                    del self._watchers[id_]

    def publish(self, id_: str) -> None:
        """Wake all who watch *id_*."""
        with self._lock:
            for event in self._watchers.get(id_, ()):
                event.set()

    def wake_all(self) -> None:
        """Wake every watcher, so that a server that stops can end their calls."""
        with self._lock:
            for watchers in self._watchers.values():
                for event in watchers:
                    event.set()
