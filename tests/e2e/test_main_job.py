"""The main job, all of it real: photos in, tags found, words in, the right picture called back."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from picback.v1 import image_pb2, image_service_pb2, query_pb2
from tests.service import picture, running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.receiver import Receiver
    from tests.service import Service

PHOTOS = Path(__file__).parents[2] / "examples/photos"


@pytest.fixture(scope="module")
def tagging_service(
    tmp_path_factory: pytest.TempPathFactory, receiver: Receiver
) -> Iterator[Service]:
    """A server with the local tagger, and the photos in it."""
    folder = tmp_path_factory.mktemp("main") / "data"
    with running(folder, tagger="local", allow_callback=(receiver.address,)) as service:
        for name in ("cat.png", "dogs.jpg", "coffee.jpg", "fighter-jet.jpg", "panda.jpg"):
            service.stub.UploadImage(
                image_service_pb2.UploadImageRequest(content=(PHOTOS / name).read_bytes()),
                metadata=service.metadata,
            )
        yield service


def _called_back(service: Service, receiver: Receiver, text: str) -> tuple[query_pb2.Query, Any]:
    seen = len(receiver.requests)
    submitted = service.stub.SubmitQuery(
        image_service_pb2.SubmitQueryRequest(text=text, callback_url=receiver.url),
        metadata=service.metadata,
    ).query
    assert query_pb2.QUERY_STATE_QUEUED == submitted.state
    request = receiver.wait_for(seen + 1)[seen]
    request.verify(service.signing_secret)
    assert submitted.id == request.headers["webhook-id"]
    (*_, last) = service.stub.WatchQuery(
        image_service_pb2.WatchQueryRequest(query_id=submitted.id), metadata=service.metadata
    )
    return last.query, request.json()


@pytest.mark.parametrize(
    ("text", "photo", "tag"),
    [
        ("a cat looking at me", "cat.png", "cat"),
        ("Two dogs at the window", "dogs.jpg", "dog"),
        ("an espresso, please", "coffee.jpg", "espresso"),
        ("Airplanes over ships", "fighter-jet.jpg", "airplane"),
        ("GIANT PANDAS", "panda.jpg", "giant panda"),
    ],
)
def test_words_call_the_photo_back_signed_and_unchanged(
    tagging_service: Service, receiver: Receiver, text: str, photo: str, tag: str
) -> None:
    query, body = _called_back(tagging_service, receiver, text)

    assert "query.matched" == body["type"]
    assert (PHOTOS / photo).read_bytes() == base64.b64decode(body["result"], validate=True)
    assert tag in [matched["name"] for matched in body["data"]["matched_tags"]]
    assert query_pb2.QUERY_STATE_DELIVERED == query.state
    assert [200] == [attempt.http_status for attempt in query.attempts]
    assert query.match.image_id == body["data"]["image"]["id"]


def test_words_that_no_image_has_are_called_back_as_unmatched(
    tagging_service: Service, receiver: Receiver
) -> None:
    query, body = _called_back(tagging_service, receiver, "quarterly earnings of a submarine bank")

    assert "query.unmatched" == body["type"]
    assert body["result"] is None
    assert body["data"]["image"] is None
    assert 0 == body["data"]["score"]
    assert query_pb2.QUERY_STATE_DELIVERED == query.state
    assert not query.HasField("match")


def test_a_sentence_finds_the_tags_dog_running_and_beach(
    tagging_service: Service, receiver: Receiver
) -> None:
    stub, metadata = tagging_service.stub, tagging_service.metadata
    content = picture(1, size=(64, 64))
    stub.UploadImage(
        image_service_pb2.UploadImageRequest(
            content=content,
            tags=[image_pb2.Tag(name=name) for name in ("dog", "running", "beach")],
        ),
        metadata=metadata,
    )

    _, body = _called_back(tagging_service, receiver, "dogs running on beaches")

    assert content == base64.b64decode(body["result"])
    assert {"dog", "running", "beach"} == {tag["name"] for tag in body["data"]["matched_tags"]}
    assert ["dog", "run", "on", "beach"] == body["data"]["lemmas"]
    assert 3 == body["data"]["score"]


def test_200_uploads_and_200_queries_of_32_callers_are_each_delivered_once_and_right(
    tagging_service: Service, receiver: Receiver
) -> None:
    seen = len(receiver.requests)
    contents = {f"blorb{number}": picture(1000 + number, size=(32, 32)) for number in range(200)}

    def upload_and_ask(word: str) -> str:
        with grpc.insecure_channel(tagging_service.address) as channel:
            stub = type(tagging_service.stub)(channel)
            stub.UploadImage(
                image_service_pb2.UploadImageRequest(
                    content=contents[word], tags=[image_pb2.Tag(name=word)], request_id=f"up-{word}"
                ),
                metadata=tagging_service.metadata,
            )
            return stub.SubmitQuery(
                image_service_pb2.SubmitQueryRequest(
                    text=f"show me the {word}", callback_url=receiver.url, request_id=f"ask-{word}"
                ),
                metadata=tagging_service.metadata,
            ).query.id

    with ThreadPoolExecutor(32) as callers:
        word_of = dict(zip(callers.map(upload_and_ask, contents), contents, strict=True))
    requests = receiver.wait_for(seen + 200, timeout=60)[seen:]

    assert sorted(word_of) == sorted(request.headers["webhook-id"] for request in requests)
    for request in requests:
        request.verify(tagging_service.signing_secret)
        word = word_of[request.headers["webhook-id"]]
        assert contents[word] == base64.b64decode(request.json()["result"])
