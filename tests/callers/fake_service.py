"""A server that does what a script says, for what no real one does on demand."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc

from picback.v1 import image_pb2, image_service_pb2, query_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


class FakeService:
    """Remembers requests; fails with the scripted codes first, then answers.

    Attributes:
        requests: What came in, oldest first.
        failures: Codes to fail with, one for each call.
        during_upload: Called in each upload before it is answered.
        watches: What each call of WatchQuery sends; a code ends the stream with that.
    """

    def __init__(
        self,
        *,
        failures: Iterable[grpc.StatusCode] = (),
        during_upload: Callable[[], object] = lambda: None,
        watches: Iterable[list[query_pb2.Query | grpc.StatusCode]] = (),
    ) -> None:
        self.requests: list[Any] = []
        self.failures = list(failures)
        self.during_upload = during_upload
        self.watches = list(watches)

    def upload_image(self, request: Any, context: Any) -> image_service_pb2.UploadImageResponse:
        self._note(request, context)
        self.during_upload()
        image = image_pb2.Image(id="img_" + "0" * 26, state=image_pb2.IMAGE_STATE_PENDING)
        return image_service_pb2.UploadImageResponse(image=image, created=True)

    def redeliver_query(
        self, request: Any, context: Any
    ) -> image_service_pb2.RedeliverQueryResponse:
        self._note(request, context)
        return image_service_pb2.RedeliverQueryResponse(query=query_pb2.Query(id=request.query_id))

    def watch_query(
        self, request: Any, context: Any
    ) -> Iterator[image_service_pb2.WatchQueryResponse]:
        self.requests.append(request)
        for each in self.watches.pop(0):
            if isinstance(each, query_pb2.Query):
                yield image_service_pb2.WatchQueryResponse(query=each)
            else:
                context.abort(each, "scripted")

    def _note(self, request: Any, context: Any) -> None:
        self.requests.append(request)
        if self.failures:
            context.abort(self.failures.pop(0), "scripted")


@contextmanager
def serving(fake: FakeService) -> Iterator[str]:
    """Serve *fake* on a free loopback port while the block runs; yield the address."""
    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "UploadImage": grpc.unary_unary_rpc_method_handler(
            fake.upload_image,
            image_service_pb2.UploadImageRequest.FromString,
            image_service_pb2.UploadImageResponse.SerializeToString,
        ),
        "RedeliverQuery": grpc.unary_unary_rpc_method_handler(
            fake.redeliver_query,
            image_service_pb2.RedeliverQueryRequest.FromString,
            image_service_pb2.RedeliverQueryResponse.SerializeToString,
        ),
        "WatchQuery": grpc.unary_stream_rpc_method_handler(
            fake.watch_query,
            image_service_pb2.WatchQueryRequest.FromString,
            image_service_pb2.WatchQueryResponse.SerializeToString,
        ),
    }
    service = grpc.method_handlers_generic_handler("picback.v1.ImageService", handlers)
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()
