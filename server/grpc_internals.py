"""The only file that knows private names of gRPC's sync server.

The public interface offers a thread pool's `submit` and nothing before it: there a call holds its thread from
before its request has arrived. `UnreadCall` takes such a submission apart, so that `request_pool` can receive
the request first. `is_supported` says whether the installed gRPC is built as this file assumes;
where it is not, calls go to their threads as gRPC sends them.
"""

from __future__ import annotations

import inspect
import threading
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import grpc

from server.caller import CALLER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Self

    from server.caller import Caller

_grpc_server: Any = import_module("grpc._server")
_cygrpc: Any = import_module("grpc._cython.cygrpc")
#: Functions of grpc._server -> the parameters that this file passes or expects.
_SIGNATURES: Final = {
    "_unary_response_in_pool": 6,
    "_stream_response_in_pool": 6,
    "_receive_message": 3,
    "_unary_request": 3,
    "_abort": 4,
    "_is_rpc_state_active": 1,
    "_serialized_request": 1,
    "_serve": 1,
}
#: Attributes of a call's state.
_STATE: Final = (
    "callbacks",
    "client",
    "code",
    "condition",
    "context",
    "details",
    "due",
    "request",
    "statused",
    "trailing_metadata",
)


def is_supported() -> bool:
    """Whether the installed gRPC has what `UnreadCall` uses, in the form that it uses."""
    try:
        state = _grpc_server._RPCState()
        return (
            all(
                len(inspect.signature(getattr(_grpc_server, name)).parameters) == count
                for name, count in _SIGNATURES.items()
            )
            and all(hasattr(state, name) for name in _STATE)
            and all(
                hasattr(_grpc_server, name)
                for name in (
                    "_CLOSED",
                    "_CANCELLED",
                    "_EMPTY_FLAGS",
                    "_RECEIVE_MESSAGE_TOKEN",
                    "_RequestIterator",
                )
            )
            and hasattr(_cygrpc, "ReceiveMessageOperation")
        )
    except (AttributeError, TypeError, ValueError):
        return False


def serving_threads() -> list[threading.Thread]:
    """Return gRPC's threads, one for each running server, that take every call."""
    return [thread for thread in threading.enumerate() if thread.name.endswith("(_serve)")]


