"""What follows from an attempt, and that the documentation says the same."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.deliverer import ATTEMPT_TIMEOUT, Answered, Failed
from dispatcher.retry import (
    CLIENT_ERROR_SCHEDULE,
    MAX_RETRY_AFTER,
    SCHEDULE,
    Delivered,
    End,
    GiveUp,
    RetryAt,
    RetryPolicy,
    crashed,
    failure_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from dispatcher.deliverer import Outcome
    from dispatcher.retry import Decision

CALLBACKS_DOC = Path(__file__).parents[2] / "docs" / "callbacks.md"
NOW = 1_795_341_600_000
EXACT = RetryPolicy(jitter=0)


def answered(status: int, *, retry_after: float | None = None, gone: bool = False) -> Answered:
    return Answered(status=status, retry_after=retry_after, excerpt=b"", gone=gone)


def failed(reason: str) -> Failed:
    return Failed(reason=reason, message="It failed.")


@dataclass(frozen=True)
class Run:
    """What a lease tells of its query's run through the schedule."""

    cycle_at: int = NOW
    give_up_at: int | None = None


def decide(
    outcome: Outcome,
    *,
    attempt: int = 1,
    policy: RetryPolicy = EXACT,
    give_up_at: int | None = None,
    cycle_at: int = NOW,
) -> Decision:
    run = Run(cycle_at=cycle_at, give_up_at=give_up_at)
    return policy.decide(outcome, attempt=attempt, now=NOW, cycle=run)


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_any_2xx_is_delivered_whatever_else_it_says(status: int) -> None:
    assert Delivered() == decide(answered(status))
    assert Delivered() == decide(answered(status, retry_after=60.0, gone=True), attempt=10)


@pytest.mark.parametrize("attempt", range(1, 10))
@pytest.mark.parametrize(
    "outcome",
    [
        answered(500),
        answered(502),
        answered(504),
        answered(599),
        answered(999),  # no such class, so nothing is known
        answered(408),
        answered(425),
        answered(429),
        answered(302),
        answered(304),
        answered(404, retry_after=0.0),
        failed("DNS_ERROR"),
        failed("CONNECTION_REFUSED"),
        failed("CONNECTION_FAILED"),
        failed("TLS_ERROR"),
        failed("TIMEOUT"),
        failed("PROTOCOL_ERROR"),
        crashed(),
    ],
)
def test_what_may_pass_is_tried_again_on_the_schedule(outcome: Outcome, attempt: int) -> None:
    assert RetryAt(at=NOW + round(1000 * SCHEDULE[attempt])) == decide(outcome, attempt=attempt)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 413, 415, 422, 451])
def test_other_4xx_get_five_attempts(status: int) -> None:
    for attempt in range(1, 5):
        expected = RetryAt(at=NOW + round(1000 * CLIENT_ERROR_SCHEDULE[attempt]))
        assert expected == decide(answered(status), attempt=attempt)

    decision = decide(answered(status), attempt=5)
    assert isinstance(decision, GiveUp)
    assert "ATTEMPTS_EXHAUSTED" == decision.reason
    assert str(status) in decision.message


def test_five_attempts_after_4xx_are_over_within_the_hour() -> None:
    longest = sum(CLIENT_ERROR_SCHEDULE) * 1.2 + len(CLIENT_ERROR_SCHEDULE) * ATTEMPT_TIMEOUT

    assert 5 == len(CLIENT_ERROR_SCHEDULE)
    assert longest < 3600


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (answered(410, gone=True), "RECEIVER_GONE"),
        (answered(500, gone=True), "RECEIVER_GONE"),
        (answered(503, gone=True, retry_after=5.0), "RECEIVER_GONE"),
        (failed("ADDRESS_FORBIDDEN"), "ADDRESS_FORBIDDEN"),
        (failed("CALLBACK_URL_INVALID"), "CALLBACK_URL_INVALID"),
    ],
)
def test_what_is_final_is_given_up_at_once(outcome: Outcome, reason: str) -> None:
    decision = decide(outcome, attempt=1)

    assert isinstance(decision, GiveUp)
    assert reason == decision.reason


def test_the_number_of_attempts_is_the_length_of_the_schedule() -> None:
    last = decide(answered(500), attempt=len(SCHEDULE))

    assert 10 == EXACT.max_attempts == len(SCHEDULE)
    assert isinstance(last, GiveUp)
    assert "ATTEMPTS_EXHAUSTED" == last.reason


def test_the_schedule_is_that_of_standard_webhooks() -> None:
    assert 75.6 == round(sum(SCHEDULE) / 3600, 1)


@pytest.mark.parametrize(
    ("hint", "waited"),
    [
        (0.0, 5),
        (4.9, 5),
        (5.5, 5.5),
        (3600.0, 3600),
        (MAX_RETRY_AFTER, 86400),
        (1e9, 86400),
    ],
)
@pytest.mark.parametrize("status", [404, 429, 500, 503])
def test_retry_after_can_only_make_us_wait_longer_and_no_longer_than_a_day(
    status: int, hint: float | None, waited: float
) -> None:
    assert RetryAt(at=NOW + round(1000 * waited)) == decide(answered(status, retry_after=hint))


