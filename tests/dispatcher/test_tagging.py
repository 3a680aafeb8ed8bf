"""From a lease on images to their tags, with a tagger that does what the test tells it to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from analysis.images import (
    DamagedPictureError,
    ProcessUnavailableError,
    Rendition,
    UnprocessablePictureError,
    WorkCancelledError,
)
from analysis.taggers import Interrupted, Refused, Tag, Tagged, Unavailable
from dispatcher.patience import Patience
from dispatcher.settings import DispatcherSettings
from dispatcher.tagging import TaggingWorker
from storage.errors import StorageFullError
from storage.images import Images
from tests.fakes import START, FakeClock, FakeDecoder, FakeTagger
from tests.service import picture
from tests.store import Store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from analysis.taggers import Outcome
    from storage.database import Database
    from storage.images import TaggingLease

DAY = 86_400
SETTINGS = DispatcherSettings(
    tagger_pause=(1.0, 60.0), tagger_operator_pause=(60.0, 600.0), tagging_give_up_after=DAY
)
DOG = Tagged(tags=(Tag("dog", 900_000), Tag("sky", 0)), model="m/1")
OUT_OF_REACH = Unavailable("no route")


class Bench:
    """A worker with its store, clock and tagger."""

    def __init__(self, database: Database, tagger: FakeTagger | None = None) -> None:
        self.store = Store(database)
        self.clock = FakeClock()
        self.tagger = tagger or FakeTagger()
        self.decoder = FakeDecoder()
        self.answers: dict[bytes, Outcome] = {}
        self.otherwise: Outcome = DOG
        self.tagger.answer = lambda content: self.answers.get(content, self.otherwise)
        self.worker = TaggingWorker(
            SETTINGS,
            images=self.store.images,
            tagger=self.tagger,
            decode=self.decoder.decode,
            patience=Patience(pause=0),
            clock=self.clock,
        )

    def upload(self, *contents: bytes) -> list[str]:
        """Store images that wait; return their ids."""
        return [
            self.store.add_image(content, tag_it=True, now=self.clock()).id for content in contents
        ]

    def work(self) -> Sequence[TaggingLease]:
        """Do what the lane does, once."""
        leases = self.worker.lease(self.tagger.batch_size)
        if leases:
            self.worker.process(leases)
        return leases

    def state(self, image_id: str) -> tuple[str, str | None]:
        image = self.store.images.get(image_id)
        return image.state, image.failure_reason

    def wait(self) -> float | None:
        """Return in how many seconds there is work again."""
        due_at = self.worker.next_due_at()
        return None if due_at is None else (due_at - self.clock()) / 1000


@pytest.fixture
def bench(database: Database) -> Bench:
    return Bench(database)


def test_what_the_tagger_sees_is_stored(bench: Bench) -> None:
    (image_id,) = bench.upload(b"a")
    bench.work()
    image = bench.store.images.get(image_id)

    assert "READY" == image.state
    # What the tagger is sure not to see is not shown.
    assert [("dog", 900_000, "MODEL", "m/1")] == [
        (tag.name, tag.confidence, tag.source, tag.model) for tag in image.tags
    ]
    assert bench.wait() is None


def test_images_are_asked_about_together_in_the_order_they_came(bench: Bench) -> None:
    bench.upload(b"1", b"2", b"3", b"4", b"5")
    bench.work()
    bench.work()

    assert [[b"1", b"2", b"3", b"4"], [b"5"]] == bench.tagger.asked


def test_a_call_of_the_tagger_may_take_as_long_as_is_set(bench: Bench) -> None:
    bench.upload(b"a")
    bench.work()

    assert [30.0] == bench.tagger.timeouts


def test_an_image_that_the_tagger_refuses_has_failed(bench: Bench) -> None:
    refused, fine = bench.upload(b"bad", b"good")
    bench.answers[b"bad"] = Refused("too small")
    bench.work()
    image = bench.store.images.get(refused)

    assert ("FAILED", "TAGGER_REJECTED", "too small") == (
        image.state,
        image.failure_reason,
        image.failure_message,
    )
    assert ("READY", None) == bench.state(fine)
    assert not bench.worker.is_paused


def test_a_tagger_out_of_reach_pauses_everything_and_loses_nothing(bench: Bench) -> None:
    (waiting,) = bench.upload(b"a")
    bench.otherwise = OUT_OF_REACH
    bench.work()
    bench.upload(b"new")

    assert bench.worker.is_paused
    assert ("PENDING", None) == bench.state(waiting)
    assert [] == bench.work()
    assert 1.0 == bench.wait()
    assert 1 == len(bench.tagger.asked)


def test_pauses_double_to_a_limit_and_end_with_an_answer(bench: Bench) -> None:
    image_id, *_ = bench.upload(b"a")
    bench.otherwise = OUT_OF_REACH
    pauses = []
    for _ in range(9):
        bench.work()
        pauses.append(bench.wait())
        bench.clock.advance(pauses[-1] or 0)

    assert [1, 2, 4, 8, 16, 32, 60, 60, 60] == pauses
    assert not bench.worker.is_paused

    bench.otherwise = DOG
    bench.work()

    assert ("READY", None) == bench.state(image_id)
    assert not bench.worker.is_paused

    bench.upload(b"b")
    bench.otherwise = OUT_OF_REACH
    bench.work()

    assert 1.0 == bench.wait()


def test_weeks_of_failing_do_not_break_the_pause(bench: Bench) -> None:
    bench.otherwise = OUT_OF_REACH
    for number in range(1100):  # 2.0 ** 1024 is too much for a float
        if number % 1000 == 0:
            bench.upload(b"%d" % number)
        bench.work()
        bench.clock.advance(60)

    assert 1100 == len(bench.tagger.asked)
    assert bench.wait() == 0


def test_only_the_operator_can_mend_it_so_the_pause_is_long_and_told_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.upload(b"1", b"2", b"3", b"4")
    bench.otherwise = Unavailable("wrong token", operator=True)
    bench.work()

    assert 60.0 == bench.wait()
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert ["tagging.paused"] == [record.message for record in errors]
    assert ("wrong token", True) == (vars(errors[0])["detail"], vars(errors[0])["operator"])

    bench.clock.advance(60)
    bench.work()

    assert 120.0 == bench.wait()


def test_a_tagger_out_of_reach_by_itself_is_no_error_of_the_operators(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.upload(b"a")
    bench.otherwise = OUT_OF_REACH
    bench.work()

    assert [("WARNING", "tagging.paused")] == [
        (record.levelname, record.message) for record in caplog.records
    ]


def test_a_wish_to_be_left_alone_is_respected(bench: Bench) -> None:
    bench.upload(b"a", b"b")
    bench.answers = {b"a": Unavailable("busy", retry_after=300.0), b"b": OUT_OF_REACH}
    bench.work()

    assert 300.0 == bench.wait()


def test_a_failure_in_another_thread_does_not_shorten_a_pause(bench: Bench) -> None:
    bench.upload(b"a", b"b")
    (first,) = bench.worker.lease(1)
    (second,) = bench.worker.lease(1)
    bench.answers = {b"a": Unavailable("busy", retry_after=300.0), b"b": OUT_OF_REACH}
    bench.worker.process([first])
    bench.worker.process([second])

    assert 300.0 == bench.wait()


def test_images_that_fail_for_themselves_pause_nobody_else(bench: Bench) -> None:
    slow, fine = bench.upload(b"slow", b"fine")
    bench.answers[b"slow"] = Unavailable("not reached in time")
    bench.work()

    assert not bench.worker.is_paused
    assert [("PENDING", None), ("READY", None)] == [bench.state(slow), bench.state(fine)]
    assert 1.0 == bench.wait()


def test_an_image_that_fails_for_itself_waits_longer_each_time(bench: Bench) -> None:
    bench.upload(b"slow")
    bench.answers[b"slow"] = Unavailable("not reached in time")
    waits = []
    for number in range(9):
        bench.upload(b"fine %d" % number)  # the tagger answers, so that nothing pauses
        bench.work()
        waits.append(bench.wait())
        bench.clock.advance(waits[-1] or 0)

    assert [1, 1, 2, 4, 8, 16, 32, 60, 60] == waits


def test_an_images_own_wish_is_respected(bench: Bench) -> None:
    bench.upload(b"slow", b"fine")
    bench.answers[b"slow"] = Unavailable("busy", retry_after=90.0)
    bench.work()

    assert 90.0 == bench.wait()


@pytest.mark.parametrize(
    ("waited", "expected"),
    [(DAY - 1, ("PENDING", None)), (DAY, ("FAILED", "TAGGER_UNAVAILABLE"))],
)
def test_an_image_is_given_up_after_a_day(
    bench: Bench, waited: int, expected: tuple[str, str | None]
) -> None:
    (image_id,) = bench.upload(b"a")
    bench.otherwise = OUT_OF_REACH
    bench.clock.advance(waited)
    bench.work()

    assert expected == bench.state(image_id)


WRONG_TOKEN = Unavailable("wrong token", operator=True)


def pass_time(bench: Bench, seconds: float) -> None:
    """Let time pass as the lane sees it: it wakes when there is work."""
    end = bench.clock() + seconds * 1000
    while (wait := bench.wait()) is not None and bench.clock() + wait * 1000 <= end:
        bench.clock.advance(max(wait, 0))
        bench.work()
    bench.clock.now = round(end)


def test_a_day_of_a_wrong_token_costs_no_image(bench: Bench) -> None:
    bench.otherwise = WRONG_TOKEN
    images = bench.upload(*(b"%d" % number for number in range(10)))
    for _ in range(25):
        pass_time(bench, 3600)
        images += bench.upload(b"later %d" % bench.clock())
    states = {bench.state(image_id) for image_id in images}
    bench.otherwise = DOG
    pass_time(bench, 600)  # the longest pause

    assert {("PENDING", None)} == states
    assert {("READY", None)} == {bench.state(image_id) for image_id in images}


def test_time_that_the_operator_took_does_not_count_for_giving_up(bench: Bench) -> None:
    bench.upload(b"a")
    bench.otherwise = WRONG_TOKEN
    pass_time(bench, 3 * DAY)
    bench.otherwise = OUT_OF_REACH  # the token is right now, and Clarifai is down
    pass_time(bench, DAY - 700)
    (image_id,) = bench.upload(b"a")
    before = bench.state(image_id)
    pass_time(bench, 2 * 700)

    assert ("PENDING", None) == before
    assert ("FAILED", "TAGGER_UNAVAILABLE") == bench.state(image_id)


def test_a_restart_does_not_forget_what_the_operator_had_to_do(database: Database) -> None:
    bench = Bench(database)
    (image_id,) = bench.upload(b"a")
    bench.otherwise = WRONG_TOKEN
    pass_time(bench, 2 * DAY)
    again = Bench(database)
    again.clock.now = bench.clock()
    again.otherwise = OUT_OF_REACH
    pass_time(again, 700)

    assert ("PENDING", None) == again.state(image_id)
    assert again.tagger.asked


def test_a_token_that_is_revoked_in_the_middle_of_a_batch_costs_no_image(bench: Bench) -> None:
    bench.otherwise = WRONG_TOKEN
    first, second = bench.upload(b"a", b"b")
    bench.answers[b"a"] = DOG
    bench.clock.advance(2 * DAY)
    bench.work()

    assert [("READY", None), ("PENDING", None)] == [bench.state(first), bench.state(second)]


def test_an_image_that_was_given_up_has_a_day_again_when_uploaded_again(bench: Bench) -> None:
    bench.upload(b"a")
    bench.otherwise = OUT_OF_REACH
    bench.clock.advance(DAY)
    bench.work()
    bench.clock.advance(3600)
    (image_id,) = bench.upload(b"a")
    bench.work()

    assert ("PENDING", None) == bench.state(image_id)


def test_an_image_deleted_while_it_waits_its_turn_is_left_out(bench: Bench) -> None:
    deleted, kept = bench.upload(b"deleted", b"kept")
    leases = bench.worker.lease(2)
    bench.store.images.delete(deleted)
    bench.worker.process(leases)

    assert [[b"kept"]] == bench.tagger.asked
    assert ("READY", None) == bench.state(kept)


def test_a_batch_of_deleted_images_asks_nobody(bench: Bench) -> None:
    (deleted,) = bench.upload(b"deleted")
    leases = bench.worker.lease(1)
    bench.store.images.delete(deleted)
    bench.worker.process(leases)

    assert [] == bench.tagger.asked
    assert not bench.worker.is_paused


def crash_on(*contents: bytes) -> type[FakeTagger]:
    class Crashing(FakeTagger):
        def tag(self, asked: Sequence[bytes], *, timeout: float) -> list[Outcome]:
            outcomes = super().tag(asked, timeout=timeout)
            if set(asked) & set(contents):
                msg = "a bug"
                raise RuntimeError(msg)
            return outcomes

    return Crashing


def test_a_tagger_that_raises_is_one_out_of_reach(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(database, crash_on(b"a", b"b")())
    first, second = bench.upload(b"a", b"b")
    bench.work()

    assert [("PENDING", None)] * 2 == [bench.state(first), bench.state(second)]
    assert 1.0 == bench.wait()
    assert ["tagging.crashed"] * 3 == [
        record.message for record in caplog.records if record.levelname == "ERROR"
    ]


def test_an_image_over_which_the_tagger_raises_does_not_hold_up_its_batch(
    database: Database,
) -> None:
    bench = Bench(database, crash_on(b"poison")())
    poison, *others = bench.upload(b"poison", b"1", b"2", b"3")
    bench.work()

    assert [("READY", None)] * 3 == [bench.state(image_id) for image_id in others]
    assert ("PENDING", None) == bench.state(poison)
    assert not bench.worker.is_paused


def test_storage_that_refuses_is_asked_again_and_no_image_is_lost(database: Database) -> None:
    class Refusing(Images):
        refusals = ["content", "settle_tagging", "settle_tagging"]  # noqa: RUF012 - used once

        def refuse(self, what: str) -> None:
            if self.refusals[:1] == [what]:
                raise StorageFullError(self.refusals.pop(0))

        def content(self, seq: int) -> bytes:
            self.refuse("content")
            return super().content(seq)

        def settle_tagging(self, outcomes: Sequence[Any]) -> None:
            self.refuse("settle_tagging")
            super().settle_tagging(outcomes)

    bench = Bench(database)
    bench.worker._images = Refusing(database)
    (image_id,) = bench.upload(b"a")
    bench.work()

    assert [] == Refusing.refusals
    assert ("READY", None) == bench.state(image_id)
    assert [[b"a"]] == bench.tagger.asked


INTERRUPTED = Interrupted("the tagger's process ended (signal SIGSEGV)")


def test_an_image_whose_tagging_is_interrupted_is_tried_later_and_fails_in_the_end(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.otherwise = INTERRUPTED
    (image_id,) = bench.upload(b"poison")
    waits = []
    for _ in range(SETTINGS.max_interruptions):
        assert ("PENDING", None) == bench.state(image_id)
        bench.work()
        waits.append(bench.wait())
        bench.clock.advance(waits[-1] or 0)

    assert [0, 1, 3, 7, None] == waits
    assert ("FAILED", "IMAGE_UNPROCESSABLE") == bench.state(image_id)
    (failed,) = [record for record in caplog.records if record.message == "image.unprocessable"]
    assert image_id == vars(failed)["image"]
    assert not bench.worker.is_paused


def test_an_interruption_does_not_pause_the_tagging_of_others(bench: Bench) -> None:
    bench.answers = {b"poison": INTERRUPTED}
    poison, other = bench.upload(b"poison", b"other")
    bench.work()

    assert [("PENDING", None), ("READY", None)] == [bench.state(poison), bench.state(other)]
    assert not bench.worker.is_paused


class PreviewTagger(FakeTagger):
    reads_previews = True


def test_a_tagger_that_reads_previews_gets_the_stored_one(database: Database) -> None:
    bench = Bench(database, PreviewTagger())
    renditions = [Rendition("PREVIEW", 4, 3, b"preview"), Rendition("THUMBNAIL", 1, 1, b"small")]
    bench.store.add_image(b"original", tag_it=True, renditions=renditions)
    bench.work()

    assert [[b"preview"]] == bench.tagger.asked


def test_a_preview_that_an_earlier_version_did_not_make_is_made_once(database: Database) -> None:
    bench = Bench(database, PreviewTagger())
    bench.otherwise = OUT_OF_REACH
    (image_id,) = bench.upload(picture(size=(2000, 1000)))
    bench.work()
    bench.decoder.error = DamagedPictureError("not again")
    bench.otherwise = DOG
    bench.clock.advance(5)
    bench.work()

    first, second = bench.tagger.asked
    seq = bench.store.images.get(image_id).seq
    assert first == second == [bench.store.images.rendition(seq, "PREVIEW")]
    assert bench.store.images.rendition(seq, "THUMBNAIL") is not None
    assert ("READY", None) == bench.state(image_id)


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (DamagedPictureError("No."), ("FAILED", "TAGGER_REJECTED")),
        (UnprocessablePictureError("No."), ("PENDING", None)),
        (ProcessUnavailableError("Not now."), ("PENDING", None)),
        (WorkCancelledError("We stop."), ("PENDING", None)),
    ],
)
def test_a_preview_that_cannot_be_made_holds_up_no_other_image(
    database: Database, error: Exception, state: tuple[str, str | None]
) -> None:
    bench = Bench(database, PreviewTagger())
    bench.decoder.error = error
    (odd,) = bench.upload(b"odd")
    good = bench.store.add_image(
        b"good", tag_it=True, renditions=[Rendition("PREVIEW", 4, 3, b"preview")]
    )
    bench.work()

    assert state == bench.state(odd)
    assert ("READY", None) == bench.state(good.id)
    leases = bench.store.images.lease_for_tagging(limit=1, now=START + DAY * 1000)
    interruptions = int(isinstance(error, UnprocessablePictureError))
    assert [interruptions] * (state[0] == "PENDING") == [lease.interruptions for lease in leases]


def test_nothing_is_due_when_nothing_waits(bench: Bench) -> None:
    assert bench.wait() is None
    assert [] == bench.worker.lease(4)


def test_images_are_leased_when_they_are_due(bench: Bench) -> None:
    bench.store.add_image(b"later", tag_it=True, now=START + 5000)

    assert [] == bench.worker.lease(4)
    assert 5.0 == bench.wait()
