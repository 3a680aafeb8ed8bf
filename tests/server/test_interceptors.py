from __future__ import annotations

import logging
import re
import threading
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from picback.v1 import image_service_pb2 as pb
from picback.v1 import image_service_pb2_grpc
from server import logs, reflection
from server.interceptors import SCOPES
from storage.api_keys import QUERIES_ALL
from storage.api_keys import SCOPES as ALL_SCOPES
from storage.errors import StorageBusyError, StorageError, StorageFullError
from tests.server.refusals import refused
from tests.server.waiting import wait_until
from tests.service import picture

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.service import Service

SERVICE = "picback.v1.ImageService"
#: Contract §1, the table.
CONTRACT = {
    "images.write": {"UploadImage", "UpdateImageTags", "DeleteImage"},
    "images.read": {"GetImage", "ListImages", "GetImageContent", "MatchImages"},
    "queries.write": {
        *("SubmitQuery", "CancelQuery", "RedeliverQuery"),
        *("CancelQueries", "RedeliverQueries"),
    },
    "queries.read": {"GetQuery", "ListQueries", "WatchQuery"},
}


@pytest.fixture
def read_log(
    service: Service, caplog: pytest.LogCaptureFixture
) -> Callable[[], list[dict[str, Any]]]:
    """Return a function that returns the facts of all calls' log lines until now."""
    caplog.set_level(logging.INFO)
    service.app._call_log._refusals.clear()  # other tests' refusals in the same second
    return lambda: [
        vars(record) for record in caplog.records if record.getMessage() == "rpc.finished"
    ]


def _methods(service: Service) -> Sequence[str]:
    """Return every method that the server answers, by its own registration."""
    return list(service.app._server._state.registered_method_handlers)  # type: ignore[attr-defined] # gRPC tells it nowhere else


def _call(service: Service, path: str, data: bytes = b"", **options: Any) -> Any:
    call: Any = service.channel.unary_stream(path)
    return call(data, timeout=20, **options)


def test_scopes_are_those_of_the_contract() -> None:
    expected = {f"/{SERVICE}/{name}": scope for scope, names in CONTRACT.items() for name in names}

    assert expected == SCOPES
    assert {*CONTRACT, QUERIES_ALL} == set(ALL_SCOPES)


def test_the_server_answers_the_rpcs_health_and_reflection_only(service: Service) -> None:
    health = {f"/grpc.health.v1.Health/{name}" for name in ("Check", "List", "Watch")}
    described = {f"/{name}/ServerReflectionInfo" for name in reflection.SERVICE_NAMES}

    assert {*SCOPES, *health, *described} == set(_methods(service))
    assert 15 == len(SCOPES)


def test_every_method_but_health_needs_a_key(service: Service) -> None:
    methods = [method for method in _methods(service) if not method.startswith("/grpc.health.")]
    assert 17 == len(methods)

    for method in methods:
        assert "API_KEY_MISSING" == refused(lambda: list(_call(service, method))).reason  # noqa: B023 - called at once


def test_health_needs_no_key(service: Service) -> None:
    stub = health_pb2_grpc.HealthStub(service.channel)

    assert stub.Check(health_pb2.HealthCheckRequest(), timeout=20).status
    assert stub.List(health_pb2.HealthListRequest(), timeout=20).statuses


def _unsent(service: Service, path: str, leave: threading.Event, **options: Any) -> Any:
    """Begin a call whose request does not come until *leave* is set, and not then either."""

    def requests() -> Iterator[Any]:
        leave.wait()
        yield from ()

    call: Any = service.channel.stream_unary(path)
    return call.future(requests(), **options)


def _echo_of(call: Any) -> str:
    """Return the x-request-id that *call* came back with."""
    (echo,) = [value for key, value in call.trailing_metadata() if key == "x-request-id"]
    return str(echo)


def _with_request_id(service: Service, *request_ids: str) -> Any:
    _, call = service.stub.ListImages.with_call(
        pb.ListImagesRequest(),
        metadata=(*service.metadata, *(("x-request-id", each) for each in request_ids)),
    )
    return call


def test_a_request_id_of_the_caller_comes_back_and_is_logged(
    service: Service, read_log: Callable[[], list[dict[str, Any]]]
) -> None:
    echo = _echo_of(_with_request_id(service, "trace-1/span~2"))

    assert "trace-1/span~2" == echo
    wait_until(lambda: "trace-1/span~2" in [line["request_id"] for line in read_log()])


def test_a_call_without_a_request_id_is_given_one(service: Service) -> None:
    first, second = (_echo_of(_with_request_id(service)) for _ in range(2))

    assert re.fullmatch(r"req_[0-9a-z]{26}", first)
    assert first != second


