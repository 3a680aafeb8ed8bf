"""Calls whose request never comes, or comes too large: what they cost others, and how they end."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from picback.v1 import image_service_pb2 as pb
from server import grpc_internals, reflection
from server.interceptors import SCOPES
from tests.server.raw_http2 import SilentCalls
from tests.server.refusals import refusal_of, refused
from tests.server.waiting import wait_until
from tests.service import picture, running

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.service import Metadata, Service

HEALTH = [f"/grpc.health.v1.Health/{name}" for name in ("Check", "List", "Watch")]
#: Silent calls on one connection; gRPC takes up to 1,000.
PER_CONNECTION = 250


@contextmanager
def silent_calls(
    port: int, paths: Sequence[str], count: int, *, metadata: Metadata = ()
) -> Iterator[list[SilentCalls]]:
    """Keep *count* calls open while the block runs."""
    each = list(islice(cycle(paths), count))
    made = [
        SilentCalls(each[start : start + PER_CONNECTION], metadata=metadata)
        for start in range(0, count, PER_CONNECTION)
    ]
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)

    async def connect() -> list[asyncio.Transport]:
        return [
            (await loop.create_connection(lambda calls=calls: calls, "127.0.0.1", port))[0]  # type: ignore[misc] # mypy reads no defaults of lambdas
            for calls in made
        ]

    async def close(transports: list[asyncio.Transport]) -> None:
        for transport in transports:
            transport.abort()
        await asyncio.sleep(0)

    thread.start()
    transports = asyncio.run_coroutine_threadsafe(connect(), loop).result(30)
    try:
        yield made
    finally:
        asyncio.run_coroutine_threadsafe(close(transports), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _silent(service: Service, path: str, leave: threading.Event, **options: Any) -> Any:
    """Begin one call that sends nothing until *leave* is set."""

    def requests() -> Iterator[Any]:
        leave.wait()
        yield from ()

    call: Any = service.channel.stream_unary(path)
    return call.future(requests(), **options)


def _make_one_call_of_each_kind(service: Service, metadata: Metadata) -> None:
    options: dict[str, Any] = {"metadata": metadata, "timeout": 20}
    stub = service.stub
    image = stub.UploadImage(pb.UploadImageRequest(content=picture()), **options).image
    stub.GetImageContent(pb.GetImageContentRequest(image_id=image.id), **options)
    stub.ListImages(pb.ListImagesRequest(), **options)
    query = stub.SubmitQuery(
        pb.SubmitQueryRequest(text="dog", callback_url="http://127.0.0.1:1/"), **options
    ).query
    next(stub.WatchQuery(pb.WatchQueryRequest(query_id=query.id), **options))
    health = health_pb2_grpc.HealthStub(service.channel)
    health.Check(health_pb2.HealthCheckRequest(), timeout=20)
    next(health.Watch(health_pb2.HealthCheckRequest(), timeout=20))


def test_silent_calls_of_a_key_and_without_one_hold_up_nobody_else(tmp_path: Path) -> None:
    """Sixteen were enough for health, 64 for everything; both kinds of calls open for an hour."""
    with running(
        tmp_path / "data", request_timeout=3600, allow_callback=("127.0.0.1:1",)
    ) as service:
        other = (("x-api-key", service.make_key("other")),)
        port = service.app.port
        with (
            silent_calls(port, [*SCOPES, *reflection.METHODS], 500, metadata=service.metadata),
            silent_calls(port, HEALTH, 500),
        ):
            reader = service.app._readers["no key"]
            wait_until(lambda: 500 - 4 == sum(map(len, reader._waiting.values())))

            _make_one_call_of_each_kind(service, other)


def test_strangers_calls_that_are_opened_again_at_once_hold_up_nobody_else(tmp_path: Path) -> None:
    with (
        running(tmp_path / "data", allow_callback=("127.0.0.1:1",)) as service,
        silent_calls(service.app.port, list(SCOPES), 250) as flood,
    ):
        wait_until(lambda: flood[0].opened > 300)

        _make_one_call_of_each_kind(service, service.metadata)


@pytest.mark.parametrize("method", [*SCOPES, *reflection.METHODS, *HEALTH])
def test_a_call_whose_request_does_not_arrive_in_time_is_told_so(
    impatient: Service, method: str
) -> None:
    leave = threading.Event()

    call = _silent(impatient, method, leave, metadata=impatient.metadata)
    refusal = refusal_of(call.exception(timeout=30))
    leave.set()

    assert (grpc.StatusCode.DEADLINE_EXCEEDED, "REQUEST_TIMEOUT") == (refusal.code, refusal.reason)
    assert "--request-timeout" in refusal.message
    assert "-1" == refusal.trailers["grpc-retry-pushback-ms"]


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A server that waits for no request longer than a fifth of a second."""
    folder = tmp_path_factory.mktemp("impatient") / "data"
    with running(folder, request_timeout=0.2, max_image_bytes=1_000) as service:
        yield service


