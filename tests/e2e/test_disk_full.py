"""A disk without space: refused clearly, nothing accepted lost, and well again by itself.

The disk is real, if small. See `small_disk`.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from callers.client import items
from picback.v1 import image_pb2, image_service_pb2_grpc, query_pb2
from picback.v1 import image_service_pb2 as pb
from storage import driver
from tests.receiver import Answer, Receiver
from tests.server.refusals import refusal_of, refused
from tests.server.waiting import wait_until
from tests.service import picture
from tests.small_disk import SmallDisk

if TYPE_CHECKING:
    from collections.abc import Iterator, Sized
    from pathlib import Path

    from tests.receiver import Received

SERVING: Final = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING
#: Room for a log that is never written back to the database, and for an image.
DISK_BYTES: Final = 64 * 1024 * 1024
#: How many calls of one destination are under way at most.
IN_FLIGHT: Final = 8
IMAGE: Final = picture(1, size=(500, 500))
#: `picback serve`, but health finds out in a second what it would in ninety.
SERVE: Final = (
    "import server.app, server.cli\n"
    "server.app._LOOK_SECONDS = server.app._STUCK_SECONDS = 0.5\n"
    "server.cli.main()"
)


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


def _command(disk: SmallDisk, tmp_path: Path, *receivers: Receiver) -> list[str]:
    data = ["--data", str(tmp_path / "disk" / "data")]
    allowed = [option for each in receivers for option in ("--allow-callback", each.address)]
    options = ["--listen", "127.0.0.1:0", "--tagger", "none", *data, *allowed]
    return disk.inside([sys.executable, "-c", SERVE, "serve", *options])


@contextmanager
def _serving(disk: SmallDisk, tmp_path: Path, *receivers: Receiver) -> Iterator[Server]:
    with subprocess.Popen(
        _command(disk, tmp_path, *receivers),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
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


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with SmallDisk(tmp_path / "disk", size_bytes=DISK_BYTES) as disk:
        yield disk


def _assert_sound(disk: SmallDisk, tmp_path: Path) -> None:
    copy = tmp_path / "copy"  # SQLite does not find its way through /proc
    shutil.copytree(disk.folder / "data", copy)
    with closing(driver.connect(copy / "picback.db")) as connection:
        assert [("ok",)] == connection.execute("PRAGMA integrity_check").fetchall()


def _ids(requests: list[Received]) -> Counter[str]:
    return Counter(request.headers["webhook-id"] for request in requests)


class Held:
    """Answers 200, but nothing while it is held."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.let_go.set()

    def __call__(self, _: Received) -> Answer:
        self.let_go.wait(60)
        return Answer(200)


def _warm_up(server: Server, url: str) -> list[str]:
    """Deliver as many queries one by one as make a destination trusted with more at once."""
    ids = [server.submit(url) for _ in range(IN_FLIGHT)]
    for query_id in ids:
        server.end_of(query_id)
    return ids


