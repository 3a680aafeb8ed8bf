"""Which queries a list shows or a change by filter is applied to, and how they are found.

A search goes from the newest query to the oldest and examines at most MAX_EXAMINED entries of an
index at a time, so that each step takes milliseconds however rare a match is. More indexes would
find some filters' matches sooner, and each would be paid for by every query that is submitted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from storage.ids import new_id

if TYPE_CHECKING:
    from storage.database import Database

#: Most queries that one step of a search examines.
MAX_EXAMINED: Final = 20_000
#: Most ids that are examined to find where a span of time begins or ends.
_MAX_IDS: Final = 100_000
#: Not less than any number of a query. Source: sqlite.org/autoinc.html, the largest ROWID.
_LAST: Final = (1 << 63) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryFilter:
    """Conditions; a query satisfies the filter if it satisfies all that are given."""

    #: The API key that submitted it.
    key_id: str | None = None
    #: It is in one of these; empty: in any.
    states: tuple[str, ...] = ()
    #: "scheme://host:port"
    destination: str | None = None
    #: Accepted at this time or later, in milliseconds since the epoch.
    created_after: int | None = None
    #: Accepted earlier than this, in milliseconds since the epoch.
    created_before: int | None = None
    #: FAILED for this reason.
    failure_reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a step of a search found."""

    #: Numbers of queries, newest first.
    seqs: list[int]
    #: Where the next step begins; None after the oldest query.
    before: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """How many queries a step of a search found."""

    count: int
    #: As in `Found`.
    before: int | None


class QuerySearch:
    """One search for what satisfies *where*, for one thread.

    Queries that change while it goes on count as they are when they are examined.
    """

    def __init__(self, database: Database, where: QueryFilter) -> None:
        self._database = database
        self._ranges, self._conditions, self._values = _plan(database, where)
        # With several ranges SQLite would rather examine another index, in order.
        self._order = "+seq" if len(self._ranges) > 1 else "seq"
        self._first, self._last = self._span(where)

    def find(self, *, before: int | None, limit: int) -> Found:
        """Return up to *limit* matches with numbers below *before*; None: from the newest on."""
        first, last = self._window(before)
        rows = self._database.read(
            f"SELECT seq FROM query WHERE {self._conditions} AND seq BETWEEN ? AND ?"
            f" ORDER BY {self._order} DESC LIMIT ?",
            (*self._values, first, last, limit + 1),
        )
        seqs = [seq for (seq,) in rows[:limit]]
        return Found(seqs=seqs, before=seqs[-1] if len(rows) > limit else self._next(first))

    def count(self, *, before: int | None) -> Counted:
        """Count the matches among the next MAX_EXAMINED queries."""
        first, last = self._window(before)
        ((count,),) = self._database.read(
            f"SELECT count(*) FROM query WHERE {self._conditions} AND seq BETWEEN ? AND ?",
            (*self._values, first, last),
        )
        return Counted(count=count, before=self._next(first))

    def _window(self, before: int | None) -> tuple[int, int]:
        """Return the lowest and the highest number that the next step examines."""
        last = self._last if before is None else min(self._last, before - 1)
        ends = [
            self._database.read(
                f"SELECT seq FROM query WHERE {conditions} AND seq BETWEEN ? AND ?"
                " ORDER BY seq DESC LIMIT 1 OFFSET ?",
                (*values, self._first, last, MAX_EXAMINED - 1),
            )
            for conditions, values in self._ranges
        ]
        return max([self._first, *(rows[0][0] for rows in ends if rows)]), last

    def _next(self, first: int) -> int | None:
        return first if first > self._first else None

    def _span(self, where: QueryFilter) -> tuple[int, int]:
        """Return the lowest and the highest number that a match can have.

        A number says nothing exact about a time: the clock may have been set. Ids sort by time
        and lead to the numbers of a span, unless there are too many of them; then the search
        examines every query.
        """
        first, last = 0, _LAST
        if where.created_after is not None:
            first = self._end("min", "id >= ?", where.created_after, unknown=0, nothing=_LAST)
        if where.created_before is not None:
            last = self._end("max", "id < ?", where.created_before, unknown=_LAST, nothing=-1)
        return first, last

    def _end(self, end: str, condition: str, at: int, *, unknown: int, nothing: int) -> int:
        ((seq, count),) = self._database.read(
            f"SELECT {end}(seq), count(*) FROM (SELECT seq FROM query WHERE {condition} LIMIT ?)",
            (new_id("qry", now=at, randomness=bytes), _MAX_IDS),
        )
        if count == _MAX_IDS:
            return unknown
        return nothing if seq is None else int(seq)


def _plan(
    database: Database, where: QueryFilter
) -> tuple[list[tuple[str, tuple[object, ...]]], str, tuple[object, ...]]:
    """Return the ranges of an index to examine, all conditions as SQL, and their values.

    Conditions that begin with a plus keep SQLite from choosing an index by them: what it would
    examine by another index than that of the ranges has no bound.
    """
    given: dict[str, object] = {}
    if where.key_id is not None:
        given["key_id = ?"] = where.key_id
    if where.destination is not None:
        rows = database.read("SELECT id FROM destination WHERE name = ?", (where.destination,))
        given["destination_id = ?"] = rows[0][0] if rows else -1
    if where.created_after is not None:
        given["created_at >= ?"] = where.created_after
    if where.created_before is not None:
        given["created_at < ?"] = where.created_before
    if where.failure_reason is not None:
        given["failure_reason = ?"] = where.failure_reason
    # Most queries are DELIVERED in the end, and few go to one destination of many.
    by_destination = where.destination is not None and (
        not where.states or "DELIVERED" in where.states
    )
    indexed = {"destination_id = ?"} if by_destination else {"key_id = ?"}
    fixed = {sql: value for sql, value in given.items() if sql in indexed}
    others = {f"+{sql}": value for sql, value in given.items() if sql not in indexed}
    states = f"{'+' if by_destination else ''}state IN ({_placeholders(where.states)})"
    conditions = [*fixed, *([states] if where.states else []), *others]
    values = (*fixed.values(), *where.states, *others.values())
    ranges: list[tuple[str, tuple[object, ...]]] = [
        (" AND ".join([*fixed, "state = ?"]), (*fixed.values(), state))
        for state in where.states
        if not by_destination
    ]
    if not ranges:
        ranges = [(" AND ".join(fixed) or "1", tuple(fixed.values()))]
    return ranges, " AND ".join(conditions) or "1", values


def _placeholders(values: tuple[str, ...]) -> str:
    return ", ".join("?" for _ in values)
