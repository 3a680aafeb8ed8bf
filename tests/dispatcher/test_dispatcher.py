"""The whole dispatcher over a real file: taking up, working off, stopping."""

from __future__ import annotations

import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any, cast

import pytest

from analysis.lemmas import LemmatizerError
from analysis.taggers import Tag, Tagged
from dispatcher.dispatcher import Dispatcher
from dispatcher.settings import DispatcherSettings
from storage.database import Database
from storage.errors import ImageNotFoundError
from tests.fakes import START, FakeClock, FakeDecoder, FakeDeliverer, FakeLemmatizer, FakeTagger
from tests.storage.querying import UNMATCHED
from tests.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from analysis.lemmas import Lemmatizer
    from analysis.taggers import Outcome
    from dispatcher.deliverer import Outcome as DeliveryOutcome
    from dispatcher.lane import Lane
    from storage.changes import Changes

#: Long enough for a busy machine; only a failing test waits for it.
PATIENCE = 60.0


class Gate:
    """Where a fake stands until the test lets it go on."""

    def __init__(self, *, is_open: bool = True) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()
        if is_open:
            self.opened.set()

    def pass_through(self) -> None:
        self.reached.set()
        assert self.opened.wait(PATIENCE)


class GatedDeliverer(FakeDeliverer):
    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate()

    def deliver(
        self,
        url: str,
        *,
        headers: Mapping[str, str],
        body: Sequence[bytes],
        owner: str = "",
        timeout: float | None = None,
    ) -> DeliveryOutcome:
        self.gate.pass_through()
        return super().deliver(url, headers=headers, body=body, owner=owner, timeout=timeout)


class GatedTagger(FakeTagger):
    def __init__(self) -> None:
        super().__init__(
            lambda content: Tagged(tags=(Tag(content.decode(), 900_000),), model="m/1")
        )
        self.gate = Gate()

    def tag(self, contents: Sequence[bytes], *, timeout: float) -> list[Outcome]:
        self.gate.pass_through()
        return super().tag(contents, timeout=timeout)


class Bench:
    """A store, and dispatchers over it that are drained at the end."""

    def __init__(self, database: Database) -> None:
        self.store = Store(database)
        self.clock = FakeClock()
        self.deliverer = GatedDeliverer()
        self.tagger = GatedTagger()
        self.load_lemmatizer: Callable[[], FakeLemmatizer] = FakeLemmatizer
        self.made: list[Dispatcher] = []

    def make(self, *, tagger: bool = True, **settings: Any) -> Dispatcher:
        self.made.append(
            Dispatcher(
                DispatcherSettings(**{"delivery_threads": 2, "tagging_threads": 1, **settings}),
                images=self.store.images,
                tags=self.store.tags,
                queries=self.store.queries,
                api_keys=self.store.api_keys,
                breakers=self.store.breakers,
                load_lemmatizer=lambda: cast("Lemmatizer", self.load_lemmatizer()),
                load_tagger=(lambda: self.tagger) if tagger else None,
                decode=FakeDecoder().decode,
                deliverer=self.deliverer,
                clock=self.clock,
            )
        )
        return self.made[-1]

    def wait_for_query(self, query_id: str, state: str) -> None:
        queries = self.store.queries
        wait(queries.changes, query_id, lambda: queries.get(query_id).state == state)

    def wait_for_image(self, image_id: str, state: str) -> None:
        images = self.store.images
        wait(images.changes, image_id, lambda: images.get(image_id).state == state)


def wait(changes: Changes, id_: str, happened: Callable[[], bool]) -> None:
    with changes.watch(id_) as changed:
        while not happened():
            assert changed.wait(PATIENCE)
            changed.clear()


def wait_until_stopping(lane: Lane[object] | None) -> bool:
    assert lane is not None
    with lane._condition:
        return lane._condition.wait_for(lambda: lane._stopping, PATIENCE)


@pytest.fixture
def bench(database: Database) -> Iterator[Bench]:
    bench = Bench(database)
    yield bench
    bench.tagger.gate.opened.set()
    bench.deliverer.gate.opened.set()
    for dispatcher in bench.made:
        dispatcher.drain()


def test_an_image_is_tagged_and_a_query_finds_it(bench: Bench) -> None:
    dispatcher = bench.make()
    dispatcher.start()
    image = bench.store.add_image(b"dog", tag_it=True)
    dispatcher.wake_tagging()
    bench.wait_for_image(image.id, "READY")
    query = bench.store.submit("a dog")
    dispatcher.wake_delivery(query.destination)
    bench.wait_for_query(query.id, "DELIVERED")

    assert [image.id] == [match.image_id for match in dispatcher.match("a dog", limit=1).matches]
    assert 1 == len(bench.deliverer.sent)
    assert dispatcher.tags_images
    assert not dispatcher.tagging_is_paused


