"""More calls at once than gRPC likes to keep: none may be cancelled for that."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import grpc

from picback.v1 import image_service_pb2 as pb
from picback.v1 import image_service_pb2_grpc
from tests.service import running

if TYPE_CHECKING:
    from pathlib import Path


def test_a_burst_on_four_connections_costs_a_fifth_nothing(tmp_path: Path) -> None:
    """GRPC rejects all calls beyond 3,000 that Python has not taken, whoever makes them."""
    with running(tmp_path / "data") as service, ExitStack() as undo:
        options = [("grpc.use_local_subchannel_pool", 1)]
        stubs = [
            image_service_pb2_grpc.ImageServiceStub(
                undo.enter_context(grpc.insecure_channel(service.address, options))
            )
            for _ in range(4)
        ]
        request: Any = pb.ListImagesRequest()
        for stub in stubs:
            stub.ListImages(request, metadata=service.metadata)
        state: Any = service.app._server._state  # type: ignore[attr-defined] # gRPC tells it nowhere else
        with state.lock:  # as if the serving thread had no time
            burst = [
                stub.ListImages.future(request, metadata=service.metadata, timeout=100)
                for _ in range(900)
                for stub in stubs
            ]
            other = service.stub.ListImages.future(request, metadata=service.metadata, timeout=100)
            grpc.channel_ready_future(service.channel).result(30)
        codes = Counter(call.code() for call in [*burst, other])

    assert {grpc.StatusCode.OK: 3_601} == codes
