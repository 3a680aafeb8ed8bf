"""Uploads and a Clarifai with good and bad days, on loopback."""

from __future__ import annotations

import contextlib
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from clarifai_grpc.grpc.api.status import status_code_pb2 as codes

from dispatcher import DispatcherSettings
from picback.v1 import image_pb2
from picback.v1 import image_service_pb2 as pb
from server.app import _READERS, App
from server.config import ClarifaiSettings
from tests.fake_clarifai import FakeClarifai
from tests.fakes import FakeClock
from tests.server.serving import config_of, first_key, serve_process, serving, stub_of
from tests.server.waiting import wait_until
from tests.service import Service, picture, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: How many uploads of one key are handled at once.
UPLOADS_OF_A_KEY = _READERS["uploads"][1]
PENDING, READY, FAILED = (
    image_pb2.IMAGE_STATE_PENDING,
    image_pb2.IMAGE_STATE_READY,
    image_pb2.IMAGE_STATE_FAILED,
)


class CountingClarifai(FakeClarifai):
    """Also counts the requests that it turns away."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.calls = 0

    def was_called_since(self, calls: int) -> bool:
        """Return whether there were more than *calls*."""
        return self.calls > calls

    def PostModelOutputs(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        """Answer as the scripts say."""
        self.calls += 1
        return super().PostModelOutputs(request, context)


@pytest.fixture
def clarifai() -> Iterator[CountingClarifai]:
    with CountingClarifai() as clarifai:
        yield clarifai


@pytest.fixture(autouse=True)
def _uploads_wait_for_longer_than_a_test_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what is answered was answered for a better reason than that time was up."""
    monkeypatch.setattr("server.service._LONGEST_WAIT", 1000.0)


def _options(clarifai: FakeClarifai, *, token: str = "fake-key") -> dict[str, Any]:
    return {
        "tagger": "auto",
        "clarifai": ClarifaiSettings(token=token, base=clarifai.base, insecure=True),
        "dispatcher": DispatcherSettings(tagger_pause=(0.05, 0.2)),
    }


@contextmanager
def _tagged_by(clarifai: FakeClarifai, folder: Path, **options: Any) -> Iterator[Service]:
    with running(folder / "data", **_options(clarifai, **options)) as service:
        yield service


def _upload(service: Service, seed: int = 0, **fields: Any) -> image_pb2.Image:
    request = pb.UploadImageRequest(content=picture(seed), **fields)
    image = service.stub.UploadImage(request, metadata=service.metadata).image
    assert isinstance(image, image_pb2.Image)
    return image


def _get(service: Service, image_id: str) -> image_pb2.Image:
    request = pb.GetImageRequest(image_id=image_id)
    image = service.stub.GetImage(request, metadata=service.metadata).image
    assert isinstance(image, image_pb2.Image)
    return image


def test_an_upload_answers_with_clarifais_concepts_and_its_callers_tags(
    clarifai: CountingClarifai, tmp_path: Path
) -> None:
    clarifai.concepts[picture(0)] = {"dog": 0.75, "lawn": 0.5}
    with _tagged_by(clarifai, tmp_path) as service:
        image = _upload(service, tags=[image_pb2.Tag(name="Rex")])

    assert READY == image.state
    assert [("rex", 1.0), ("dog", 0.75), ("lawn", 0.5)] == [
        (tag.name, tag.confidence) for tag in image.tags
    ]
    assert ["", True, True] == [
        tag.model and tag.model.startswith("clarifai/general-image-recognition")
        for tag in image.tags
    ]


def test_an_upload_while_clarifai_is_down_is_pending_and_tagged_when_it_is_back(
    tmp_path: Path,
) -> None:
    clarifai = FakeClarifai()
    with clarifai:
        pass  # it has a port now, where nobody listens
    with _tagged_by(clarifai, tmp_path) as service:
        images = [_upload(service, seed) for seed in range(3)]
        with clarifai:
            wait_until(lambda: all(_get(service, image.id).state == READY for image in images))
            tagged = _get(service, images[0].id)

    assert [PENDING] * 3 == [image.state for image in images]
    assert {"no person", "nature", "outdoors"} == {tag.name for tag in tagged.tags}


