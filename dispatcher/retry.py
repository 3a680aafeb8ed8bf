"""What follows from an attempt: a pure function from outcome, number and time to a decision."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import Protocol

from dispatcher.deliverer import Answered, Failed

#: Seconds to wait before attempt 1, 2, 3, ...: 0, 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 14 h, 20 h,
#: 24 h. Source: Standard Webhooks 1.0.0, the example in "Deliverability and reliability".
SCHEDULE: tuple[float, ...] = (0, 5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400)

#: The same after a 4xx answer, which seldom heals by itself: 0, 5 s, 1 min, 10 min, 30 min. With
#: jitter and attempts of 15 s it is over within the hour.
CLIENT_ERROR_SCHEDULE: tuple[float, ...] = (0, 5, 60, 600, 1800)

#: Longest wait that a receiver can ask for, in seconds.
MAX_RETRY_AFTER = 86400.0

#: The schedule ends this long before its query does, in seconds: the last attempt has its time.
_LAST_ATTEMPT = 60.0


def lifetime_of(schedule: tuple[float, ...]) -> int:
    """Return the milliseconds after which a query ends that is not delivered by *schedule*.

    Its waits without jitter and the last attempt, rounded up to whole hours: 76 h for `SCHEDULE`.
    """
    return math.ceil((sum(schedule) + _LAST_ATTEMPT) / 3600) * 3_600_000


# 4xx answers that tell of a passing state: Request Timeout, Too Early, Too Many Requests.
_PASSING_CLIENT_ERRORS = frozenset({408, 425, 429})

_FINAL_FAILURES = frozenset({"ADDRESS_FORBIDDEN", "CALLBACK_URL_INVALID"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """The receiver has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryAt:
    """Try again at *at*, in milliseconds since the epoch."""

    at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveUp:
    """Do not try again.

    Attributes:
        reason: A name of ``ErrorReason`` in ``error.proto`` without its prefix.
        message: One sentence for people.
    """

    reason: str
    message: str


class Cycle(Protocol):
    """A query's current run through the schedule, as a lease on it tells. In milliseconds."""

    @property
    def cycle_at(self) -> int:
        """When it began: the query was submitted or redelivered."""

    @property
    def give_up_at(self) -> int | None:
        """When the caller loses interest; None for never."""


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """When and why a query ends that is not delivered before.

    Attributes:
        at: In milliseconds since the epoch.
        reason: A name of ``ErrorReason`` in ``error.proto`` without its prefix.
    """

    at: int
    reason: str


