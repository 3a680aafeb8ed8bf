"""A full disk without a reserve: rejected clearly, nothing accepted lost, and well again by itself.

What the reserve adds is in test_disk_reserve.py. The disk is real, if small. See `small_disk`.
"""

from __future__ import annotations

import signal
import subprocess
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import grpc
import pytest

from picback.v1 import image_service_pb2 as pb
from picback.v1 import query_pb2
from tests import small_disk_server
from tests.receiver import Receiver
from tests.server.refusals import refusal_of, refused
from tests.server.waiting import wait_until
from tests.service import picture
from tests.small_disk import SmallDisk
from tests.small_disk_server import (
    DISK_BYTES,
    IMAGE,
    IN_FLIGHT,
    NOT_SERVING,
    SERVING,
    Held,
    assert_sound,
    serve_command,
    warm_up,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sized
    from pathlib import Path

    from tests.receiver import Received

serving = partial(small_disk_server.serving, has_reserve=False)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with SmallDisk(tmp_path / "disk", size_bytes=DISK_BYTES) as disk:
        yield disk


def _ids(requests: list[Received]) -> Counter[str]:
    return Counter(request.headers["webhook-id"] for request in requests)


def test_a_full_disk_refuses_what_must_be_stored_and_loses_nothing(
    disk: SmallDisk, tmp_path: Path
) -> None:
    held = Held()
    with (
        Receiver(held) as slow,
        serving(disk, tmp_path, slow) as server,
    ):
        image_id = server.upload(IMAGE)
        early_ids = warm_up(server, slow.url)
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
    assert_sound(disk, tmp_path)

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
        with serving(disk, tmp_path, receiver) as server:
            server.upload(IMAGE)
            ids = warm_up(server, receiver.url)
            held.let_go.clear()
            ids += [server.submit(receiver.url) for _ in range(20)]
            receiver.wait_for(2 * IN_FLIGHT)
            disk.fill()
            held.let_go.set()
            refused(lambda: server.submit(receiver.url))
            server.stop(end)
        disk.make_room()
        with serving(disk, tmp_path, receiver) as server:
            ended = [server.end_of(query_id) for query_id in ids]
            server.stop()
    assert_sound(disk, tmp_path)
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
        serve_command(disk, tmp_path), capture_output=True, text=True, timeout=60, check=False
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
    with Receiver() as receiver, serving(disk, tmp_path, receiver) as server:
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
    assert_sound(disk, tmp_path)

    assert {query_pb2.QUERY_STATE_DELIVERED} == {query.state for query in ended}
    assert set(accepted) == stored
    assert Counter(accepted) == _ids(receiver.requests)
    assert {(grpc.StatusCode.RESOURCE_EXHAUSTED, "STORAGE_FULL")} == set(refusals)
