"""Random messages of the contract on every unary method: nothing is UNKNOWN or INTERNAL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from picback.v1 import image_service_pb2
from server.errors import STATUS_CODES
from tests.server.refusals import refusal_of
from tests.service import picture

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.descriptor import Descriptor

    from tests.server.refusals import Refusal
    from tests.service import Service

METHODS = image_service_pb2.DESCRIPTOR.services_by_name["ImageService"].methods
#: What a request can deserve, whatever is in it.
GOOD_REASONS = STATUS_CODES.keys() - {"INTERNAL", "STORAGE_UNAVAILABLE", "STORAGE_FULL"}
#: Fields by which a random request gets past the first check, now and then.
PLAUSIBLE: dict[str, st.SearchStrategy[Any]] = {
    "content": st.integers(0, 5).map(picture) | st.binary(max_size=300),
    "text": st.text(max_size=50) | st.sampled_from(["a dog", "two dogs run", "é 🐶"]),
    "name": st.text(max_size=10) | st.sampled_from(["dog", "cat"]),
    "callback_url": st.text(max_size=20) | st.just("http://127.0.0.1:1/"),
    "request_id": st.text(max_size=3) | st.just(""),
}


def _values(field: FieldDescriptor, known_ids: list[str]) -> st.SearchStrategy[Any]:
    if field.name in PLAUSIBLE:
        return PLAUSIBLE[field.name]
    if field.name.endswith("_id"):
        return st.sampled_from(known_ids) | st.text(max_size=40)
    kinds: dict[int, st.SearchStrategy[Any]] = {
        FieldDescriptor.CPPTYPE_STRING: st.binary(max_size=50)
        if field.type == FieldDescriptor.TYPE_BYTES
        else st.text(max_size=50),
        FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
        FieldDescriptor.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1) | st.integers(-1, 101),
        FieldDescriptor.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1) | st.integers(0, 100),
        FieldDescriptor.CPPTYPE_FLOAT: st.floats(width=32),
        FieldDescriptor.CPPTYPE_ENUM: st.integers(-(2**31), 2**31 - 1) | st.integers(0, 6),
    }
    return kinds[field.cpp_type]


def _messages(descriptor: Descriptor, known_ids: list[str]) -> st.SearchStrategy[Any]:
    """Return messages of *descriptor*: each field left out, or with any value of its type."""
    make = message_factory.GetMessageClass(descriptor)
    fields: dict[str, st.SearchStrategy[Any]] = {}
    for field in descriptor.fields:
        values = (
            _messages(field.message_type, known_ids)
            if field.message_type is not None
            else _values(field, known_ids)
        )
        fields[field.name] = st.lists(values, max_size=4) if field.is_repeated else values
    return st.fixed_dictionaries({}, optional=fields).map(lambda values: make(**values))


def _refusal_of(call: Callable[[], object]) -> Refusal | None:
    try:
        call()
    except grpc.RpcError as error:
        return refusal_of(error)
    return None


@pytest.fixture(scope="module")
def known_ids(calling_service: Service) -> list[str]:
    stub, metadata = calling_service.stub, calling_service.metadata
    images = [
        stub.UploadImage(
            image_service_pb2.UploadImageRequest(content=picture(seed)), metadata=metadata
        ).image.id
        for seed in range(3)
    ]
    queries = [
        stub.SubmitQuery(
            image_service_pb2.SubmitQueryRequest(
                text="a dog", callback_url="http://127.0.0.1:1/callback"
            ),
            metadata=metadata,
        ).query.id
        for _ in range(3)
    ]
    return images + queries


@pytest.mark.parametrize(
    "method", [method.name for method in METHODS if not method.server_streaming]
)
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_any_message_is_answered_or_refused_by_name(
    calling_service: Service, known_ids: list[str], method: str, data: st.DataObject
) -> None:
    descriptor = image_service_pb2.DESCRIPTOR.services_by_name["ImageService"]
    request = data.draw(_messages(descriptor.methods_by_name[method].input_type, known_ids))

    refusal = _refusal_of(
        lambda: getattr(calling_service.stub, method)(
            request, metadata=calling_service.metadata, timeout=30
        )
    )

    assert refusal is None or refusal.reason in GOOD_REASONS


@pytest.mark.parametrize("method", [method.name for method in METHODS])
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_answered_or_refused_by_name(
    calling_service: Service, method: str, data: bytes
) -> None:
    call: Any = calling_service.channel.unary_stream(f"/picback.v1.ImageService/{method}")

    refusal = _refusal_of(lambda: list(call(data, metadata=calling_service.metadata, timeout=30)))

    assert refusal is None or refusal.reason in GOOD_REASONS