def test_a_wrong_token_is_told_to_the_operator_once_and_clarifai_is_left_alone(
    clarifai: CountingClarifai, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with _tagged_by(clarifai, tmp_path, token="wrong-token") as service:
        states = [_upload(service, seed).state for seed in range(10)]

    (error,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "tagging.paused" == error.getMessage()
    assert "CONN_KEY_INVALID" in vars(error)["detail"]
    assert "wrong-token" not in vars(error)["detail"]
    assert [PENDING] * 10 == states
    # Each of two threads may have asked before the first answer came.
    assert clarifai.calls <= 2


def test_an_image_that_clarifai_refuses_has_failed_and_says_why(
    clarifai: CountingClarifai, tmp_path: Path
) -> None:
    clarifai.statuses[picture(0)] = codes.INPUT_UNSUPPORTED_FORMAT
    with _tagged_by(clarifai, tmp_path) as service:
        image = _upload(service, tags=[image_pb2.Tag(name="rex")])
        matches = service.stub.MatchImages(
            pb.MatchImagesRequest(text="rex"), metadata=service.metadata
        ).matches
        del clarifai.statuses[picture(0)]
        again = _upload(service)

    assert (FAILED, "TAGGER_REJECTED") == (image.state, image.failure.reason)
    assert [image.id] == [match.image_id for match in matches]
    assert (image.id, READY) == (again.id, again.state)
    assert not again.HasField("failure")


def test_an_upload_that_does_not_wait_is_tagged_later(
    clarifai: CountingClarifai, tmp_path: Path
) -> None:
    clarifai.held.clear()
    with _tagged_by(clarifai, tmp_path) as service:
        image = _upload(service, no_wait=True)
        clarifai.held.set()
        wait_until(lambda: _get(service, image.id).state == READY)

    assert PENDING == image.state


def test_an_upload_is_answered_before_its_deadline(
    clarifai: CountingClarifai, tmp_path: Path
) -> None:
    clarifai.held.clear()
    with _tagged_by(clarifai, tmp_path) as service:
        image = service.stub.UploadImage(
            pb.UploadImageRequest(content=picture(0)), metadata=service.metadata, timeout=2
        ).image
        hurried = service.stub.UploadImage(  # no time to wait at all
            pb.UploadImageRequest(content=picture(1)), metadata=service.metadata, timeout=0.4
        ).image
        clarifai.held.set()

    assert [PENDING, PENDING] == [image.state, hurried.state]


def test_callers_who_leave_make_room_for_others(clarifai: CountingClarifai, tmp_path: Path) -> None:
    clarifai.held.clear()
    with _tagged_by(clarifai, tmp_path) as service:
        calls = [
            service.stub.UploadImage.future(
                pb.UploadImageRequest(content=picture(seed)), metadata=service.metadata
            )
            for seed in range(40)  # more than one key may have handled at once
        ]
        wait_until(lambda: UPLOADS_OF_A_KEY == len(service.app._images.changes._watchers))
        for call in calls:
            call.cancel()

        image = _upload(service, 99, no_wait=True)
        clarifai.held.set()

    assert PENDING == image.state


def test_waiting_uploads_are_answered_when_the_server_stops_and_tagged_after_the_restart(
    clarifai: CountingClarifai, tmp_path: Path
) -> None:
    clarifai.held.clear()
    folder = tmp_path / "data"

    def release(uploads: list[Any]) -> None:
        for upload in uploads:
            upload.exception()
        # Only now: the tagger's call under way is waited for, but by nobody who called us.
        clarifai.held.set()

    with contextlib.ExitStack() as after_the_stop:
        with serving(folder, **_options(clarifai)) as app:
            metadata = first_key(app)
            stub = after_the_stop.enter_context(stub_of(app.address))
            requests = [
                pb.UploadImageRequest(content=picture(seed)) for seed in range(UPLOADS_OF_A_KEY)
            ]
            uploads = [stub.UploadImage.future(each, metadata=metadata) for each in requests]
            wait_until(lambda: UPLOADS_OF_A_KEY == len(app._images.changes._watchers))
            releaser = threading.Thread(target=release, args=(uploads,))
            releaser.start()
        releaser.join()
        states = [upload.result().image.state for upload in uploads]
    with serving(folder, **_options(clarifai)) as app, stub_of(app.address) as stub:
        wait_until(
            lambda: all(
                image.state == READY
                for image in stub.ListImages(pb.ListImagesRequest(), metadata=metadata).images
            )
        )

    assert [PENDING] * UPLOADS_OF_A_KEY == states


def test_many_uploads_at_once_are_all_tagged(clarifai: CountingClarifai, tmp_path: Path) -> None:
    with _tagged_by(clarifai, tmp_path) as service, ThreadPoolExecutor(32) as pool:
        images = list(pool.map(lambda seed: _upload(service, seed), range(64)))

    assert [READY] * 64 == [image.state for image in images]
    assert clarifai.calls < 64  # they share requests


def test_uploads_that_wait_hold_up_no_other_calls(
    clarifai: CountingClarifai, tmp_path: Path
) -> None:
    clarifai.held.clear()
    with _tagged_by(clarifai, tmp_path) as service:
        calls = [
            service.stub.UploadImage.future(
                pb.UploadImageRequest(content=picture(seed)), metadata=service.metadata
            )
            for seed in range(40)
        ]
        clarifai.arrived.wait()

        listed = service.stub.ListImages(pb.ListImagesRequest(), metadata=service.metadata)
        clarifai.held.set()
        codes_ = {call.code() for call in calls}

    assert listed is not None
    assert {grpc.StatusCode.OK} == codes_


def test_a_day_of_a_wrong_token_costs_no_image(clarifai: CountingClarifai, tmp_path: Path) -> None:
    clarifai.key = "another"
    clock = FakeClock()
    app = App(config_of(tmp_path / "data", **_options(clarifai)), clock=clock)
    app.start()
    try:
        service = Service(app)
        app._keyring.refresh()
        images = [_upload(service, seed, no_wait=True) for seed in range(5)]
        for _ in range(25):
            calls = clarifai.calls
            clock.advance(3600)
            app._dispatcher.wake_tagging()
            wait_until(partial(clarifai.was_called_since, calls))
            wait_until(lambda: app._dispatcher.tagging_is_paused)
        before = [_get(service, image.id).state for image in images]
        clarifai.key = "fake-key"
        clock.advance(600)
        app._dispatcher.wake_tagging()
        wait_until(lambda: all(_get(service, image.id).state == READY for image in images))
        service.channel.close()
    finally:
        app.stop()

    assert [PENDING] * 5 == before


def test_options_choose_the_model(clarifai: CountingClarifai, tmp_path: Path) -> None:
    options = {
        "tagger": "clarifai",
        "clarifai-pat": clarifai.key,
        "clarifai-base": clarifai.base,
        "clarifai-model": "birds",
        "clarifai-model-version": "v7",
        "clarifai-user": "me",
        "clarifai-app": "mine",
    }
    arguments = [f"--{name}={value}" for name, value in options.items()]
    with (
        serve_process(tmp_path / "data", "--clarifai-insecure", *arguments) as served,
        stub_of(served.address) as stub,
    ):
        upload = pb.UploadImageRequest(content=picture(0))
        image = stub.UploadImage(upload, metadata=served.metadata).image

    (request,) = clarifai.requests
    assert ("birds", "v7") == (request.model_id, request.version_id)
    assert ("me", "mine") == (request.user_app_id.user_id, request.user_app_id.app_id)
    assert {"clarifai/birds/v7"} == {tag.model for tag in image.tags}