def test_calls_that_nobody_had_time_to_read_are_told_to_come_back(impatient: Service) -> None:
    """More than a key may have read at once: the others wait, and theirs is not their fault."""
    leave = threading.Event()

    calls = [
        _silent(
            impatient, "/picback.v1.ImageService/UploadImage", leave, metadata=impatient.metadata
        )
        for _ in range(20)
    ]
    refusals = [refusal_of(call.exception(timeout=30)) for call in calls]
    leave.set()

    assert ["REQUEST_TIMEOUT"] * 12 == [each.reason for each in refusals[:12]]
    assert {("OVERLOADED", 1.0, "1000")} == {
        (each.reason, each.retry_after, each.trailers["grpc-retry-pushback-ms"])
        for each in refusals[12:]
    }


def test_a_call_that_sends_no_request_at_all_is_refused_as_by_grpc(service: Service) -> None:
    call: Any = service.channel.stream_unary("/picback.v1.ImageService/ListImages")

    with pytest.raises(grpc.RpcError) as caught:
        call(iter(()), metadata=service.metadata, timeout=20)

    error: Any = caught.value
    assert grpc.StatusCode.UNIMPLEMENTED == error.code()
    assert service.stub.ListImages(pb.ListImagesRequest(), metadata=service.metadata) is not None


def test_a_large_message_goes_to_uploads_only(service: Service) -> None:
    for method in ("/picback.v1.ImageService/ListImages", HEALTH[0]):
        call: Any = service.channel.unary_unary(method)

        refusal = refused(
            lambda: call(bytes(2_000_000), metadata=service.metadata, timeout=20)  # noqa: B023 - called at once
        )

        assert "REQUEST_MALFORMED" == refusal.reason


def test_a_silent_call_that_is_cancelled_leaves_nothing_behind(service: Service) -> None:
    leave = threading.Event()
    calls = [
        _silent(service, "/picback.v1.ImageService/ListImages", leave, metadata=service.metadata)
        for _ in range(50)
    ]
    for call in calls:
        call.cancel()
    leave.set()

    reader = service.app._readers["keys"]
    service.stub.ListImages(pb.ListImagesRequest(), metadata=service.metadata, timeout=20)
    wait_until(lambda: not reader._held and not reader._receiving)
    wait_until(lambda: not any(map(len, service.app._timer._pending.values())))


def test_a_grpc_that_is_built_otherwise_serves_as_it_does_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(grpc_internals._SIGNATURES, "_abort", 99)

    with running(tmp_path / "data", allow_callback=("127.0.0.1:1",)) as service:
        _make_one_call_of_each_kind(service, service.metadata)

    assert "server.grpc_unsupported" in caplog.messages


@pytest.mark.parametrize("name", ["_receive_message", "_CLOSED", "_RequestIterator"])
def test_what_is_missing_of_grpc_is_noticed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    before = grpc_internals.is_supported()
    monkeypatch.delattr(f"grpc._server.{name}")

    assert (True, False) == (before, grpc_internals.is_supported())
