"""What a refused call tells, read in one place, so that every test checks all of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """An error that keeps the contract."""

    code: grpc.StatusCode
    reason: str
    message: str
    metadata: Mapping[str, str]
    #: Fields of BadRequest, in order.
    fields: list[str] = field(default_factory=list)
    #: Of RetryInfo, in seconds.
    retry_after: float | None = None
    trailers: Mapping[str, str | bytes]


def refused(call: Callable[[], object]) -> Refusal:
    """Make *call*, which must fail as the contract says."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return refusal_of(caught.value)


def refusal_of(error: Any) -> Refusal:
    """Read *error*, which must have exactly one ErrorInfo, and details that reach any client."""
    status = rpc_status.from_call(error)
    assert status is not None, f"no details: {error.code()} {error.details()}"
    assert 4096 > status.ByteSize()
    found: dict[str, Any] = {}
    for detail in status.details:
        kind = detail.type_url.rpartition(".")[2]
        assert kind not in found
        found[kind] = getattr(error_details_pb2, kind).FromString(detail.value)
    assert {"ErrorInfo"} <= found.keys() <= {"ErrorInfo", "BadRequest", "RetryInfo"}
    info = found["ErrorInfo"]
    assert "picback.v1" == info.domain
    return Refusal(
        code=error.code(),
        reason=info.reason,
        message=error.details(),
        metadata=dict(info.metadata),
        fields=[each.field for each in found["BadRequest"].field_violations]
        if "BadRequest" in found
        else [],
        retry_after=found["RetryInfo"].retry_delay.ToTimedelta().total_seconds()
        if "RetryInfo" in found
        else None,
        trailers=dict(error.trailing_metadata()),
    )
