"""Decoding in child processes: what becomes of images that end them, and of all others."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from analysis.image_decoder import ImageDecoder
from analysis.images import (
    DamagedPictureError,
    OversizedPictureError,
    Picture,
    ProcessUnavailableError,
    UnprocessablePictureError,
    UnsupportedPictureError,
    WorkCancelledError,
)
from analysis.processes import pool
from analysis.processes.child import ChildStartError
from analysis.processes.turns import Cancellation
from tests.odd_images import encoded
from tests.server.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from analysis.processes.child import Child

SCRIPTED = "tests.analysis.processes.scripted_child"
PNG = encoded(Image.new("RGB", (40, 30), (10, 200, 30)), "PNG")


@contextmanager
def decoding(**options: Any) -> Iterator[ImageDecoder]:
    known: dict[str, Any] = {
        "processes": 2,
        "memory_bytes": 448_000_000,
        "cpu_seconds": 1.0,
        "max_pixels": 85_000_000,
        "module": SCRIPTED,
    }
    decoder = ImageDecoder(**{**known, **options})
    decoder.start()
    try:
        yield decoder
    finally:
        decoder.close()


@pytest.fixture(scope="module")
def decoder() -> Iterator[ImageDecoder]:
    with decoding() as decoder:
        yield decoder


def busy_child(decoder: ImageDecoder) -> Child:
    """Return the child that decodes, as soon as there is one."""
    wait_until(lambda: bool(decoder._pool._in_use))
    (child,) = decoder._pool._in_use
    return child


def test_an_image_is_decoded_with_its_preview_and_thumbnail(decoder: ImageDecoder) -> None:
    decoded = decoder.decode(encoded(Image.new("RGB", (2600, 1300)), "PNG"))

    assert Picture("image/png", 2600, 1300) == decoded.picture
    sizes = []
    for rendition in (decoded.preview, decoded.thumbnail):
        assert rendition.content.startswith(b"\xff\xd8\xff")
        sizes.append((rendition.kind, rendition.width, rendition.height))
    assert [("PREVIEW", 1280, 640), ("THUMBNAIL", 256, 128)] == sizes


def test_what_is_wrong_with_an_image_is_told_as_if_it_were_decoded_here(
    decoder: ImageDecoder,
) -> None:
    with pytest.raises(UnsupportedPictureError, match="the image is empty"):
        decoder.decode(b"")
    with pytest.raises(DamagedPictureError, match="starts like a PNG"):
        decoder.decode(PNG[:-20])
    with decoding(max_pixels=1199) as small, pytest.raises(OversizedPictureError) as caught:
        small.decode(PNG)
    assert 1199 == caught.value.limit


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"signal %d" % signal.SIGSEGV, id="crash"),
        pytest.param(b"signal %d" % signal.SIGABRT, id="abort"),
        pytest.param(b"signal %d" % signal.SIGKILL, id="killed each time"),
        pytest.param(b"exit 0", id="exit"),
        pytest.param(b"garbage", id="no message"),
    ],
)
def test_an_image_that_ends_its_process_is_unprocessable_and_the_next_is_decoded(
    decoder: ImageDecoder, content: bytes
) -> None:
    with pytest.raises(UnprocessablePictureError, match="ended the process that decoded it"):
        decoder.decode(content)

    assert 40 == decoder.decode(PNG).picture.width


def test_an_image_that_takes_too_long_is_unprocessable(decoder: ImageDecoder) -> None:
    with pytest.raises(UnprocessablePictureError, match="more than 1 s to decode"):
        decoder.decode(b"loop ")


def test_an_image_that_takes_too_much_memory_is_oversized(decoder: ImageDecoder) -> None:
    with pytest.raises(OversizedPictureError, match="more than 448,000,000 bytes of memory"):
        decoder.decode(b"swell ")


def test_a_file_longer_than_a_third_of_the_memory_is_oversized() -> None:
    with decoding(memory_bytes=100_000_000) as decoder, pytest.raises(OversizedPictureError):
        decoder.decode(PNG + bytes(34_000_000))


def test_a_child_that_does_nothing_for_long_says_nothing_of_its_image() -> None:
    with (
        decoding(cpu_seconds=0.02) as decoder,
        pytest.raises(ProcessUnavailableError, match="too busy"),
    ):
        decoder.decode(b"hang ")


def test_an_image_whose_child_is_killed_from_outside_is_decoded_by_another(
    decoder: ImageDecoder,
) -> None:
    with ThreadPoolExecutor() as threads:
        decoded = threads.submit(decoder.decode, b"pause " + PNG)
        for _ in range(5):
            child = busy_child(decoder)
            os.kill(child.process_id, signal.SIGKILL)
            wait_until(lambda child=child: child not in decoder._pool._in_use)  # type: ignore[misc]

        assert 40 == decoded.result().picture.width


def test_an_idle_child_that_is_killed_costs_nothing(decoder: ImageDecoder) -> None:
    for _ in range(10):
        decoder.decode(PNG)
        for process_id in decoder.process_ids():
            os.kill(process_id, signal.SIGKILL)

        assert 40 == decoder.decode(PNG).picture.width


def test_small_images_do_not_wait_for_slow_ones() -> None:
    with decoding(processes=1, cpu_seconds=30.0) as decoder, ThreadPoolExecutor() as threads:
        slow = [threads.submit(decoder.decode, b"loop ") for _ in range(2)]
        # The first loops alone, the second waits for that, and the turn of ordinary images is free.
        wait_until(lambda: bool(decoder._alone.turns._waiting))

        assert [40] * 5 == [decoder.decode(PNG).picture.width for _ in range(5)]
        assert not any(future.done() for future in slow)
        decoder.close()
        errors = {type(future.exception()) for future in slow}

    assert {WorkCancelledError} == errors


def test_large_images_are_decoded_one_at_a_time() -> None:
    large = encoded(Image.new("L", (9000, 4000)), "PNG")
    most = 0
    with decoding(processes=2) as decoder, ThreadPoolExecutor(6) as threads:
        found = [threads.submit(decoder.decode, large) for _ in range(6)]
        while not all(future.done() for future in found):
            with decoder._alone.turns._lock:
                most = max(most, 1 - decoder._alone.turns._permits)

        assert [9000] * 6 == [future.result().picture.width for future in found]

    assert 1 == most


def test_who_cancels_waits_no_longer_and_ends_the_decoding(decoder: ImageDecoder) -> None:
    cancellation = Cancellation()
    with ThreadPoolExecutor() as threads:
        future = threads.submit(decoder.decode, b"hang ", cancellation=cancellation)
        child = busy_child(decoder)
        cancellation.cancel()

        assert isinstance(future.exception(), WorkCancelledError)
    wait_until(lambda: not child.is_alive)


def test_who_cancelled_before_is_not_decoded_for(decoder: ImageDecoder) -> None:
    cancellation = Cancellation()
    cancellation.cancel()

    with pytest.raises(WorkCancelledError):
        decoder.decode(PNG, cancellation=cancellation)


def test_closing_ends_what_is_decoded_and_what_waits() -> None:
    with decoding(processes=1, cpu_seconds=60.0) as decoder, ThreadPoolExecutor() as threads:
        futures = [threads.submit(decoder.decode, b"hang ") for _ in range(3)]
        child = busy_child(decoder)
        wait_until(lambda: bool(decoder._ordinary.turns._waiting))
        decoder.close()

        assert [WorkCancelledError] * 3 == [type(future.exception()) for future in futures]
    assert not child.is_alive
    with pytest.raises(ProcessUnavailableError):
        decoder.decode(PNG)


def test_a_process_that_cannot_be_started_blames_no_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> Child:
        raise ChildStartError

    monkeypatch.setattr("analysis.image_decoder._MAX_START_SECONDS", 0.05)
    monkeypatch.setattr(pool, "Child", refuse)
    with decoding() as decoder:
        with pytest.raises(ProcessUnavailableError, match="no process for decoder is ready"):
            decoder.decode(PNG)
        monkeypatch.undo()

        assert 40 == decoder.decode(PNG).picture.width


def test_a_child_gets_no_variables_that_may_hold_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CLARIFAI_PAT", "secret")
    with decoding() as decoder, pytest.raises(DamagedPictureError) as caught:
        decoder.decode(b"environment ")

    assert "CLARIFAI_PAT" not in str(caught.value)
    assert "PYTHONPATH" in str(caught.value)


def test_a_child_is_confined() -> None:
    with decoding() as decoder:
        decoder.decode(PNG)
        (process_id,) = decoder.process_ids()
        process = Path(f"/proc/{process_id}")
        limits = {
            line[:25].strip(): line[25:].split()[0]
            for line in (process / "limits").read_text().splitlines()
        }
        files = {number: str((process / "fd" / number).readlink()) for number in ("1", "2")}

        assert "448000000" == limits["Max address space"]
        assert ["0", "0", "64"] == [
            limits[name] for name in ("Max core file size", "Max file size", "Max open files")
        ]
        assert {"1": "/dev/null", "2": "/dev/null"} == files
        assert os.sched_getaffinity(process_id) >= os.sched_getaffinity(0)
        assert os.getpgid(process_id) != os.getpgid(0)


def test_a_child_may_use_every_core_whatever_core_started_it() -> None:
    allowed = os.sched_getaffinity(0)
    found: list[set[int]] = []

    def start_and_look() -> None:
        os.sched_setaffinity(0, {min(allowed)})
        with decoding() as decoder:
            decoder.decode(PNG)
            found.append(os.sched_getaffinity(decoder.process_ids()[0]))

    thread = threading.Thread(target=start_and_look)
    thread.start()
    thread.join()

    assert [allowed] == found