#: What to do after an attempt.
Decision = Delivered | RetryAt | GiveUp


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When to try again. ``docs/callbacks.md`` tells it to the owners of receivers.

    Attributes:
        schedule: Seconds before each attempt; its length is the number of attempts.
        client_error_schedule: The same while a receiver answers 4xx. Attempts of any kind count.
        jitter: Share by which a wait is shortened or lengthened at random, below 1.
        rng: Where chance comes from.
    """

    schedule: tuple[float, ...] = SCHEDULE
    client_error_schedule: tuple[float, ...] = CLIENT_ERROR_SCHEDULE
    jitter: float = 0.2
    rng: random.Random = field(default_factory=random.SystemRandom)

    def __post_init__(self) -> None:
        if not 1 <= len(self.client_error_schedule) <= len(self.schedule):
            msg = (
                "a schedule needs at least one attempt, and the one for 4xx no more than the other"
            )
            raise ValueError(msg)
        if not 0 <= self.jitter < 1:
            msg = f"jitter must be from 0 to below 1, not {self.jitter}"
            raise ValueError(msg)

    @property
    def max_attempts(self) -> int:
        """Attempts at most, whatever receivers answer."""
        return len(self.schedule)

    @property
    def lifetime(self) -> int:
        """Milliseconds from a query's acceptance or redelivery to its end, at most."""
        return lifetime_of(self.schedule)

    @property
    def max_wait(self) -> int:
        """Milliseconds that a query waits at most for its next attempt, for whatever reason."""
        longest = max(self.schedule) * (1 + self.jitter)
        return round(1000 * max(longest, MAX_RETRY_AFTER))

    def end_of(self, cycle: Cycle) -> End:
        """Return when a query ends whatever happens, unless it is delivered before."""
        end = End(at=cycle.cycle_at + self.lifetime, reason="SCHEDULE_EXPIRED")
        if cycle.give_up_at is not None and cycle.give_up_at <= end.at:
            end = End(at=cycle.give_up_at, reason="DEADLINE_PASSED")
        return end

    def decide(
        self, outcome: Answered | Failed, *, attempt: int, now: int, cycle: Cycle
    ) -> Decision:
        """Return what follows from *outcome*.

        Args:
            outcome: What came of the attempt.
            attempt: Its number, from 1.
            now: When it ended, in milliseconds since the epoch.
            cycle: What limits the time for further attempts.
        """
        failure = failure_of(outcome)
        if failure is None:
            return Delivered()
        if _is_final(outcome):
            return GiveUp(reason=failure.reason, message=failure.message)
        schedule = self.client_error_schedule if _is_client_error(outcome) else self.schedule
        if attempt >= len(schedule):
            return GiveUp(
                reason="ATTEMPTS_EXHAUSTED",
                message=f"Attempt {attempt} was the last of its schedule. {failure.message}",
            )
        at = now + round(1000 * self._wait(outcome, schedule[attempt]))
        end = self.end_of(cycle)
        if end.reason == "SCHEDULE_EXPIRED":
            at = self._before_the_end(outcome, at, now=now, cycle=cycle)
        if at > end.at:
            limit = _LIMITS[end.reason]
            return GiveUp(
                reason=end.reason,
                message=f"The next attempt would come after {limit}. {failure.message}",
            )
        return RetryAt(at=at)

    def _before_the_end(
        self, outcome: Answered | Failed, at: int, *, now: int, cycle: Cycle
    ) -> int:
        """Return *at*, or a time for a last attempt if jitter or a breaker made that too late.

        The last attempts of queries that were accepted together are spread over the time between
        the end of the schedule without jitter and that of the query.
        """
        first = cycle.cycle_at + round(1000 * sum(self.schedule))
        last = cycle.cycle_at + self.lifetime - round(1000 * _LAST_ATTEMPT)
        if at <= last:
            return at
        if now >= first or now + round(1000 * _wish(outcome)) > first:
            return cycle.cycle_at + self.lifetime + 1  # too late for another
        return round(self.rng.uniform(first, last))

    def _wait(self, outcome: Answered | Failed, scheduled: float) -> float:
        wait = scheduled * self.rng.uniform(1 - self.jitter, 1 + self.jitter)
        return max(wait, _wish(outcome))


#: Reason of an `End` -> what a person calls it.
_LIMITS = {"DEADLINE_PASSED": "give_up_after", "SCHEDULE_EXPIRED": "the end of the schedule"}


def _wish(outcome: Answered | Failed) -> float:
    """Return how many seconds the receiver asked us to wait, as far as we obey."""
    wish = outcome.retry_after if isinstance(outcome, Answered) else None
    return min(wish or 0.0, MAX_RETRY_AFTER)


def failure_of(outcome: Answered | Failed) -> Failed | None:
    """Return why an attempt failed, None if it did not: 2xx alone is success."""
    if isinstance(outcome, Failed):
        return outcome
    if 200 <= outcome.status < 300:
        return None
    if outcome.gone:
        return Failed(
            reason="RECEIVER_GONE", message="The receiver asked not to be called about this again."
        )
    if 300 <= outcome.status < 400:
        return Failed(
            reason="REDIRECT_REFUSED",
            message=f"The receiver answered {outcome.status}; redirects are never followed.",
        )
    return Failed(reason="HTTP_STATUS", message=f"The receiver answered {outcome.status}.")


def crashed() -> Failed:
    """Return the outcome of an attempt that a fault of our own ended, no one knows how far on."""
    return Failed(
        reason="INTERRUPTED",
        message="The attempt broke off here; whether the receiver got it is not known.",
    )


def _is_final(outcome: Answered | Failed) -> bool:
    if isinstance(outcome, Answered):
        return outcome.gone
    return outcome.reason in _FINAL_FAILURES


def _is_client_error(outcome: Answered | Failed) -> bool:
    return (
        isinstance(outcome, Answered)
        and 400 <= outcome.status < 500
        and outcome.status not in _PASSING_CLIENT_ERRORS
        and outcome.retry_after is None
    )
