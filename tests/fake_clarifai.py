"""A Clarifai on loopback that does what the real one was seen doing, bad days included.

In tests:

    with FakeClarifai() as clarifai:
        clarifai.concepts[dog_bytes] = {"dog": 0.99}
        clarifai.statuses[bad_bytes] = codes.INPUT_UNSUPPORTED_FORMAT
        clarifai.next_statuses.append(codes.CONN_THROTTLED)   # for the next request as a whole
        ClarifaiTagger(token=clarifai.key, base=clarifai.base, insecure=True)

By hand, for those without an account: `python -m tests.fake_clarifai --port 18080`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import sys
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self

import grpc
from clarifai_grpc.grpc.api import resources_pb2, service_pb2, service_pb2_grpc
from clarifai_grpc.grpc.api.status import status_code_pb2 as codes
from clarifai_grpc.grpc.api.status import status_pb2

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

#: What an image shows that nobody has said anything about.
DEFAULT_CONCEPTS = {"no person": 0.99, "nature": 0.95, "outdoors": 0.93}

#: The version of the model that answers.
MODEL_VERSION_ID = "aa7f35c01e0642fda5cf400f543e7c40"


class FakeClarifai(service_pb2_grpc.V2Servicer):  # type: ignore[misc]  # it has no types
    """Answers PostModelOutputs. Change its attributes at any time, from the test's thread.

    Attributes:
        key: The only key it takes.
        concepts: Concepts and their values by the bytes of an image.
        statuses: Status of an image by its bytes, instead of success.
        all_or_nothing: One failed image fails all others of its request.
        next_statuses: Status of the next requests as a whole, one after the other; None for one
            that is answered as usual.
        rpc_failure: gRPC code that calls end with, instead of an answer.
        outputs_missing: Outputs left out of each answer.
        arrived: Set when a request comes in.
        held: Requests wait as long as this is clear.
        requests: What came in, in order, wrong keys left out.
    """

    def __init__(self, *, key: str = "fake-key", port: int = 0, tls: Path | None = None) -> None:
        """Choose the key, the port (0: a free one), and a PEM file of key and certificate."""
        self.key = key
        self.concepts: dict[bytes, Mapping[str, float]] = {}
        self.statuses: dict[bytes, int] = {}
        self.all_or_nothing = False
        self.next_statuses: deque[int | None] = deque()
        self.rpc_failure: grpc.StatusCode | None = None
        self.outputs_missing = 0
        self.arrived = threading.Event()
        self.held = threading.Event()
        self.held.set()
        self.requests: list[Any] = []
        self._port = port
        self._tls = tls
        self._server: grpc.Server | None = None

    @property
    def base(self) -> str:
        """Return "host:port", the same after a restart."""
        return f"127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listen, at the port of last time if there was one."""
        server = grpc.server(
            ThreadPoolExecutor(4),
            options=(("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 128_000_000)),
        )
        service_pb2_grpc.add_V2Servicer_to_server(self, server)
        if self._tls:
            pem = self._tls.read_bytes()
            self._port = server.add_secure_port(
                self.base, grpc.ssl_server_credentials([(pem, pem)])
            )
        else:
            self._port = server.add_insecure_port(self.base)
        server.start()
        self._server = server

    def stop(self) -> None:
        """Break off all calls and stop listening."""
        self.held.set()
        if self._server:
            self._server.stop(grace=None).wait()
            self._server = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def PostModelOutputs(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802  gRPC's name
        """Answer as the scripts say."""
        self.arrived.set()
        self.held.wait()
        given = dict(context.invocation_metadata()).get("authorization")
        if given != f"Key {self.key}":
            # The real one was not seen quoting the key; a proxy might.
            return _all_failed(codes.CONN_KEY_INVALID, details=f"Invalid API key: {given!r}")
        self.requests.append(request)
        if self.rpc_failure:
            context.abort(self.rpc_failure, "scripted")
        status = self.next_statuses.popleft() if self.next_statuses else None
        if status is not None:
            return _all_failed(status)
        contents = [item.data.image.base64 for item in request.inputs]
        statuses = [self.statuses.get(content, codes.SUCCESS) for content in contents]
        failed = [status for status in statuses if status != codes.SUCCESS]
        if failed and self.all_or_nothing:
            statuses = [
                codes.INPUT_FAILED if status == codes.SUCCESS else status for status in statuses
            ]
        outputs = [
            self._output(request, content, status)
            for content, status in zip(contents, statuses, strict=True)
        ]
        return service_pb2.MultiOutputResponse(
            status=_status(_overall(statuses)),
            outputs=outputs[self.outputs_missing :],
        )

    def _output(self, request: Any, content: bytes, status: int) -> Any:
        output = resources_pb2.Output(
            id=hashlib.sha256(content).hexdigest()[:32],
            status=_status(status),
            model=resources_pb2.Model(
                id=request.model_id,
                model_version=resources_pb2.ModelVersion(id=request.version_id or MODEL_VERSION_ID),
            ),
        )
        if status == codes.SUCCESS:
            config = request.model.output_info.output_config
            shown = self.concepts.get(content, DEFAULT_CONCEPTS)
            best = sorted(shown.items(), key=lambda pair: -pair[1])[: config.max_concepts or 20]
            for name, value in best:
                if value >= config.min_value:
                    output.data.concepts.add(id=f"ai_{name[:8]}", name=name, value=value)
        return output


def _overall(statuses: list[int]) -> int:
    """Return the status of an answer whose outputs have *statuses*."""
    if len(statuses) == 1:
        return statuses[0]
    good = statuses.count(codes.SUCCESS)
    if good == len(statuses):
        return int(codes.SUCCESS)
    return int(codes.MIXED_STATUS if good else codes.FAILURE)


def _all_failed(code: int, *, details: str = "") -> Any:
    return service_pb2.MultiOutputResponse(status=_status(code, details=details))


def _status(code: int, *, details: str = "") -> Any:
    return status_pb2.Status(
        code=code,
        description=codes.StatusCode.Name(code),
        details=details,
        req_id="fake-request",
    )


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description="A fake Clarifai on loopback.")
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one")
    parser.add_argument("--key", default="fake-key", help="the token that it takes")
    arguments = parser.parse_args()
    with FakeClarifai(key=arguments.key, port=arguments.port) as clarifai:
        sys.stdout.write(f"{clarifai.base}\n")
        sys.stdout.flush()
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
