"""How a call ends with an error: status, details, trailers, and a log line that is bounded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.errors import RETRY_AFTER_MS, STATUS_CODES, status_of

if TYPE_CHECKING:
    import grpc

    from server.call_log import CallLog
    from server.caller import Caller
    from server.errors import RequestError
    from server.grpc_internals import UnreadCall


def refuse_unread(call_log: CallLog, call: UnreadCall, error: RequestError) -> None:
    """End a call whose request has not been received. From any thread."""
    method, caller = call.behaviour.method, call.caller
    message, trailers = _outcome(error, ("x-request-id", caller.request_id))
    if call.refuse(STATUS_CODES[error.reason], message, trailers):
        log_refusal(call_log, method, caller, error)


def abort(
    context: grpc.ServicerContext, error: RequestError, *trailers: tuple[str, str | bytes]
) -> None:
    """End a call from within its handler, by raising."""
    message, trailers_ = _outcome(error, *trailers)
    context.set_trailing_metadata(trailers_)
    context.abort(STATUS_CODES[error.reason], message)


def _outcome(
    error: RequestError, *trailers: tuple[str, str | bytes]
) -> tuple[str, tuple[tuple[str, str | bytes], ...]]:
    """Return the message and the trailers that tell a caller of *error*."""
    status = status_of(error)
    details = ("grpc-status-details-bin", status.SerializeToString())
    # gRPC's own retries obey this; RetryInfo is for callers who retry by themselves. They go by
    # the status alone, and would send 20 MB to a full disk five times: -1 says not to.
    retry_after_ms = error.retry_after_ms or RETRY_AFTER_MS.get(error.reason, -1)
    pushback = ("grpc-retry-pushback-ms", str(retry_after_ms))
    return status.message, (*trailers, details, pushback)


def log_refusal(call_log: CallLog, method: str, caller: Caller, error: RequestError) -> None:
    """Leave the line of a call that no handler has seen."""
    call_log.refused(
        method,
        code=STATUS_CODES[error.reason],
        reason=error.reason,
        key_id=caller.key_id,
        request_id=caller.request_id,
    )
