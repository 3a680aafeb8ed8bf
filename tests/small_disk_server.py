"""`picback serve` on a small disk that gets full, as a process of its own, and how to call it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from callers.client import items
from picback.v1 import image_pb2, image_service_pb2_grpc
from picback.v1 import image_service_pb2 as pb
from storage import driver
from tests.receiver import Answer
from tests.service import picture

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.receiver import Received, Receiver
    from tests.small_disk import SmallDisk

SERVING: Final = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING
#: Room for a log that is never written back to the database, and for an image.
DISK_BYTES: Final = 64 * 1024 * 1024
#: How many calls of one destination are under way at most.
IN_FLIGHT: Final = 8
IMAGE: Final = picture(1, size=(500, 500))
#: `picback serve`, but it looks at itself every half second.
SERVE: Final = """
import functools, server.app, server.cli, server.serve_command
server.app._LOOK_SECONDS = server.app._STUCK_SECONDS = 0.5
"""
SERVE_WITHOUT_RESERVE: Final = f"""{SERVE}
config = server.serve_command.Config
server.serve_command.Config = functools.partial(config, reserve_bytes=0)
"""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server, and how to call it."""

    process: subprocess.Popen[str]
    stub: Any
    health: Any
    metadata: tuple[tuple[str, str], ...]

    def call(self, method: str, request: Any) -> Any:
        """Return the answer of one of the service's methods."""
        return getattr(self.stub, method)(request, metadata=self.metadata, timeout=30)

    def upload(self, content: bytes) -> str:
        """Return the id of a stored image of a dog."""
        tags = [image_pb2.Tag(name="dog")]
        response = self.call("UploadImage", pb.UploadImageRequest(content=content, tags=tags))
        return str(response.image.id)

    def submit(self, url: str, request_id: str = "") -> str:
        """Return the id of an accepted query."""
        request = pb.SubmitQueryRequest(text="the dog", callback_url=url, request_id=request_id)
        return str(self.call("SubmitQuery", request).query.id)

    def queries(self) -> Iterator[Any]:
        """Yield all queries."""
        return items(
            lambda size, token: self.call(
                "ListQueries", pb.ListQueriesRequest(page_size=size, page_token=token)
            ),
            lambda page: page.queries,
            limit=0,
        )

    def query(self, query_id: str) -> Any:
        """Return a query as it is now."""
        return self.call("GetQuery", pb.GetQueryRequest(query_id=query_id)).query

    def end_of(self, query_id: str) -> Any:
        """Return a query as it is when nothing more happens to it."""
        request = pb.WatchQueryRequest(query_id=query_id)
        *_, last = self.stub.WatchQuery(request, metadata=self.metadata, timeout=60)
        return last.query

    def wait_for_health(self, status: int) -> None:
        """Return as soon as the server says *status* of itself."""
        for response in self.health.Watch(health_pb2.HealthCheckRequest(), timeout=60):
            if response.status == status:
                return

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it, and return when it has."""
        self.process.send_signal(how)
        self.process.wait(60)


def serve_command(
    disk: SmallDisk,
    tmp_path: Path,
    *receivers: Receiver,
    min_free_bytes: int = 0,
    has_reserve: bool = True,
) -> list[str]:
    """Return the command that serves the disk's data folder, with callbacks to *receivers*."""
    allowed = [option for each in receivers for option in ("--allow-callback", each.address)]
    options = ["--listen", "127.0.0.1:0", "--tagger", "none", "--log-format", "json", *allowed]
    options += ["--data", str(data_of(tmp_path)), "--min-free-bytes", str(min_free_bytes)]
    program = (SERVE if has_reserve else SERVE_WITHOUT_RESERVE) + "server.cli.main()"
    return disk.inside([sys.executable, "-c", program, "serve", *options])


def data_of(tmp_path: Path) -> Path:
    """Return the data folder, where processes inside the disk's namespace find it."""
    return tmp_path / "disk" / "data"


def logged(tmp_path: Path, event: str) -> list[dict[str, Any]]:
    """Return what the servers of a test have logged under the name *event*."""
    lines = map(json.loads, (tmp_path / "log").read_text().splitlines())
    return [line for line in lines if line["event"] == event]


@contextmanager
def serving(
    disk: SmallDisk, tmp_path: Path, *receivers: Receiver, **options: Any
) -> Iterator[Server]:
    """Run a server while the block runs; options as in `serve_command`."""
    with (
        (tmp_path / "log").open("a") as log,
        subprocess.Popen(
            serve_command(disk, tmp_path, *receivers, **options),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split()[-1]
            key = json.loads((disk.folder / "data" / "first-key.json").read_text())["key"]
            with grpc.insecure_channel(address) as channel:
                yield Server(
                    process,
                    image_service_pb2_grpc.ImageServiceStub(channel),
                    health_pb2_grpc.HealthStub(channel),
                    (("x-api-key", key),),
                )
        finally:
            process.kill()


def assert_sound(disk: SmallDisk, tmp_path: Path) -> None:
    """Check the database file."""
    copy = tmp_path / "copy"  # SQLite does not find its way through /proc
    shutil.copytree(disk.folder / "data", copy)
    with closing(driver.connect(copy / "picback.db")) as connection:
        assert [("ok",)] == connection.execute("PRAGMA integrity_check").fetchall()


class Held:
    """Answers 200, but nothing while it is held."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.let_go.set()

    def __call__(self, _: Received) -> Answer:
        self.let_go.wait(60)
        return Answer(200)


def warm_up(server: Server, url: str) -> list[str]:
    """Deliver as many queries one by one as make a destination trusted with more at once."""
    ids = [server.submit(url) for _ in range(IN_FLIGHT)]
    for query_id in ids:
        server.end_of(query_id)
    return ids
