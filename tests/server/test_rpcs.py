"""The RPCs over loopback: what they promise in image_service.proto, and what they refuse."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf import duration_pb2

from picback.v1 import image_pb2, query_pb2
from picback.v1 import image_service_pb2 as pb
from tests.receiver import Receiver
from tests.server.refusals import refused
from tests.server.serving import serving, stub_of
from tests.service import picture, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.service import Service

NOBODY = "http://127.0.0.1:1/callback"


class Caller:
    """Calls with one key."""

    def __init__(self, service: Service, api_key: str | None = None) -> None:
        self.service = service
        self._metadata = (("x-api-key", api_key or service.api_key),)

    def call(self, method: str, **fields: Any) -> Any:
        """Make a unary call, or open a stream."""
        request = getattr(pb, f"{method}Request")(**fields)
        return getattr(self.service.stub, method)(request, metadata=self._metadata, timeout=30)

    def upload(self, seed: int, *tags: image_pb2.Tag | str, **fields: Any) -> image_pb2.Image:
        """Upload a picture with tags."""
        fields["tags"] = [image_pb2.Tag(name=tag) if isinstance(tag, str) else tag for tag in tags]
        image = self.call("UploadImage", content=picture(seed), **fields).image
        assert isinstance(image, image_pb2.Image)
        return image

    def submit(self, text: str, url: str, **fields: Any) -> query_pb2.Query:
        """Submit a query."""
        query = self.call("SubmitQuery", text=text, callback_url=url, **fields).query
        assert isinstance(query, query_pb2.Query)
        return query

    def last_of(self, query_id: str) -> query_pb2.Query:
        """Watch a query to its end; return what it is then."""
        (*_, last) = self.call("WatchQuery", query_id=query_id)
        assert isinstance(last.query, query_pb2.Query)
        return last.query

    def refused(self, method: str, **fields: Any) -> str:
        """Make a call that must be refused; return the reason."""
        return refused(lambda: list(self._eager(method, **fields))).reason

    def _eager(self, method: str, **fields: Any) -> Iterator[Any]:
        answer = self.call(method, **fields)
        yield from answer if method == "WatchQuery" else [answer]


@pytest.fixture(scope="module")
def caller(calling_service: Service) -> Caller:
    return Caller(calling_service)


def _names(image: image_pb2.Image) -> list[str]:
    return [tag.name for tag in image.tags]


@pytest.mark.parametrize(
    ("format_", "media_type"),
    [
        ("JPEG", "image/jpeg"),
        ("PNG", "image/png"),
        ("WEBP", "image/webp"),
        ("GIF", "image/gif"),
        ("BMP", "image/bmp"),
        ("TIFF", "image/tiff"),
    ],
)
def test_every_documented_type_is_stored_and_given_back_unchanged(
    caller: Caller, format_: str, media_type: str
) -> None:
    content = picture(1, size=(31, 17), format_=format_)

    uploaded = caller.call("UploadImage", content=content)

    image = uploaded.image
    assert uploaded.created
    assert (media_type, 31, 17, len(content)) == (
        image.media_type,
        image.width,
        image.height,
        image.size_bytes,
    )
    assert hashlib.sha256(content).hexdigest() == image.sha256
    assert image == caller.call("GetImage", image_id=image.id).image
    stored = caller.call("GetImageContent", image_id=image.id)
    assert (content, media_type, image.sha256) == (
        stored.content,
        stored.media_type,
        stored.sha256,
    )


def test_the_largest_image_goes_in_and_out(calling_service: Service) -> None:
    content = picture(2) + bytes(20_000_000 - len(picture(2)))  # what cameras append is kept
    options = [("grpc.max_receive_message_length", 25_000_000)]  # clients take 4 MiB by default
    with grpc.insecure_channel(calling_service.address, options=options) as channel:
        get: Any = channel.unary_unary(
            "/picback.v1.ImageService/GetImageContent",
            request_serializer=pb.GetImageContentRequest.SerializeToString,
            response_deserializer=pb.GetImageContentResponse.FromString,
        )

        image = Caller(calling_service).call("UploadImage", content=content).image
        stored = get(
            pb.GetImageContentRequest(image_id=image.id), metadata=calling_service.metadata
        )

    assert content == stored.content


def test_a_confidence_of_a_caller_is_kept_to_a_millionth(caller: Caller) -> None:
    tags = [image_pb2.Tag(name="a", confidence=0.123456), image_pb2.Tag(name="b", confidence=1e-9)]

    image = caller.upload(3, *tags, "c")

    assert [("c", 1.0), ("a", 0.123456), ("b", 0.000001)] == [
        (tag.name, round(tag.confidence, 6)) for tag in image.tags
    ]
    assert {image_pb2.TAG_SOURCE_CALLER} == {tag.source for tag in image.tags}


def test_the_same_upload_twice_is_one_image(caller: Caller) -> None:
    first = caller.call("UploadImage", content=picture(4), request_id="upload-4")
    again = caller.call("UploadImage", content=picture(4), request_id="upload-4")
    other = caller.call("UploadImage", content=picture(4), request_id="upload-4-again")

    assert [True, False, False] == [first.created, again.created, other.created]
    assert first.image == again.image == other.image


def test_a_request_id_is_free_again_when_its_image_is_deleted(caller: Caller) -> None:
    image = caller.upload(5, request_id="upload-5")
    caller.call("DeleteImage", image_id=image.id)

    again = caller.call("UploadImage", content=picture(6), request_id="upload-5")

    assert again.created


def test_a_request_id_belongs_to_its_key(caller: Caller) -> None:
    other = Caller(caller.service, caller.service.make_key("another"))

    first = caller.submit("a dog", NOBODY, request_id="shared")
    second = other.submit("a cat", NOBODY, request_id="shared")

    assert first.id != second.id


def test_one_request_id_at_once_from_many_callers_stores_once(caller: Caller) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = list(
            pool.map(
                lambda _: caller.call(
                    "SubmitQuery", text="a dog", callback_url=NOBODY, request_id="race"
                ),
                range(32),
            )
        )

    assert 1 == len({answer.query.id for answer in answers})
    assert 1 == sum(answer.created for answer in answers)


def test_tags_are_set_corrected_and_removed_by_hand(caller: Caller) -> None:
    image = caller.upload(7, "dog", "lawn")

    updated = caller.call(
        "UpdateImageTags",
        image_id=image.id,
        set_tags=[image_pb2.Tag(name="Puppy"), image_pb2.Tag(name="dog", confidence=0.5)],
        remove_tags=["LAWN", "never there"],
    ).image

    assert [("puppy", 1.0), ("dog", 0.5)] == [(tag.name, tag.confidence) for tag in updated.tags]
    assert updated == caller.call("GetImage", image_id=image.id).image


def test_a_removed_tag_matches_no_more_and_a_set_one_does(caller: Caller) -> None:
    image = caller.upload(8, "heron")
    assert [image.id] == [
        match.image_id for match in caller.call("MatchImages", text="herons").matches
    ]

    caller.call(
        "UpdateImageTags",
        image_id=image.id,
        set_tags=[image_pb2.Tag(name="egret")],
        remove_tags=["heron"],
    )

    assert not caller.call("MatchImages", text="herons").matches
    assert ["egret"] == [
        tag.name for tag in caller.call("MatchImages", text="egrets").matches[0].tags
    ]


def test_matches_come_best_first_with_their_reasons(caller: Caller) -> None:
    both = caller.upload(9, image_pb2.Tag(name="penguin", confidence=0.25), "ice floe")
    one = caller.upload(10, image_pb2.Tag(name="penguin", confidence=0.75))
    text = "penguins on ice floes"

    found = caller.call("MatchImages", text=text)
    best = caller.call("MatchImages", text=text, limit=1)

    assert [(both.id, 1.25), (one.id, 0.75)] == [(m.image_id, m.score) for m in found.matches]
    assert [("ice floe", 1.0), ("penguin", 0.25)] == [
        (tag.name, tag.confidence) for tag in found.matches[0].tags
    ]
    assert ["penguin", "on", "ice", "floe"] == list(found.lemmas)
    assert list(found.matches[:1]) == list(best.matches)


def test_of_many_matches_ten_are_shown_and_at_most_a_hundred(caller: Caller) -> None:
    for seed in range(1000, 1101):
        caller.upload(seed, "sparrow", no_wait=True)

    counts = [
        len(caller.call("MatchImages", text="sparrow", limit=limit).matches)
        for limit in (0, 1, 11, 100)
    ]

    assert [10, 1, 11, 100] == counts


def test_a_deleted_image_is_gone_from_everywhere(caller: Caller) -> None:
    image = caller.upload(11, "gone")

    caller.call("DeleteImage", image_id=image.id)

    for method in ("GetImage", "GetImageContent", "DeleteImage", "UpdateImageTags"):
        assert "IMAGE_NOT_FOUND" == caller.refused(method, image_id=image.id)
    assert not caller.call("MatchImages", text="gone").matches
    listed = caller.call("ListImages", page_size=1000).images
    assert image.id not in [each.id for each in listed]


def test_a_missing_image_may_be_deleted_when_that_is_allowed(caller: Caller) -> None:
    answer = caller.call("DeleteImage", image_id="img_missing", allow_missing=True)

    assert pb.DeleteImageResponse() == answer


def test_images_are_listed_newest_first_without_gaps_though_more_come_in(
    tmp_path: Path,
) -> None:
    with running(tmp_path / "data") as service:
        caller = Caller(service)
        ids = [caller.upload(seed).id for seed in range(7)]
        listed: list[str] = []
        token = ""
        while True:
            page = caller.call("ListImages", page_size=3, page_token=token)
            listed += [image.id for image in page.images]
            caller.upload(100 + len(listed))  # newer than all that is listed
            token = page.next_page_token
            if not token:
                break

    assert ids[::-1] == listed


@pytest.mark.parametrize(("page_size", "most"), [(0, 50), (60, 60), (2**31 - 1, 1000)])
def test_a_page_is_50_and_never_more_than_1000(caller: Caller, page_size: int, most: int) -> None:
    for seed in range(1000, 1061):
        caller.upload(seed, no_wait=True)

    page = caller.call("ListImages", page_size=page_size)

    assert min(most, len(caller.call("ListImages", page_size=1000).images)) == len(page.images)


def test_a_query_is_delivered_and_tells_how(caller: Caller, receiver: Receiver) -> None:
    image = caller.upload(12, image_pb2.Tag(name="lighthouse", confidence=0.5))
    submitted = caller.call(
        "SubmitQuery", text="Lighthouses!", callback_url=receiver.url, request_id="delivered"
    )

    query = caller.last_of(submitted.query.id)

    assert submitted.created
    assert query_pb2.QUERY_STATE_QUEUED == submitted.query.state
    assert query_pb2.QUERY_STATE_DELIVERED == query.state
    assert ("Lighthouses!", receiver.url) == (query.text, query.callback_url)
    assert "lighthouse" in query.lemmas
    assert (image.id, 0.5) == (query.match.image_id, query.match.score)
    (attempt,) = query.attempts
    assert (1, 200, False) == (attempt.number, attempt.http_status, attempt.HasField("failure"))
    assert query.HasField("end_time")
    assert not query.HasField("next_attempt_time")
    assert not query.HasField("failure")
    assert query == caller.call("GetQuery", query_id=query.id).query
    again = caller.call(
        "SubmitQuery", text="Lighthouses!", callback_url=receiver.url, request_id="delivered"
    )
    assert (False, query) == (again.created, again.query)


def test_what_a_receiver_answered_is_shown_to_the_submitting_key(tmp_path: Path) -> None:
    with (
        Receiver([(410, {}, b"internal words")]) as receiver,
        running(tmp_path / "data", allow_callback=(receiver.address,)) as service,
    ):
        owner = Caller(service)
        query = owner.last_of(owner.submit("a dog", receiver.url).id)

    assert query_pb2.QUERY_STATE_FAILED == query.state
    assert "RECEIVER_GONE" == query.failure.reason
    assert "internal words" == query.attempts[0].response_excerpt


def test_a_query_that_nobody_takes_waits_for_its_next_attempt(caller: Caller) -> None:
    watch = caller.call("WatchQuery", query_id=caller.submit("a dog", NOBODY).id)

    query = next(answer.query for answer in watch if answer.query.attempts)
    watch.cancel()

    assert query_pb2.QUERY_STATE_DELIVERING == query.state
    (attempt,) = query.attempts
    assert ("CONNECTION_REFUSED", 0) == (attempt.failure.reason, attempt.http_status)
    assert query.next_attempt_time.ToMilliseconds() > query.create_time.ToMilliseconds()


def test_a_query_is_given_up_after_the_time_that_its_caller_gave_it(caller: Caller) -> None:
    query = caller.last_of(
        caller.submit("a dog", NOBODY, give_up_after=duration_pb2.Duration(seconds=1)).id
    )

    assert query_pb2.QUERY_STATE_FAILED == query.state
    assert "DEADLINE_PASSED" == query.failure.reason


def test_a_query_is_cancelled_once_and_for_all(caller: Caller) -> None:
    query = caller.submit("a dog", NOBODY)

    cancelled = caller.call("CancelQuery", query_id=query.id).query
    again = caller.call("CancelQuery", query_id=query.id).query

    assert query_pb2.QUERY_STATE_CANCELLED == cancelled.state
    assert cancelled.HasField("end_time")
    assert cancelled == again == caller.last_of(query.id)


def test_a_final_query_is_delivered_again_under_the_same_id(
    caller: Caller, receiver: Receiver
) -> None:
    query = caller.last_of(caller.submit("a dog", receiver.url).id)

    redelivered = caller.call("RedeliverQuery", query_id=query.id).query
    last = caller.last_of(query.id)

    assert query_pb2.QUERY_STATE_DELIVERING == redelivered.state
    assert [1, 2] == [attempt.number for attempt in last.attempts]
    sent = [each for each in receiver.requests if query.id == each.headers["webhook-id"]]
    assert 2 == len(sent)
    assert sent[0].body == sent[1].body


def test_a_cancelled_query_can_be_delivered_after_all(caller: Caller) -> None:
    query = caller.submit("a dog", NOBODY)
    caller.call("CancelQuery", query_id=query.id)

    redelivered = caller.call("RedeliverQuery", query_id=query.id).query
    caller.call("CancelQuery", query_id=query.id)

    assert redelivered.state in (query_pb2.QUERY_STATE_QUEUED, query_pb2.QUERY_STATE_DELIVERING)


def test_a_delivered_query_cannot_be_cancelled(caller: Caller, receiver: Receiver) -> None:
    query = caller.last_of(caller.submit("a dog", receiver.url).id)

    refusal = refused(lambda: caller.call("CancelQuery", query_id=query.id))

    assert "STATE_CONFLICT" == refusal.reason
    assert grpc.StatusCode.FAILED_PRECONDITION == refusal.code
    assert {"state": "DELIVERED"} == refusal.metadata


def test_a_query_that_is_not_final_cannot_be_redelivered(caller: Caller) -> None:
    query = caller.submit("a dog", NOBODY)

    refusal = refused(lambda: caller.call("RedeliverQuery", query_id=query.id))

    assert "STATE_CONFLICT" == refusal.reason
    assert refusal.metadata["state"] in ("QUEUED", "DELIVERING")


@pytest.mark.parametrize("choice", ["ON_UNMATCHED_UNSPECIFIED", "ON_UNMATCHED_DELIVER"])
def test_a_query_that_matches_nothing_is_delivered_by_default(
    caller: Caller, receiver: Receiver, choice: str
) -> None:
    query = caller.submit(
        "quarterly revenue", receiver.url, on_unmatched=query_pb2.OnUnmatched.Value(choice)
    )
    last = caller.last_of(query.id)

    assert query_pb2.QUERY_STATE_DELIVERED == last.state
    assert "query.unmatched" == receiver.requests[-1].json()["type"]


def test_a_query_that_matches_nothing_ends_without_a_callback_if_its_caller_asks(
    caller: Caller, receiver: Receiver
) -> None:
    seen = len(receiver.requests)
    end = query_pb2.ON_UNMATCHED_END
    query = caller.submit("quarterly revenue", receiver.url, on_unmatched=end)
    last = caller.last_of(query.id)
    state = query_pb2.QUERY_STATE_UNMATCHED
    listed = caller.call("ListQueries", state=state).queries
    refusal = refused(lambda: caller.call("CancelQuery", query_id=query.id))

    assert (state, ["quarterly", "revenue"]) == (last.state, list(last.lemmas))
    assert last.HasField("end_time")
    assert not any([last.HasField("match"), last.HasField("failure"), last.attempts])
    assert last in listed
    assert ("STATE_CONFLICT", {"state": "UNMATCHED"}) == (refusal.reason, refusal.metadata)
    assert seen == len(receiver.requests)


def test_on_unmatched_is_part_of_what_a_request_id_names(caller: Caller) -> None:
    fields: dict[str, Any] = {"request_id": "end-or-deliver"}
    unset = caller.submit("a dog", NOBODY, **fields)
    deliver = caller.submit("a dog", NOBODY, on_unmatched=1, **fields)

    assert unset.id == deliver.id  # unset means deliver
    fields |= {"text": "a dog", "callback_url": NOBODY, "on_unmatched": 2}
    assert "REQUEST_ID_REUSED" == caller.refused("SubmitQuery", **fields)
    fields["request_id"] = "end"
    assert caller.call("SubmitQuery", **fields).created
    assert not caller.call("SubmitQuery", **fields).created
    fields["on_unmatched"] = 0
    assert "REQUEST_ID_REUSED" == caller.refused("SubmitQuery", **fields)


def test_a_request_of_before_on_unmatched_is_still_the_same_request(caller: Caller) -> None:
    """A caller may repeat over an upgrade what it sent before: its fingerprint has not changed."""
    caller.submit("a dog", NOBODY, request_id="of-schema-5")
    (stored,) = caller.service.app._database.read(
        "SELECT fingerprint FROM request WHERE request_id = 'of-schema-5'"
    )

    parts = ("SubmitQuery", "a dog", NOBODY, None)
    assert (hashlib.sha256(repr(parts).encode()).digest(),) == stored


def test_queries_are_listed_newest_first_and_by_state(tmp_path: Path) -> None:
    with running(tmp_path / "data", allow_callback=("127.0.0.1:1",)) as service:
        caller = Caller(service)
        ids = [caller.submit(f"dog {number}", NOBODY).id for number in range(6)]
        for id_ in ids[::2]:
            caller.call("CancelQuery", query_id=id_)
        cancelled = query_pb2.QUERY_STATE_CANCELLED
        first = caller.call("ListQueries", page_size=2, state=cancelled)
        second = caller.call(
            "ListQueries", page_size=2, state=cancelled, page_token=first.next_page_token
        )
        everything = caller.call("ListQueries")

    assert ids[4::-2] == [query.id for query in (*first.queries, *second.queries)]
    assert not second.next_page_token
    assert ids[::-1] == [query.id for query in everything.queries]
    assert not everything.next_page_token


def test_page_tokens_outlive_a_restart(tmp_path: Path) -> None:
    with running(tmp_path / "data") as service:
        caller = Caller(service)
        ids = [caller.upload(seed).id for seed in range(2)]
        token = caller.call("ListImages", page_size=1).next_page_token
        metadata = service.metadata

    with serving(tmp_path / "data") as app, stub_of(app.address) as stub:
        page = stub.ListImages(pb.ListImagesRequest(page_token=token), metadata=metadata)

    assert ids[:1] == [image.id for image in page.images]


def test_200_calls_at_once_on_one_connection_are_all_answered(caller: Caller) -> None:
    """More than the limit on streams that servers usually set: none may be refused for it."""
    stub, metadata = caller.service.stub, caller.service.metadata

    calls: list[Any] = [
        stub.ListImages.future(pb.ListImagesRequest(page_size=1), metadata=metadata)
        for _ in range(200)
    ]

    assert [grpc.StatusCode.OK] * 200 == [call.code() for call in calls]


def test_watchers_beyond_the_limit_are_refused_and_the_others_go_on(caller: Caller) -> None:
    query = caller.submit("a dog", NOBODY)
    watches = [caller.call("WatchQuery", query_id=query.id) for _ in range(64)]
    for watch in watches:
        next(watch)

    refusal = refused(lambda: next(caller.call("WatchQuery", query_id=query.id)))

    assert ("OVERLOADED", 1.0) == (refusal.reason, refusal.retry_after)
    assert "1000" == refusal.trailers["grpc-retry-pushback-ms"]
    assert caller.call("ListImages").images
    caller.call("CancelQuery", query_id=query.id)
    lasts = [list(watch)[-1].query.state for watch in watches]
    assert [query_pb2.QUERY_STATE_CANCELLED] * 64 == lasts