def test_what_waited_before_the_start_is_done_without_being_woken(bench: Bench) -> None:
    image = bench.store.add_image(b"dog", tag_it=True)
    query = bench.store.submit("dog")
    bench.make().start()
    bench.wait_for_image(image.id, "READY")
    bench.wait_for_query(query.id, "DELIVERED")

    assert 1 == len(bench.deliverer.sent)


def test_leases_of_a_process_that_died_are_taken_up(tmp_path: Path) -> None:
    with closing(Database.own(tmp_path)) as database:
        dead = Store(database)
        image = dead.add_image(b"dog", tag_it=True)
        query = dead.submit("cat")
        dead.images.lease_for_tagging(limit=1, now=START)
        dead.lease(limit=1, now=START)
    with closing(Database.own(tmp_path)) as database:
        bench = Bench(database)
        dispatcher = bench.make()
        dispatcher.start()
        bench.wait_for_image(image.id, "READY")
        bench.wait_for_query(query.id, "DELIVERED")
        dispatcher.drain()

        assert [(1, "INTERRUPTED"), (2, None)] == [
            (made.number, made.failure_reason)
            for made in bench.store.queries.get(query.id).attempts
        ]


def test_a_query_that_killed_the_process_in_every_attempt_is_not_tried_again(
    bench: Bench,
) -> None:
    query = bench.store.submit("dog")
    bench.store.lease(limit=1, now=START)
    bench.store.database.write(
        lambda connection: connection.execute("UPDATE query SET attempt = 10").rowcount
    )
    bench.make().start()

    assert ("FAILED", "ATTEMPTS_EXHAUSTED") == (
        bench.store.queries.get(query.id).state,
        bench.store.queries.get(query.id).failure_reason,
    )


def test_without_a_tagger_images_wait_and_queries_are_served(bench: Bench) -> None:
    image = bench.store.add_image(b"dog", tag_it=True)
    query = bench.store.submit("dog")
    dispatcher = bench.make(tagger=False)
    dispatcher.start()
    dispatcher.wake_tagging()
    dispatcher.wake_delivery(query.destination)
    bench.wait_for_query(query.id, "DELIVERED")

    assert not dispatcher.tags_images
    assert not dispatcher.tagging_is_paused
    assert "PENDING" == bench.store.images.get(image.id).state


def test_draining_ends_what_is_under_way_and_leaves_the_rest_for_the_next_start(
    bench: Bench,
) -> None:
    dispatcher = bench.make()
    dispatcher.start()
    bench.deliverer.gate = Gate(is_open=False)
    under_way = bench.store.submit("under way")
    dispatcher.wake_delivery(under_way.destination)
    assert bench.deliverer.gate.reached.wait(PATIENCE)
    draining = threading.Thread(target=dispatcher.drain)
    draining.start()
    assert wait_until_stopping(dispatcher._delivery_lane)  # type: ignore[arg-type]
    left = bench.store.submit("left")
    dispatcher.wake_delivery(left.destination)
    bench.deliverer.gate.opened.set()
    draining.join(PATIENCE)

    assert not draining.is_alive()
    assert ["DELIVERED", "QUEUED"] == [
        bench.store.queries.get(query.id).state for query in (under_way, left)
    ]
    assert 1 == len(bench.deliverer.sent)

    bench.make().start()
    bench.wait_for_query(left.id, "DELIVERED")

    assert 1 == len(bench.store.queries.get(left.id).attempts)


def test_draining_begins_no_delivery_while_the_tagger_takes_its_time(bench: Bench) -> None:
    dispatcher = bench.make()
    bench.tagger.gate = Gate(is_open=False)
    image = bench.store.add_image(b"dog", tag_it=True)
    dispatcher.start()
    assert bench.tagger.gate.reached.wait(PATIENCE)
    draining = threading.Thread(target=dispatcher.drain)
    draining.start()
    assert wait_until_stopping(dispatcher._tagging_lane)  # type: ignore[arg-type]
    stopped = dispatcher._delivery_lane._stopping
    query = bench.store.submit("too late")
    dispatcher.wake_delivery(query.destination)
    dispatcher._delivery_lane._thread.join(PATIENCE)
    bench.tagger.gate.opened.set()
    draining.join(PATIENCE)

    assert stopped
    assert "READY" == bench.store.images.get(image.id).state
    assert "QUEUED" == bench.store.queries.get(query.id).state


def test_a_dispatcher_that_never_started_can_be_drained(bench: Bench) -> None:
    query = bench.store.submit("dog")
    bench.make().drain()

    assert "QUEUED" == bench.store.queries.get(query.id).state


def test_the_index_is_there_before_the_first_query(bench: Bench) -> None:
    bench.store.add_image(tags={"dog": 5})
    dispatcher = bench.make()
    dispatcher.start()

    assert ["dog"] == [*dispatcher._matcher._matcher.result()._names.values()]


