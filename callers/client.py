"""A caller's side of picback.v1: channel, key, deadline, retries, errors.

Every call goes through `Client`: nothing else turns a gRPC error into a `CallError`, and
a stub used past it would lose the key, the deadline and the reason of a failure.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, TypeVar

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from picback.v1 import image_service_pb2, image_service_pb2_grpc, query_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")
ItemT = TypeVar("ItemT")
PageT = TypeVar("PageT", bound="Page")

#: States in which nothing more happens to a query by itself.
FINAL_STATES: Final = frozenset(
    {
        query_pb2.QUERY_STATE_DELIVERED,
        query_pb2.QUERY_STATE_FAILED,
        query_pb2.QUERY_STATE_CANCELLED,
        query_pb2.QUERY_STATE_UNMATCHED,
    }
)

_SERVICE: Final = "picback.v1.ImageService"
#: gRPC carries out at most 5 attempts. Source: gRFC A6, "Maximum Number of Retries".
_RETRIES: Final = {
    "maxAttempts": 5,
    "initialBackoff": "0.1s",
    "maxBackoff": "2s",
    "backoffMultiplier": 2,
}
#: A stopping server answers UNAVAILABLE, and CANCELLED to calls that race its stop.
#: RESOURCE_EXHAUSTED comes with the server's own waiting time when it is overloaded. When the
#: server's disk is full it comes without one, and these few attempts in two seconds are vain at
#: worst: nothing was stored.
#: RedeliverQuery and RedeliverQueries have no request_id: after CANCELLED it may have happened
#: already. WatchQuery is not retried here, because `Client.watch` does that with more patience.
_SERVICE_CONFIG: Final = {
    "methodConfig": [
        {
            "name": [{"service": _SERVICE}],
            "retryPolicy": {
                **_RETRIES,
                "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED", "RESOURCE_EXHAUSTED"],
            },
        },
        {
            "name": [
                {"service": _SERVICE, "method": "RedeliverQuery"},
                {"service": _SERVICE, "method": "RedeliverQueries"},
            ],
            "retryPolicy": {**_RETRIES, "retryableStatusCodes": ["UNAVAILABLE"]},
        },
        {"name": [{"service": _SERVICE, "method": "WatchQuery"}]},
    ]
}
#: Most bytes of an answer that are taken, well over any image a server stores.
_MAX_MESSAGE_BYTES: Final = 256_000_000
#: How often a watch is begun without success, and how often a broken one is taken up again
#: without news in between; the first pause before it in seconds, each twice the one before.
_MOST_BEGINNINGS: Final = 3
_MOST_REWATCHES: Final = 6
_REWATCH_PAUSE: Final = 0.25
#: Most items on a page. Source: ListImagesRequest.page_size.
_MAX_PAGE_SIZE: Final = 1000
#: Addresses that name this machine.
_LOOPBACK: Final = ("localhost:", "127.", "[::1]:", "unix:")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """PEM files: the authority to trust (None: the system's) and one's own identity."""

    authority: bytes | None
    certificate: bytes | None
    key: bytes | None


class CallError(Exception):
    """A call that failed, in the server's words.

    Attributes:
        code: The gRPC status code.
        reason: A name of ErrorReason without its prefix; "" when no picback answered.
        message: One sentence for people.
        violations: Pairs of field and what is wrong with it.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        reason: str = "",
        violations: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = reason
        self.violations = tuple(violations)


class Client:
    """A connection to one server. Safe to use from any thread.

    Nothing is sent before the first call, so a wrong address shows there.
    """

    def __init__(self, address: str, *, api_key: str, timeout: float, tls: Tls | None) -> None:
        """Prepare calls of at most *timeout* seconds each, retries included."""
        self._address = address
        self._metadata = (("x-api-key", api_key),) if api_key else ()
        self._timeout = timeout
        self._channel = _channel(address, tls)
        self.stub: Final = image_service_pb2_grpc.ImageServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; calls under way fail with CANCELLED."""
        self._channel.close()

    def call(
        self, method: grpc.UnaryUnaryMultiCallable[RequestT, ResponseT], request: RequestT
    ) -> ResponseT:
        """Return the answer of one of `stub`'s methods.

        Raises:
            CallError: It failed, after the retries that make sense.
        """
        try:
            return method(request, timeout=self._timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._explained(error) from error

    def watch(
        self, query_id: str, *, sleep: Callable[[float], None] = time.sleep
    ) -> Iterator[query_pb2.Query]:
        """Yield the query now and after each change, up to its final state.

        It outlives restarts of the server and the ten minutes that a stream may last.

        Raises:
            CallError: It failed, or the server stayed away.
        """
        request = image_service_pb2.WatchQueryRequest(query_id=query_id)
        latest: query_pb2.Query | None = None
        fruitless = 0
        while True:
            try:
                for response in self.stub.WatchQuery(request, metadata=self._metadata):
                    fruitless = 0
                    if response.query != latest:
                        latest = response.query
                        yield latest
            except grpc.RpcError as rpc_error:
                error = self._explained(rpc_error)
                most = _MOST_BEGINNINGS - 1 if latest is None else _MOST_REWATCHES
                if error.code is not grpc.StatusCode.UNAVAILABLE or fruitless == most:
                    raise error from rpc_error
            if latest is not None and latest.state in FINAL_STATES:
                return
            sleep(_REWATCH_PAUSE * 2**fruitless)
            fruitless += 1

    def _explained(self, error: grpc.RpcError) -> CallError:
        """Return *error*, in our words where gRPC itself speaks and not a server."""
        explained = call_error(error)
        if explained.reason:
            return explained
        match explained.code:
            case grpc.StatusCode.UNAVAILABLE:
                message = f"cannot reach a server at {self._address}: {explained.message}"
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                message = f"no answer from {self._address} within {self._timeout:g} s"
            case _:
                return explained
        return CallError(explained.code, message)


class Page(Protocol):
    """An answer of a List method."""

    @property
    def next_page_token(self) -> str:
        """Empty on the last page."""


def items(
    fetch: Callable[[int, str], PageT],
    contents: Callable[[PageT], Sequence[ItemT]],
    *,
    limit: int,
) -> Iterator[ItemT]:
    """Yield what stands on a list's pages, at most *limit* (0: all).

    *fetch* gets a page by size and token.
    """
    token, left = "", limit or sys.maxsize
    while True:
        page = fetch(min(left, _MAX_PAGE_SIZE), token)
        yield from contents(page)
        left -= len(contents(page))
        token = page.next_page_token
        if not token or left <= 0:
            return


def call_error(error: grpc.RpcError) -> CallError:
    """Return what the server, or gRPC itself, says about a failed call."""
    call: object = error  # what stubs raise is a Call too, which its type does not say
    if not isinstance(call, grpc.Call):
        return CallError(grpc.StatusCode.UNKNOWN, str(error) or type(error).__name__)
    reason, violations = "", []
    for detail in _details(call):
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            reason = info.reason
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            detail.Unpack(bad)
            violations = [(each.field, each.description) for each in bad.field_violations]
    return CallError(call.code(), call.details() or "", reason=reason, violations=violations)


def _details(error: grpc.Call) -> Sequence[Any]:
    try:
        status = rpc_status.from_call(error)
    except ValueError:  # details that contradict the status: not from a picback server
        return ()
    return () if status is None else status.details


def _channel(address: str, tls: Tls | None) -> grpc.Channel:
    options = [
        ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
        # By default gRPC waits a second before it looks for a restarted server again.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),
        # So that a watch notices a server that went away without a word.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.primary_user_agent", f"picback/{metadata.version('picback')}"),
    ]
    if address.startswith(_LOOPBACK):
        options.append(("grpc.enable_http_proxy", 0))  # a proxy has another loopback
    if tls is None:
        return grpc.insecure_channel(address, options)
    credentials = grpc.ssl_channel_credentials(tls.authority, tls.key, tls.certificate)
    return grpc.secure_channel(address, credentials, options)
