"""The callers' client: what it tries again, what it gives up, how a watch goes on."""

from __future__ import annotations

import threading

import grpc
import pytest

from callers.client import CallError, Client, items
from picback.v1 import image_service_pb2, query_pb2
from tests.callers.fake_service import FakeService, serving

QUEUED = query_pb2.Query(id="qry_1", state=query_pb2.QUERY_STATE_QUEUED)
DELIVERING = query_pb2.Query(id="qry_1", state=query_pb2.QUERY_STATE_DELIVERING)
DELIVERED = query_pb2.Query(id="qry_1", state=query_pb2.QUERY_STATE_DELIVERED)
UPLOAD = image_service_pb2.UploadImageRequest(content=b"x", request_id="once")


def _client(address: str, *, timeout: float = 20) -> Client:
    return Client(address, api_key="pbk_test", timeout=timeout, tls=None)


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,  # what a stopping gRPC server gives calls that race its stop
        grpc.StatusCode.RESOURCE_EXHAUSTED,  # overloaded
    ],
)
def test_a_passing_failure_is_tried_again_with_the_same_request(code: grpc.StatusCode) -> None:
    fake = FakeService(failures=[code, code])
    with serving(fake) as address, _client(address) as client:
        response = client.call(client.stub.UploadImage, UPLOAD)

    assert response.created
    assert [UPLOAD, UPLOAD, UPLOAD] == fake.requests


def test_a_redelivery_that_may_have_happened_is_not_tried_again() -> None:
    fake = FakeService(failures=[grpc.StatusCode.CANCELLED])
    request = image_service_pb2.RedeliverQueryRequest(query_id="qry_1")
    with (
        serving(fake) as address,
        _client(address) as client,
        pytest.raises(CallError) as raised,
    ):
        client.call(client.stub.RedeliverQuery, request)

    assert grpc.StatusCode.CANCELLED is raised.value.code
    assert [request] == fake.requests


def test_a_failure_that_would_come_again_is_not_tried_again() -> None:
    fake = FakeService(failures=[grpc.StatusCode.INVALID_ARGUMENT])
    with (
        serving(fake) as address,
        _client(address) as client,
        pytest.raises(CallError, match="scripted"),
    ):
        client.call(client.stub.UploadImage, UPLOAD)

    assert [UPLOAD] == fake.requests


def test_an_answer_that_does_not_come_in_time_says_how_long_was_waited() -> None:
    release = threading.Event()
    fake = FakeService(during_upload=release.wait)
    with serving(fake) as address, _client(address, timeout=0.2) as client:
        with pytest.raises(CallError, match=r"no answer from .* within 0\.2 s") as raised:
            client.call(client.stub.UploadImage, UPLOAD)
        release.set()

    assert grpc.StatusCode.DEADLINE_EXCEEDED is raised.value.code


def test_a_watch_goes_on_when_the_server_ends_it_and_tells_no_state_twice() -> None:
    fake = FakeService(
        watches=[
            [QUEUED, grpc.StatusCode.UNAVAILABLE],
            [QUEUED, DELIVERING, grpc.StatusCode.UNAVAILABLE],
            [DELIVERING, DELIVERED],
        ]
    )
    pauses: list[float] = []
    with serving(fake) as address, _client(address) as client:
        seen = list(client.watch("qry_1", sleep=pauses.append))

    assert [QUEUED, DELIVERING, DELIVERED] == seen
    assert [0.25, 0.25] == pauses


def test_a_watch_of_a_server_that_stays_away_ends_with_its_error() -> None:
    fake = FakeService(watches=[[QUEUED, grpc.StatusCode.UNAVAILABLE]])
    pauses: list[float] = []
    seen = []
    with serving(fake) as address, _client(address) as client:
        watch = client.watch("qry_1", sleep=pauses.append)
        seen.append(next(watch))
        fake.watches = [[grpc.StatusCode.UNAVAILABLE]] * 100
        with pytest.raises(CallError) as raised:
            seen.extend(watch)

    assert [QUEUED] == seen
    assert grpc.StatusCode.UNAVAILABLE is raised.value.code
    assert [0.25, 0.5, 1, 2, 4, 8] == pauses


def test_a_watch_of_a_server_that_is_not_there_is_begun_three_times() -> None:
    fake = FakeService(watches=[[grpc.StatusCode.UNAVAILABLE]] * 10)
    pauses: list[float] = []
    with (
        serving(fake) as address,
        _client(address) as client,
        pytest.raises(CallError, match="cannot reach a server at 127"),
    ):
        list(client.watch("qry_1", sleep=pauses.append))

    assert [0.25, 0.5] == pauses
    assert 3 == len(fake.requests)


def test_a_watch_that_is_refused_is_not_taken_up_again() -> None:
    fake = FakeService(watches=[[grpc.StatusCode.NOT_FOUND]])
    with (
        serving(fake) as address,
        _client(address) as client,
        pytest.raises(CallError) as raised,
    ):
        list(client.watch("qry_1"))

    assert grpc.StatusCode.NOT_FOUND is raised.value.code
    assert 1 == len(fake.requests)


@pytest.mark.parametrize(
    ("limit", "taken", "sizes"),
    [
        (0, 2500, [1000, 1000, 1000]),  # all there are
        (50, 50, [50]),
        (1500, 1500, [1000, 500]),
        (2500, 2500, [1000, 1000, 500]),
        (9000, 2500, [1000, 1000, 1000]),  # more than there are
    ],
)
def test_a_list_is_read_page_by_page_up_to_its_limit(
    limit: int, taken: int, sizes: list[int]
) -> None:
    queries = [query_pb2.Query(id=f"qry_{number}") for number in range(2500)]
    asked = []

    def fetch(size: int, token: str) -> image_service_pb2.ListQueriesResponse:
        asked.append(size)
        start = int(token or "0")
        end = min(start + size, len(queries))
        return image_service_pb2.ListQueriesResponse(
            queries=queries[start:end], next_page_token=str(end) if end < len(queries) else ""
        )

    found = list(items(fetch, lambda page: page.queries, limit=limit))

    assert queries[:taken] == found
    assert sizes == asked
