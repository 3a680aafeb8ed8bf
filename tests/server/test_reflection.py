from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection_pb2

from picback.v1 import image_service_pb2 as pb
from server.reflection import SERVICE_NAMES
from tests.server.refusals import refused
from tests.server.serving import first_key, serving
from tests.server.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tests.service import Service

SERVICE = "picback.v1.ImageService"


def _ask(service: Service, name: str, *requests: Any, metadata: Any = None) -> list[Any]:
    call: Any = service.channel.stream_stream(
        f"/{name}/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    metadata = service.metadata if metadata is None else metadata
    return list(call(iter(requests), metadata=metadata, timeout=20))


def _files_of(answer: Any) -> dict[str, descriptor_pb2.FileDescriptorProto]:
    files = [
        descriptor_pb2.FileDescriptorProto.FromString(data)
        for data in answer.file_descriptor_response.file_descriptor_proto
    ]
    return {file.name: file for file in files}


def _comments_of(file: descriptor_pb2.FileDescriptorProto, *path: int) -> str:
    (comment,) = [
        location.leading_comments
        for location in file.source_code_info.location
        if tuple(location.path) == path
    ]
    return comment


def _symbols() -> Iterable[str]:
    file = pb.DESCRIPTOR
    yield SERVICE
    yield from (method.full_name for method in file.services_by_name["ImageService"].methods)
    yield from (message.full_name for message in file.message_types_by_name.values())
    yield "picback.v1.UploadImageRequest.content"


@pytest.mark.parametrize("name", SERVICE_NAMES)
def test_all_services_are_listed(service: Service, name: str) -> None:
    (answer,) = _ask(service, name, reflection_pb2.ServerReflectionRequest(list_services="*"))

    assert {SERVICE, "grpc.health.v1.Health", *SERVICE_NAMES} == {
        each.name for each in answer.list_services_response.service
    }


@pytest.mark.parametrize("name", SERVICE_NAMES)
def test_every_listed_service_is_described(service: Service, name: str) -> None:
    (listing,) = _ask(service, name, reflection_pb2.ServerReflectionRequest(list_services="*"))
    listed = [each.name for each in listing.list_services_response.service]

    answers = _ask(
        service,
        name,
        *(reflection_pb2.ServerReflectionRequest(file_containing_symbol=each) for each in listed),
    )

    assert listed == [
        f"{file.package}.{described.name}"
        for answer in answers
        for file in list(_files_of(answer).values())[:1]
        for described in file.service
    ]


@pytest.mark.parametrize("name", SERVICE_NAMES)
@pytest.mark.parametrize("symbol", list(_symbols()))
def test_symbols_are_described_with_all_that_they_need(
    service: Service, name: str, symbol: str
) -> None:
    (answer,) = _ask(
        service, name, reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol)
    )

    files = _files_of(answer)
    assert "picback/v1/image_service.proto" in files
    for file in files.values():
        assert files.keys() >= set(file.dependency)
    pool = descriptor_pool.DescriptorPool()
    for file in _in_order(files):
        pool.Add(file)
    assert 15 == len(pool.FindServiceByName(SERVICE).methods)


def _in_order(
    files: dict[str, descriptor_pb2.FileDescriptorProto],
) -> Iterable[descriptor_pb2.FileDescriptorProto]:
    """Yield each file after those that it imports."""
    done: set[str] = set()
    while len(done) < len(files):
        for name, file in files.items():
            if name not in done and done.issuperset(file.dependency):
                done.add(name)
                yield file


def test_descriptions_have_the_contracts_comments(service: Service) -> None:
    request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE)

    (answer,) = _ask(service, SERVICE_NAMES[0], request)

    files = _files_of(answer)
    file = files["picback/v1/image_service.proto"]
    assert "Stores an image, tags it" in _comments_of(file, 6, 0, 2, 0)
    assert "The file as it is" in _comments_of(file, 4, 0, 2, 0)
    reason = _comments_of(files["picback/v1/error.proto"], 5, 0, 2, 1)
    assert reason.startswith(" UNAUTHENTICATED")


