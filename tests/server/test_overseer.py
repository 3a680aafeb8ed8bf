"""Health tells when work is due and nobody does it: the server that is stuck but green."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

import server.app
from picback.v1 import image_service_pb2
from tests.service import running

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def test_a_query_that_nobody_works_on_makes_the_server_not_serving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.app, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(server.app, "_STUCK_SECONDS", 0.01)
    with running(tmp_path / "data", allow_callback=("127.0.0.1:1",)) as service:
        lane = service.app._dispatcher._delivery_lane
        lane.drain()  # as if its thread had died
        with grpc.insecure_channel(service.address) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            before = next(watch).status
            service.stub.SubmitQuery(
                image_service_pb2.SubmitQueryRequest(
                    text="dog", callback_url="http://127.0.0.1:1/"
                ),
                metadata=service.metadata,
            )
            after = next(watch).status

    assert (SERVING, NOT_SERVING) == (before, after)