def test_a_retry_that_would_come_too_late_is_given_up_now() -> None:
    just_in_time = NOW + 5000

    assert RetryAt(at=just_in_time) == decide(answered(500), give_up_at=just_in_time)
    for outcome in (answered(500), failed("TIMEOUT"), answered(400)):
        decision = decide(outcome, give_up_at=just_in_time - 1)
        assert isinstance(decision, GiveUp)
        assert "DEADLINE_PASSED" == decision.reason
    late = decide(answered(503, retry_after=5.001), give_up_at=just_in_time)
    assert isinstance(late, GiveUp)


@given(st.integers(0, 2**32), st.integers(1, 9), st.none() | st.floats(0, 1e6))
def test_jitter_stays_within_a_fifth_and_never_hurries_a_receiver(
    seed: int, attempt: int, hint: float | None
) -> None:
    policy = RetryPolicy(rng=random.Random(seed))
    decision = decide(answered(503, retry_after=hint), attempt=attempt, policy=policy)
    assert isinstance(decision, RetryAt)
    waited = (decision.at - NOW) / 1000
    hint = min(hint or 0, MAX_RETRY_AFTER)

    assert max(0.8 * SCHEDULE[attempt], hint) - 0.001 <= waited
    assert waited <= max(1.2 * SCHEDULE[attempt], hint) + 0.001


def test_jitter_spreads_retries_over_the_whole_range() -> None:
    policy = RetryPolicy(rng=random.Random(1))
    decisions = [decide(answered(500), attempt=3, policy=policy) for _ in range(200)]
    waits = [(d.at - NOW) / 1800_000 for d in decisions if isinstance(d, RetryAt)]

    assert 200 == len(waits)
    assert min(waits) < 0.85
    assert max(waits) > 1.15


_outcomes = st.one_of(
    st.builds(
        answered,
        st.integers(200, 999),
        retry_after=st.none() | st.floats(0, 1e12),
        gone=st.booleans(),
    ),
    st.builds(failed, st.sampled_from(["TIMEOUT", "ADDRESS_FORBIDDEN", "DNS_ERROR"])),
)


@given(
    _outcomes,
    st.integers(1, 20),
    st.none() | st.integers(NOW, NOW + 10**9),
    st.integers(0, EXACT.lifetime),
)
def test_every_outcome_ends_or_is_tried_again_later_but_in_time(
    outcome: Outcome, attempt: int, give_up_at: int | None, age: int
) -> None:
    decision = decide(
        outcome,
        attempt=attempt,
        policy=RetryPolicy(),
        give_up_at=give_up_at,
        cycle_at=NOW - age,
    )

    assert isinstance(decision, Delivered) == (failure_of(outcome) is None)
    if isinstance(decision, RetryAt):
        assert attempt < EXACT.max_attempts
        assert NOW < decision.at <= (give_up_at or NOW + 1.2 * 86400_000)
        assert decision.at < NOW - age + EXACT.lifetime


def test_a_query_lives_for_76_hours_which_is_the_schedule_and_the_time_of_the_last_attempt() -> (
    None
):
    assert 76 * 3_600_000 == EXACT.lifetime
    assert EXACT.lifetime - 3_600_000 < 1000 * (sum(SCHEDULE) + 60) <= EXACT.lifetime


def test_give_up_after_can_only_shorten() -> None:
    assert End(at=NOW + 5, reason="DEADLINE_PASSED") == EXACT.end_of(Run(give_up_at=NOW + 5))
    for later in (None, NOW + EXACT.lifetime + 1):
        assert End(at=NOW + EXACT.lifetime, reason="SCHEDULE_EXPIRED") == EXACT.end_of(
            Run(give_up_at=later)
        )


@given(st.integers(0, 2**32), st.integers(1, 9))
def test_a_last_attempt_that_jitter_or_a_breaker_made_late_comes_before_the_end(
    seed: int, attempt: int
) -> None:
    policy = RetryPolicy(rng=random.Random(seed))
    begun = NOW - round(1000 * sum(SCHEDULE)) + 1000  # so the end of the schedule is near
    decision = decide(answered(500), attempt=attempt, policy=policy, cycle_at=begun)

    assert isinstance(decision, RetryAt)
    if 1000 * 0.8 * SCHEDULE[attempt] > 1_500_000:  # it would come after the end
        assert NOW + 1000 <= decision.at <= begun + policy.lifetime - 60_000


def test_a_query_for_which_no_further_attempt_fits_ends_with_a_reason_of_its_own() -> None:
    begun = NOW - round(1000 * sum(SCHEDULE))  # so the schedule without jitter has ended
    decision = decide(answered(500), attempt=9, cycle_at=begun)

    assert isinstance(decision, GiveUp)
    assert "SCHEDULE_EXPIRED" == decision.reason


