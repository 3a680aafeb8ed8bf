"""Runs `picback serve` for the demo: a process of its own, on a free port, ended by SIGTERM."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from picback.v1 import image_service_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Seconds that starting and stopping may take: importing models' libraries is slow on a
#: machine that does it for the first time.
_PATIENCE: Final = 60.0


class ServiceError(Exception):
    """The service did not start, or did not stop as it should."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A service that answers, and a key for it."""

    address: str
    signing_secret: str
    metadata: tuple[tuple[str, str]]
    stub: image_service_pb2_grpc.ImageServiceStub


@contextlib.contextmanager
def serving(folder: Path, *, allow_callback: str) -> Iterator[Service]:
    """Run a service with its data in *folder* while the block runs.

    Raises:
        ServiceError: It did not start; or the block ended well and the service did not.
    """
    data, log = folder / "data", folder / "log"
    command = [sys.executable, "-m", "server", "serve", "--tagger", "local"]
    command += ["--listen", "127.0.0.1:0", "--data", str(data), "--allow-callback", allow_callback]
    # Whatever this machine has configured for another picback is not meant for this one.
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PICBACK_", "CLARIFAI_"))
    }
    with (
        log.open("w") as stderr,
        subprocess.Popen(  # noqa: S603 - our own program
            command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment
        ) as process,
    ):
        try:
            assert process.stdout is not None  # noqa: S101 - for the type checker
            line = process.stdout.readline()
            address = line.rpartition(" ")[2].strip()
            if not address:
                msg = f"the service did not start: {log.read_text()[-2000:]}"
                raise ServiceError(msg)
            key = json.loads((data / "first-key.json").read_text())
            options = [("grpc.enable_http_proxy", 0)]
            with grpc.insecure_channel(address, options) as channel:
                _wait_until_serving(channel)
                yield Service(
                    address=address,
                    signing_secret=key["signing_secret"],
                    metadata=(("x-api-key", key["key"]),),
                    stub=image_service_pb2_grpc.ImageServiceStub(channel),
                )
            process.send_signal(signal.SIGTERM)
            if (status := process.wait(_PATIENCE)) != 0:
                msg = f"the service ended with status {status}: {log.read_text()[-2000:]}"
                raise ServiceError(msg)
        finally:
            process.kill()  # does nothing to a process that has ended


def _wait_until_serving(channel: grpc.Channel) -> None:
    answer = health_pb2_grpc.HealthStub(channel).Check(
        health_pb2.HealthCheckRequest(service="picback.v1.ImageService"),
        timeout=_PATIENCE,
        wait_for_ready=True,
    )
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        msg = "the service says that it is not serving"
        raise ServiceError(msg)
