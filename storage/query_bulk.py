"""Changes of many queries at once: what `Queries.cancel` and `Queries.redeliver` do to one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from storage.database import Connection, Database
    from storage.query_filters import QueryFilter

#: What makes a query CANCELLED; ?1 is the time.
CANCEL: Final = (
    "state = 'CANCELLED', due_at = NULL, leased_at = NULL, ended_at = coalesce(ended_at, ?1)"
)
#: What makes a final query due again at the beginning of its schedule; ?1 is the scheduler's time.
#: One that is UNMATCHED is matched again.
REDELIVER: Final = (
    "lemmas = iif(state = 'UNMATCHED', NULL, lemmas),"
    " matched_at = iif(state = 'UNMATCHED', NULL, matched_at),"
    " state = iif(state = 'UNMATCHED' OR matched_at IS NULL, 'QUEUED', 'DELIVERING'),"
    " due_at = ?1, cycle_at = ?1, cycle_start = attempt, give_up_at = ?1 + give_up_after,"
    " failure_reason = NULL, failure_message = NULL, ended_at = NULL"
)
#: A query is not redelivered if so many of its attempts started within so many milliseconds.
MAX_RECENT_ATTEMPTS: Final = 10
RECENT_MS: Final = 60_000
#: When the first of a query's last MAX_RECENT_ATTEMPTS attempts started, if that was within
#: RECENT_MS before ?3, a time of the wall clock; NULL otherwise. An attempt that started later than
#: now tells of a clock that was set.
BUSY_SINCE: Final = (
    f"(SELECT iif(started_at BETWEEN ?3 - {RECENT_MS - 1} AND ?3, started_at, NULL)"
    " FROM attempt WHERE query_seq = query.seq ORDER BY number DESC"
    f" LIMIT 1 OFFSET {MAX_RECENT_ATTEMPTS - 1})"
)
#: What a query that was found can have ceased to satisfy; ?4 are states (JSON), ?5 is a reason.
_STILL_MATCHES: Final = (
    "(?4 = '[]' OR state IN (SELECT value FROM json_each(?4)))"
    " AND (?5 IS NULL OR failure_reason = ?5)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """A query that was changed."""

    id: str
    key_id: str
    destination: int
    #: None if it was cancelled.
    due_at: int | None
    give_up_at: int | None


class QueryBulk:
    """Changes queries that a `QuerySearch` has found. Safe to use from any thread.

    Each method is one transaction: with some hundred queries it lasts milliseconds, for which
    other changes wait. *note* gets what was changed.
    """

    def __init__(self, database: Database, note: Callable[[Sequence[Changed]], None]) -> None:
        self._database = database
        self._note = note

    def cancel(self, seqs: Sequence[int], where: QueryFilter, *, now: int) -> list[Changed]:
        """Stop those queries that still satisfy *where*, whose states are not final."""
        return self._change(seqs, where, CANCEL, (now, now), uses_reserve=True)

    def redeliver(
        self, seqs: Sequence[int], where: QueryFilter, *, now: int, wall_now: int | None = None
    ) -> list[Changed]:
        """Make those queries due that still satisfy *where*, whose states are final.

        Except those with MAX_RECENT_ATTEMPTS attempts within RECENT_MS. Times as in
        `Queries.redeliver`.
        """
        times = (now, now if wall_now is None else wall_now)
        return self._change(seqs, where, REDELIVER, times, f"AND {BUSY_SINCE} IS NULL")

    def _change(
        self,
        seqs: Sequence[int],
        where: QueryFilter,
        change: str,
        times: tuple[int, int],
        condition: str = "",
        *,
        uses_reserve: bool = False,
    ) -> list[Changed]:
        now, wall = times

        def operation(connection: Connection) -> list[Changed]:
            rows = connection.execute(
                f"UPDATE query SET {change}"
                f" WHERE seq IN (SELECT value FROM json_each(?2)) {condition}"
                f" AND {_STILL_MATCHES} RETURNING id, key_id, destination_id, due_at, give_up_at",
                (now, json.dumps(seqs), wall, json.dumps(where.states), where.failure_reason),
            ).fetchall()
            return [
                Changed(
                    id=id_,
                    key_id=key_id,
                    destination=destination,
                    due_at=due_at,
                    give_up_at=give_up_at,
                )
                for id_, key_id, destination, due_at, give_up_at in rows
            ]

        if not seqs:
            return []
        changed = self._database.write(operation, uses_reserve=uses_reserve)
        self._note(changed)
        return changed
