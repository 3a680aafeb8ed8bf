"""The queue of queries against a model that a person can check by reading.

Each step does the same to both; after each step every query must be, attempt by attempt, what the
model says. A crash is taken literally: the files are copied as they lie, and opened elsewhere.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from storage.breakers import Breaker
from storage.database import Database
from storage.errors import QueryNotFoundError, StateConflictError
from storage.query_records import (
    Attempt,
    Delivered,
    GivenUp,
    Match,
    Matched,
    NotMade,
    RetryAt,
    Turn,
    Unmatched,
)
from tests.fakes import START, FakeClock
from tests.storage.queue_model import CAP, FINAL, LIFETIME, QueueModel, queues
from tests.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from storage.query_records import Query, QueryLease, Settlement

#: Name -> the number that storage gives it.
DESTINATIONS: Final = {"http://a.test:80": 1, "http://b.test:80": 2}

IMAGE: Final = Match(image_id="img_1", score=1, tags=())

milliseconds = st.integers(0, 5)
names = st.sampled_from(sorted(DESTINATIONS))
#: Names of API keys; a turn is drawn for a name and given the key's id.
KEYS: Final = ("one", "two")
a_turn = st.builds(
    Turn,
    key_id=st.sampled_from(KEYS),
    destination=st.sampled_from(sorted(DESTINATIONS.values())),
    retries=st.booleans(),
    count=st.integers(1, 3),
)
some_turns = st.lists(
    a_turn,
    min_size=1,
    max_size=4,
    unique_by=lambda turn: (turn.key_id, turn.destination, turn.retries),
)


class Queue(RuleBasedStateMachine):
    """Callers, threads that hold leases (some for too long), operators, a clock, and crashes."""

    leases: Bundle[QueryLease] = Bundle("leases")
    queries: Bundle[str] = Bundle("queries")

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.lives = 0
        self.clock = FakeClock()
        self.model = QueueModel()
        self.breakers: dict[int, Breaker] = {}
        self.database = Database.own(self.root / "0")
        self.store = Store(self.database)
        self.keys = {name: self.store.key(name) for name in KEYS}
        #: Whose queries a call may see: of one key, or of all.
        self.views = [None, *self.keys.values()]

    def teardown(self) -> None:
        self.database.close()
        shutil.rmtree(self.root)

    @initialize(target=queries)
    def begin(self) -> Any:
        return multiple(
            *(
                self.submit(name, key=key, wait=0, give_up_after=None, on_unmatched=on_unmatched)
                for name, key, on_unmatched in zip(
                    DESTINATIONS, KEYS, ("DELIVER", "END"), strict=True
                )
            )
        )

    @rule(
        target=queries,
        name=names,
        key=st.sampled_from(KEYS),
        wait=milliseconds,
        give_up_after=st.none() | st.integers(1, 2 * LIFETIME),
        on_unmatched=st.sampled_from(["DELIVER", "END"]),
    )
    def submit(
        self, name: str, key: str, wait: int, give_up_after: int | None, on_unmatched: str
    ) -> str:
        # Submitted by a host whose clock is ahead: not due yet.
        due_at = self.clock() + wait
        query = self.store.submit(
            "text",
            destination=name,
            key=key,
            give_up_after=give_up_after,
            on_unmatched=on_unmatched,
            now=due_at,
        )
        self.model.submitted(
            query.id,
            destination=DESTINATIONS[name],
            key_id=self.keys[key],
            give_up_after=give_up_after,
            due_at=due_at,
            ends_unmatched=on_unmatched == "END",
        )
        return query.id

    @rule(limit=st.integers(1, 5))
    def end_what_waits_too_long(self, limit: int) -> None:
        now, ended = self.clock(), 0
        while found := self.store.queries.deadlines.expire(
            now=now, lifetime=LIFETIME, wall_now=now, limit=limit
        ):
            assert found <= limit
            ended += found

        assert self.model.expired(now=now) == ended

    @rule(passes=st.integers(1, 20))
    def let_time_pass(self, passes: int) -> None:
        self.clock.now += passes

    @rule(passes=st.integers(1, 5))
    def set_the_clock_back(self, passes: int) -> None:
        self.clock.now = max(START, self.clock.now - passes)

    @rule(target=leases, turns=some_turns)
    def lease(self, turns: list[Turn]) -> Any:
        now = self.clock()
        turns = [replace(turn, key_id=self.keys[turn.key_id]) for turn in turns]
        due = [id_ for turn in turns for id_ in self.model.due(turn, now=now)]
        found = self.store.queries.lease(turns, now=now)
        leases = [lease for each in found for lease in each.leases]

        assert due == [lease.id for lease in leases]
        for lease in leases:
            self.model.leased(lease)
        assert [self.model.next_due_at(turn) for turn in turns] == [
            each.next_due_at for each in found
        ]
        return multiple(*leases)

    @rule(lease=leases, word=st.sampled_from(["dog", "cat"]), match=st.sampled_from([None, IMAGE]))
    def match(self, lease: QueryLease, word: str, match: Match | None) -> None:
        """Record what matches, for the first time or because the image was deleted."""
        query = self.model.queries[lease.id]
        matched = Matched(lemmas=(word,), match=match, at=self.clock())
        is_held = query.holder == lease
        if match is None and lease.ends_unmatched:
            outcome = Unmatched(matched=matched)
            held = self.store.queries.settle(lease, None, outcome, now=self.clock())
            if held:
                self.model.settled(lease, outcome)
        else:
            held = self.store.queries.record_match(lease, matched)
            if held:
                query.state, query.matched = "DELIVERING", matched

        assert held == is_held

    @rule(
        lease=leases,
        verdict=st.sampled_from(["delivered", "retry", "not made", "give up"]),
        wait=milliseconds,
    )
    def settle(self, lease: QueryLease, verdict: str, wait: int) -> None:
        query = self.model.queries[lease.id]
        outcome: Settlement
        if verdict == "delivered":
            outcome = Delivered()
        elif verdict == "not made":
            outcome = NotMade(due_at=self.clock() + wait)
        elif verdict == "retry" and lease.attempt_of_cycle < CAP:  # as the policy decides
            outcome = RetryAt(due_at=self.clock() + wait)
        else:
            outcome = GivenUp(reason="ATTEMPTS_EXHAUSTED", message="It was the last.")
        made = Attempt(
            number=lease.attempt,
            started_at=self.clock(),
            latency_ms=1,
            failure_reason=None if verdict == "delivered" else "TIMEOUT",
        )
        held = self.store.queries.settle(
            lease, None if verdict == "not made" else made, outcome, now=self.clock()
        )

        assert held == (query.holder == lease)
        if held:
            self.model.settled(lease, outcome)

    @rule(id_=queries, view=st.integers(0, len(KEYS)))
    def cancel(self, id_: str, view: int) -> None:
        state = self.model.queries[id_].state
        key_id = self.views[view]
        refused = _what_forbids(
            lambda: self.store.queries.cancel(id_, key_id=key_id, now=self.clock())
        )

        if not self.model.visible(id_, key_id):
            assert "not found" == refused
        else:
            assert refused == (state if state in ("DELIVERED", "FAILED", "UNMATCHED") else None)
        if refused is None:
            self.model.cancelled(id_)

    @rule(id_=queries, view=st.integers(0, len(KEYS)))
    def redeliver(self, id_: str, view: int = 0) -> None:
        state = self.model.queries[id_].state
        key_id = self.views[view]
        refused = _what_forbids(
            lambda: self.store.queries.redeliver(id_, key_id=key_id, now=self.clock())
        )

        if not self.model.visible(id_, key_id):
            assert "not found" == refused
        else:
            assert refused == (None if state in FINAL else state)
        if refused is None:
            self.model.redelivered(id_, now=self.clock())

    @rule(state=st.sampled_from(FINAL))
    def redeliver_all(self, state: str) -> None:
        found = self.store.page(before=None, size=1000, state=state)

        assert {id_ for id_, query in self.model.queries.items() if query.state == state} == {
            query.id for query in found
        }
        for query in found:
            self.redeliver(query.id)

    @rule(
        destination=st.sampled_from(sorted(DESTINATIONS.values())),
        state=st.sampled_from(["CLOSED", "OPEN", "RECOVERING"]),
        probe_in=milliseconds,
        openings=st.integers(1, 5),
    )
    def save_a_breaker(self, destination: int, state: str, probe_in: int, openings: int) -> None:
        breaker = Breaker(
            destination=destination,
            state=state,
            probe_at=self.clock() + probe_in,
            openings=openings,
        )
        self.store.breakers.save(breaker)
        if destination in self.breakers and self.breakers[destination].state == "HELD":
            return  # an operator's word stands
        self.breakers.pop(destination, None)
        if state != "CLOSED":
            self.breakers[destination] = breaker

    @rule(name=names)
    def close_a_breaker(self, name: str) -> None:
        assert self.store.breakers.close(name)
        self.breakers.pop(DESTINATIONS[name], None)

    @rule(name=names)
    def hold_a_breaker(self, name: str) -> None:
        assert self.store.breakers.hold(name)
        number = DESTINATIONS[name]
        self.breakers[number] = Breaker(destination=number, state="HELD", probe_at=0, openings=0)

    @precondition(lambda self: self.lives < 5)
    @rule()
    def crash(self) -> None:
        self.lives += 1
        folder = self.root / f"{self.lives}"
        folder.mkdir()
        for name in ("picback.db", "picback.db-wal"):
            shutil.copyfile(self.database.folder / name, folder / name)
        self.database.close()
        self.database = Database.own(folder)
        self.store = Store(self.database)
        self.store.queries.count_queued()
        voided = self.store.queries.void_leases(max_attempts=CAP, now=self.clock())

        assert self.model.died(now=self.clock()) == voided

    @invariant()
    def storage_agrees_with_the_model(self) -> None:
        found = {
            query.id: (
                query.state,
                query.due_at,
                query.matched,
                {attempt.number: attempt.failure_reason for attempt in query.attempts},
                (query.ended_at is not None, query.failure_reason),
            )
            for query in self.store.page(before=None, size=1000, state=None)
        }
        assert {
            id_: (
                query.state,
                query.due_at,
                query.matched,
                query.attempts,
                (query.state in FINAL, query.reason),
            )
            for id_, query in self.model.queries.items()
        } == found

    @invariant()
    def each_key_has_its_own_queries(self) -> None:
        for key_id in self.views:
            for state in (None, "UNMATCHED", "QUEUED"):
                found = self.store.page(before=None, size=1000, state=state, key_id=key_id)
                assert [
                    id_
                    for id_, query in reversed(self.model.queries.items())
                    if self.model.visible(id_, key_id) and state in (None, query.state)
                ] == [query.id for query in found]

    @invariant()
    def every_queue_has_its_head(self) -> None:
        waiting = self.store.queries.waiting
        assert self.model.waiting() == queues(waiting())
        in_windows = [*waiting(limit=1)]
        while window := waiting(after=in_windows[-1], limit=1) if in_windows else []:
            in_windows += window
        assert self.model.waiting() == queues(in_windows)

    @invariant()
    def the_next_end_is_known(self) -> None:
        assert self.model.next_end_at() == self.store.queries.deadlines.next_at(lifetime=LIFETIME)

    @invariant()
    def breakers_are_as_they_were_left(self) -> None:
        assert self.breakers == {
            each.destination: each for each in self.store.breakers.not_closed()
        }

    @invariant()
    def operators_see_how_many_wait(self) -> None:
        waiting = dict.fromkeys(DESTINATIONS.values(), 0)
        for query in self.model.queries.values():
            waiting[query.destination] += query.state not in FINAL
        found = self.store.breakers.destinations()
        assert self.model.queries == {} or waiting == {
            each.breaker.destination: each.waiting for each in found
        }

    @invariant()
    def a_keys_queued_queries_are_counted(self) -> None:
        for key_id in self.keys.values():
            assert self.store.queries.queued.count(key_id) == sum(
                query.state not in FINAL and query.key_id == key_id
                for query in self.model.queries.values()
            )

    @invariant()
    def no_cycle_has_more_attempts_than_the_cap(self) -> None:
        cycles = self.store.database.read("SELECT max(attempt - cycle_start) FROM query")
        assert (cycles[0][0] or 0) <= CAP

    @invariant()
    def what_is_leased_has_one_holder(self) -> None:
        leased = self.store.database.read("SELECT id FROM query WHERE leased_at IS NOT NULL")
        assert {id_ for id_, query in self.model.queries.items() if query.holder} == {
            id_ for (id_,) in leased
        }


def _what_forbids(change: Callable[[], Query]) -> str | None:
    """Make a change; return the state over which it was rejected, or "not found", if it was."""
    try:
        change()
    except StateConflictError as refused:
        return refused.state
    except QueryNotFoundError:
        return "not found"
    return None


TestQueue = Queue.TestCase
TestQueue.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
