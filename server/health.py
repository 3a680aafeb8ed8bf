"""The standard health service (grpc.health.v1): Check, List and Watch.

Our own, because the stock servicer sends while it holds its lock, and two clients that
open and cancel Watch deadlock the whole server (grpc/grpc#43403). Sending also waits for
the client to make room, and health needs no key: so whoever changes a status must never
send. Here it sets events, and each Watch call sends for itself, on a thread of its own.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from storage.changes import Changes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_SERVING: Final = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN: Final = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc] # untyped base
    """Tells whether the server serves.

    Args:
        names: Services to tell it for, besides "" (all of the server).
        most_watchers: Most open Watch calls; fewer than the threads that they may hold, so
            that one more can be refused.
    """

    def __init__(self, names: Iterable[str], *, most_watchers: int) -> None:
        self._status = dict.fromkeys(("", *names), _NOT_SERVING)
        self._ended = False
        self._changes = Changes()
        self._watchers = threading.BoundedSemaphore(most_watchers)

    def Check(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Answer with one name's status, or NOT_FOUND."""
        status = self._status.get(request.service)
        if status is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return health_pb2.HealthCheckResponse(status=status)

    def List(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Answer with the status of every name."""
        return health_pb2.HealthListResponse(
            statuses={
                name: health_pb2.HealthCheckResponse(status=status)
                for name, status in self._status.items()
            }
        )

    def Watch(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        """Send one name's status now and at each change, until the server stops."""
        if not self._watchers.acquire(blocking=False):
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many open Watch calls")
        try:
            yield from self._watch(request.service, context)
        finally:
            self._watchers.release()

    def set_serving(self, *, serving: bool) -> None:
        """Tell everybody whether the server serves."""
        self._status = dict.fromkeys(self._status, _SERVING if serving else _NOT_SERVING)
        self._changes.wake_all()

    def end(self) -> None:
        """Tell everybody NOT_SERVING for good, and end every Watch call."""
        self._status = dict.fromkeys(self._status, _NOT_SERVING)
        self._ended = True
        self._changes.wake_all()

    def _watch(self, name: str, context: grpc.ServicerContext) -> Iterator[Any]:
        last = None
        with self._changes.watch(name) as changed:
            context.add_callback(changed.set)  # so that a caller who left is noticed
            while True:
                changed.clear()  # before all looking: what happens from here on sets it again
                if not context.is_active():
                    return
                ended = self._ended  # before the status, which is final then
                status = self._status.get(name, _UNKNOWN)
                if status != last:
                    yield health_pb2.HealthCheckResponse(status=status)
                    last = status
                if ended:
                    return
                changed.wait()
