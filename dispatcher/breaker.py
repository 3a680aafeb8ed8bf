"""What one destination can bear: attempts at once, and a circuit breaker. Time is passed in.

A destination is scheme, host and port. It begins with one attempt at a time; each response lets
one more in beside it, and a timeout, 429 or 503 halves that. Its circuit breaker opens when it
fails for whoever calls it, and waiting for it uses up no attempt of any query.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from dispatcher.deliverer import Answered
from dispatcher.evidence import Blame, FailureRate, Marks, blame, is_overload
from storage.breakers import Breaker

if TYPE_CHECKING:
    import random

    from dispatcher.deliverer import Outcome

#: Attempts in flight to a destination that answers well.
MAX_CONCURRENCY: Final = 8
#: The breaker opens after this many failures in a row, or by `evidence.FailureRate`.
FAILURES_IN_A_ROW: Final = 5
#: First and longest time for which a breaker stays open, in seconds; doubles in between.
OPEN_SECONDS: Final = (5.0, 300.0)
#: Share by which that is shortened or lengthened at random.
_JITTER: Final = 0.2
#: Longest time until a probe, in milliseconds. What is stored and later is from another clock.
MAX_PROBE_WAIT: Final = round(1000 * OPEN_SECONDS[1] * (1 + _JITTER))


@dataclass(slots=True, eq=False)
class CircuitBreaker:
    """One destination's limit and breaker."""

    id: int
    limit: float = 1.0
    #: No failure yet, nor the highest limit: nothing is known but good, so far.
    is_new: bool = True
    #: It has answered, and has not failed to since.
    is_proven: bool = False
    in_flight: int = 0
    failures_in_a_row: int = 0
    state: str = "CLOSED"
    probe_at: int = 0
    openings: int = 0
    #: None while there is nothing to remember: most destinations never fail.
    rate: FailureRate | None = None
    marks: Marks | None = field(default=None)

    def capacity(self, now: int) -> int:
        """Return how many more attempts may begin now."""
        if self.state == "HELD":
            return 0
        if self.state == "OPEN":
            return 1 if now >= self.probe_at and self.in_flight == 0 else 0
        return max(0, int(self.limit) - self.in_flight)

    def take_up(self, breaker: Breaker, *, now: int) -> None:
        """Become what is stored: after a restart, or by an operator's hand."""
        self.limit, self.is_new, self.is_proven = 1.0, True, False
        self.failures_in_a_row, self.rate, self.marks = 0, None, None
        self.state, self.openings = breaker.state, breaker.openings
        self.probe_at = min(breaker.probe_at, now + MAX_PROBE_WAIT)

    def failed_lately(self, key_id: str) -> bool:
        """Return whether the last attempt of *key_id* failed."""
        return self.marks is not None and self.marks.has_key(key_id)

    def learn(
        self,
        outcome: Outcome,
        *,
        key_id: str,
        url: str,
        now: int,
        rng: random.Random,
    ) -> Breaker | None:
        """Learn from an attempt; return what is to be stored if the breaker changed."""
        if self.state == "HELD":
            return None
        before = (self.state, self.probe_at)
        against = blame(outcome)
        if against is not Blame.NOTHING or self.marks is not None:
            self.marks = self.marks or Marks()
            self.marks.record(key_id, url, failed=against is not Blame.NOTHING)
        if against is Blame.HOST:
            self._failed(outcome, now, rng)
        elif isinstance(outcome, Answered):
            self._answered(is_good=against is Blame.NOTHING, now=now)
        if (self.state, self.probe_at) == before:
            return None
        return Breaker(
            destination=self.id,
            state=self.state,
            probe_at=self.probe_at,
            openings=self.openings,
        )

    def _failed(self, outcome: Outcome, now: int, rng: random.Random) -> None:
        self.is_new = False
        if not isinstance(outcome, Answered):
            self.is_proven = False
        if is_overload(outcome):
            self.limit = max(1.0, self.limit / 2)
        self.failures_in_a_row += 1
        self.rate = self.rate or FailureRate()
        self.rate.record(failed=True, now=now)
        if (
            self.state != "CLOSED"
            or self.failures_in_a_row >= FAILURES_IN_A_ROW
            or self.rate.is_high
        ):
            self._open(now, rng)

    def _open(self, now: int, rng: random.Random) -> None:
        if self.state == "OPEN" and now < self.probe_at:
            return  # an attempt from before it opened tells nothing new
        shortest, longest = OPEN_SECONDS
        seconds = min(shortest * 2.0**self.openings, longest)
        self.state, self.is_proven = "OPEN", False
        self.openings += 1
        self.probe_at = now + round(1000 * seconds * rng.uniform(1 - _JITTER, 1 + _JITTER))

    def _answered(self, *, is_good: bool, now: int) -> None:
        self.failures_in_a_row = 0
        self.is_proven = True
        self.rate = self.rate or FailureRate()
        self.rate.record(failed=False, now=now)
        if self.state == "OPEN":
            # The probe got through: one at a time at first, then more with every response.
            self.state, self.limit = "RECOVERING", 1.0
            return
        if not is_good:
            return  # its URL is broken: no reason to send more at once, nor less
        # Where nothing bad is known, or no longer, each response lets one more in beside it: 1, 2,
        # 4, 8 as rounds go. One that was overloaded gets one more a round.
        is_fast = self.is_new or self.state == "RECOVERING"
        self.limit = min(float(MAX_CONCURRENCY), self.limit + (1 if is_fast else 1 / self.limit))
        if self.limit < MAX_CONCURRENCY:
            return
        self.is_new = False
        if self.state == "RECOVERING":
            self.state, self.openings = "CLOSED", 0
            self.rate = None