@pytest.mark.parametrize(
    "hostile", ["", " ", "a b", "x" * 129, 'a"b c"', "line-1 level=ERROR", "x" * 4000]
)
def test_a_hostile_request_id_is_replaced(service: Service, hostile: str) -> None:
    echo = _echo_of(_with_request_id(service, hostile))

    assert re.fullmatch(r"req_[0-9a-z]{26}", echo)


def test_of_several_request_ids_the_first_good_one_counts(service: Service) -> None:
    assert "good" == _echo_of(_with_request_id(service, "not good", "good", "late"))


def test_an_error_comes_back_with_the_request_id_too(service: Service) -> None:
    metadata = (("x-request-id", "mine"),)

    stranger = refused(lambda: service.stub.ListImages(pb.ListImagesRequest(), metadata=metadata))
    refusal = refused(
        lambda: service.stub.GetImage(
            pb.GetImageRequest(image_id="x"), metadata=(*service.metadata, *metadata)
        )
    )

    assert ["mine", "mine"] == [each.trailers["x-request-id"] for each in (stranger, refusal)]


def test_every_call_leaves_one_log_line(
    service: Service, read_log: Callable[[], list[dict[str, Any]]]
) -> None:
    key = service.make_key("writes only", scopes=["images.write"])
    calls: list[tuple[str, Any, tuple[tuple[str, str], ...]]] = [
        ("ListImages", pb.ListImagesRequest(), service.metadata),
        ("GetImage", pb.GetImageRequest(image_id="x"), service.metadata),
        ("GetImage", pb.GetImageRequest(), service.metadata),
        ("ListImages", pb.ListImagesRequest(), ()),
        ("ListImages", pb.ListImagesRequest(), (("x-api-key", "pbk_wrong"),)),
        ("ListImages", pb.ListImagesRequest(), (("x-api-key", key),)),
    ]
    for method, request, metadata in calls:
        getattr(service.stub, method).future(request, metadata=metadata).code()

    wait_until(lambda: len(calls) == len(read_log()))
    keys = {key.name: key.id for key in service.app.api_keys.all()}
    assert [
        ("ListImages", "OK", "", keys["default"]),
        ("GetImage", "NOT_FOUND", "IMAGE_NOT_FOUND", keys["default"]),
        ("GetImage", "INVALID_ARGUMENT", "FIELD_INVALID", keys["default"]),
        ("ListImages", "UNAUTHENTICATED", "API_KEY_MISSING", ""),
        ("ListImages", "UNAUTHENTICATED", "API_KEY_INVALID", ""),
        ("ListImages", "PERMISSION_DENIED", "SCOPE_MISSING", keys["writes only"]),
    ] == [(line["method"], line["code"], line["reason"], line["key"]) for line in read_log()]


