"""Images that try to stop the service, against `picback serve` as operators run it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from picback.v1 import image_pb2
from picback.v1 import image_service_pb2 as pb
from tests import odd_images
from tests.processes import children_of, watching_memory
from tests.server.refusals import refusal_of
from tests.server.serving import serve_process, stub_of
from tests.server.waiting import wait_until
from tests.service import picture

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.server.serving import ServeProcess

#: What the documentation promises for server and children together. docs/tagging.md.
MAX_RESIDENT_BYTES = 900_000_000
FAMILIES: dict[str, dict[str, bytes]] = {
    "png metadata": odd_images.PNG_METADATA,
    "slow jpeg": odd_images.SLOW_JPEG,
    "noisy tiff": odd_images.NOISY_TIFF,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    """A server with the local tagger and default settings."""
    folder = tmp_path_factory.mktemp("hostile") / "data"
    with serve_process(folder, "--tagger", "local", "--log-format", "json") as server:
        yield server


def upload_or_raise(server: ServeProcess, content: bytes) -> None:
    """Upload *content*."""
    with stub_of(server.address) as stub:
        stub.UploadImage(
            pb.UploadImageRequest(content=content), metadata=server.metadata, timeout=60
        )


def upload(server: ServeProcess, content: bytes) -> str:
    """Upload *content*; return OK or the reason why not."""
    try:
        upload_or_raise(server, content)
    except grpc.RpcError as error:
        return refusal_of(error).reason
    return "OK"


@pytest.mark.parametrize("family", ["png metadata", "noisy tiff"])
def test_what_is_odd_but_whole_is_accepted(server: ServeProcess, family: str) -> None:
    outcomes = {name: upload(server, content) for name, content in FAMILIES[family].items()}

    assert dict.fromkeys(outcomes, "OK") == outcomes


def test_an_image_that_is_slow_to_decode_is_rejected(server: ServeProcess) -> None:
    outcomes = {name: upload(server, content) for name, content in FAMILIES["slow jpeg"].items()}

    assert dict.fromkeys(outcomes, "IMAGE_DAMAGED") == outcomes


def test_a_photo_that_was_cut_and_closed_again_is_rejected(server: ServeProcess) -> None:
    photos = odd_images.cut_photos()
    outcomes = {name: upload(server, content) for name, content in photos.items()}

    assert dict.fromkeys(outcomes, "IMAGE_DAMAGED") == outcomes


def test_an_extremely_thin_image_is_too_large(server: ServeProcess) -> None:
    outcomes = [upload(server, odd_images.png_of_bits(*size)) for size in odd_images.THIN]

    assert {"IMAGE_TOO_LARGE"} == set(outcomes)


def test_the_largest_images_are_accepted_in_bounded_memory(server: ServeProcess) -> None:
    with watching_memory(server.process.pid) as peak:
        outcomes = {name: upload(server, content) for name, content in odd_images.largest().items()}

    rejected = "progressive JPEG without subsampling"  # 64 megapixels are too many for this kind
    assert {**dict.fromkeys(outcomes, "OK"), rejected: "IMAGE_TOO_LARGE"} == outcomes
    assert 300_000_000 < peak.bytes < MAX_RESIDENT_BYTES


def test_the_largest_images_at_once_take_no_more_memory(server: ServeProcess) -> None:
    contents = [content + bytes(3) for content in odd_images.largest().values()]
    with watching_memory(server.process.pid) as peak, ThreadPoolExecutor(4) as threads:
        outcomes = Counter(threads.map(lambda content: upload(server, content), contents))

    assert {"OK": len(contents) - 1, "IMAGE_TOO_LARGE": 1} == outcomes
    assert 300_000_000 < peak.bytes < MAX_RESIDENT_BYTES


def test_the_server_holds_neither_pillow_nor_onnxruntime(server: ServeProcess) -> None:
    assert "OK" == upload(server, (odd_images.PHOTOS / "otter.jpg").read_bytes())

    maps = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert [] == [name for name in ("/PIL/", "pillow.libs", "onnxruntime") if name in maps]
    children = [
        Path(f"/proc/{child}/maps").read_text() for child in children_of(server.process.pid)
    ]
    assert any("/PIL/" in maps and "onnxruntime" not in maps for maps in children)
    assert any("onnxruntime" in maps for maps in children)


def test_children_that_are_killed_under_load_cost_no_image(tmp_path: Path) -> None:
    with (
        serve_process(tmp_path / "data", "--tagger", "local") as server,
        ThreadPoolExecutor(4) as threads,
    ):
        killed, done = 0, threading.Event()

        def load(worker: int) -> list[str]:
            outcomes, number = [], 0
            while not done.is_set():
                number += 1
                content = picture(worker * 10_000 + number, size=(400, 300), format_="JPEG")
                outcomes.append(upload(server, content))
            return outcomes

        loads = [threads.submit(load, worker) for worker in range(4)]
        rng = random.Random(9)
        while killed < 50:
            wait_until(lambda: len(children_of(server.process.pid)) >= 2)
            for child in rng.sample(children := children_of(server.process.pid), len(children))[:1]:
                with contextlib.suppress(ProcessLookupError):  # it ended by itself meanwhile
                    os.kill(child, signal.SIGKILL)
                    killed += 1
            threading.Event().wait(rng.uniform(0.01, 0.2))
        done.set()
        outcomes = [outcome for load in loads for outcome in load.result()]

        assert {"OK"} == set(outcomes)
        wait_until(lambda: states_of(server).keys() == {"READY"}, timeout=60)
        assert states_of(server)["READY"] == len(outcomes)


def states_of(server: ServeProcess) -> Counter[str]:
    """Return how many images are in which state."""
    found: Counter[str] = Counter()
    token = ""
    with stub_of(server.address) as stub:
        while True:
            request = pb.ListImagesRequest(page_size=100, page_token=token)
            page = stub.ListImages(request, metadata=server.metadata, timeout=60)
            for image in page.images:
                found[image_pb2.ImageState.Name(image.state).removeprefix("IMAGE_STATE_")] += 1
            token = page.next_page_token
            if not token:
                return found


def test_sigterm_ends_the_server_whatever_is_decoded(tmp_path: Path) -> None:
    slow = odd_images.jpeg_of_scans(32, 9000)
    # Minutes of decoding are allowed, and none of them are waited for.
    options = ("--decoder-timeout", "3600", "--stop-grace", "0.5")
    with serve_process(tmp_path / "data", *options) as server, ThreadPoolExecutor() as threads:
        halt_children(server)
        uploads = [threads.submit(upload_or_raise, server, slow + bytes([n])) for n in range(9)]
        wait_until(lambda: len(children_of(server.process.pid)) >= 3)
        children = children_of(server.process.pid)
        server.process.send_signal(signal.SIGTERM)

        assert 0 == server.process.wait(timeout=30)
        errors = [upload.exception() for upload in uploads]
        assert any(
            isinstance(error, grpc.RpcError) and error.code() == grpc.StatusCode.UNAVAILABLE
            for error in errors
        )
        wait_until(lambda: not any(Path(f"/proc/{child}").exists() for child in children))


def test_an_image_that_outlasts_its_time_is_unprocessable_and_others_are_not(
    tmp_path: Path,
) -> None:
    with (
        serve_process(tmp_path / "data", "--decoder-timeout", "0.1") as server,
        ThreadPoolExecutor() as threads,
    ):
        slow = odd_images.jpeg_of_scans(32, 9000)  # nearly a second
        outcomes = [threads.submit(upload, server, slow + bytes([n])) for n in range(4)]

        assert ["OK"] * 10 == [upload(server, picture(n)) for n in range(10)]
        assert {"IMAGE_UNPROCESSABLE"} == {outcome.result() for outcome in outcomes}


def halt_children(server: ServeProcess) -> list[int]:
    """Make the children of a server do nothing, as an endless image would."""
    wait_until(lambda: bool(children_of(server.process.pid)))
    children = children_of(server.process.pid)
    for child in children:
        os.kill(child, signal.SIGSTOP)
    return children


def test_a_deadline_that_passes_ends_the_decoding(tmp_path: Path) -> None:
    with (
        serve_process(tmp_path / "data", "--decoder-timeout", "3600") as server,
        stub_of(server.address) as stub,
    ):
        (child,) = halt_children(server)
        with pytest.raises(grpc.RpcError) as caught:
            stub.UploadImage(
                pb.UploadImageRequest(content=picture()), metadata=server.metadata, timeout=2
            )

        assert grpc.StatusCode.DEADLINE_EXCEEDED == caught.value.code()
        wait_until(lambda: not Path(f"/proc/{child}").exists())
        assert "OK" == upload(server, picture())


def test_children_end_with_a_server_that_is_killed(tmp_path: Path) -> None:
    with serve_process(tmp_path / "data", "--tagger", "local") as server:
        assert "OK" == upload(server, picture())
        children = children_of(server.process.pid)
        server.process.kill()
        server.process.wait()

        assert len(children) >= 2
        wait_until(lambda: not any(Path(f"/proc/{child}").exists() for child in children))


def test_nothing_but_json_is_in_the_log(tmp_path: Path) -> None:
    with serve_process(tmp_path / "data", "--log-format", "json") as server:
        assert "OK" == upload(server, odd_images.noisy_tiff(4000))
        server.process.send_signal(signal.SIGTERM)
        _, log = server.process.communicate(timeout=30)

    events = [json.loads(line)["event"] for line in log.splitlines()]
    assert "server.stopped" in events
