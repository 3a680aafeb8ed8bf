"""The servicer by itself, under grpcio-testing: no port, no interceptors, fakes around it."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import grpc
import grpc_testing
import pytest

from analysis.lemmas import Lemmatizer
from dispatcher import Dispatcher, DispatcherSettings, UrlGuard, new_secret
from picback.v1 import image_pb2, image_service_pb2, query_pb2
from server.caller import CALLER, Caller
from server.errors import RequestError, as_request_error
from server.key_limits import KeyLimits
from server.paging import Paging
from server.response_budget import ResponseBudget
from server.service import ImageService
from server.stream_limit import StreamLimit
from server.timer import Timer
from storage.api_keys import SCOPES, ApiKeys
from storage.breakers import Breakers
from storage.errors import ImageNotFoundError, QueryNotFoundError
from storage.images import Images
from storage.queries import Queries
from storage.tags import Tags
from tests.fakes import START, FakeClock, FakeDecoder, FakeDeliverer, FakeTagger
from tests.server.waiting import wait_until
from tests.service import picture

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from analysis.image_decoder import ImageDecoder
    from storage.database import Database

SERVICE = image_service_pb2.DESCRIPTOR.services_by_name["ImageService"]
URL = "http://receiver.example/callback"


class _AsCaller:
    """Sets the caller on the thread that answers, as the interceptor does."""

    def __init__(self, servicer: ImageService, key_id: str) -> None:
        self._servicer = servicer
        self._caller = Caller(key_id=key_id, request_id="req_test")

    def __getattr__(self, name: str) -> Callable[[Any, Any], Any]:
        method = getattr(self._servicer, name)

        def call(request: Any, context: grpc.ServicerContext) -> Any:
            CALLER.set(self._caller)
            return method(request, context)

        return call


class Stage:
    """A servicer with all that it talks to, and a grpcio-testing server around it."""

    def __init__(
        self, database: Database, lemmatizer: Lemmatizer, *, tagger: FakeTagger | None = None
    ) -> None:
        self.stopping = False
        self.deliverer = FakeDeliverer()
        api_keys = ApiKeys(database)
        key = self.key = api_keys.create(
            "test", scopes=SCOPES, signing_secret=new_secret(), expires_at=None, now=START
        )
        self.images, self.queries = Images(database), Queries(database)
        clock = FakeClock()
        self.dispatcher = Dispatcher(
            DispatcherSettings(delivery_threads=2),
            images=self.images,
            tags=Tags(database),
            queries=self.queries,
            api_keys=api_keys,
            breakers=Breakers(database),
            load_lemmatizer=lambda: lemmatizer,
            load_tagger=None if tagger is None else lambda: tagger,
            decode=FakeDecoder().decode,
            deliverer=self.deliverer,
            clock=clock,
        )
        self.servicer = ImageService(
            images=self.images,
            queries=self.queries,
            dispatcher=self.dispatcher,
            decoder=cast("ImageDecoder", FakeDecoder()),
            guard=UrlGuard(allow=["receiver.example:80"]),
            paging=Paging(bytes(32)),
            max_image_bytes=1_000_000,
            responses=ResponseBudget(1_000_000, timer=Timer()),
            limits=KeyLimits(
                calls_per_second=0, queued_queries=0, count_queued=self.queries.queued.count
            ),
            watchers=StreamLimit("WatchQuery", total=1, per_key=1),
            is_stopping=lambda: self.stopping,
            clock=clock,
        )
        self._server = grpc_testing.server_from_dictionary(
            {SERVICE: _AsCaller(self.servicer, key.id)}, grpc_testing.strict_real_time()
        )

    def start(self, method: str, **fields: Any) -> Any:
        """Begin a unary call."""
        descriptor = SERVICE.methods_by_name[method]
        request = getattr(image_service_pb2, f"{method}Request")(**fields)
        return self._server.invoke_unary_unary(descriptor, (), request, None)

    def call(self, method: str, **fields: Any) -> Any:
        """Make a unary call that must go well."""
        answer, _, code, details = self.start(method, **fields).termination()
        assert grpc.StatusCode.OK == code, details
        return answer

    def watch(self, query_id: str) -> Any:
        """Begin to watch a query."""
        return self._server.invoke_unary_stream(
            SERVICE.methods_by_name["WatchQuery"],
            (),
            image_service_pb2.WatchQueryRequest(query_id=query_id),
            None,
        )


@pytest.fixture(scope="module")
def lemmatizer() -> Lemmatizer:
    """The real one; loading it takes as long as all tests here."""
    return Lemmatizer()


@contextmanager
def _dispatching(stage: Stage) -> Iterator[Stage]:
    stage.dispatcher.start()
    try:
        yield stage
    finally:
        stage.dispatcher.drain()


@pytest.fixture
def stage(database: Database, lemmatizer: Lemmatizer) -> Stage:
    """Without a tagger, and with a dispatcher that is not at work."""
    return Stage(database, lemmatizer)


def test_an_upload_answers_with_what_the_tagger_sees(
    database: Database, lemmatizer: Lemmatizer
) -> None:
    content = picture(1)
    with _dispatching(Stage(database, lemmatizer, tagger=FakeTagger())) as stage:
        answer = stage.call("UploadImage", content=content)

    assert answer.created
    image = answer.image
    assert image_pb2.IMAGE_STATE_READY == image.state
    assert [("dog", image_pb2.TAG_SOURCE_MODEL, "fake/1")] == [
        (tag.name, tag.source, tag.model) for tag in image.tags
    ]
    assert ("image/png", len(content), 8, 8) == (
        image.media_type,
        image.size_bytes,
        image.width,
        image.height,
    )


def test_an_upload_that_does_not_wait_is_pending(
    database: Database, lemmatizer: Lemmatizer
) -> None:
    stage = Stage(
        database, lemmatizer, tagger=FakeTagger()
    )  # nobody asks it: nothing is dispatched

    image = stage.call("UploadImage", content=picture(1), no_wait=True).image

    assert image_pb2.IMAGE_STATE_PENDING == image.state
    assert image == stage.call("GetImage", image_id=image.id).image


def test_an_upload_without_a_tagger_is_ready_with_the_callers_tags(stage: Stage) -> None:
    tags = [image_pb2.Tag(name=" Golden  RETRIEVER"), image_pb2.Tag(name="lawn", confidence=0.25)]

    image = stage.call("UploadImage", content=picture(1), tags=tags).image

    assert image_pb2.IMAGE_STATE_READY == image.state
    assert [("golden retriever", 1.0), ("lawn", 0.25)] == [
        (tag.name, tag.confidence) for tag in image.tags
    ]


def test_an_upload_stops_waiting_when_the_server_stops(
    database: Database, lemmatizer: Lemmatizer
) -> None:
    stage = Stage(database, lemmatizer, tagger=FakeTagger())
    stage.stopping = True

    image = stage.call("UploadImage", content=picture(1)).image

    assert image_pb2.IMAGE_STATE_PENDING == image.state


def test_an_upload_stops_waiting_when_its_caller_leaves(
    database: Database, lemmatizer: Lemmatizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.service._LONGEST_WAIT", 1000.0)
    asked, answer = threading.Event(), threading.Event()

    def look(_: bytes) -> Any:
        asked.set()
        answer.wait()
        return FakeTagger().answer(b"")

    with _dispatching(Stage(database, lemmatizer, tagger=FakeTagger(look))) as stage:
        call = stage.start("UploadImage", content=picture(1))
        asked.wait()
        call.cancel()
        # The handler's watch on the image ends with the handler.
        wait_until(lambda: not stage.images.changes._watchers)
        answer.set()

    (image,) = stage.images.page(before=None, size=10)
    assert "READY" == image.state


def test_the_same_bytes_are_one_image(stage: Stage) -> None:
    first = stage.call("UploadImage", content=picture(1))
    second = stage.call("UploadImage", content=picture(1), tags=[image_pb2.Tag(name="dog")])

    assert (True, False) == (first.created, second.created)
    assert first.image.id == second.image.id
    assert ["dog"] == [tag.name for tag in second.image.tags]


def test_images_are_listed_newest_first_over_pages(stage: Stage) -> None:
    ids = [stage.call("UploadImage", content=picture(seed)).image.id for seed in range(5)]

    pages, token = [], ""
    while True:
        page = stage.call("ListImages", page_size=2, page_token=token)
        pages.append([image.id for image in page.images])
        token = page.next_page_token
        if not token:
            break

    assert [ids[:2:-1], ids[2:0:-1], ids[:1]] == pages


def test_the_stored_bytes_come_back_unchanged(stage: Stage) -> None:
    content = picture(7, format_="JPEG") + b"what a camera appended"
    image = stage.call("UploadImage", content=content).image

    answer = stage.call("GetImageContent", image_id=image.id)

    assert content == answer.content
    assert ("image/jpeg", image.sha256) == (answer.media_type, answer.sha256)


def test_a_query_is_matched_and_watched_until_it_is_delivered(
    database: Database, lemmatizer: Lemmatizer
) -> None:
    with _dispatching(Stage(database, lemmatizer)) as stage:
        image = stage.call(
            "UploadImage", content=picture(1), tags=[image_pb2.Tag(name="dog", confidence=0.5)]
        ).image
        query = stage.call("SubmitQuery", text="two dogs", callback_url=URL).query
        watch = stage.watch(query.id)
        answers: list[Any] = []
        while not answers or query_pb2.QUERY_STATE_DELIVERED != answers[-1].query.state:
            answers.append(watch.take_response())
        _, code, _ = watch.termination()

    assert grpc.StatusCode.OK == code
    last = answers[-1].query
    assert (image.id, 0.5) == (last.match.image_id, last.match.score)
    assert [("dog", "dog")] == [(tag.name, tag.lemma) for tag in last.match.tags]
    ((url, headers, _),) = stage.deliverer.sent
    assert (URL, query.id) == (url, headers["webhook-id"])


def test_a_watcher_who_leaves_makes_room_for_another(stage: Stage) -> None:
    """Of whom there may be one here."""
    query = stage.call("SubmitQuery", text="a dog", callback_url=URL).query
    first = stage.watch(query.id)
    first.take_response()

    first.cancel()
    wait_until(lambda: not stage.queries.changes._watchers)
    second = stage.watch(query.id)

    assert query.id == second.take_response().query.id
    second.cancel()


def test_too_many_watchers_are_told_so(stage: Stage) -> None:
    query = stage.call("SubmitQuery", text="a dog", callback_url=URL).query
    watch = stage.watch(query.id)
    watch.take_response()
    request = image_service_pb2.WatchQueryRequest(query_id=query.id)
    CALLER.set(Caller(key_id="key", request_id="req_test"))

    with pytest.raises(RequestError) as caught:
        next(stage.servicer.WatchQuery(request, cast("Any", _Leaving())))

    assert "OVERLOADED" == caught.value.reason
    watch.cancel()


def test_a_watch_ends_when_the_server_stops(stage: Stage) -> None:
    query = stage.call("SubmitQuery", text="a dog", callback_url=URL).query
    watch = stage.watch(query.id)
    watch.take_response()

    stage.stopping = True
    stage.queries.changes.wake_all()
    _, code, _ = watch.termination()

    assert grpc.StatusCode.OK != code


class _Leaving:
    """A context whose caller left at the worst moment: after the last look, before the wait."""

    def __init__(self) -> None:
        self.callbacks: list[Callable[[], None]] = []
        self.active = True

    def is_active(self) -> bool:
        active = self.active
        self.active = False
        for callback in self.callbacks:
            callback()
        return active

    def add_callback(self, callback: Callable[[], None]) -> bool:
        self.callbacks.append(callback)
        return True


def test_a_watch_notices_a_caller_who_leaves_while_it_looks(stage: Stage) -> None:
    query = stage.call("SubmitQuery", text="a dog", callback_url=URL).query
    request = image_service_pb2.WatchQueryRequest(query_id=query.id)
    token = CALLER.set(Caller(key_id=stage.key.id, request_id="req"))

    answers = list(
        stage.servicer.WatchQuery(request, cast("Any", _Leaving()))
    )  # would wait for ten minutes
    CALLER.reset(token)

    assert [query.id] == [answer.query.id for answer in answers]


@pytest.mark.parametrize(
    ("method", "request_", "reason"),
    [
        ("GetImage", image_service_pb2.GetImageRequest(image_id="x"), "IMAGE_NOT_FOUND"),
        ("GetQuery", image_service_pb2.GetQueryRequest(query_id="x"), "QUERY_NOT_FOUND"),
        ("UploadImage", image_service_pb2.UploadImageRequest(), "FIELD_INVALID"),
        (
            "UploadImage",
            image_service_pb2.UploadImageRequest(content=bytes(1_000_001)),
            "IMAGE_TOO_LARGE",
        ),
        ("ListImages", image_service_pb2.ListImagesRequest(page_token="x"), "PAGE_TOKEN_INVALID"),
    ],
)
def test_handlers_raise_and_leave_status_codes_to_the_interceptor(
    stage: Stage, method: str, request_: Any, reason: str
) -> None:
    token = CALLER.set(Caller(key_id=stage.key.id, request_id="req"))
    with pytest.raises((RequestError, ImageNotFoundError, QueryNotFoundError)) as caught:
        getattr(stage.servicer, method)(request_, _Leaving())
    CALLER.reset(token)

    assert reason == as_request_error(caught.value, request_id="r").reason