def test_a_receiver_that_asks_for_more_time_than_there_is_is_not_called_earlier() -> None:
    begun = NOW - round(1000 * sum(SCHEDULE)) + 3_600_000
    decision = decide(answered(503, retry_after=7_200.0), attempt=3, cycle_at=begun)

    assert isinstance(decision, GiveUp)
    assert "SCHEDULE_EXPIRED" == decision.reason


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (answered(200), None),
        (answered(299, gone=True), None),
        (answered(301), "REDIRECT_REFUSED"),
        (answered(404), "HTTP_STATUS"),
        (answered(500), "HTTP_STATUS"),
        (answered(410, gone=True), "RECEIVER_GONE"),
        (answered(302, gone=True), "RECEIVER_GONE"),
        (failed("TIMEOUT"), "TIMEOUT"),
        (crashed(), "INTERRUPTED"),
    ],
)
def test_an_attempt_failed_for_a_named_reason(outcome: Outcome, reason: str | None) -> None:
    failure = failure_of(outcome)

    assert reason == (failure and failure.reason)


@pytest.mark.parametrize(
    "settings",
    [
        {"schedule": ()},
        {"client_error_schedule": ()},
        {"schedule": (0, 1)},  # shorter than the one for 4xx
        {"jitter": 1.0},
        {"jitter": -0.1},
    ],
)
def test_a_policy_that_cannot_work_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"schedule|jitter"):
        RetryPolicy(**settings)


def test_every_reason_is_in_the_contract() -> None:
    proto = Path(__file__).parents[2] / "protos" / "picback" / "v1" / "error.proto"
    named = set(re.findall(r"ERROR_REASON_(\w+) = ", proto.read_text(encoding="utf-8")))
    reasons = {
        failure.reason
        for outcome in (answered(301), answered(400), answered(410, gone=True), crashed())
        if (failure := failure_of(outcome))
    }

    assert reasons | {"ATTEMPTS_EXHAUSTED", "DEADLINE_PASSED"} <= named


def test_the_documented_schedules_are_the_ones_in_force() -> None:
    rows = dict(_table("| Attempt |"))
    documented = [[_seconds(cell) for cell in rows[name]] for name in ("Wait", "After 4xx")]

    assert [str(number) for number in range(1, 11)] == rows["Attempt"]
    assert list(SCHEDULE) == documented[0]
    assert list(CLIENT_ERROR_SCHEDULE) == documented[1][:5]
    assert [None] * 5 == documented[1][5:]


def test_the_documented_answers_have_the_documented_consequences() -> None:
    consequences: dict[str, Callable[[Decision], bool]] = {
        "delivered": lambda decision: isinstance(decision, Delivered),
        "schedule": lambda decision: RetryAt(at=NOW + 5000) == decision,
        "asked": lambda decision: RetryAt(at=NOW + 60_000) == decision,
        "short": lambda decision: (
            isinstance(decision, GiveUp) and "ATTEMPTS_EXHAUSTED" == decision.reason
        ),
        "final": lambda decision: (
            isinstance(decision, GiveUp)
            and decision.reason in {"RECEIVER_GONE", "ADDRESS_FORBIDDEN", "CALLBACK_URL_INVALID"}
        ),
    }
    examples: dict[str, tuple[str, list[Outcome]]] = {
        "2xx": ("delivered", [answered(200), answered(204)]),
        "429, 503": ("schedule", [answered(429), answered(503)]),
        "`Retry-After`": ("asked", [answered(s, retry_after=60.0) for s in (400, 429, 500, 503)]),
        "5xx, 408, 425": ("schedule", [answered(500), answered(408), answered(425)]),
        "3xx": ("schedule", [answered(301), answered(308)]),
        "no answer": ("schedule", [failed("TIMEOUT"), failed("DNS_ERROR"), failed("TLS_ERROR")]),
        "other 4xx": ("short", [answered(400), answered(404)]),
        "410": ("final", [answered(410, gone=True)]),
        "`webhook-delivery": ("final", [answered(500, gone=True)]),
        "forbidden": ("final", [failed("ADDRESS_FORBIDDEN"), failed("CALLBACK_URL_INVALID")]),
    }
    documented = {answer: cells[0] for answer, cells in _table("| Answer |")}
    del documented["Answer"]

    assert len(examples) == len(documented)
    for (start, (consequence, outcomes)), (answer, text) in zip(
        examples.items(), documented.items(), strict=True
    ):
        assert answer.startswith(start)
        assert f"**{consequence}" in text
        for outcome in outcomes:
            attempt = 5 if consequence == "short" else 1
            assert consequences[consequence](decide(outcome, attempt=attempt))


def _table(first_line_start: str) -> list[tuple[str, list[str]]]:
    """Return the rows of a table in the documentation: first cell, other cells."""
    lines = CALLBACKS_DOC.read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(first_line_start))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not set(cells[0]) <= set("-: "):
            rows.append((cells[0], cells[1:]))
    return rows


def _seconds(cell: str) -> int | None:
    """Return what a cell such as "5 min" means, None for an empty one."""
    if not cell:
        return None
    number, _, unit = cell.partition(" ")
    return int(number) * {"": 1, "s": 1, "min": 60, "h": 3600}[unit]
