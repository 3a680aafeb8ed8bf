"""Circuit breakers of destinations, as far as they must outlive a restart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from storage.database import Connection, Database


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    """What is known of a destination that is, or lately was, down."""

    destination: int
    #: "CLOSED", "OPEN", "RECOVERING", or "HELD": open until an operator closes it.
    state: str
    #: When it may be probed again; only OPEN ones are.
    probe_at: int
    #: How often it has opened since it was last closed: the longer, the longer it waits.
    openings: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """A destination as operators see it."""

    #: "scheme://host:port"
    name: str
    breaker: Breaker
    #: Queries that wait to be delivered to it, or are under way.
    waiting: int


class Breakers:
    """The breakers of a database. Safe to use from any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def not_closed(self) -> list[Breaker]:
        """Return the breakers that are open, recovering or held."""
        return [
            Breaker(destination=id_, state=state, probe_at=probe_at, openings=openings)
            for id_, state, probe_at, openings in self._database.read(
                "SELECT id, state, probe_at, openings FROM destination WHERE state <> 'CLOSED'"
            )
        ]

    def operator_changes(self, *, after: int) -> list[tuple[int, Breaker]]:
        """Return what operators changed since change number *after*, oldest first.

        The last change of each destination: its number, and the breaker as it is now.
        """
        return [
            (
                number,
                Breaker(destination=id_, state=state, probe_at=probe_at, openings=openings),
            )
            for number, id_, state, probe_at, openings in self._database.read(
                "SELECT operator_change, id, state, probe_at, openings FROM destination"
                " WHERE operator_change > 0 AND operator_change > ? ORDER BY operator_change",
                (after,),
            )
        ]

    def last_operator_change(self) -> int:
        """Return the number of the last change that an operator made; 0: none."""
        rows = self._database.read(
            "SELECT max(operator_change) FROM destination WHERE operator_change > 0"
        )
        return rows[0][0] or 0

    def save(self, breaker: Breaker, *, seen: int | None = None) -> None:
        """Keep a breaker's state, unless an operator holds it.

        Nor if an operator has changed it after change number *seen* (None: whenever): what is
        to be kept was decided without that.
        """
        self._database.write(
            lambda connection: (
                connection.execute(
                    "UPDATE destination SET state = ?, probe_at = ?, openings = ?"
                    " WHERE id = ? AND state <> 'HELD' AND operator_change <= coalesce(?, 1 << 62)",
                    (breaker.state, breaker.probe_at, breaker.openings, breaker.destination, seen),
                ).rowcount
            ),
            uses_reserve=True,
        )

    def close(self, name: str) -> bool:
        """Close the breaker of the destination *name*; False when there is none of this name."""
        return self._set(name, "CLOSED")

    def hold(self, name: str) -> bool:
        """Open the breaker of *name* until it is closed by hand; False when there is none."""
        return self._set(name, "HELD")

    def pause(self, name: str) -> None:
        """Open the breaker of *name* until it is closed by hand; it need not be known yet.

        *name* is canonical, as queries have it: "scheme://host:port".
        """
        self._set(name, "HELD", create=True)

    def destinations(self) -> list[Destination]:
        """Return every destination, those with an open breaker first, then by what waits."""
        return [
            Destination(
                name=name,
                breaker=Breaker(destination=id_, state=state, probe_at=probe_at, openings=openings),
                waiting=waiting,
            )
            for id_, name, state, probe_at, openings, waiting in self._database.read(
                # One look at all that wait: a look for each destination would pass over all of its
                # queries that have ended.
                "SELECT id, name, state, probe_at, openings, coalesce(waiting, 0)"
                " FROM destination LEFT JOIN (SELECT destination_id, count(*) AS waiting FROM query"
                "  WHERE state IN ('QUEUED', 'DELIVERING') GROUP BY destination_id)"
                " ON destination_id = id"
                " ORDER BY state = 'CLOSED', coalesce(waiting, 0) DESC, name"
            )
        ]

    def _set(self, name: str, state: str, *, create: bool = False) -> bool:
        def operation(connection: Connection) -> int:
            if create:
                connection.execute(
                    "INSERT INTO destination (name) VALUES (?) ON CONFLICT DO NOTHING", (name,)
                )
            return connection.execute(
                "UPDATE destination SET state = ?, probe_at = 0, openings = 0,"
                " operator_change = 1 + (SELECT coalesce(max(operator_change), 0)"
                "   FROM destination WHERE operator_change > 0) WHERE name = ?",
                (state, name),
            ).rowcount

        return bool(self._database.write(operation, uses_reserve=True))
