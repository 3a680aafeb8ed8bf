"""What happens to every call before and after its handler: key, scope, errors, log line.

`intercept_service` runs on gRPC's one serving thread: it may only look things up in
memory. All else happens in the wrapped behaviour, on the call's own thread.
"""

from __future__ import annotations

import functools
import logging
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import grpc
from google.protobuf.message import DecodeError

from server.caller import CALLER, Caller
from server.errors import STATUS_CODES, RequestError, as_request_error
from server.refusals import abort, log_refusal
from storage.ids import new_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from concurrent.futures import ThreadPoolExecutor
    from contextlib import AbstractContextManager
    from typing import TypeAlias

    from server.call_log import CallLog
    from server.key_limits import KeyLimits
    from server.keyring import Keyring
    from server.response_budget import ResponseBudget
    from server.stream_limit import StreamLimit
    from server.timer import Timer
    from storage.api_keys import Grant

    #: What happens around a handler, given its request and context.
    _Surround: TypeAlias = Callable[[Any, grpc.ServicerContext], AbstractContextManager[None]]

logger = logging.getLogger(__name__)

#: Method -> the scope that it needs. A test holds this to the contract's RPCs.
#: The scope `queries.all` opens no method: it widens what the methods of queries act on.
SCOPES: Final[Mapping[str, str]] = {
    f"/picback.v1.ImageService/{method}": scope
    for scope, methods in {
        "images.write": ("UploadImage", "UpdateImageTags", "DeleteImage"),
        "images.read": ("GetImage", "GetImageContent", "ListImages", "MatchImages"),
        "queries.write": (
            *("SubmitQuery", "CancelQuery", "RedeliverQuery"),
            *("CancelQueries", "RedeliverQueries"),
        ),
        "queries.read": ("GetQuery", "ListQueries", "WatchQuery"),
    }.items()
    for method in methods
}
#: Probes bring no metadata, so health needs no key.
_HEALTH: Final = "/grpc.health.v1.Health/"
_LONGEST_REQUEST_ID: Final = 128
#: Largest request of a method other than UploadImage, in bytes. None that passes validation has a
#: quarter of it.
_MAX_REQUEST_BYTES: Final = 1 << 20
_UPLOAD: Final = "/picback.v1.ImageService/UploadImage"
#: How long a message of a stream may wait for its client to read it, in seconds.
_STREAM_READ_SECONDS: Final = 60.0


#: Who makes a call that needs no key.
_NOBODY: Final = Caller(key_id="", request_id="")


class _Malformed:
    """Stands for a request that could not be parsed, so that a handler never sees one."""