def test_an_image_deleted_while_it_is_tagged_is_gone(bench: Bench) -> None:
    dispatcher = bench.make()
    bench.tagger.gate = Gate(is_open=False)
    image = bench.store.add_image(b"dog", tag_it=True)
    dispatcher.start()
    assert bench.tagger.gate.reached.wait(PATIENCE)
    bench.store.images.delete(image.id)
    bench.tagger.gate.opened.set()
    dispatcher.drain()

    with pytest.raises(ImageNotFoundError):
        bench.store.images.get(image.id)
    assert (0, 0) == (bench.store.count("image_tag"), bench.store.count("tag"))
    assert () == dispatcher.match("dog", limit=1).matches


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="delivery_threads must be at least 1, not 0"):
        DispatcherSettings(delivery_threads=0)
    with pytest.raises(ValueError, match="delivery_bytes must be at least 1, not 0"):
        DispatcherSettings(delivery_bytes=0)
    with pytest.raises(ValueError, match="tagging_threads must be at least 1, not -1"):
        DispatcherSettings(tagging_threads=-1)


def test_what_has_its_match_goes_out_again_while_the_models_load(bench: Bench) -> None:
    tried, untried = (bench.store.submit(text) for text in ("tried", "untried"))
    lease = bench.store.lease(limit=1, now=START)[0]
    assert bench.store.queries.record_match(lease, UNMATCHED)
    loading = Gate(is_open=False)

    def load() -> FakeLemmatizer:
        loading.pass_through()
        return FakeLemmatizer()

    bench.load_lemmatizer = load
    dispatcher = bench.make()
    starting = threading.Thread(target=dispatcher.start)
    starting.start()
    assert loading.reached.wait(PATIENCE)
    bench.wait_for_query(tried.id, "DELIVERED")
    dispatcher.wake_delivery(tried.destination)
    sent_meanwhile = [headers["webhook-id"] for _, headers, _ in bench.deliverer.sent]
    used = bench.store.queries.get(untried.id).attempts
    loading.opened.set()
    starting.join(PATIENCE)
    bench.wait_for_query(untried.id, "DELIVERED")

    assert tried.id == lease.id
    assert [tried.id] == sent_meanwhile
    assert () == used


def test_a_retry_without_a_match_waits_for_the_models_and_is_not_lost_when_none_come(
    bench: Bench,
) -> None:
    query = bench.store.submit("dog")
    bench.store.lease(limit=1, now=START)  # by a process that died before it had matched

    def load() -> FakeLemmatizer:
        while not bench.store.database.read("SELECT 1 FROM query WHERE leased_at IS NOT NULL"):
            pass  # it is leased in a moment, and nobody tells
        message = "no lemmas"
        raise LemmatizerError(message)

    bench.load_lemmatizer = load
    dispatcher = bench.make()
    with pytest.raises(LemmatizerError, match="no lemmas"):
        dispatcher.start()
    dispatcher.drain()

    kept = bench.store.queries.get(query.id)
    assert [] == bench.deliverer.sent
    assert ("QUEUED", START) == (kept.state, kept.due_at)
    assert ["INTERRUPTED"] == [made.failure_reason for made in kept.attempts]  # of the dead one


def test_bodies_under_way_stay_within_the_budget_and_all_are_delivered(bench: Bench) -> None:
    size, at_once = 30_000, 3  # 40,000 bytes of base64 each
    bench.store.add_image(bytes(size), tags={"dog": 5})
    bench.deliverer = crowded = CrowdedDeliverer(at_once, of=40)
    queries = [
        bench.store.submit("dog", destination=f"http://{number}.test:80") for number in range(40)
    ]
    bench.make(delivery_threads=8, delivery_bytes=at_once * 40_000 + 39_999).start()
    for query in queries:
        bench.wait_for_query(query.id, "DELIVERED")

    assert at_once == crowded.most
    assert 40 == len(crowded.sent)


class CrowdedDeliverer(GatedDeliverer):
    """Lets go of nobody before *expected* have come, unless no more will; then of all of them."""

    def __init__(self, expected: int, *, of: int) -> None:
        super().__init__()
        self._expected = expected
        self._total = of
        self._changed = threading.Condition()
        self._come = 0
        self._here = 0
        self.most = 0

    def deliver(
        self,
        url: str,
        *,
        headers: Mapping[str, str],
        body: Sequence[bytes],
        owner: str = "",  # noqa: ARG002 - of the protocol
        timeout: float | None = None,  # noqa: ARG002
    ) -> DeliveryOutcome:
        with self._changed:
            self._come += 1
            self._here += 1
            self.most = max(self.most, self._here)
            self._changed.notify_all()
            crowd = min(-(-self._come // self._expected) * self._expected, self._total)
            assert self._changed.wait_for(lambda: self._come >= crowd, PATIENCE)
            self._here -= 1
        return super().deliver(url, headers=headers, body=body)
