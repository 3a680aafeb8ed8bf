"""The one table from what can go wrong to what a caller is told.

Handlers raise; only `interceptors` turns an exception into a status. A reason always
comes with the same status code; both stand in protos/picback/v1/error.proto.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from analysis.images import (
    DamagedPictureError,
    OversizedPictureError,
    ProcessUnavailableError,
    UnprocessablePictureError,
    UnsupportedPictureError,
    WorkCancelledError,
)
from dispatcher import CallbackUrlError, ForbiddenCallbackError
from storage.errors import (
    ImageNotFoundError,
    QueryNotFoundError,
    RedeliveryLimitError,
    RequestIdReusedError,
    StateConflictError,
    StorageBusyError,
    StorageError,
    StorageFullError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from google.protobuf.message import Message

#: ErrorInfo.domain of every error.
DOMAIN: Final = "picback.v1"

#: Reason -> status code. Every reason that a call can end with stands here.
STATUS_CODES: Final[Mapping[str, grpc.StatusCode]] = {
    "API_KEY_MISSING": grpc.StatusCode.UNAUTHENTICATED,
    "API_KEY_INVALID": grpc.StatusCode.UNAUTHENTICATED,
    "SCOPE_MISSING": grpc.StatusCode.PERMISSION_DENIED,
    "REQUEST_TIMEOUT": grpc.StatusCode.DEADLINE_EXCEEDED,
    "REQUEST_MALFORMED": grpc.StatusCode.INVALID_ARGUMENT,
    "FIELD_INVALID": grpc.StatusCode.INVALID_ARGUMENT,
    "IMAGE_UNSUPPORTED": grpc.StatusCode.INVALID_ARGUMENT,
    "IMAGE_DAMAGED": grpc.StatusCode.INVALID_ARGUMENT,
    "IMAGE_TOO_LARGE": grpc.StatusCode.INVALID_ARGUMENT,
    "IMAGE_UNPROCESSABLE": grpc.StatusCode.INVALID_ARGUMENT,
    "CALLBACK_URL_INVALID": grpc.StatusCode.INVALID_ARGUMENT,
    "CALLBACK_FORBIDDEN": grpc.StatusCode.INVALID_ARGUMENT,
    "PAGE_TOKEN_INVALID": grpc.StatusCode.INVALID_ARGUMENT,
    "REQUEST_ID_REUSED": grpc.StatusCode.INVALID_ARGUMENT,
    "IMAGE_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "QUERY_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "STATE_CONFLICT": grpc.StatusCode.FAILED_PRECONDITION,
    "OVERLOADED": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "LIMIT_EXCEEDED": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "STORAGE_FULL": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "STORAGE_UNAVAILABLE": grpc.StatusCode.UNAVAILABLE,
    "SHUTTING_DOWN": grpc.StatusCode.UNAVAILABLE,
    "INTERNAL": grpc.StatusCode.INTERNAL,
}

#: What other packages raise -> reason. The first kind that fits counts.
_REASONS: Final[Sequence[tuple[type[Exception], str]]] = (
    (UnsupportedPictureError, "IMAGE_UNSUPPORTED"),
    (DamagedPictureError, "IMAGE_DAMAGED"),
    (OversizedPictureError, "IMAGE_TOO_LARGE"),
    (UnprocessablePictureError, "IMAGE_UNPROCESSABLE"),
    (WorkCancelledError, "SHUTTING_DOWN"),  # or the caller left, and gets no response
    (ProcessUnavailableError, "OVERLOADED"),
    (CallbackUrlError, "CALLBACK_URL_INVALID"),
    (ForbiddenCallbackError, "CALLBACK_FORBIDDEN"),
    (RequestIdReusedError, "REQUEST_ID_REUSED"),
    (ImageNotFoundError, "IMAGE_NOT_FOUND"),
    (QueryNotFoundError, "QUERY_NOT_FOUND"),
    (StateConflictError, "STATE_CONFLICT"),
    (RedeliveryLimitError, "LIMIT_EXCEEDED"),
    (StorageFullError, "STORAGE_FULL"),
    (StorageBusyError, "STORAGE_UNAVAILABLE"),
)
#: Reason -> milliseconds after which the same call may work.
RETRY_AFTER_MS: Final[Mapping[str, int]] = {
    "OVERLOADED": 1_000,
    "LIMIT_EXCEEDED": 1_000,
    "STORAGE_UNAVAILABLE": 1_000,
    "SHUTTING_DOWN": 2_000,
}
#: What is told of a failure whose cause is nobody's business: driver errors, bugs.
_GENERIC: Final[Mapping[str, str]] = {
    "STORAGE_FULL": "the server's disk is full, or nearly; nothing was stored",
    "STORAGE_UNAVAILABLE": "the database did not answer in time; nothing was stored",
    "INTERNAL": "internal error",
}
#: Most violations listed, and most bytes of a description and of a message: details travel
#: as metadata, of which clients accept 8 KiB. Source: grpc.io, "Metadata", default limits.
_MOST_VIOLATIONS: Final = 20
_LONGEST_DESCRIPTION: Final = 100
_LONGEST_MESSAGE: Final = 300


@dataclass(frozen=True, slots=True)
class Violation:
    """One bad field and what is wrong with it."""

    field: str
    description: str


class RequestError(Exception):
    """A call that cannot be answered, for a *reason* of STATUS_CODES."""

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        violations: Sequence[Violation] = (),
        metadata: Mapping[str, str] | None = None,
        retry_after_ms: int | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.violations = tuple(violations)
        self.metadata = dict(metadata or {})
        #: Where it is known better than by RETRY_AFTER_MS.
        self.retry_after_ms = retry_after_ms


def as_request_error(error: Exception, *, request_id: str) -> RequestError:
    """Return what the caller is told of *error*; INTERNAL when it is a bug."""
    if isinstance(error, RequestError):
        return error
    for kind, reason in _REASONS:
        if isinstance(error, kind):
            return RequestError(
                reason,
                _GENERIC.get(reason, str(error)),
                metadata=_metadata_of(error),
                retry_after_ms=getattr(error, "retry_after_ms", None),
            )
    reason = "STORAGE_UNAVAILABLE" if isinstance(error, StorageError) else "INTERNAL"
    return RequestError(reason, _GENERIC[reason], metadata={"request_id": request_id})


def status_of(error: RequestError) -> status_pb2.Status:
    """Return *error* as the status that goes over the wire, with its details."""
    message = _cut(error.message, _LONGEST_MESSAGE)
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    ]
    if error.violations:
        details.append(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(
                        field=violation.field,
                        description=_cut(violation.description, _LONGEST_DESCRIPTION),
                    )
                    for violation in error.violations[:_MOST_VIOLATIONS]
                ]
            )
        )
    if error.reason in RETRY_AFTER_MS:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(error.retry_after_ms or RETRY_AFTER_MS[error.reason])
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return status_pb2.Status(
        code=code_pb2.Code.Value(STATUS_CODES[error.reason].name),
        message=message,
        details=[_pack(detail) for detail in details],
    )


def _cut(text: str, most_bytes: int) -> str:
    """Return as much of *text* as fits: what a caller wrote may be in any script."""
    return text.encode()[:most_bytes].decode(errors="ignore")


def _pack(detail: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed


def _metadata_of(error: Exception) -> dict[str, str]:
    if isinstance(error, StateConflictError):
        return {"state": error.state}
    if isinstance(error, RedeliveryLimitError):
        return {"limit": "attempts_per_minute"}
    if isinstance(error, OversizedPictureError):
        return {"limit": str(error.limit)}
    return {}