class UnreadCall:
    """A call that gRPC has handed to a thread pool, and whose request has not been received.

    Args:
        run: What gRPC passed to the pool's `submit`: runs its next argument in the call's context.
        function: Receives the request, calls the handler and sends the response.
        arguments: Those of *function*.
    """

    __slots__ = (
        "_arguments",
        "_call",
        "_function",
        "_is_unary",
        "_request",
        "_run",
        "_state",
        "behaviour",
        "size_bytes",
    )

    def __init__(self, run: Any, function: Any, arguments: Sequence[Any]) -> None:
        self._run, self._function, self._arguments = run, function, arguments
        rpc_event, self._state, self.behaviour, *_ = arguments
        self._call = rpc_event.call
        # Whether the method takes one request, not a stream of them.
        self._is_unary = getattr(arguments[3], "__name__", "") == "unary_request"
        self._request: Any = None
        #: Length of the request that has arrived.
        self.size_bytes = 0

    @classmethod
    def of(cls, submitted: Sequence[Any]) -> Self | None:
        """Return the call in what `submit` was given; None where it is something else."""
        if len(submitted) != 8 or submitted[1] not in (
            _grpc_server._unary_response_in_pool,
            _grpc_server._stream_response_in_pool,
        ):
            return None
        return cls(submitted[0], submitted[1], submitted[2:])

    @property
    def caller(self) -> Caller:
        """Who makes the call, as the interceptor has set it in the call's context."""
        caller: Caller = self._state.context[CALLER]
        return caller

    @property
    def peer(self) -> str:
        """The address of the connection's other end."""
        peer: str = self._call.peer().decode(errors="replace")
        return peer

    @property
    def is_active(self) -> bool:
        """Whether the client still waits, and no status was sent."""
        active: bool = _grpc_server._is_rpc_state_active(self._state)
        return active

    def receive(self, on_end: Callable[[bool], None]) -> bool:
        """Receive the request without a thread; False if the call has ended already.

        Args:
            on_end: Called once, on gRPC's serving thread: with True when the request is there, with False
                when it will not come, because the client has left or the call was ended.
        """
        state = self._state
        with state.condition:
            if not self.is_active:
                return False
            received = _grpc_server._receive_message(state, self._call, self._arguments[4])

            def arrived(event: Any) -> Any:
                with state.condition:
                    completed = received(event)
                    self._request, state.request = state.request, None
                    there = self._request is not None
                    if there:
                        self.size_bytes = len(_grpc_server._serialized_request(event))
                    elif (
                        state.client is _grpc_server._CLOSED
                        and not state.statused
                        and self._is_unary
                    ):
                        self._send_status(
                            grpc.StatusCode.UNIMPLEMENTED,
                            "exactly one request message is needed",
                            (),
                        )
                on_end(there or (not self._is_unary and self.is_active))
                return completed

            self._call.start_server_batch(
                (_cygrpc.ReceiveMessageOperation(_grpc_server._EMPTY_FLAGS),), arrived
            )
            state.due.add(_grpc_server._RECEIVE_MESSAGE_TOKEN)
            return True

    def on_done(self, run: Callable[[], object]) -> bool:
        """Call *run* when the call has ended; False if it has already."""
        with self._state.condition:
            if self._state.callbacks is None:
                return False
            self._state.callbacks.append(run)
            return True

    def cancel(self) -> None:
        """End the call without a status."""
        self._call.cancel()

    def task(self) -> tuple[Any, ...]:
        """Return what runs the handler, as arguments of a thread pool's `submit`."""
        rpc_event, state, behaviour, request_of, deserialize, serialize = self._arguments
        if self._is_unary:
            request = self._request

            def request_of() -> Any:
                return request if _grpc_server._is_rpc_state_active(state) else None

        else:
            requests = _Requests(state, self._call, deserialize, self._request)

            def request_of() -> Any:
                return requests

        return (
            self._run,
            self._function,
            rpc_event,
            state,
            behaviour,
            request_of,
            deserialize,
            serialize,
        )

    def refuse(
        self, code: grpc.StatusCode, message: str, trailers: Sequence[tuple[str, str | bytes]]
    ) -> bool:
        """End the call with a status; False if it has ended before. From any thread."""
        with self._state.condition:
            if not self.is_active:
                return False
            self._send_status(code, message, trailers)
            return True

    def _send_status(
        self, code: grpc.StatusCode, message: str, trailers: Sequence[tuple[str, str | bytes]]
    ) -> None:
        state = self._state
        state.code, state.details = code, message.encode()
        state.trailing_metadata = tuple(trailers)
        _grpc_server._abort(state, self._call, _cygrpc.StatusCode.unknown, b"")


class _Requests:
    """The requests of a stream, of which the first has arrived.

    Unlike gRPC's own iterator it can be asked to look around: `poll` is called every second while
    the next request has not arrived, and ends the stream by raising.
    """

    poll: Callable[[], None] | None = None

    def __init__(self, state: Any, call: Any, deserialize: Any, first: Any) -> None:
        self._state, self._call, self._deserialize = state, call, deserialize
        self._first = first

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        first, self._first = self._first, None
        if first is not None:
            return first
        state = self._state
        with state.condition:
            self._receive()
            while True:
                arrived = state.condition.wait(1.0)
                if state.client is _grpc_server._CANCELLED:
                    raise StopIteration
                if state.request is not None:
                    request, state.request = state.request, None
                    return request
                if _grpc_server._RECEIVE_MESSAGE_TOKEN not in state.due:
                    raise StopIteration
                if not arrived and self.poll is not None:
                    self.poll()

    def _receive(self) -> None:
        state = self._state
        if not _grpc_server._is_rpc_state_active(state):
            raise StopIteration
        self._call.start_server_batch(
            (_cygrpc.ReceiveMessageOperation(_grpc_server._EMPTY_FLAGS),),
            _grpc_server._receive_message(state, self._call, self._deserialize),
        )
        state.due.add(_grpc_server._RECEIVE_MESSAGE_TOKEN)
