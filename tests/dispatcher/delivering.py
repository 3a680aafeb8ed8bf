"""A delivery worker with everything around it, for tests of what it does with a lease."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from dispatcher.byte_budget import ByteBudget
from dispatcher.deliverer import Answered
from dispatcher.destinations import Destinations
from dispatcher.patience import Patience
from dispatcher.retry import RetryPolicy
from dispatcher.schedule import Schedule
from dispatcher.shortage import Shortage
from dispatcher.worker import DeliveryWorker
from tests.dispatcher.matching import matcher_of
from tests.fakes import FakeClock, FakeDeliverer, FakeLemmatizer
from tests.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dispatcher.deliverer import Outcome
    from storage.database import Database
    from storage.queries import Queries
    from storage.query_records import Query, QueryLease

#: An answer that is worth another try.
BROKEN = Answered(status=500, retry_after=None, excerpt=b"oops", gone=False)


class Bench:
    """A worker with its store and clock; *before_post* runs before each POST is answered."""

    def __init__(self, database: Database) -> None:
        self.store = Store(database)
        self.clock = FakeClock()
        #: Milliseconds by which the wall clock was set.
        self.step = 0
        self.lemmatizer = FakeLemmatizer()
        self.before_post: Callable[[], None] = lambda: None
        bench = self

        class Deliverer(FakeDeliverer):
            def deliver(
                self,
                url: str,
                *,
                headers: Mapping[str, str],
                body: Sequence[bytes],
                owner: str = "",
                timeout: float | None = None,
            ) -> Outcome:
                bench.before_post()
                return super().deliver(
                    url, headers=headers, body=body, owner=owner, timeout=timeout
                )

        self.deliverer = Deliverer()
        self.budget = ByteBudget(1_000_000)
        self.patience = Patience(pause=0)
        self.shortage = Shortage(monotonic=lambda: self.clock() / 1000)
        self.queries = self.store.queries
        self.schedule = self.make_schedule()
        self.worker = self.make_worker()

    def make_schedule(self) -> Schedule:
        return Schedule(
            queries=self.queries,
            breakers=self.store.breakers,
            destinations=Destinations(threads=9, rng=random.Random(0)),
            clock=self.clock,
        )

    def use(self, queries: Queries) -> None:
        """Let the schedule and the worker have other queries, over the same database."""
        self.queries = queries
        self.schedule = self.make_schedule()
        self.worker = self.make_worker()

    def make_worker(self) -> DeliveryWorker:
        store = self.store
        return DeliveryWorker(
            queries=self.queries,
            images=store.images,
            api_keys=store.api_keys,
            matcher=matcher_of(store, self.lemmatizer),
            deliverer=self.deliverer,
            budget=self.budget,
            policy=RetryPolicy(
                schedule=(0, 5, 300), client_error_schedule=(0, 5), jitter=0, rng=random.Random(0)
            ),
            patience=self.patience,
            shortage=self.shortage,
            schedule=self.schedule,
            clock=self.clock,
            wall=lambda: self.clock() + self.step,
            monotonic=lambda: self.clock() / 1000,
        )

    def work(self) -> list[QueryLease]:
        """Do what the lane does, once."""
        leases = list(self.schedule.lease(9))
        self.worker.process(leases)
        return leases

    def query(self, query_id: str) -> Query:
        return self.store.queries.get(query_id)

    @property
    def bodies(self) -> list[bytes]:
        return [body for *_, body in self.deliverer.sent]
