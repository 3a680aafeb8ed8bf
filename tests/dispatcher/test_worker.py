"""The life of one lease on a query, with a deliverer that answers what the test tells it to."""

from __future__ import annotations

import json
import random
import threading
from typing import TYPE_CHECKING, Any, cast

import pytest

from dispatcher import signature
from dispatcher.deliverer import Answered, Failed
from dispatcher.matcher import Matcher
from dispatcher.patience import Patience
from dispatcher.retry import RetryPolicy
from dispatcher.worker import DeliveryWorker
from storage.errors import StorageFullError
from storage.queries import Queries
from storage.query_records import Attempt
from tests.fakes import START, FakeClock, FakeDeliverer, FakeLemmatizer
from tests.store import CALLBACK_URL, SECRET, Store

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from analysis.lemmas import Lemmatizer, Term
    from dispatcher.deliverer import Outcome
    from storage.database import Database
    from storage.query_records import Query, QueryLease

OK = Answered(status=204, retry_after=None, excerpt=b"", gone=False)
BROKEN = Answered(status=500, retry_after=None, excerpt=b"oops", gone=False)


class Bench:
    """A worker with its store and clock; *before_post* runs before each POST is answered."""

    def __init__(self, database: Database) -> None:
        self.store = Store(database)
        self.clock = FakeClock()
        self.lemmatizer = FakeLemmatizer()
        self.before_post: Callable[[], None] = lambda: None
        bench = self

        class Deliverer(FakeDeliverer):
            def deliver(self, url: str, *, headers: Mapping[str, str], body: bytes) -> Outcome:
                bench.before_post()
                return super().deliver(url, headers=headers, body=body)

        self.deliverer = Deliverer()
        self.patience = Patience(pause=0)
        self.queries = self.store.queries
        self.worker = self.make_worker()

    def make_worker(self) -> DeliveryWorker:
        store = self.store
        return DeliveryWorker(
            queries=self.queries,
            images=store.images,
            api_keys=store.api_keys,
            matcher=Matcher(
                tags=store.tags,
                images=store.images,
                lemmatizer=cast("Lemmatizer", self.lemmatizer),
            ),
            deliverer=self.deliverer,
            policy=RetryPolicy(
                schedule=(0, 5, 300), client_error_schedule=(0, 5), jitter=0, rng=random.Random(0)
            ),
            patience=self.patience,
            clock=self.clock,
        )

    def work(self) -> list[QueryLease]:
        """Do what the lane does, once."""
        leases = list(self.worker.lease(9))
        self.worker.process(leases)
        return leases

    def query(self, query_id: str) -> Query:
        return self.store.queries.get(query_id)

    @property
    def bodies(self) -> list[bytes]:
        return [body for *_, body in self.deliverer.sent]


@pytest.fixture
def bench(database: Database) -> Bench:
    return Bench(database)


