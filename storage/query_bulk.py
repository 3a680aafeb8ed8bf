"""Changes of many queries at once: what `Queries.cancel` and `Queries.redeliver` do to one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from storage.query_filters import still_matching

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from storage.database import Connection, Database
    from storage.query_filters import QueryFilter

#: What makes a query CANCELLED; ?1 is the time.
CANCEL: Final = (
    "state = 'CANCELLED', due_at = NULL, leased_at = NULL, ended_at = coalesce(ended_at, ?1)"
)
#: What makes a final query due again at the beginning of its schedule; ?1 is the time. One that
#: is UNMATCHED is matched again.
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
#: RECENT_MS before ?1; NULL otherwise. An attempt that started later than now tells of a clock
#: that was set.
BUSY_SINCE: Final = (
    f"(SELECT iif(started_at BETWEEN ?1 - {RECENT_MS - 1} AND ?1, started_at, NULL)"
    " FROM attempt WHERE query_seq = query.seq ORDER BY number DESC"
    f" LIMIT 1 OFFSET {MAX_RECENT_ATTEMPTS - 1})"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """A query that was changed."""

    id: str
    key_id: str
    destination: int
    #: None if it is final now.
    due_at: int | None
    give_up_at: int | None


class QueryBulk:
    """Changes queries that a `QuerySearch` has found. Safe to use from any thread.

    Each method is one transaction: with some hundred queries it lasts milliseconds, for which
    other changes wait. *note* gets what was changed, and 1 if that made it due, -1 if it became
    final.
    """

    def __init__(self, database: Database, note: Callable[[Sequence[Changed], int], None]) -> None:
        self._database = database
        self._note = note

    def cancel(self, seqs: Sequence[int], where: QueryFilter, *, now: int) -> list[Changed]:
        """Stop those queries that still satisfy *where*, whose states are not final."""
        changed = self._change(seqs, where, CANCEL, "1", now, uses_reserve=True)
        self._note(changed, -1)
        return changed

    def redeliver(self, seqs: Sequence[int], where: QueryFilter, *, now: int) -> list[Changed]:
        """Make those queries due that still satisfy *where*, whose states are final.

        Except those with MAX_RECENT_ATTEMPTS attempts within RECENT_MS.
        """
        changed = self._change(seqs, where, REDELIVER, f"{BUSY_SINCE} IS NULL", now)
        self._note(changed, 1)
        return changed

    def _change(
        self,
        seqs: Sequence[int],
        where: QueryFilter,
        change: str,
        condition: str,
        now: int,
        *,
        uses_reserve: bool = False,
    ) -> list[Changed]:
        conditions, values = still_matching(where)

        def operation(connection: Connection) -> list[Changed]:
            rows = connection.execute(
                f"UPDATE query SET {change}"
                f" WHERE seq IN (SELECT value FROM json_each(?2)) AND {condition}"
                f" AND {conditions} RETURNING id, key_id, destination_id, due_at, give_up_at",
                (now, json.dumps(list(seqs)), *values),
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
        return self._database.write(operation, uses_reserve=uses_reserve)