class Interceptor(grpc.ServerInterceptor):
    """Lets a call through to its handler, or answers it with an error.

    Args:
        keyring: Who may call.
        limits: How much a key may call.
        pools: Method -> its own threads, for methods that hold theirs for long.
        refusal_pools: Threads for calls that are refused unread: with a valid key, and without.
        responses: What responses may take.
        reflection_streams: How many of them may be open.
        timer: Ends streams whose messages are not read.
        call_log: Where calls leave a line.
        is_stopping: Whether new calls are to be refused.
        clock: The time in milliseconds, for ids of requests that bring none.
    """

    def __init__(
        self,
        keyring: Keyring,
        *,
        limits: KeyLimits,
        pools: Mapping[str, ThreadPoolExecutor],
        refusal_pools: tuple[ThreadPoolExecutor, ThreadPoolExecutor],
        responses: ResponseBudget,
        reflection_streams: StreamLimit,
        timer: Timer,
        call_log: CallLog,
        is_stopping: Callable[[], bool],
        clock: Callable[[], int],
    ) -> None:
        self._keyring = keyring
        self._limits = limits
        self._pools = pools
        self._refusal_pools = refusal_pools
        self._responses = responses
        self._reflection_streams = reflection_streams
        self._timer = timer
        self._call_log = call_log
        self._is_stopping = is_stopping
        self._clock = clock
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return the handler for a call: the method's own, wrapped, or one that denies."""
        method = handler_call_details.method
        if method.startswith(_HEALTH):
            handler = continuation(handler_call_details)
            CALLER.set(_NOBODY)
            return None if handler is None else self._wrapped(method, handler, _probing)
        metadata = handler_call_details.invocation_metadata
        request_id, key_id = self._request_id(metadata), ""
        try:
            token = _token(metadata)
            grant = self._authenticate(token)
            key_id = grant.key_id
            self._check_running()
            self._limits.count_call(key_id)
            _authorise(method, grant.scopes)
        except RequestError as error:
            return self._deny(method, Caller(key_id=key_id, request_id=request_id), error)
        handler = continuation(handler_call_details)
        if handler is None:
            return None  # gRPC says UNIMPLEMENTED
        # In the call's own context, in which gRPC runs everything about it.
        CALLER.set(
            Caller(
                key_id=key_id,
                request_id=request_id,
                scopes=grant.scopes,
                has_valid_key=functools.partial(self._keyring.is_valid, token),
            )
        )
        surround = functools.partial(_answering, self._call_log, method)
        return self._wrapped(method, handler, surround)

    def _request_id(self, metadata: Any) -> str:
        for key, value in metadata:
            if (
                key == "x-request-id"
                and isinstance(value, str)
                and 0 < len(value) <= _LONGEST_REQUEST_ID
                and all("!" <= character <= "~" for character in value)
            ):
                return value
        return new_id("req", now=self._clock())

    def _authenticate(self, token: str) -> Grant:
        grant = self._keyring.look_up(token)
        if grant is None:
            raise RequestError("API_KEY_INVALID", "the API key is not valid")
        return grant

    def _check_running(self) -> None:
        if self._is_stopping():
            raise RequestError("SHUTTING_DOWN", "the server is stopping")

    def _deny(
        self, method: str, caller: Caller, error: RequestError
    ) -> grpc.RpcMethodHandler[Any, Any]:
        def deny(_requests: Any, context: grpc.ServicerContext) -> Any:
            log_refusal(self._call_log, method, caller, error)
            abort(context, error, ("x-request-id", caller.request_id))

        with_key, without_key = self._refusal_pools
        deny.experimental_thread_pool = with_key if caller.key_id else without_key  # type: ignore[attr-defined] # gRPC's way

        # As a stream: such a handler never reads its request. A unary one would first take
        # in the whole of a stranger's upload (10 x 60 MB cost 572 MB; so it costs 2 MB).
        return grpc.stream_unary_rpc_method_handler(deny)

    def _wrapped(
        self, method: str, handler: grpc.RpcMethodHandler[Any, Any], surround: _Surround
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Return the handler of a method that exists as `_wrap` made it for the first call."""
        wrapped = self._handlers.get(method)
        if wrapped is None:
            wrapped = self._handlers[method] = self._wrap(method, handler, surround)
        return wrapped

    def _wrap(
        self,
        method: str,
        handler: grpc.RpcMethodHandler[Any, Any],
        surround: _Surround,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Return *handler* with *surround* around its behaviour, on the method's own threads.

        Responses are serialized within it, so that they can be counted and still be refused.
        """
        max_bytes = None if method == _UPLOAD else _MAX_REQUEST_BYTES
        deserializer = _forgiving(handler.request_deserializer, max_bytes)
        serialize: Any = handler.response_serializer
        responses = self._responses
        if handler.unary_stream is not None:
            stream = handler.unary_stream

            def answer_stream(request: Any, context: grpc.ServicerContext) -> Any:
                with surround(request, context):
                    yield from self._send_each(serialize, stream(request, context), context)

            behaviour: Any = answer_stream
            make: Any = grpc.unary_stream_rpc_method_handler
        elif handler.stream_stream is not None:
            converse = handler.stream_stream

            def answer_each(requests: Any, context: grpc.ServicerContext) -> Any:
                caller = CALLER.get()
                with surround(None, context), self._reflection_streams.open(caller.key_id):
                    requests.poll = caller.check_key  # gRPC's own requests do not look at it
                    parsed = map(_check_parsed, requests)
                    yield from self._send_each(serialize, converse(parsed, context), context)

            behaviour = answer_each
            make = grpc.stream_stream_rpc_method_handler
        else:
            unary: Any = handler.unary_unary

            def answer(request: Any, context: grpc.ServicerContext) -> Any:
                with surround(request, context):
                    try:
                        response = serialize(unary(request, context))
                    except BaseException:
                        responses.abandon(context)
                        raise
                    responses.send(context, CALLER.get().key_id, len(response))
                    return response

            behaviour = answer
            make = grpc.unary_unary_rpc_method_handler
        if method in self._pools:
            behaviour.experimental_thread_pool = self._pools[method]
        behaviour.method = method  # for `refuse_unread`
        wrapped: grpc.RpcMethodHandler[Any, Any] = make(behaviour, deserializer)
        return wrapped

    def _send_each(
        self, serialize: Any, messages: Iterator[Any], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        """Yield *messages* as bytes; cancel the call if one is not read."""
        for message in messages:
            timeout = self._timer.add(_STREAM_READ_SECONDS, context.cancel)
            yield serialize(message)
            timeout.cancel()


def _token(metadata: Any) -> str:
    tokens = [value for key, value in metadata if key == "x-api-key"]
    if not tokens:
        raise RequestError("API_KEY_MISSING", "the call needs the metadata entry x-api-key")
    # A second entry would leave it open which one counts.
    return str(tokens[0]) if len(tokens) == 1 else ""


def _authorise(method: str, scopes: frozenset[str]) -> None:
    scope = SCOPES.get(method)
    if scope is not None and scope not in scopes:
        raise RequestError(
            "SCOPE_MISSING", f"the API key lacks the scope {scope}", metadata={"scope": scope}
        )


def _forgiving(deserializer: Any, max_bytes: int | None) -> Callable[[bytes], Any]:
    """Return *deserializer* with a stand-in for what it refuses, and for more than *max_bytes*.

    gRPC would say INTERNAL, and may never again see a stream as ended, nor the server as
    stopped: when the handler returns, it sends a second status.
    """

    def deserialize(data: bytes) -> Any:
        if max_bytes is not None and len(data) > max_bytes:
            return _Malformed()
        try:
            return deserializer(data)
        except (DecodeError, UnicodeDecodeError):
            return _Malformed()

    return deserialize


def _check_parsed(request: Any) -> Any:
    if isinstance(request, _Malformed):
        raise RequestError("REQUEST_MALFORMED", "the bytes are no request of this method")
    return request


@contextmanager
def _probing(request: Any, context: grpc.ServicerContext) -> Iterator[None]:
    """Surround a health call: probes come every few seconds, so they leave no log line."""
    try:
        _check_parsed(request)
    except RequestError as refusal:
        abort(context, refusal)
    yield


@contextmanager
def _answering(
    call_log: CallLog, method: str, request: Any, context: grpc.ServicerContext
) -> Iterator[None]:
    started = time.monotonic()
    caller = CALLER.get()
    # Not as initial metadata: gRPC's own retries take a call that has sent any for answered.
    echo = ("x-request-id", caller.request_id)
    context.set_trailing_metadata((echo,))
    refusal: RequestError | None = None
    try:
        _check_parsed(request)
        yield
    except grpc.RpcError:
        raise  # the caller left in the middle of a stream, and gRPC knows
    except Exception as error:
        refusal = as_request_error(error, request_id=caller.request_id)
        if refusal.reason in ("INTERNAL", "STORAGE_UNAVAILABLE"):
            logger.exception(
                "rpc.failed", extra={"method": method, "request_id": caller.request_id}
            )
    finally:
        code = STATUS_CODES[refusal.reason] if refusal else grpc.StatusCode.OK
        if refusal is None and not context.is_active():
            code = grpc.StatusCode.CANCELLED
        reason = refusal.reason if refusal else ""
        call_log.finished(
            method,
            code=code,
            reason=reason,
            key_id=caller.key_id,
            request_id=caller.request_id,
            started=started,
        )
    if refusal is not None:
        abort(context, refusal, echo)
