"""Open streams of a key that is revoked or expires."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2

from picback.v1 import image_service_pb2 as pb
from server.reflection import METHODS
from tests.server.refusals import refusal_of
from tests.service import running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.service import Service

NOBODY = "http://127.0.0.1:1/"


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Service]:
    with running(tmp_path / "data", allow_callback=("127.0.0.1:1",)) as service:
        yield service


def _open_streams(service: Service, token: str, leave: threading.Event) -> list[Any]:
    """Open a WatchQuery and a reflection stream, and wait for their first responses."""
    metadata = (("x-api-key", token),)

    def requests() -> Iterator[Any]:
        yield reflection_pb2.ServerReflectionRequest(list_services="*").SerializeToString()
        leave.wait()

    query = service.stub.SubmitQuery(
        pb.SubmitQueryRequest(text="dog", callback_url=NOBODY), metadata=metadata
    ).query
    streams: list[Any] = [
        service.stub.WatchQuery(pb.WatchQueryRequest(query_id=query.id), metadata=metadata)
    ]
    for method in METHODS:
        call: Any = service.channel.stream_stream(method)
        streams.append(call(requests(), metadata=metadata))
    for stream in streams:
        next(stream)
    return streams


def _ends_of(streams: list[Any]) -> set[tuple[grpc.StatusCode, str]]:
    found = set()
    for stream in streams:
        with pytest.raises(grpc.RpcError) as caught:
            list(stream)
        refusal = refusal_of(caught.value)
        found.add((refusal.code, refusal.reason))
    return found


def test_streams_of_a_revoked_key_end_and_those_of_others_go_on(own: Service) -> None:
    leave = threading.Event()
    streams = _open_streams(own, own.make_key("other"), leave)
    going_on = _open_streams(own, own.api_key, leave)

    own.app.api_keys.revoke("other", now=own.now())
    ends = _ends_of(streams)
    were_going_on = [stream.is_active() for stream in going_on]
    for stream in going_on:
        stream.cancel()
    leave.set()

    assert {(grpc.StatusCode.UNAUTHENTICATED, "API_KEY_INVALID")} == ends
    assert [True] * 3 == were_going_on


def test_streams_of_a_key_that_expires_end(own: Service) -> None:
    leave = threading.Event()
    streams = _open_streams(own, own.make_key("other", expires_at=own.now() + 1_500), leave)

    ends = _ends_of(streams)
    leave.set()

    assert {(grpc.StatusCode.UNAUTHENTICATED, "API_KEY_INVALID")} == ends
