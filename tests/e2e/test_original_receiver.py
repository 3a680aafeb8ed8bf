"""A receiver that was written for the original project, and what it needs to be served.

It declares `result: str` and answers 422 to anything else; it ignores fields that it does not know.
"""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any, Final

from picback.v1 import image_pb2, query_pb2
from picback.v1 import image_service_pb2 as pb
from tests.receiver import Answer, Receiver
from tests.service import picture, running

if TYPE_CHECKING:
    from pathlib import Path

    from tests.receiver import Received
    from tests.service import Service

WORDS: Final = ("dog", "heron", "walrus", "panda")


def _original_receiver(request: Received) -> Answer:
    """Validate the body as its schema does: one required field, a string of base64."""
    result = json.loads(request.body).get("result")
    if not isinstance(result, str):
        return Answer(422, {}, b'{"detail": "result: Input should be a valid string"}')
    base64.b64decode(result, validate=True)
    return Answer(200)


def _ask(service: Service, url: str, text: str, **fields: Any) -> query_pb2.Query:
    """Submit a query; return what it ends as."""
    request = pb.SubmitQueryRequest(text=text, callback_url=url, **fields)
    query = service.stub.SubmitQuery(request, metadata=service.metadata).query
    (*_, last) = service.stub.WatchQuery(
        pb.WatchQueryRequest(query_id=query.id), metadata=service.metadata, timeout=60
    )
    assert isinstance(last.query, query_pb2.Query)
    return last.query


def test_40_queries_matched_and_not_are_served_without_a_failed_one(tmp_path: Path) -> None:
    with (
        Receiver(_original_receiver) as receiver,
        running(tmp_path / "data", allow_callback=(receiver.address,)) as service,
    ):
        contents = {}
        for seed, word in enumerate(WORDS):
            contents[word] = picture(seed)
            service.stub.UploadImage(
                pb.UploadImageRequest(content=contents[word], tags=[image_pb2.Tag(name=word)]),
                metadata=service.metadata,
            )
        ended = [
            (
                word,
                _ask(service, receiver.url, text, on_unmatched=query_pb2.ON_UNMATCHED_END),
            )
            for number in range(20)
            for word, text in (
                (WORDS[number % 4], f"photo {number} of a {WORDS[number % 4]}"),
                (None, f"quarterly revenue {number}"),
            )
        ]
        requests = list(receiver.requests)

    matched = [query for word, query in ended if word]
    unmatched = [query for word, query in ended if not word]
    assert (20, 20) == (len(matched), len(unmatched))
    assert {query_pb2.QUERY_STATE_DELIVERED} == {query.state for query in matched}
    assert [[200]] * 20 == [
        [attempt.http_status for attempt in query.attempts] for query in matched
    ]
    assert {query_pb2.QUERY_STATE_UNMATCHED} == {query.state for query in unmatched}
    assert not any(query.attempts or query.HasField("failure") for query in unmatched)
    assert all(query.HasField("end_time") and query.lemmas for query in unmatched)
    # What arrived are the images of the matched ones, once each.
    assert {query.id: contents[word] for word, query in ended if word} == {
        request.headers["webhook-id"]: base64.b64decode(request.json()["result"])
        for request in requests
    }
    assert 20 == len(requests)


def test_without_on_unmatched_it_rejects_what_matches_nothing(tmp_path: Path) -> None:
    """The fault that ON_UNMATCHED_END is for: this receiver is as strict as the original's."""
    with (
        Receiver(_original_receiver) as receiver,
        running(tmp_path / "data", allow_callback=(receiver.address,)) as service,
    ):
        request = pb.SubmitQueryRequest(text="quarterly revenue", callback_url=receiver.url)
        query = service.stub.SubmitQuery(request, metadata=service.metadata).query
        watch = service.stub.WatchQuery(
            pb.WatchQueryRequest(query_id=query.id), metadata=service.metadata, timeout=60
        )
        attempted = next(each.query for each in watch if each.query.attempts)
        watch.cancel()

    assert [422] == [attempt.http_status for attempt in attempted.attempts]
    assert query_pb2.QUERY_STATE_DELIVERING == attempted.state


def test_an_unmatched_query_finds_an_image_that_came_later_when_it_is_redelivered(
    tmp_path: Path,
) -> None:
    with (
        Receiver(_original_receiver) as receiver,
        running(tmp_path / "data", allow_callback=(receiver.address,)) as service,
    ):
        end = query_pb2.ON_UNMATCHED_END
        query = _ask(service, receiver.url, "a heron", on_unmatched=end)
        service.stub.UploadImage(
            pb.UploadImageRequest(content=picture(1), tags=[image_pb2.Tag(name="heron")]),
            metadata=service.metadata,
        )
        service.stub.RedeliverQuery(
            pb.RedeliverQueryRequest(query_id=query.id), metadata=service.metadata
        )
        (request,) = receiver.wait_for(1)
        (*_, last) = service.stub.WatchQuery(
            pb.WatchQueryRequest(query_id=query.id), metadata=service.metadata, timeout=60
        )

    assert query_pb2.QUERY_STATE_UNMATCHED == query.state
    assert query_pb2.QUERY_STATE_DELIVERED == last.query.state
    assert (query.id, "query.matched") == (request.headers["webhook-id"], request.json()["type"])
