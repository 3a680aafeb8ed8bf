"""Queries that must end at a time, wherever they wait: behind others, for a breaker, or paused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from storage.changes import Changes
    from storage.database import Connection, Database
    from storage.queued_queries import QueuedQueries

#: Reason, the column that decides, what it must be at most (?1: the time, ?2: the beginning of a
#: schedule that ends now), and a message for people. In the order in which reasons count.
_REASONS: Final = (
    ("DEADLINE_PASSED", "give_up_at", "?1", "give_up_after passed while the query waited"),
    ("SCHEDULE_EXPIRED", "cycle_at", "?2", "the schedule ended while the query waited"),
)
#: A query that is leased ends with its lease.
_WAITS: Final = "ended_at IS NULL AND leased_at IS NULL"


class QueryDeadlines:
    """When waiting queries must end, and their end. Safe to use from any thread.

    Times are the scheduler's, in milliseconds.
    """

    def __init__(self, database: Database, changes: Changes, queued: QueuedQueries) -> None:
        self._database = database
        self._changes = changes
        self._queued = queued

    def next_at(self, *, lifetime: int) -> int | None:
        """Return when the next query that waits must end; None when none waits.

        *lifetime* is how long a schedule takes, in milliseconds.
        """
        found = [
            at + offset
            for column, offset in (("give_up_at", 0), ("cycle_at", lifetime))
            for (at,) in self._database.read(
                f"SELECT {column} FROM query WHERE {column} IS NOT NULL AND {_WAITS}"
                f" ORDER BY {column} LIMIT 1"
            )
        ]
        return min(found, default=None)

    def expire(self, *, now: int, lifetime: int, wall_now: int, limit: int) -> int:
        """End up to *limit* queries that wait past their time; return how many.

        They are FAILED as of *wall_now*, with DEADLINE_PASSED or SCHEDULE_EXPIRED. *lifetime* is
        how long a schedule takes, more than 0.
        """

        def operation(connection: Connection) -> list[tuple[str, str]]:
            ended: list[tuple[str, str]] = []
            for reason, column, latest, message in _REASONS:
                rows = connection.execute(
                    "UPDATE query SET state = 'FAILED', due_at = NULL, ended_at = ?3,"
                    " failure_reason = ?4, failure_message = ?5 WHERE ?1 > ?2 AND seq IN"
                    f" (SELECT seq FROM query WHERE {_WAITS} AND {column} <= {latest}"
                    f"  ORDER BY {column} LIMIT ?6) RETURNING id, key_id",
                    (now, now - lifetime, wall_now, reason, message, limit - len(ended)),
                ).fetchall()
                ended += rows
            return ended

        ended = self._database.write(operation, uses_reserve=True)
        for id_, key_id in ended:
            self._queued.add(key_id, -1)
            self._changes.publish(id_)
        return len(ended)

    def newest(self) -> int:
        """Return when the newest query was accepted or redelivered; 0: there is none."""
        rows = self._database.read(
            "SELECT cycle_at FROM query WHERE seq = (SELECT max(seq) FROM query)"
        )
        return int(rows[0][0]) if rows else 0
