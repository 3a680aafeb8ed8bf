"""`picback serve` as a process of its own, on loopback, with a folder of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from picback.v1 import image_pb2, image_service_pb2, image_service_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: Seconds that starting and stopping may take.
_PATIENCE: Final = 60.0
#: Units of the processor times in /proc, a second's share.
_TICK: Final = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A server that answers, and a key for it."""

    process_id: int
    channel: grpc.Channel
    metadata: tuple[tuple[str, str]]
    stub: image_service_pb2_grpc.ImageServiceStub
    health: health_pb2_grpc.HealthStub

    def cpu_seconds(self) -> float:
        """Return the processor time of the server and its children so far, over all threads."""
        return sum(map(cpu_seconds_of, (self.process_id, *self._children())))

    def _children(self) -> list[int]:
        tasks = Path(f"/proc/{self.process_id}/task").glob("*/children")
        return [int(child) for task in tasks for child in task.read_text().split()]

    def add_image(self, content: bytes, tag: str) -> None:
        """Store an image under one tag."""
        request = image_service_pb2.UploadImageRequest(
            content=content, tags=[image_pb2.Tag(name=tag)], no_wait=True
        )
        self.stub.UploadImage(request, metadata=self.metadata, timeout=_PATIENCE)


def cpu_seconds_of(process_id: int) -> float:
    """Return the processor time that a process has used so far, over all its threads."""
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK  # utime and stime; see proc(5)


@contextlib.contextmanager
def serving(folder: Path, *options: str, callbacks: Sequence[str] = ()) -> Iterator[Service]:
    """Run a server with its data in *folder* while the block runs.

    It logs as always, to a file. It has no tagger, because tagging would be measured along, and
    its attempts have all the time that a receiver takes to answer (`Receiver.hold`).

    Args:
        folder: Must not exist, or hold what an earlier one left.
        options: More options of `picback serve`.
        callbacks: HOST:PORT of each receiver that it may call.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data, log = folder / "data", folder / "log"
    command = [sys.executable, "-m", "server", "serve", "--tagger", "none"]
    command += ["--listen", "127.0.0.1:0", "--data", str(data), "--callback-timeout", "600"]
    command += options
    for each in callbacks:
        command += ["--allow-callback", each]
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment()
        ) as process,
    ):
        try:
            assert process.stdout is not None  # noqa: S101 - for the type checker
            address = process.stdout.readline().rpartition(" ")[2].strip()
            if not address:
                msg = f"the server did not start: {log.read_text()[-2000:]}"
                raise RuntimeError(msg)
            key = json.loads((data / "first-key.json").read_text())
            settings = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
            with grpc.insecure_channel(address, settings) as channel:
                service = Service(
                    process_id=process.pid,
                    channel=channel,
                    metadata=(("x-api-key", key["key"]),),
                    stub=image_service_pb2_grpc.ImageServiceStub(channel),
                    health=health_pb2_grpc.HealthStub(channel),
                )
                service.health.Check(
                    health_pb2.HealthCheckRequest(), timeout=_PATIENCE, wait_for_ready=True
                )
                yield service
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_PATIENCE)
        finally:
            process.kill()  # does nothing to a process that has ended


def environment() -> dict[str, str]:
    """Return the environment for a server: without what is configured for another one."""
    # Whatever this machine has configured for another picback is not meant for this one.
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PICBACK_", "CLARIFAI_"))
    }
