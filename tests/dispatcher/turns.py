"""Destinations with queues that never end, for tests of whose turn it is."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING, Final

from dispatcher.breaker import MAX_CONCURRENCY
from dispatcher.deliverer import Answered, Failed
from dispatcher.destinations import Destinations
from storage.query_records import DueQueue, QueryLease

if TYPE_CHECKING:
    from dispatcher.deliverer import Outcome
    from storage.breakers import Breaker
    from storage.query_records import Turn

NOW: Final = 1_000_000


def answered(status: int) -> Answered:
    return Answered(status=status, retry_after=None, excerpt=b"", gone=False)


GOOD: Final = answered(204)
REFUSED: Final = Failed(reason="CONNECTION_REFUSED", message="")
TIMEOUT: Final = Failed(reason="TIMEOUT", message="")


class NoJitter(random.Random):
    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


def queue(
    destination: int, *, key: str = "a", retries: bool = False, due_at: int = NOW
) -> DueQueue:
    return DueQueue(key_id=key, destination=destination, retries=retries, due_at=due_at)


def lease(
    destination: int, *, key: str = "a", retry: bool = False, url: str = "http://r.test/"
) -> QueryLease:
    """Return what `Destinations.finished` is told of."""
    return QueryLease(
        seq=1,
        id="qry_1",
        key_id=key,
        text="",
        callback_url=url,
        destination=destination,
        matched=None,
        attempt=1 + retry,
        attempt_of_cycle=1 + retry,
        cycle_at=NOW,
        give_up_at=None,
        ends_unmatched=False,
    )


class Endless:
    """Destinations, and queues of which each turn finds as many queries as it allows."""

    def __init__(self, threads: int = 16) -> None:
        self.known = Destinations(threads=threads, rng=NoJitter())

    def waits(self, *queues: DueQueue, now: int = NOW) -> None:
        self.known.waits(queues, now=now)

    def take(self, free: int = 64, *, now: int = NOW) -> list[Turn]:
        """Take turns; queries are left in every queue."""
        turns = self.known.take_turns(free=free, now=now)
        for turn in turns:
            self.known.leased(turn, begun=turn.count, next_due_at=now, now=now)
        return turns

    def counts(self, free: int = 64, *, now: int = NOW) -> dict[int, int]:
        """Take turns; return how many each destination got."""
        found: Counter[int] = Counter()
        for turn in self.take(free, now=now):
            found[turn.destination] += turn.count
        return dict(found)

    def keys(self, free: int = 64, *, now: int = NOW) -> dict[str, int]:
        """Take turns; return how many each key got."""
        found: Counter[str] = Counter()
        for turn in self.take(free, now=now):
            found[turn.key_id] += turn.count
        return dict(found)

    def finish(
        self,
        destination: int,
        outcome: Outcome | None = GOOD,
        *,
        key: str = "a",
        retry: bool = False,
        url: str = "http://r.test/",
        now: int = NOW,
    ) -> Breaker | None:
        return self.known.finished(
            lease(destination, key=key, retry=retry, url=url), outcome, now=now
        )

    def try_one(
        self, destination: int, outcome: Outcome | None, *, now: int = NOW
    ) -> Breaker | None:
        """Let one attempt begin and end; the queue is left as it was."""
        self.waits(queue(destination), now=now)
        assert {destination: 1} == self.counts(1, now=now)
        return self.finish(destination, outcome, now=now)

    def fail(self, times: int, outcome: Outcome = REFUSED, *, now: int = NOW) -> list[Breaker]:
        """Let attempts at destination 1 fail; return the changes of its breaker."""
        changes = [self.try_one(1, outcome, now=now) for _ in range(times)]
        return [change for change in changes if change is not None]


def proven(*ids: int, threads: int = 16) -> Endless:
    """Return destinations that have answered so well that each may have the most at once."""
    endless = Endless(threads)
    for destination in ids:
        for _ in range(MAX_CONCURRENCY):
            endless.known.waits([queue(destination)], now=NOW)
            (turn,) = endless.known.take_turns(free=1, now=NOW)
            endless.known.leased(turn, begun=1, next_due_at=None, now=NOW)
            endless.finish(destination)
    return endless