def test_no_log_line_holds_a_secret_or_what_a_query_says(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    key = service.api_key
    metadatas = (
        service.metadata,
        (*service.metadata, ("x-request-id", key)),  # a slip: the key in the wrong place
        (("x-api-key", key), ("x-api-key", key)),
        (("authorization", f"Bearer {key}"),),
    )
    for metadata in metadatas:
        service.stub.MatchImages.future(
            pb.MatchImagesRequest(text="private words"), metadata=metadata
        ).code()

    wait_until(
        lambda: (
            len(metadatas)
            == sum(record.getMessage() == "rpc.finished" for record in caplog.records)
        )
    )
    for json_lines in (False, True):
        formatter = logs._Formatter(json_lines=json_lines)
        text = "\n".join(formatter.format(record) for record in caplog.records)
        assert "MatchImages" in text
        assert key not in text
        assert "private" not in text


def test_strangers_are_denied_before_anything_of_their_request_is_read(service: Service) -> None:
    """Each has sent its headers and nothing else, and never will."""
    leave = threading.Event()
    open_calls = [
        _unsent(service, f"/{SERVICE}/{method}", leave)
        for method in ("UploadImage", "ListImages", "WatchQuery")
        for _ in range(20)
    ]
    codes = [call.code() for call in open_calls]
    leave.set()

    assert {grpc.StatusCode.UNAUTHENTICATED} == set(codes)


def test_probes_that_never_send_their_request_hold_up_no_calls(service: Service) -> None:
    leave = threading.Event()
    probes = [_unsent(service, "/grpc.health.v1.Health/Check", leave) for _ in range(100)]

    answer = service.stub.ListImages(pb.ListImagesRequest(), metadata=service.metadata, timeout=20)
    for probe in probes:
        probe.cancel()
    leave.set()

    assert answer is not None


def test_calls_that_are_cancelled_are_no_errors_of_the_server(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(200):
        service.stub.ListImages.future(pb.ListImagesRequest(), metadata=service.metadata).cancel()
        service.stub.ListImages.future(pb.ListImagesRequest()).cancel()
    service.stub.ListImages(pb.ListImagesRequest(), metadata=service.metadata)

    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("secret detail"), (grpc.StatusCode.INTERNAL, "INTERNAL")),
        (StorageBusyError("secret detail"), (grpc.StatusCode.UNAVAILABLE, "STORAGE_UNAVAILABLE")),
        (StorageError("secret detail"), (grpc.StatusCode.UNAVAILABLE, "STORAGE_UNAVAILABLE")),
    ],
)
def test_what_goes_wrong_inside_is_logged_but_not_told(
    service: Service,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    expected: tuple[grpc.StatusCode, str],
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(service.app._images, "page", fail)

    refusal = refused(
        lambda: service.stub.ListImages(pb.ListImagesRequest(), metadata=service.metadata)
    )

    assert expected == (refusal.code, refusal.reason)
    assert "secret" not in refusal.message
    assert refusal.metadata.get("request_id", refusal.trailers["x-request-id"]) in [
        record.__dict__.get("request_id")
        for record in caplog.records
        if record.getMessage() == "rpc.failed"
    ]


def test_a_call_that_a_full_disk_rejects_costs_one_line_of_the_log_and_no_traceback(
    service: Service, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: object) -> None:
        msg = "secret detail"
        raise StorageFullError(msg)

    caplog.set_level(logging.INFO)
    monkeypatch.setattr(service.app._images, "page", fail)
    refusal = refused(
        lambda: service.stub.ListImages(pb.ListImagesRequest(), metadata=service.metadata)
    )
    request_id = refusal.trailers["x-request-id"]
    lines = [each for each in caplog.records if each.__dict__.get("request_id") == request_id]

    assert (grpc.StatusCode.RESOURCE_EXHAUSTED, "STORAGE_FULL") == (refusal.code, refusal.reason)
    assert "secret" not in refusal.message
    assert [("rpc.finished", "STORAGE_FULL", None)] == [
        (line.getMessage(), line.__dict__["reason"], line.exc_info) for line in lines
    ]


@pytest.mark.parametrize(
    ("error", "calls"), [(StorageBusyError("busy"), 3), (StorageFullError("full"), 1)]
)
def test_a_full_disk_is_not_asked_again_by_a_caller_who_retries_by_status(
    service: Service, monkeypatch: pytest.MonkeyPatch, error: Exception, calls: int
) -> None:
    asked = []

    def fail(**_: object) -> None:
        asked.append(1)
        raise error

    monkeypatch.setattr(service.app._images, "page", fail)
    monkeypatch.setattr("server.refusals.RETRY_AFTER_MS", {"STORAGE_UNAVAILABLE": 1})
    policy = """{"methodConfig": [{"name": [{}], "retryPolicy": {
        "maxAttempts": 3, "initialBackoff": "0.01s", "maxBackoff": "0.01s",
        "backoffMultiplier": 1,
        "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"]}}]}"""
    options = [("grpc.service_config", policy), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(service.address, options) as channel:
        stub = image_service_pb2_grpc.ImageServiceStub(channel)
        refused(lambda: stub.ListImages(pb.ListImagesRequest(), metadata=service.metadata))

    assert calls == len(asked)


def test_a_call_that_may_work_later_is_retried_by_grpc_itself(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which it would not be, had the error come after initial metadata."""
    policy = """{"methodConfig": [{"name": [{}], "retryPolicy": {
        "maxAttempts": 3, "initialBackoff": "0.01s", "maxBackoff": "0.01s",
        "backoffMultiplier": 1, "retryableStatusCodes": ["UNAVAILABLE"]}}]}"""
    outcomes: list[list[Any] | Exception] = [StorageBusyError("x"), StorageBusyError("x"), []]

    def page(**_: object) -> list[Any]:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(service.app._images, "page", page)
    monkeypatch.setattr("server.refusals.RETRY_AFTER_MS", {"STORAGE_UNAVAILABLE": 10})
    options = [("grpc.service_config", policy), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(service.address, options=options) as channel:
        call: Any = channel.unary_unary(f"/{SERVICE}/ListImages")

        answer = call(b"", metadata=service.metadata, timeout=20)

    assert b"" == answer
    assert not outcomes


def test_an_upload_holds_its_own_threads_only(service: Service) -> None:
    """Sixteen callers who never send the picture that they announced."""
    leave = threading.Event()
    uploads = [
        _unsent(service, f"/{SERVICE}/UploadImage", leave, metadata=service.metadata)
        for _ in range(16)
    ]

    listed = service.stub.ListImages(pb.ListImagesRequest(), metadata=service.metadata, timeout=20)
    for upload in uploads:
        upload.cancel()
    leave.set()
    stored = service.stub.UploadImage(
        pb.UploadImageRequest(content=picture(1)), metadata=service.metadata, timeout=20
    )

    assert listed is not None
    assert stored.created
