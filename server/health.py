"""The standard health service (grpc.health.v1): Check, List and Watch.

Our own, because the stock servicer sends while it holds its lock, and two clients that
open and cancel Watch deadlock the whole server (grpc/grpc#43403). Here nothing is ever
sent under the lock that a closing call needs.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_SERVING: Final = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN: Final = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
#: Most open Watch calls. Each costs memory but no thread, and needs no key.
_MOST_WATCHERS: Final = 2_000


class _Watcher:
    """One open Watch call. Sending has a lock of its own, so answers keep their order."""

    def __init__(self, send: Callable[[Any], None]) -> None:
        self._send = send
        self._lock = threading.Lock()
        self._last: int | None = None

    def push(self, read_status: Callable[[], int], *, end: bool = False) -> None:
        with self._lock:
            status = read_status()
            if status != self._last:
                self._last = status
                self._send(health_pb2.HealthCheckResponse(status=status))
            if end:
                self._send(None)


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc] # untyped base
    """Tells whether the server serves, for the names given and for "" (all of it)."""

    def __init__(self, names: Iterable[str]) -> None:
        self._lock = threading.Lock()
        self._status = dict.fromkeys(("", *names), _NOT_SERVING)
        self._watchers: dict[_Watcher, str] = {}
        self._ended = False

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

    def Watch(
        self, request: Any, context: grpc.ServicerContext, send: Callable[[Any], None]
    ) -> None:
        """Send one name's status now and at each change, until the server stops."""
        watcher = _Watcher(send)
        with self._lock:
            full = len(self._watchers) >= _MOST_WATCHERS
            if not full:
                self._watchers[watcher] = request.service
        if full:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many open Watch calls")
        if not context.add_callback(lambda: self._forget(watcher)):
            self._forget(watcher)  # cancelled already
            return
        watcher.push(lambda: self._read(request.service), end=self._ended)

    # gRPC's own switch for streams that are answered by callback and hold no thread.
    Watch.experimental_non_blocking = True  # type: ignore[attr-defined]

    def set_serving(self, *, serving: bool) -> None:
        """Tell everybody whether the server serves. Ignored once ended."""
        with self._lock:
            if self._ended:
                return
            self._status = dict.fromkeys(self._status, _SERVING if serving else _NOT_SERVING)
            watchers = list(self._watchers.items())
        for watcher, name in watchers:
            watcher.push(lambda name=name: self._read(name))  # type: ignore[misc] # mypy: default in lambda

    def end(self) -> None:
        """Tell everybody NOT_SERVING for good, and end every Watch call."""
        self.set_serving(serving=False)
        with self._lock:
            self._ended = True
            watchers = list(self._watchers.items())
        for watcher, name in watchers:
            watcher.push(lambda name=name: self._read(name), end=True)  # type: ignore[misc]

    def _read(self, name: str) -> int:
        return int(self._status.get(name, _UNKNOWN))

    def _forget(self, watcher: _Watcher) -> None:
        with self._lock:
            self._watchers.pop(watcher, None)