def test_files_are_found_by_name(service: Service) -> None:
    requests = [
        reflection_pb2.ServerReflectionRequest(file_by_filename=name)
        for name in ("picback/v1/query.proto", "grpc_health/v1/health.proto")
    ]

    query, health = _ask(service, SERVICE_NAMES[0], *requests)

    assert "picback/v1/error.proto" in _files_of(query)
    assert ["grpc_health/v1/health.proto"] == list(_files_of(health))


def test_the_health_service_is_described_too(service: Service) -> None:
    request = reflection_pb2.ServerReflectionRequest(
        file_containing_symbol="grpc.health.v1.Health.Check"
    )

    (answer,) = _ask(service, SERVICE_NAMES[0], request)

    assert ["grpc_health/v1/health.proto"] == list(_files_of(answer))


@pytest.mark.parametrize(
    "request_",
    [
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="picback.v1.Nothing"),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="nothing.at.all"),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="." * 1000),
        reflection_pb2.ServerReflectionRequest(file_by_filename="../../etc/passwd"),
        reflection_pb2.ServerReflectionRequest(file_by_filename=""),
        reflection_pb2.ServerReflectionRequest(all_extension_numbers_of_type="nothing"),
        reflection_pb2.ServerReflectionRequest(),
    ],
)
def test_what_is_not_there_is_told_and_the_stream_goes_on(service: Service, request_: Any) -> None:
    listing = reflection_pb2.ServerReflectionRequest(list_services="*")

    first, second = _ask(service, SERVICE_NAMES[0], request_, listing)

    assert first.error_response.error_code
    assert second.list_services_response.service


@pytest.mark.parametrize("name", SERVICE_NAMES)
def test_reflection_needs_a_key_but_no_scope(service: Service, name: str) -> None:
    listing = reflection_pb2.ServerReflectionRequest(list_services="*")
    key = service.make_key(f"for {name}", scopes=["queries.read"])

    refusal = refused(lambda: _ask(service, name, listing, metadata=()))
    (answer,) = _ask(service, name, listing, metadata=(("x-api-key", key),))

    assert "API_KEY_MISSING" == refusal.reason
    assert answer.list_services_response.service


def test_garbage_is_malformed_and_the_server_can_still_stop(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A stream whose request grpcio cannot parse, it may never take for ended."""
    with serving(tmp_path / "data") as app, grpc.insecure_channel(app.address) as channel:
        metadata = first_key(app)
        call: Any = channel.stream_stream(f"/{SERVICE_NAMES[0]}/ServerReflectionInfo")
        listing = reflection_pb2.ServerReflectionRequest(list_services="*").SerializeToString()
        reasons = [
            refused(lambda: list(call(iter(requests), metadata=metadata))).reason  # noqa: B023 - called at once
            for requests in ([b"\xff"], [listing, b"\xff\xff"]) * 10
        ]

    assert ["REQUEST_MALFORMED"] * 20 == reasons
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_open_reflection_streams_hold_up_no_calls(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    leave = threading.Event()
    names = [f"/{name}/ServerReflectionInfo" for name in SERVICE_NAMES]
    listing = reflection_pb2.ServerReflectionRequest(list_services="*").SerializeToString()

    def requests() -> Iterable[bytes]:
        yield listing
        leave.wait()

    streams = []
    for number in range(20):
        call: Any = service.channel.stream_stream(names[number % 2])
        streams.append(call(iter(requests()), metadata=service.metadata))
        if number < 4:  # as many as one key may have open
            next(streams[-1])

    answer = service.stub.ListImages(pb.ListImagesRequest(), metadata=service.metadata, timeout=20)
    for stream in streams:
        stream.cancel()
    leave.set()

    assert answer is not None
    assert {grpc.StatusCode.CANCELLED} == {stream.code() for stream in streams[:4]}

    def ended() -> list[str]:
        """Return the codes of streams that were open, as logged."""
        lines = [vars(record) for record in caplog.records]
        streams = [line for line in lines if line.get("method") == "ServerReflectionInfo"]
        return [line["code"] for line in streams if line["code"] != "RESOURCE_EXHAUSTED"]

    # A caller who leaves looks for a moment like one who has sent the last request: OK.
    wait_until(lambda: 4 <= len(ended()))
    assert {"CANCELLED", "OK"} >= set(ended())
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
