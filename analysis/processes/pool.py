"""Child processes that are kept ready, and replaced when they end.

One thread starts them all: it lives as long as the pool does, and on Linux a child is ended when
the thread that started it ends. So children of a thread that serves a call would end with it.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from analysis.images import ProcessUnavailableError
from analysis.processes.child import Child, ChildDiedError, ChildStartError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

logger = logging.getLogger(__name__)

#: How long a child may take until it is ready, in seconds, on a machine that is very busy.
_START_SECONDS: Final = 60.0
#: How long after a child that did not start the next one is tried, in seconds.
_RETRY_SECONDS: Final = 0.2


class ProcessPool:
    """Children that run one module. Thread safe.

    Args:
        name: For logs and the name of the thread.
        module: What a child runs; it sends `{"ready": true}` first, or `{"error": text}`.
        arguments: Its command line, after the server's process id.
        size: How many are kept. One more than are in use is started ahead, up to this number;
            beyond it only when a caller waits.
    """

    def __init__(self, name: str, module: str, arguments: Sequence[str], *, size: int) -> None:
        self._name = name
        self._module = module
        self._arguments = tuple(arguments)
        self._size = size
        self._condition = threading.Condition()
        self._idle: list[Child] = []
        self._in_use: set[Child] = set()
        self._starting: Child | None = None
        self._waiting = 0
        self._error: str | None = None
        self._failures = 0
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name=f"picback-{name}", daemon=True)

    def start(self) -> None:
        """Begin to start children, in the background."""
        self._thread.start()

    @contextmanager
    def child(self, *, timeout: float) -> Iterator[Child]:
        """Yield a child that is ready; it goes back when the block ends, if it still runs.

        Raises:
            ProcessUnavailableError: None was ready in *timeout* seconds, or the pool is closed.
        """
        child = self._take(timeout)
        try:
            yield child
        finally:
            self._give_back(child)

    def wait_until_ready(self, *, timeout: float) -> str | None:
        """Wait for the first child; return the error that it told instead of starting, if any.

        Raises:
            ProcessUnavailableError: There was neither in *timeout* seconds.
        """
        with self._condition:
            if not self._condition.wait_for(
                lambda: bool(self._idle or self._in_use) or self._error is not None, timeout
            ):
                msg = f"no process for {self._name} could be started"
                raise ProcessUnavailableError(msg)
            return self._error

    def close(self) -> None:
        """End all children, those in use as well."""
        with self._condition:
            self._is_closed = True
            for child in (*self._in_use, *([self._starting] if self._starting else [])):
                child.kill()
            idle, self._idle = self._idle, []
            self._condition.notify_all()
        for child in idle:
            child.end()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._is_closed

    def process_ids(self) -> list[int]:
        """Return the process ids of all children that are ready or in use."""
        with self._condition:
            return [child.process_id for child in (*self._idle, *self._in_use)]

    def _take(self, timeout: float) -> Child:
        deadline = time.monotonic() + timeout
        with self._condition:
            self._waiting += 1
            self._condition.notify_all()
            try:
                while not self._is_closed:
                    while self._idle:
                        child = self._idle.pop()
                        if child.is_alive:
                            self._in_use.add(child)
                            return child
                        child.end()
                        self._condition.notify_all()
                    remaining = deadline - time.monotonic()
                    if remaining <= 0:
                        break
                    self._condition.wait(remaining)
            finally:
                self._waiting -= 1
        msg = f"no process for {self._name} is ready"
        raise ProcessUnavailableError(msg)

    def _give_back(self, child: Child) -> None:
        with self._condition:
            self._in_use.discard(child)
            is_kept = not self._is_closed and len(self._idle) < self._size and child.is_alive
            if is_kept:
                self._idle.append(child)
            self._condition.notify_all()
        if not is_kept:
            child.end()

    def _run(self) -> None:
        while self._wait_until_needed():
            try:
                self._start_one()
                self._failures = 0
            except (ChildStartError, ChildDiedError) as error:
                self._note_failure(error)
            except Exception:  # the pool survives any unexpected error
                logger.exception("process.start_crashed", extra={"pool": self._name})
                self._pause()

    def _wait_until_needed(self) -> bool:
        """Wait until a child is to be started; return False when the pool is closed."""
        with self._condition:
            self._condition.wait_for(
                lambda: (
                    self._is_closed
                    or (not self._idle and len(self._in_use) < self._size)
                    or self._waiting > len(self._idle)
                )
            )
            return not self._is_closed

    def _start_one(self) -> None:
        child = Child(self._module, self._arguments)
        with self._condition:
            self._starting = child
            is_closed = self._is_closed
        try:
            if is_closed:
                child.kill()
            first = child.receive(timeout=_START_SECONDS)
        finally:
            with self._condition:
                self._starting = None
        error = first.get("error")
        with self._condition:
            if error is None and not self._is_closed:
                self._idle.append(child)
                child = None  # type: ignore[assignment]
            else:
                self._error = None if error is None else str(error)
            self._condition.notify_all()
        if child is not None:
            child.end()
            if error is not None:
                raise ChildStartError(str(error))

    def _note_failure(self, error: Exception) -> None:
        if self._is_closed:
            return
        self._failures += 1
        if self._failures in {1, 10, 100} or self._failures % 1000 == 0:
            logger.warning(
                "process.not_started",
                extra={"pool": self._name, "detail": str(error), "failures": self._failures},
            )
        self._pause()

    def _pause(self) -> None:
        with self._condition:
            self._condition.wait_for(lambda: self._is_closed, _RETRY_SECONDS)


def fields_of(value: Any, length: int) -> list[Any]:
    """Return *value*, which a child sent, if it is a list of so many.

    Raises:
        ValueError: It is not.
    """
    if not isinstance(value, list) or len(value) != length:
        msg = "a child process sent something else than was agreed"
        raise ValueError(msg)
    return value