def test_a_full_disk_refuses_what_must_be_stored_and_loses_nothing(
    disk: SmallDisk, tmp_path: Path
) -> None:
    held = Held()
    with (
        Receiver(held) as slow,
        _serving(disk, tmp_path, slow) as server,
    ):
        image_id = server.upload(IMAGE)
        early_ids = _warm_up(server, slow.url)
        held.let_go.clear()
        slow_ids = [server.submit(slow.url) for _ in range(20)]
        slow.wait_for(len(early_ids) + IN_FLIGHT)
        disk.fill()
        held.let_go.set()  # the outcomes of calls under way cannot be recorded

        refusals = [
            refused(lambda: server.submit(slow.url, "refused")),
            refused(lambda: server.upload(picture(2))),
            refused(lambda: server.call("DeleteImage", pb.DeleteImageRequest(image_id=image_id))),
            refused(
                lambda: server.call("CancelQuery", pb.CancelQueryRequest(query_id=slow_ids[-1]))
            ),
        ]
        seen = server.query(slow_ids[0])
        content = server.call("GetImageContent", pb.GetImageContentRequest(image_id=image_id))
        matches = server.call("MatchImages", pb.MatchImagesRequest(text="dogs")).matches
        images = server.call("ListImages", pb.ListImagesRequest()).images
        stored = {query.id for query in server.queries()}
        server.wait_for_health(NOT_SERVING)
        disk.make_room()
        server.wait_for_health(SERVING)
        ended = [server.end_of(query_id) for query_id in slow_ids]
        accepted_now = server.end_of(server.submit(slow.url, "refused"))
        server.stop()
    _assert_sound(disk, tmp_path)

    assert [(grpc.StatusCode.RESOURCE_EXHAUSTED, "STORAGE_FULL")] * 4 == [
        (refusal.code, refusal.reason) for refusal in refusals
    ]
    assert query_pb2.QUERY_STATE_DELIVERING == seen.state
    assert IMAGE == content.content
    assert [image_id] == [match.image_id for match in matches] == [image.id for image in images]
    assert {*early_ids, *slow_ids} == stored
    assert [(query_pb2.QUERY_STATE_DELIVERED, 1)] * 20 == [
        (query.state, len(query.attempts)) for query in ended
    ]
    assert query_pb2.QUERY_STATE_DELIVERED == accepted_now.state
    assert Counter([*early_ids, *slow_ids, accepted_now.id]) == _ids(slow.requests)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_that_ends_on_a_full_disk_goes_on_when_there_is_space(
    end: signal.Signals, disk: SmallDisk, tmp_path: Path
) -> None:
    held = Held()
    with Receiver(held) as receiver:
        with _serving(disk, tmp_path, receiver) as server:
            server.upload(IMAGE)
            ids = _warm_up(server, receiver.url)
            held.let_go.clear()
            ids += [server.submit(receiver.url) for _ in range(20)]
            receiver.wait_for(2 * IN_FLIGHT)
            disk.fill()
            held.let_go.set()
            refused(lambda: server.submit(receiver.url))
            server.stop(end)
        disk.make_room()
        with _serving(disk, tmp_path, receiver) as server:
            ended = [server.end_of(query_id) for query_id in ids]
            server.stop()
    _assert_sound(disk, tmp_path)
    received = _ids(receiver.requests)

    assert {query_pb2.QUERY_STATE_DELIVERED} == {query.state for query in ended}
    assert set(ids) == set(received)
    assert received.total() <= len(ids) + IN_FLIGHT
    assert len(ids) == len({(each.headers["webhook-id"], each.body) for each in receiver.requests})


def test_a_server_that_finds_no_space_for_its_database_says_so(
    disk: SmallDisk, tmp_path: Path
) -> None:
    disk.fill()
    start = subprocess.run(
        _command(disk, tmp_path), capture_output=True, text=True, timeout=60, check=False
    )

    assert (1, "") == (start.returncode, start.stdout)
    assert "Error: database or disk is full\n" == start.stderr


def _wait_for_more(count: int, of: Sized) -> None:
    wanted = len(of) + count
    wait_until(lambda: len(of) >= wanted)


def test_a_disk_that_is_full_again_and_again_costs_refusals_and_nothing_else(
    disk: SmallDisk, tmp_path: Path
) -> None:
    accepted: list[str] = []
    refusals: list[tuple[grpc.StatusCode, str]] = []
    over = threading.Event()
    with Receiver() as receiver, _serving(disk, tmp_path, receiver) as server:
        server.upload(IMAGE)

        def submit_until_over() -> None:
            while not over.is_set():
                try:
                    accepted.append(server.submit(receiver.url))
                except grpc.RpcError as error:
                    refusal = refusal_of(error)
                    refusals.append((refusal.code, refusal.reason))

        with ThreadPoolExecutor(4) as callers:
            calling = [callers.submit(submit_until_over) for _ in range(4)]
            try:
                for _ in range(3):
                    disk.fill()
                    _wait_for_more(10, refusals)
                    disk.make_room()
                    _wait_for_more(50, accepted)
            finally:
                over.set()
            for each in calling:
                each.result()
        ended = [server.end_of(query_id) for query_id in accepted]
        stored = {query.id for query in server.queries()}
        server.stop()
    _assert_sound(disk, tmp_path)

    assert {query_pb2.QUERY_STATE_DELIVERED} == {query.state for query in ended}
    assert set(accepted) == stored
    assert Counter(accepted) == _ids(receiver.requests)
    assert {(grpc.StatusCode.RESOURCE_EXHAUSTED, "STORAGE_FULL")} == set(refusals)
