"""CancelQueries and RedeliverQueries: one change of every query that satisfies a filter."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from server import logs
from server.caller import CALLER
from server.stream_limit import StreamLimit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import grpc

    from dispatcher import Dispatcher
    from storage.queries import Queries
    from storage.query_bulk import Changed
    from storage.query_filters import QueryFilter

logger = logging.getLogger(__name__)

#: Queries that are changed in one transaction: other changes wait for some 10 ms.
_BATCH: Final = 500
#: How long one call goes on, in seconds; it holds a thread that other calls need.
_MAX_SECONDS: Final = 20.0
#: What is kept back of the caller's deadline to respond in, in seconds.
_RESPONSE_MARGIN: Final = 0.5
#: Most calls at once, in all and of one key.
_MAX_CALLS: Final = 4
_MAX_CALLS_PER_KEY: Final = 2


@dataclass(slots=True)
class Progress:
    """How far a call has come."""

    #: Where another call continues; None when there is nothing left to examine.
    before: int | None
    matched: int = 0
    changed: int = 0


class BulkQueries:
    """Changes queries in batches. Safe to use from any thread.

    Each batch is committed by itself, so what a call has changed stays changed however it ends.
    """

    def __init__(
        self,
        *,
        queries: Queries,
        dispatcher: Dispatcher,
        is_stopping: Callable[[], bool],
        clock: Callable[[], int],
    ) -> None:
        self._queries = queries
        self._dispatcher = dispatcher
        self._is_stopping = is_stopping
        self._clock = clock
        self._limit = StreamLimit(
            "CancelQueries and RedeliverQueries", total=_MAX_CALLS, per_key=_MAX_CALLS_PER_KEY
        )

    def count(
        self, where: QueryFilter, context: grpc.ServicerContext, *, before: int | None
    ) -> Progress:
        """Count what satisfies *where*, from position *before* on, as long as there is time.

        Raises:
            RequestError: OVERLOADED; too many calls are open.
        """
        return self._run(where, context, before, None)

    def cancel(
        self, where: QueryFilter, context: grpc.ServicerContext, *, before: int | None
    ) -> Progress:
        """Cancel what satisfies *where*; otherwise as `count`."""

        def cancel(seqs: Sequence[int]) -> list[Changed]:
            return self._queries.bulk.cancel(seqs, where, now=self._clock())

        return self._run(where, context, before, cancel)

    def redeliver(
        self, where: QueryFilter, context: grpc.ServicerContext, *, before: int | None
    ) -> Progress:
        """Redeliver what satisfies *where*; otherwise as `count`."""

        def redeliver(seqs: Sequence[int]) -> list[Changed]:
            changed = self._queries.bulk.redeliver(
                seqs, where, now=self._dispatcher.time(), wall_now=self._clock()
            )
            for destination in {each.destination for each in changed}:
                self._dispatcher.wake_delivery(destination)
            return changed

        return self._run(where, context, before, redeliver)

    def _run(
        self,
        where: QueryFilter,
        context: grpc.ServicerContext,
        before: int | None,
        change: Callable[[Sequence[int]], list[Changed]] | None,
    ) -> Progress:
        progress = Progress(before)
        until = time.monotonic() + min(_MAX_SECONDS, _remaining(context) - _RESPONSE_MARGIN)
        with self._limit.open(CALLER.get().key_id):
            try:
                search = self._queries.search(where)
                while True:
                    if change is None:
                        counted = search.count(before=progress.before)
                        progress.before, found = counted.before, counted.count
                    else:
                        part = search.find(before=progress.before, limit=_BATCH)
                        progress.changed += len(change(part.seqs))
                        progress.before, found = part.before, len(part.seqs)
                    progress.matched += found
                    if progress.before is None or self._must_stop(context, until):
                        return progress
            finally:
                if change is not None:
                    # Of a call that its caller cancelled, nothing else tells.
                    _log(progress)

    def _must_stop(self, context: grpc.ServicerContext, until: float) -> bool:
        return time.monotonic() >= until or not context.is_active() or self._is_stopping()


def _remaining(context: grpc.ServicerContext) -> float:
    remaining = cast("float | None", context.time_remaining())
    return math.inf if remaining is None else remaining  # or a huge number, without a deadline


def _log(progress: Progress) -> None:
    caller = CALLER.get()
    logs.info(
        logger,
        "queries.changed",
        {
            "matched": progress.matched,
            "changed": progress.changed,
            "complete": progress.before is None,
            "key": caller.key_id,
            "request_id": caller.request_id,
        },
    )
