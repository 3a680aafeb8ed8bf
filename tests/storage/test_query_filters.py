"""A search finds exactly what satisfies its filter, whatever its bounds and the clock were."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import query_filters
from storage.database import Database
from storage.query_filters import QueryFilter
from tests.fakes import START
from tests.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from storage.queries import Queries
    from storage.query_records import Query

KEYS: Final = ("one", "two", "none")
DESTINATIONS: Final = ("https://a.test:443", "https://b.test:443", "https://never.test:443")
STATES: Final = ("QUEUED", "DELIVERING", "DELIVERED", "FAILED", "CANCELLED", "UNMATCHED")
REASONS: Final = ("ATTEMPTS_EXHAUSTED", "DEADLINE_PASSED")


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """80 queries, accepted by a clock that is set back and forth by up to a day."""
    database = Database.own(tmp_path_factory.mktemp("filters") / "data")
    store = Store(database)
    chance = random.Random(1)
    for number in range(80):
        step = chance.choice((0, 0, 0, -86_400_000, 86_400_000))
        query = store.submit(
            key=chance.choice(KEYS[:2]),
            destination=chance.choice(DESTINATIONS[:2]),
            now=START + step + number * 1000,
        )
        state = chance.choice(STATES)
        _put(database, query, state, chance.choice(REASONS))
    store.key(KEYS[2])
    yield store
    database.close()


def _put(database: Database, query: Query, state: str, reason: str) -> None:
    """Give a query a state without the way that leads to it."""
    ended = state not in ("QUEUED", "DELIVERING")
    matched = state in ("DELIVERING", "DELIVERED", "UNMATCHED")
    database.write(
        lambda connection: connection.execute(
            "UPDATE query SET state = ?, ended_at = ?, due_at = ?, matched_at = ?,"
            " failure_reason = ?, on_unmatched = ? WHERE seq = ?",
            (
                state,
                START if ended else None,
                None if ended else START,
                START if matched else None,
                reason if state == "FAILED" else None,
                "END" if state == "UNMATCHED" else "DELIVER",
                query.seq,
            ),
        ).fetchall()
    )


TIMES: Final = st.none() | st.integers(START - 90_000_000, START + 90_000_000)


@given(data=st.data(), limit=st.integers(1, 90))
@pytest.mark.parametrize("bounds", [(1, 1), (3, 7), (20_000, 100_000)])
def test_a_search_finds_all_that_satisfies_its_filter_and_nothing_else(
    stocked: Store, bounds: tuple[int, int], data: st.DataObject, limit: int
) -> None:
    name = data.draw(st.none() | st.sampled_from(KEYS))
    where = QueryFilter(
        key_id=None if name is None else stocked.key(name),
        states=tuple(data.draw(st.lists(st.sampled_from(STATES), max_size=3, unique=True))),
        destination=data.draw(st.none() | st.sampled_from(DESTINATIONS)),
        created_after=data.draw(TIMES),
        created_before=data.draw(TIMES),
        failure_reason=data.draw(st.none() | st.sampled_from(REASONS)),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(query_filters, "MAX_EXAMINED", bounds[0])
        patch.setattr(query_filters, "_MAX_IDS", bounds[1])
        found, steps = _found(stocked.queries, where, limit)
        counted = _counted(stocked.queries, where)

    expected = [query.seq for query in _everything(stocked) if _satisfies(stocked, query, where)]
    assert expected == found
    assert len(expected) == counted
    assert steps <= 1 + 80 // min(limit, bounds[0]) + 80 // limit + 80 // bounds[0]


def _everything(store: Store) -> list[Query]:
    rows = store.database.read("SELECT seq FROM query ORDER BY seq DESC")
    return store.queries.records([seq for (seq,) in rows])


def _satisfies(store: Store, query: Query, where: QueryFilter) -> bool:
    ((destination,),) = store.database.read(
        "SELECT name FROM destination WHERE id = ?", (query.destination,)
    )
    return (
        where.key_id in (None, query.key_id)
        and (not where.states or query.state in where.states)
        and where.destination in (None, destination)
        and (where.created_after is None or query.created_at >= where.created_after)
        and (where.created_before is None or query.created_at < where.created_before)
        and where.failure_reason in (None, query.failure_reason)
    )


def _found(queries: Queries, where: QueryFilter, limit: int) -> tuple[list[int], int]:
    seqs: list[int] = []
    before, steps = None, 0
    while True:
        # A search of its own for each step, as pages of a list are.
        part = queries.search(where).find(before=before, limit=limit)
        assert len(part.seqs) <= limit
        seqs += part.seqs
        steps += 1
        if part.before is None:
            return seqs, steps
        assert before is None or part.before < before
        before = part.before


def _counted(queries: Queries, where: QueryFilter) -> int:
    search, before, count = queries.search(where), None, 0
    while True:
        part = search.count(before=before)
        count += part.count
        if part.before is None:
            return count
        before = part.before


@pytest.mark.parametrize(
    "conditions",
    [{}, {"created_after": 0}, {"created_before": START}, {"states": ("FAILED", "DELIVERED")}],
)
def test_a_search_in_an_empty_database_finds_nothing(
    store: Store, conditions: dict[str, Any]
) -> None:
    assert ([], 1) == _found(store.queries, QueryFilter(**conditions), 5)
    assert 0 == _counted(store.queries, QueryFilter(**conditions))
