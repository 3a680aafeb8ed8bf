from __future__ import annotations

import re
from importlib import resources

import grpc
import pytest
from google.protobuf import descriptor_pb2
from google.rpc import error_details_pb2
from hypothesis import given
from hypothesis import strategies as st

from analysis.pictures import OversizedPictureError
from picback.v1 import error_pb2
from server.errors import STATUS_CODES, RequestError, Violation, as_request_error, status_of
from storage.errors import (
    RequestIdReusedError,
    StateConflictError,
    StorageBusyError,
    StorageError,
    StorageFullError,
)


def _documented() -> dict[str, str]:
    """Reason -> what error.proto says of it."""
    data = resources.files("picback.v1").joinpath("descriptors.binpb").read_bytes()
    (file,) = [
        file
        for file in descriptor_pb2.FileDescriptorSet.FromString(data).file
        if file.name == "picback/v1/error.proto"
    ]
    comments = {
        tuple(location.path): location.leading_comments
        for location in file.source_code_info.location
    }
    return {
        value.name.removeprefix("ERROR_REASON_"): comments[5, 0, 2, index].strip()
        for index, value in enumerate(file.enum_type[0].value)
    }


def test_every_reason_has_the_status_code_that_the_contract_documents() -> None:
    documented = {
        reason: match[1]
        for reason, comment in _documented().items()
        if (match := re.match(r"([A-Z_]+)[: ]", comment)) and hasattr(grpc.StatusCode, match[1])
    }

    assert documented == {reason: code.name for reason, code in STATUS_CODES.items()}


def test_call_reasons_are_the_enum_up_to_the_first_reason_of_a_failure() -> None:
    calls = {
        name.removeprefix("ERROR_REASON_")
        for name, number in error_pb2.ErrorReason.items()
        if 0 < number < error_pb2.ERROR_REASON_TAGGER_REJECTED
    }

    assert calls == STATUS_CODES.keys()


@pytest.mark.parametrize(
    ("error", "reason", "message", "metadata"),
    [
        (
            StateConflictError("FAILED"),
            "STATE_CONFLICT",
            "the query is FAILED",
            {"state": "FAILED"},
        ),
        (OversizedPictureError("too big", limit=7), "IMAGE_TOO_LARGE", "too big", {"limit": "7"}),
        (RequestIdReusedError("used"), "REQUEST_ID_REUSED", "used", {}),
        # What the driver says is for the log.
        (StorageFullError("/secret/path"), "STORAGE_FULL", "disk is full", {}),
        (StorageBusyError("/secret/path"), "STORAGE_UNAVAILABLE", "did not answer in time", {}),
        (StorageError("/secret"), "STORAGE_UNAVAILABLE", "did not answer", {"request_id": "r"}),
        (KeyError("secret"), "INTERNAL", "internal error", {"request_id": "r"}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_others_raise_becomes_a_reason(
    error: Exception, reason: str, message: str, metadata: dict[str, str]
) -> None:
    found = as_request_error(error, request_id="r")

    assert reason == found.reason
    assert message in found.message
    assert "secret" not in found.message
    assert metadata == found.metadata


def test_an_error_of_ours_stays_as_it_is() -> None:
    error = RequestError("OVERLOADED", "busy")

    assert error is as_request_error(error, request_id="r")


@pytest.mark.parametrize("reason", STATUS_CODES)
def test_retry_info_comes_with_exactly_the_reasons_that_pass(reason: str) -> None:
    kinds = [detail.type_url for detail in status_of(RequestError(reason, "x")).details]

    passing = {"OVERLOADED", "LIMIT_EXCEEDED", "STORAGE_UNAVAILABLE", "SHUTTING_DOWN"}
    assert (reason in passing) == any(kind.endswith("RetryInfo") for kind in kinds)


@given(
    message=st.text(max_size=400),
    descriptions=st.lists(st.text(max_size=200), max_size=30),
    padding=st.sampled_from(["", "x" * 300, "é" * 300, "漢" * 300, "🐶" * 300]),
)
def test_details_reach_any_client_whatever_callers_wrote(
    message: str, descriptions: list[str], padding: str
) -> None:
    violations = [Violation(f"set_tags[{99}].confidence", text + padding) for text in descriptions]

    status = status_of(RequestError("FIELD_INVALID", message + padding, violations=violations))

    assert 4096 > status.ByteSize()
    assert 300 >= len(status.message.encode())
    info = error_details_pb2.ErrorInfo.FromString(status.details[0].value)
    assert ("FIELD_INVALID", "picback.v1") == (info.reason, info.domain)