def test_a_query_is_matched_called_back_and_delivered(bench: Bench) -> None:
    image = bench.store.add_image(b"picture", tags={"dog": 900_000})
    query = bench.store.submit("a dog")
    bench.work()
    delivered = bench.query(query.id)
    ((url, headers, body),) = bench.deliverer.sent

    assert CALLBACK_URL == url
    assert ("application/json", query.id, str(START // 1000)) == (
        headers["content-type"],
        headers["webhook-id"],
        headers["webhook-timestamp"],
    )
    message = json.loads(body)
    assert ("query.matched", query.id, image.id, "cGljdHVyZQ==") == (
        message["type"],
        message["data"]["query_id"],
        message["data"]["image"]["id"],
        message["result"],
    )
    assert ("DELIVERED", START) == (delivered.state, delivered.ended_at)
    assert (Attempt(number=1, started_at=START, latency_ms=0, http_status=204),) == (
        delivered.attempts
    )


def test_a_query_that_nothing_matches_is_called_back_too(bench: Bench) -> None:
    bench.store.add_image(tags={"cat": 1})
    query = bench.store.submit("a dog")
    bench.work()
    message = json.loads(bench.bodies[0])

    assert ("query.unmatched", None, 0) == (
        message["type"],
        message["result"],
        message["data"]["score"],
    )
    assert "DELIVERED" == bench.query(query.id).state
    matched = bench.query(query.id).matched
    assert matched is not None
    assert (("a", "dog"), None) == (matched.lemmas, matched.match)


def test_the_match_is_on_record_before_the_first_post(bench: Bench) -> None:
    image = bench.store.add_image(tags={"dog": 5})
    query = bench.store.submit("dog")
    seen: list[Query] = []
    bench.before_post = lambda: seen.append(bench.query(query.id))
    bench.work()

    assert ["DELIVERING"] == [query.state for query in seen]
    matched = seen[0].matched
    assert matched is not None
    assert matched.match is not None
    assert (image.id, 5, START) == (matched.match.image_id, matched.match.score, matched.at)


def test_every_attempt_sends_the_same_bytes_whatever_happens_to_the_tags(bench: Bench) -> None:
    image = bench.store.add_image(b"first", tags={"dog": 500_000, "sky": 400_000})
    query = bench.store.submit("dog sky")
    bench.deliverer.outcomes = [BROKEN, Failed(reason="TIMEOUT", message="Too slow.")]
    bench.work()
    bench.store.add_image(b"better", tags={"dog": 1_000_000, "sky": 1_000_000})
    bench.store.images.update_tags(image.id, set_tags={"sky": 1}, remove=["dog"])
    for wait in (5, 300):
        bench.clock.advance(wait)
        bench.work()
    bench.store.queries.redeliver(query.id, now=bench.clock())
    bench.work()

    assert 4 == len(bench.bodies)
    assert 1 == len(set(bench.bodies))
    assert {query.id} == {headers["webhook-id"] for _, headers, _ in bench.deliverer.sent}
    assert [START // 1000 + later for later in (0, 5, 305, 305)] == [
        int(headers["webhook-timestamp"]) for _, headers, _ in bench.deliverer.sent
    ]


def test_that_nothing_matched_stands_for_all_attempts_too(bench: Bench) -> None:
    bench.store.submit("dog")
    bench.deliverer.outcomes = [BROKEN]
    bench.work()
    bench.store.add_image(tags={"dog": 5})
    bench.clock.advance(5)
    bench.work()

    assert 2 == len(bench.bodies)
    assert 1 == len(set(bench.bodies))


def test_a_query_whose_image_is_deleted_before_delivery_is_matched_anew(bench: Bench) -> None:
    best = bench.store.add_image(b"best", tags={"dog": 9})
    second = bench.store.add_image(b"second", tags={"dog": 5})
    query = bench.store.submit("dog")
    bench.deliverer.outcomes = [BROKEN, BROKEN]
    images = [best, second]
    sent = []
    for wait in (0, 5, 300):
        bench.clock.advance(wait)
        bench.work()
        sent.append(json.loads(bench.bodies[-1])["data"]["image"])
        if images:
            bench.store.images.delete(images.pop(0).id)

    assert [best.id, second.id, None] == [image and image["id"] for image in sent]
    matched = bench.query(query.id).matched
    assert matched is not None
    assert (None, START + 305_000) == (matched.match, matched.at)
    assert "DELIVERED" == bench.query(query.id).state


def test_an_attempt_that_failed_is_on_record_and_tried_again_on_schedule(bench: Bench) -> None:
    query = bench.store.submit("dog")
    bench.deliverer.outcomes = [
        Failed(reason="CONNECTION_REFUSED", message="Nobody listens."),
        BROKEN,
        Answered(status=503, retry_after=900.0, excerpt=b"", gone=False),
    ]
    due = []
    for wait in (0, 5, 300):
        bench.clock.advance(wait)
        bench.work()
        due.append(bench.query(query.id).due_at)
    failed = bench.query(query.id)

    assert [START + 5000, START + 305_000, None] == due
    assert ("FAILED", "ATTEMPTS_EXHAUSTED", START + 305_000) == (
        failed.state,
        failed.failure_reason,
        failed.ended_at,
    )
    assert [
        (1, 0, "CONNECTION_REFUSED", ""),
        (2, 500, "HTTP_STATUS", "oops"),
        (3, 503, "HTTP_STATUS", ""),
    ] == [
        (made.number, made.http_status, made.failure_reason, made.excerpt)
        for made in failed.attempts
    ]


def test_the_latency_of_an_attempt_is_that_of_its_post(bench: Bench) -> None:
    query = bench.store.submit("dog")
    bench.before_post = lambda: bench.clock.advance(0.25)
    bench.work()
    (made,) = bench.query(query.id).attempts

    assert (START, 250) == (made.started_at, made.latency_ms)
    assert START + 250 == bench.query(query.id).ended_at


def test_a_clock_set_back_during_an_attempt_makes_no_negative_latency(bench: Bench) -> None:
    query = bench.store.submit("dog")
    bench.before_post = lambda: bench.clock.advance(-60)
    bench.work()
    (made,) = bench.query(query.id).attempts

    assert 0 == made.latency_ms


def test_a_redelivered_query_has_its_whole_schedule_again(bench: Bench) -> None:
    query = bench.store.submit("dog")
    bench.deliverer.outcomes = [Answered(status=410, retry_after=None, excerpt=b"", gone=True)]
    bench.work()
    gone = bench.query(query.id)
    bench.store.queries.redeliver(query.id, now=bench.clock())
    bench.deliverer.outcomes = [BROKEN]
    bench.work()

    assert ("FAILED", "RECEIVER_GONE") == (gone.state, gone.failure_reason)
    # The wait after a first attempt, though it is the second of its life.
    assert START + 5000 == bench.query(query.id).due_at
    assert [1, 2] == [made.number for made in bench.query(query.id).attempts]


def test_all_secrets_that_are_in_force_sign_the_newest_first(bench: Bench) -> None:
    query = bench.store.submit("dog")
    secret = signature.new_secret()
    bench.store.api_keys.rotate("tests", signing_secret=secret, overlap=60_000, now=START)
    bench.deliverer.outcomes = [BROKEN]
    bench.work()
    bench.clock.advance(60)
    bench.work()
    (_, during, body), (_, after, _) = bench.deliverer.sent
    new, old = signature.decode_secret(secret), signature.decode_secret(SECRET)

    assert during["webhook-signature"] == signature.sign(
        [new, old], webhook_id=query.id, timestamp=START // 1000, body=body
    )
    assert after["webhook-signature"] == signature.sign(
        [new], webhook_id=query.id, timestamp=START // 1000 + 60, body=body
    )


def test_a_revoked_key_still_signs_what_it_submitted(bench: Bench) -> None:
    query = bench.store.submit("dog")
    bench.store.api_keys.revoke("tests", now=START)
    bench.work()

    assert "DELIVERED" == bench.query(query.id).state


def test_a_query_cancelled_while_it_is_matched_is_not_sent(bench: Bench) -> None:
    query = bench.store.submit("dog")
    look = bench.lemmatizer.terms

    def cancel_meanwhile(text: str) -> list[Term]:
        bench.store.queries.cancel(query.id, now=bench.clock())
        return look(text)

    bench.lemmatizer.terms = cancel_meanwhile  # type: ignore[method-assign]
    bench.work()

    assert [] == bench.deliverer.sent
    assert ("CANCELLED", (), None) == (
        bench.query(query.id).state,
        bench.query(query.id).attempts,
        bench.query(query.id).matched,
    )


def test_a_query_cancelled_during_its_post_stays_cancelled(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    query = bench.store.submit("dog")

    def cancel_meanwhile() -> None:
        bench.store.queries.cancel(query.id, now=START)

    bench.before_post = cancel_meanwhile
    caplog.set_level("INFO")
    bench.work()

    assert ("CANCELLED", ()) == (bench.query(query.id).state, bench.query(query.id).attempts)
    assert ["LeaseLost"] == [vars(record)["outcome"] for record in caplog.records]


def test_nothing_is_sent_after_the_callers_interest_has_ended(bench: Bench) -> None:
    query = bench.store.submit("dog", give_up_after=60_000)
    bench.clock.advance(60)
    bench.work()
    failed = bench.query(query.id)

    assert [] == bench.deliverer.sent
    assert ("FAILED", "DEADLINE_PASSED", ()) == (
        failed.state,
        failed.failure_reason,
        failed.attempts,
    )


def test_no_attempt_is_planned_for_after_the_callers_interest_has_ended(bench: Bench) -> None:
    query = bench.store.submit("dog", give_up_after=60_000)
    bench.deliverer.outcomes = [BROKEN, BROKEN]
    bench.work()
    bench.clock.advance(5)
    bench.work()

    assert 2 == len(bench.deliverer.sent)
    assert ("FAILED", "DEADLINE_PASSED") == (
        bench.query(query.id).state,
        bench.query(query.id).failure_reason,
    )


def test_one_query_in_trouble_does_not_keep_the_others_of_its_batch(bench: Bench) -> None:
    late = bench.store.submit("dog", give_up_after=1000)
    crashing = bench.store.submit("dog", url="https://crash.test/")
    fine = bench.store.submit("dog")
    bench.clock.advance(1)
    bench.before_post = crash_once()
    bench.work()

    assert ["FAILED", "DELIVERING", "DELIVERED"] == [
        bench.query(query.id).state for query in (late, crashing, fine)
    ]


def crash_once() -> Callable[[], None]:
    crashes = [RuntimeError("a bug")]

    def crash() -> None:
        if crashes:
            raise crashes.pop()

    return crash


def test_a_deliverer_that_raises_costs_an_attempt_and_not_the_query(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    query = bench.store.submit("dog")
    bench.before_post = crash_once()
    bench.work()
    interrupted = bench.query(query.id)
    bench.clock.advance(5)
    bench.work()

    assert ("DELIVERING", START + 5000) == (interrupted.state, interrupted.due_at)
    assert [(1, "INTERRUPTED")] == [
        (made.number, made.failure_reason) for made in interrupted.attempts
    ]
    assert "DELIVERED" == bench.query(query.id).state
    (crash,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "delivery.crashed" == crash.message
    assert crash.exc_info is not None


def test_a_query_that_crashes_every_time_is_given_up_at_the_cap(bench: Bench) -> None:
    query = bench.store.submit("dog")

    def crash(text: str) -> list[Term]:
        raise RuntimeError(text)

    bench.lemmatizer.terms = crash  # type: ignore[method-assign]
    for wait in (0, 5, 300, 86_400):
        bench.clock.advance(wait)
        bench.work()

    assert ("FAILED", "ATTEMPTS_EXHAUSTED") == (
        bench.query(query.id).state,
        bench.query(query.id).failure_reason,
    )
    assert ["INTERRUPTED"] * 3 == [made.failure_reason for made in bench.query(query.id).attempts]
    assert [] == bench.deliverer.sent


class FullDisk(Queries):
    """Refuses to settle *refusals* times."""

    def __init__(self, database: Database, refusals: int) -> None:
        super().__init__(database)
        self.refusals = refusals
        self.refused = threading.Event()

    def settle(self, *args: Any, **options: Any) -> bool:
        if self.refusals:
            self.refusals -= 1
            self.refused.set()
            msg = "the disk is full"
            raise StorageFullError(msg)
        return super().settle(*args, **options)


def test_an_outcome_that_cannot_be_recorded_is_recorded_later_and_sent_once(bench: Bench) -> None:
    query = bench.store.submit("dog")
    bench.queries = FullDisk(bench.store.database, refusals=3)
    bench.worker = bench.make_worker()
    bench.work()

    assert 1 == len(bench.deliverer.sent)
    assert ("DELIVERED", 1) == (
        bench.query(query.id).state,
        len(bench.query(query.id).attempts),
    )


def test_stopping_ends_the_wait_for_storage_and_leaves_the_query_to_the_next_start(
    bench: Bench,
) -> None:
    query = bench.store.submit("dog")
    bench.queries = full_disk = FullDisk(bench.store.database, refusals=10**9)
    bench.patience = Patience(pause=3600)
    bench.worker = bench.make_worker()
    working = threading.Thread(target=bench.work)
    working.start()
    full_disk.refused.wait()
    bench.patience.stop()
    working.join()
    bench.store.queries.void_leases(max_attempts=3, now=bench.clock())

    assert ("DELIVERING", START) == (bench.query(query.id).state, bench.query(query.id).due_at)
    assert ["INTERRUPTED"] == [made.failure_reason for made in bench.query(query.id).attempts]


@pytest.mark.parametrize(
    ("excerpt", "expected"),
    [
        (b"plain", "plain"),
        ("é\u2028".encode(), "é\u2028"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        # Cut in the middle of a character, as an excerpt of so many bytes may be.
        ("é".encode()[:1], "\ufffd"),
        (b"a\0b\0", "a\ufffdb\ufffd"),
        # Half a surrogate pair, as some encoders write it.
        (b"\xed\xa0\x80", "\ufffd\ufffd\ufffd"),
        (bytes(range(256)) * 4, None),
    ],
)
def test_whatever_a_receiver_answers_can_be_kept(
    bench: Bench, excerpt: bytes, expected: str | None
) -> None:
    query = bench.store.submit("dog")
    bench.deliverer.outcomes = [Answered(status=500, retry_after=None, excerpt=excerpt, gone=False)]
    bench.work()
    (made,) = bench.query(query.id).attempts

    assert "HTTP_STATUS" == made.failure_reason
    assert expected in (made.excerpt, None)
    assert "\0" not in made.excerpt


def test_leases_are_for_what_is_due_now(bench: Bench) -> None:
    bench.store.submit("later", now=START + 1)

    assert [] == bench.work()

    bench.clock.advance(0.001)

    assert ["later"] == [lease.text for lease in bench.work()]


def test_each_attempt_is_logged_without_text_or_body(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    query = bench.store.submit("secret words")
    caplog.set_level("INFO")
    bench.work()
    (record,) = caplog.records

    assert ("delivery.attempted", query.id, 1, "Delivered", 204) == (
        record.message,
        *(vars(record)[name] for name in ("query", "attempt", "outcome", "status")),
    )
    assert "secret" not in repr(vars(record))
