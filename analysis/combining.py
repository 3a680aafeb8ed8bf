"""One worker for many threads: whoever gets in does the work of all who wait.

For work that only one thread can do at a time and that is cheaper by the batch. Under load the
batches grow by themselves; alone, a caller pays nothing for them and waits for nobody (known as
flat combining: Hendler, Incze, Shavit and Tzafrir, SPAA 2010).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

A = TypeVar("A")
R = TypeVar("R")

#: Most calls in one batch: the first of them waits for the last.
_LARGEST_BATCH: Final = 64
#: After a batch of several: for how long those who were served are awaited with their next call,
#: in seconds. Without it every other batch is one of one; with it lemmas of 16 threads take a
#: quarter less processor time. A lone caller never waits.
_PAUSE: Final = 0.0003


@dataclass(slots=True)
class _Call(Generic[A, R]):
    argument: A
    answer: R | None = None
    error: Exception | None = None
    #: Set when the call was served, or is to serve itself and others.
    is_up: threading.Event = field(default_factory=threading.Event)
    is_served: bool = False


class Combiner(Generic[A, R]):
    """Answers calls from any number of threads with a function of a batch.

    Args:
        work: Gives an answer for each argument, in order. Called by one thread at a time. If it
            raises, each argument of the batch is tried alone, so that only the one at fault
            suffers.
        lock: Held while *work* runs; to be shared with whatever else must not run meanwhile.
    """

    def __init__(self, work: Callable[[Sequence[A]], Sequence[R]], *, lock: threading.Lock) -> None:
        self._work = work
        self._working = lock
        self._lock = threading.Lock()
        #: Those who wait, longest first; the first of them, or nobody, serves all.
        self._calls: deque[_Call[A, R]] = deque()
        self._is_led = False
        #: Whether the last batch served more than one.
        self._was_shared = False

    def __call__(self, argument: A) -> R:
        """Return the answer to *argument*; raises what *work* raises for it."""
        call: _Call[A, R] = _Call(argument)
        with self._lock:
            self._calls.append(call)
            leads, self._is_led = not self._is_led, True
        if not leads:
            call.is_up.wait()
        if not call.is_served:
            self._lead()
        if call.error is not None:
            raise call.error
        return call.answer  # type: ignore[return-value] # it was served, and there was no error

    def _lead(self) -> None:
        """Serve a batch of those who wait, oneself the first, and let the next of them go on.

        Who was served is woken at once: for the next batch to be large, they have to be back.
        """
        with self._working:
            if self._was_shared:
                time.sleep(_PAUSE)
            with self._lock:
                size = min(len(self._calls), _LARGEST_BATCH)
                batch = [self._calls.popleft() for _ in range(size)]
            self._was_shared = size > 1
            self._serve(batch)
        for call in batch:
            call.is_served = True
            call.is_up.set()
        with self._lock:
            self._is_led = bool(self._calls)
            if self._calls:
                self._calls[0].is_up.set()

    def _serve(self, batch: Sequence[_Call[A, R]]) -> None:
        try:
            answers = self._work([call.argument for call in batch])
        except Exception as error:  # noqa: BLE001 - it belongs to the callers
            if len(batch) == 1:
                batch[0].error = error
                return
            for call in batch:
                self._serve([call])
            return
        for call, answer in zip(batch, answers, strict=True):
            call.answer = answer
