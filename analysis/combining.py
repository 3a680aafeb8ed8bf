"""One worker for many threads: whoever gets in does the work of all who wait.

For work that only one thread can do at a time and that is cheaper by the batch. Under load the
batches grow by themselves; alone, a caller pays nothing for them and waits for nobody (known as
flat combining: Hendler, Incze, Shavit and Tzafrir, SPAA 2010).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

A = TypeVar("A")
R = TypeVar("R")

#: Most calls in one batch: the first of them waits for the last.
_LARGEST_BATCH: Final = 64


@dataclass(slots=True)
class _Call(Generic[A, R]):
    argument: A
    answer: R | None = None
    error: Exception | None = None
    is_done: bool = False


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
        self._lock = lock
        self._waiting: deque[_Call[A, R]] = deque()

    def __call__(self, argument: A) -> R:
        """Return the answer to *argument*; raises what *work* raises for it."""
        call: _Call[A, R] = _Call(argument)
        self._waiting.append(call)
        with self._lock:
            while not call.is_done:
                self._serve([self._waiting.popleft() for _ in range(self._batch_size())])
        if call.error is not None:
            raise call.error
        return call.answer  # type: ignore[return-value] # it is done, and there was no error

    def _batch_size(self) -> int:
        # Only the holder of the lock takes calls out: there are at least as many left.
        return min(len(self._waiting), _LARGEST_BATCH)

    def _serve(self, batch: Sequence[_Call[A, R]]) -> None:
        try:
            answers = self._work([call.argument for call in batch])
        except Exception as error:  # noqa: BLE001 - it belongs to the callers
            if len(batch) == 1:
                batch[0].error = error
                batch[0].is_done = True
                return
            for call in batch:
                self._serve([call])
            return
        for call, answer in zip(batch, answers, strict=True):
            call.answer = answer
            call.is_done = True
