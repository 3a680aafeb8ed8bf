"""A disk that another program has filled to the last byte: what the reserve is for.

The disk is real, if small, so the reserve is a sixteenth of it. See `small_disk`.
"""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING, Final

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from picback.v1 import image_pb2, query_pb2
from picback.v1 import image_service_pb2 as pb
from tests.receiver import Receiver
from tests.server.refusals import refused
from tests.server.waiting import wait_until
from tests.service import picture
from tests.small_disk import SmallDisk
from tests.small_disk_server import (
    DISK_BYTES,
    IMAGE,
    IN_FLIGHT,
    Held,
    assert_sound,
    data_of,
    logged,
    serving,
    warm_up,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.small_disk_server import Server

RESERVE_BYTES: Final = DISK_BYTES // 16
STORAGE_FULL: Final = (grpc.StatusCode.RESOURCE_EXHAUSTED, "STORAGE_FULL")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with SmallDisk(tmp_path / "disk", size_bytes=DISK_BYTES) as disk:
        yield disk


def reserve_size(disk: SmallDisk) -> int:
    """Return how large the reserve is; all of it must be allocated."""
    reserve = disk.folder / "data" / "reserve"
    if not reserve.exists():
        return 0
    found = reserve.stat()
    assert 0o600 == stat.S_IMODE(found.st_mode)
    assert found.st_size == 512 * found.st_blocks
    return found.st_size


def assert_new_data_is_rejected(server: Server, url: str, image_id: str) -> None:
    tags = [image_pb2.Tag(name="cat")]
    refusals = [
        refused(lambda: server.submit(url)),
        refused(lambda: server.upload(picture(2))),
        refused(
            lambda: server.call(
                "UpdateImageTags", pb.UpdateImageTagsRequest(image_id=image_id, set_tags=tags)
            )
        ),
    ]
    assert [STORAGE_FULL] * 3 == [(refusal.code, refusal.reason) for refusal in refusals]


def assert_well_again(disk: SmallDisk, server: Server, url: str) -> None:
    """Check that with space everything works, and the reserve is back."""
    disk.make_room()
    wait_until(lambda: reserve_size(disk) == RESERVE_BYTES)
    server.upload(picture(3))
    assert query_pb2.QUERY_STATE_DELIVERED == server.end_of(server.submit(url)).state


def revoke(disk: SmallDisk, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "server", "keys", "revoke", "default"]
    return subprocess.run(
        disk.inside([*command, "--data", str(data_of(tmp_path))]),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_an_image_can_be_deleted_and_what_is_released_is_not_for_new_data(
    disk: SmallDisk, tmp_path: Path
) -> None:
    with Receiver() as receiver, serving(disk, tmp_path, receiver) as server:
        image_id, kept_id = server.upload(IMAGE), server.upload(picture(4))
        disk.fill()
        assert_new_data_is_rejected(server, receiver.url, kept_id)
        before = reserve_size(disk)
        server.call("DeleteImage", pb.DeleteImageRequest(image_id=image_id))
        after = reserve_size(disk)
        assert_new_data_is_rejected(server, receiver.url, kept_id)
        images = server.call("ListImages", pb.ListImagesRequest()).images
        assert_well_again(disk, server, receiver.url)
        server.stop()
    assert_sound(disk, tmp_path)

    assert RESERVE_BYTES == before
    assert RESERVE_BYTES // 2 < after < RESERVE_BYTES
    assert [kept_id] == [image.id for image in images]
    assert 1 == len(logged(tmp_path, "storage.reserve_missing"))
    assert 1 == len(logged(tmp_path, "storage.reserve_allocated"))


def test_images_can_be_deleted_while_another_program_takes_each_byte_that_becomes_free(
    disk: SmallDisk, tmp_path: Path
) -> None:
    with serving(disk, tmp_path) as server:
        ids = [server.upload(picture(seed, size=(100, 100))) for seed in range(20)]
        for image_id in ids:
            disk.fill()
            server.call("DeleteImage", pb.DeleteImageRequest(image_id=image_id))
        images = server.call("ListImages", pb.ListImagesRequest()).images
        server.stop(signal.SIGKILL)
    assert_sound(disk, tmp_path)

    assert [] == list(images)


def test_what_is_in_flight_is_settled_and_nothing_new_is_sent(
    disk: SmallDisk, tmp_path: Path
) -> None:
    held = Held()
    with Receiver(held) as receiver, serving(disk, tmp_path, receiver) as server:
        server.upload(IMAGE)
        ids = warm_up(server, receiver.url)
        held.let_go.clear()
        ids += [server.submit(receiver.url) for _ in range(3 * IN_FLIGHT)]
        receiver.wait_for(2 * IN_FLIGHT)
        disk.fill()
        held.let_go.set()
        in_flight = {each.headers["webhook-id"] for each in receiver.requests} & set(ids)
        settled = [server.end_of(query_id) for query_id in in_flight]
        last = server.call("CancelQuery", pb.CancelQueryRequest(query_id=ids[-1])).query
        assert refused(lambda: server.submit(receiver.url)).reason == "STORAGE_FULL"
        sent = len(receiver.requests)
        assert_well_again(disk, server, receiver.url)
        ended = [server.end_of(query_id) for query_id in ids[:-1]]
        server.stop()
    assert_sound(disk, tmp_path)
    received = Counter(request.headers["webhook-id"] for request in receiver.requests)

    assert [(query_pb2.QUERY_STATE_DELIVERED, 1)] * 2 * IN_FLIGHT == [
        (query.state, len(query.attempts)) for query in settled
    ]
    assert query_pb2.QUERY_STATE_CANCELLED == last.state
    assert 2 * IN_FLIGHT == sent
    assert {query_pb2.QUERY_STATE_DELIVERED} == {query.state for query in ended}
    assert {1} == set(received.values())


def test_a_query_that_waits_ends_when_give_up_after_has_passed(
    disk: SmallDisk, tmp_path: Path
) -> None:
    held = Held()
    held.let_go.clear()
    with Receiver(held) as receiver, serving(disk, tmp_path, receiver) as server:
        server.submit(receiver.url)  # the one that a receiver gets before it is known to respond
        receiver.wait_for(1)
        request = pb.SubmitQueryRequest(
            text="the dog", callback_url=receiver.url, give_up_after=Duration(seconds=5)
        )
        waiting = server.call("SubmitQuery", request).query
        disk.fill()
        ended = server.end_of(waiting.id)
        held.let_go.set()
        assert refused(lambda: server.submit(receiver.url)).reason == "STORAGE_FULL"
        server.stop()
    assert_sound(disk, tmp_path)

    assert query_pb2.QUERY_STATE_FAILED == ended.state
    assert "DEADLINE_PASSED" == ended.failure.reason
    assert [] == list(ended.attempts)


def test_a_key_can_be_revoked_beside_a_server(disk: SmallDisk, tmp_path: Path) -> None:
    with serving(disk, tmp_path) as server:
        server.upload(IMAGE)
        disk.fill()
        revoked = revoke(disk, tmp_path)
        refusal = refused(lambda: server.call("ListImages", pb.ListImagesRequest()))
        server.stop()
    assert_sound(disk, tmp_path)

    assert (0, "") == (revoked.returncode, revoked.stderr)
    assert "API_KEY_INVALID" == refusal.reason
    assert 1 == len(logged(tmp_path, "storage.reserve_missing"))


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_key_can_be_revoked_while_no_server_runs(
    end: signal.Signals, disk: SmallDisk, tmp_path: Path
) -> None:
    with serving(disk, tmp_path) as server:
        server.upload(IMAGE)
        disk.fill()
        server.stop(end)
    disk.fill()  # a stop gives back the write-ahead log
    revoked = revoke(disk, tmp_path)
    with serving(disk, tmp_path) as server:
        refusal = refused(lambda: server.call("ListImages", pb.ListImagesRequest()))
        server.stop()
    assert_sound(disk, tmp_path)

    assert (0, "") == (revoked.returncode, revoked.stderr)
    assert "API_KEY_INVALID" == refusal.reason


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_starts_again_and_reads_deletes_and_goes_on_when_there_is_space(
    end: signal.Signals, disk: SmallDisk, tmp_path: Path
) -> None:
    held = Held()
    with Receiver(held) as receiver:
        with serving(disk, tmp_path, receiver) as server:
            image_id, kept_id = server.upload(IMAGE), server.upload(picture(4))
            ids = warm_up(server, receiver.url)
            held.let_go.clear()
            ids += [server.submit(receiver.url) for _ in range(2 * IN_FLIGHT)]
            receiver.wait_for(2 * IN_FLIGHT)
            disk.fill()
            if end == signal.SIGTERM:  # it waits for what is in flight
                held.let_go.set()
            server.stop(end)
            held.let_go.set()
        disk.fill()
        with serving(disk, tmp_path, receiver) as server:
            content = server.call("GetImageContent", pb.GetImageContentRequest(image_id=image_id))
            server.call("DeleteImage", pb.DeleteImageRequest(image_id=image_id))
            assert_new_data_is_rejected(server, receiver.url, kept_id)
            assert_well_again(disk, server, receiver.url)
            ended = [server.end_of(query_id) for query_id in ids]
            server.stop()
    assert_sound(disk, tmp_path)

    assert IMAGE == content.content
    assert {query_pb2.QUERY_STATE_DELIVERED} == {query.state for query in ended}


def test_new_data_is_rejected_below_min_free_bytes_and_all_else_goes_on(
    disk: SmallDisk, tmp_path: Path
) -> None:
    with (
        Receiver() as receiver,
        serving(disk, tmp_path, receiver, min_free_bytes=DISK_BYTES // 4) as server,
    ):
        image_id = server.upload(IMAGE)
        disk.fill(leaving=DISK_BYTES // 5)
        wait_until(lambda: bool(logged(tmp_path, "storage.space_low")))
        refusals = [
            refused(lambda: server.submit(receiver.url)),
            refused(lambda: server.upload(picture(2))),
        ]
        tags = [image_pb2.Tag(name="cat")]
        updated = server.call(
            "UpdateImageTags", pb.UpdateImageTagsRequest(image_id=image_id, set_tags=tags)
        ).image
        reserve = reserve_size(disk)
        disk.make_room()
        wait_until(lambda: bool(logged(tmp_path, "storage.space_recovered")))
        delivered = server.end_of(server.submit(receiver.url))
        server.stop()

    assert [STORAGE_FULL] * 2 == [(refusal.code, refusal.reason) for refusal in refusals]
    assert {"cat", "dog"} == {tag.name for tag in updated.tags}
    assert RESERVE_BYTES == reserve
    assert query_pb2.QUERY_STATE_DELIVERED == delivered.state
    assert 1 == len(logged(tmp_path, "storage.space_low"))
    assert [] == logged(tmp_path, "rpc.failed")  # no traceback for each rejected call
    assert 1 == len(logged(tmp_path, "storage.space_recovered"))


def test_a_server_starts_without_space_for_its_reserve(disk: SmallDisk, tmp_path: Path) -> None:
    disk.fill(leaving=RESERVE_BYTES)
    with Receiver() as receiver, serving(disk, tmp_path, receiver) as server:
        refusal = refused(lambda: server.upload(IMAGE))
        assert_well_again(disk, server, receiver.url)
        server.stop()

    assert STORAGE_FULL == (refusal.code, refusal.reason)
    assert 1 == len(logged(tmp_path, "storage.reserve_missing"))
    assert 1 == len(logged(tmp_path, "storage.reserve_allocated"))
