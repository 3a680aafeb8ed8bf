"""What happens to every call before and after its handler: key, scope, errors, log line.

`intercept_service` runs on gRPC's one serving thread: it may only look things up in
memory. All else happens in the wrapped behaviour, on the call's own thread.
"""

from __future__ import annotations

import contextvars
import functools
import logging
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import grpc
from google.protobuf.message import DecodeError

from server import logs
from server.errors import (
    RETRY_AFTER_MS,
    STATUS_CODES,
    RequestError,
    as_request_error,
    status_of,
)
from storage.ids import new_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from concurrent.futures import ThreadPoolExecutor
    from contextlib import AbstractContextManager
    from typing import TypeAlias

    from server.keyring import Keyring
    from storage.api_keys import Grant

    #: What happens around a handler, given its request and context.
    _Surround: TypeAlias = Callable[[Any, grpc.ServicerContext], AbstractContextManager[None]]

logger = logging.getLogger(__name__)

#: Method -> the scope that it needs. A test holds this to the contract's thirteen RPCs.
SCOPES: Final[Mapping[str, str]] = {
    f"/picback.v1.ImageService/{method}": scope
    for scope, methods in {
        "images.write": ("UploadImage", "UpdateImageTags", "DeleteImage"),
        "images.read": ("GetImage", "GetImageContent", "ListImages", "MatchImages"),
        "queries.write": ("SubmitQuery", "CancelQuery", "RedeliverQuery"),
        "queries.read": ("GetQuery", "ListQueries", "WatchQuery"),
    }.items()
    for method in methods
}
#: Probes bring no metadata, so health needs no key.
_HEALTH: Final = "/grpc.health.v1.Health/"
_LONGEST_REQUEST_ID: Final = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who makes the call that this thread answers; key_id is empty for a stranger."""

    key_id: str
    request_id: str


#: Set while a handler runs; how a handler knows its caller.
CALLER: Final[contextvars.ContextVar[Caller]] = contextvars.ContextVar("picback_caller")


class _Malformed:
    """Stands for a request that could not be parsed, so that a handler never sees one."""


class Interceptor(grpc.ServerInterceptor):
    """Lets a call through to its handler, or answers it with an error.

    Args:
        keyring: Who may call.
        pools: Method -> its own threads, for methods that hold theirs for long.
        is_stopping: Whether new calls are to be refused.
        clock: The time in milliseconds, for ids of requests that bring none.
    """

    def __init__(
        self,
        keyring: Keyring,
        *,
        pools: Mapping[str, ThreadPoolExecutor],
        is_stopping: Callable[[], bool],
        clock: Callable[[], int],
    ) -> None:
        self._keyring = keyring
        self._pools = pools
        self._is_stopping = is_stopping
        self._clock = clock

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return the handler for a call: the method's own, wrapped, or one that denies."""
        method = handler_call_details.method
        if method.startswith(_HEALTH):
            handler = continuation(handler_call_details)
            return None if handler is None else self._wrap(method, handler, _probing)
        metadata = handler_call_details.invocation_metadata
        request_id, key_id = self._request_id(metadata), ""
        try:
            grant = self._authenticate(metadata)
            key_id = grant.key_id
            self._check_running()
            _authorise(method, grant.scopes)
        except RequestError as error:
            return self._deny(method, Caller(key_id=key_id, request_id=request_id), error)
        caller = Caller(key_id=key_id, request_id=request_id)
        handler = continuation(handler_call_details)
        if handler is None:
            return None  # gRPC says UNIMPLEMENTED
        return self._wrap(method, handler, functools.partial(_answering, method, caller))

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

    def _authenticate(self, metadata: Any) -> Grant:
        tokens = [value for key, value in metadata if key == "x-api-key"]
        if not tokens:
            raise RequestError("API_KEY_MISSING", "the call needs the metadata entry x-api-key")
        # A second entry would leave it open which one counts.
        grant = self._keyring.look_up(tokens[0]) if len(tokens) == 1 else None
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
            code = STATUS_CODES[error.reason]
            _log(method, caller, code=code, reason=error.reason, started=time.monotonic())
            _abort(context, error, ("x-request-id", caller.request_id))

        # As a stream: such a handler never reads its request. A unary one would first take
        # in the whole of a stranger's upload (10 x 60 MB cost 572 MB; so it costs 2 MB).
        return grpc.stream_unary_rpc_method_handler(deny)

    def _wrap(
        self, method: str, handler: grpc.RpcMethodHandler[Any, Any], surround: _Surround
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Return *handler* with *surround* around its behaviour, on the method's own threads."""
        deserializer = _forgiving(handler.request_deserializer)
        if handler.unary_stream is not None:
            stream = handler.unary_stream

            def answer_stream(request: Any, context: grpc.ServicerContext) -> Any:
                with surround(request, context):
                    yield from stream(request, context)

            behaviour: Any = answer_stream
            make: Any = grpc.unary_stream_rpc_method_handler
        elif handler.stream_stream is not None:
            converse = handler.stream_stream

            def answer_each(requests: Any, context: grpc.ServicerContext) -> Any:
                with surround(None, context):
                    yield from converse(map(_check_parsed, requests), context)

            behaviour = answer_each
            make = grpc.stream_stream_rpc_method_handler
        else:
            unary: Any = handler.unary_unary

            def answer(request: Any, context: grpc.ServicerContext) -> Any:
                with surround(request, context):
                    return unary(request, context)

            behaviour = answer
            make = grpc.unary_unary_rpc_method_handler
        if method in self._pools:
            behaviour.experimental_thread_pool = self._pools[method]
        wrapped: grpc.RpcMethodHandler[Any, Any] = make(
            behaviour, deserializer, handler.response_serializer
        )
        return wrapped


def _authorise(method: str, scopes: frozenset[str]) -> None:
    scope = SCOPES.get(method)
    if scope is not None and scope not in scopes:
        raise RequestError(
            "SCOPE_MISSING", f"the API key lacks the scope {scope}", metadata={"scope": scope}
        )


def _forgiving(deserializer: Any) -> Callable[[bytes], Any]:
    """Return *deserializer* with a stand-in for what it refuses.

    gRPC would say INTERNAL, and may never again see a stream as ended, nor the server as
    stopped: when the handler returns, it sends a second status.
    """

    def deserialize(data: bytes) -> Any:
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
        _abort(context, refusal)
    yield


@contextmanager
def _answering(
    method: str, caller: Caller, request: Any, context: grpc.ServicerContext
) -> Iterator[None]:
    started = time.monotonic()
    token = CALLER.set(caller)
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
        CALLER.reset(token)
        code = STATUS_CODES[refusal.reason] if refusal else grpc.StatusCode.OK
        if refusal is None and not context.is_active():
            code = grpc.StatusCode.CANCELLED
        reason = refusal.reason if refusal else ""
        _log(method, caller, code=code, reason=reason, started=started)
    if refusal is not None:
        _abort(context, refusal, echo)


def _abort(
    context: grpc.ServicerContext, error: RequestError, *trailers: tuple[str, str | bytes]
) -> None:
    status = status_of(error)
    details = ("grpc-status-details-bin", status.SerializeToString())
    # gRPC's own retries obey this; RetryInfo is for callers who retry by themselves. They go by
    # the status alone, and would send 20 MB to a full disk five times: -1 says not to.
    pushback = ("grpc-retry-pushback-ms", str(RETRY_AFTER_MS.get(error.reason, -1)))
    context.set_trailing_metadata((*trailers, details, pushback))
    context.abort(STATUS_CODES[error.reason], status.message)


def _log(
    method: str, caller: Caller, *, code: grpc.StatusCode, reason: str, started: float
) -> None:
    logs.info(
        logger,
        "rpc.finished",
        {
            "method": method.rpartition("/")[2],
            "code": code.name,
            "reason": reason,
            "key": caller.key_id,
            "request_id": caller.request_id,
            "ms": round((time.monotonic() - started) * 1000, 1),
        },
    )
