"""The life of one lease on a query, with a deliverer that answers what the test tells it to."""

from __future__ import annotations

import base64
import json
import threading
from typing import TYPE_CHECKING

import pytest

from dispatcher import signature
from dispatcher.deliverer import Answered, Failed
from storage.query_records import Attempt
from tests.dispatcher.delivering import BROKEN, Bench
from tests.fakes import START
from tests.store import CALLBACK_URL, SECRET

if TYPE_CHECKING:
    from analysis.lemmas import Term
    from storage.database import Database
    from storage.query_records import Query


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


def test_a_query_that_nothing_matches_ends_without_a_callback_if_its_caller_asked_for_that(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.store.add_image(tags={"cat": 1})
    query = bench.store.submit("a dog", on_unmatched="END")
    caplog.set_level("INFO")
    with bench.store.queries.changes.watch(query.id) as changed:
        bench.work()

        assert changed.is_set()
    ended = bench.query(query.id)
    assert [] == bench.deliverer.sent
    assert ("UNMATCHED", START, (), None) == (
        ended.state,
        ended.ended_at,
        ended.attempts,
        ended.failure_reason,
    )
    assert ended.matched is not None
    assert (("a", "dog"), None) == (ended.matched.lemmas, ended.matched.match)
    assert [("delivery.attempted", query.id, "Unmatched", 0)] == [
        (record.getMessage(), *(vars(record)[fact] for fact in ("query", "outcome", "status")))
        for record in caplog.records
    ]
    assert [] == bench.work()


def test_a_query_that_something_matches_is_delivered_whatever_its_caller_wants_otherwise(
    bench: Bench,
) -> None:
    bench.store.add_image(b"picture", tags={"dog": 1})
    query = bench.store.submit("a dog", on_unmatched="END")
    bench.work()

    assert "query.matched" == json.loads(bench.bodies[0])["type"]
    assert "DELIVERED" == bench.query(query.id).state


@pytest.mark.parametrize(
    ("on_unmatched", "state", "bodies"), [("DELIVER", "DELIVERED", 2), ("END", "UNMATCHED", 1)]
)
def test_a_query_whose_image_is_deleted_before_a_retry_is_matched_again(
    bench: Bench, on_unmatched: str, state: str, bodies: int
) -> None:
    image = bench.store.add_image(tags={"dog": 1})
    query = bench.store.submit("dog", on_unmatched=on_unmatched)
    bench.deliverer.outcomes = [BROKEN]
    bench.work()
    bench.store.images.delete(image.id)
    bench.clock.advance(5)
    bench.work()
    ended = bench.query(query.id)

    assert (state, bodies) == (ended.state, len(bench.bodies))
    assert list(range(1, bodies + 1)) == [made.number for made in ended.attempts]
    assert ended.matched is not None
    assert ended.matched.match is None


def test_an_unmatched_query_that_is_redelivered_is_matched_again(bench: Bench) -> None:
    query = bench.store.submit("dog", on_unmatched="END", give_up_after=1_000)
    bench.work()
    bench.clock.advance(60)
    bench.store.queries.redeliver(query.id, now=bench.clock())
    bench.work()
    unmatched = bench.query(query.id)
    bench.store.add_image(tags={"dog": 1})
    bench.store.queries.redeliver(query.id, now=bench.clock())
    bench.work()

    # Its give_up_after began again with the redelivery.
    assert ("UNMATCHED", START + 60_000) == (unmatched.state, unmatched.ended_at)
    assert "DELIVERED" == bench.query(query.id).state


def test_a_query_that_is_too_late_is_given_up_and_not_matched(bench: Bench) -> None:
    query = bench.store.submit("dog", on_unmatched="END", give_up_after=1_000)
    bench.clock.advance(1)
    bench.work()
    ended = bench.query(query.id)

    assert ("FAILED", "DEADLINE_PASSED", None) == (
        ended.state,
        ended.failure_reason,
        ended.matched,
    )


@pytest.mark.parametrize(("size_bytes", "is_apart"), [(499_999, False), (500_000, True)])
def test_a_large_image_becomes_a_body_on_a_thread_apart_and_is_signed_like_a_small_one(
    bench: Bench,
    size_bytes: int,
    is_apart: bool,  # noqa: FBT001 - from the table
) -> None:
    content = (bytes(range(256)) * 2_000)[:size_bytes]
    bench.store.add_image(content, tags={"dog": 1})
    bench.store.submit("a dog")
    read, readers = bench.store.images.content, []

    def read_and_note(seq: int) -> bytes:
        readers.append(threading.current_thread())
        return read(seq)

    bench.store.images.content = read_and_note  # type: ignore[method-assign]
    bench.work()
    ((_, headers, body),) = bench.deliverer.sent

    assert [is_apart] == [reader is not threading.current_thread() for reader in readers]
    assert content == base64.b64decode(json.loads(body)["result"])
    signature.verify(
        [signature.decode_secret(SECRET)], headers=headers, body=body, now=START / 1000
    )


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


@pytest.mark.parametrize("size_bytes", [10, 600_000])
def test_a_query_whose_image_is_deleted_before_delivery_is_matched_anew(
    bench: Bench, size_bytes: int
) -> None:
    best = bench.store.add_image(b"best".ljust(size_bytes), tags={"dog": 9})
    second = bench.store.add_image(b"second".ljust(size_bytes), tags={"dog": 5})
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


@pytest.mark.parametrize("step", [-86_400_000, -60_000, 3_600_000])
def test_a_wall_clock_set_during_an_attempt_changes_neither_latency_nor_wait(
    bench: Bench, step: int
) -> None:
    bench.deliverer.outcomes = [BROKEN]

    def set_clock() -> None:
        bench.clock.advance(2)
        bench.step = step

    query = bench.store.submit("dog")
    bench.before_post = set_clock
    bench.work()
    found = bench.query(query.id)
    (made,) = found.attempts

    assert (START, 2_000) == (made.started_at, made.latency_ms)
    assert bench.clock() + 5_000 == found.due_at


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
        [new, old], webhook_id=query.id, timestamp=START // 1000, body=[body]
    )
    assert after["webhook-signature"] == signature.sign(
        [new], webhook_id=query.id, timestamp=START // 1000 + 60, body=[body]
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
