"""Small facts that belong to a database rather than to a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from storage.database import Connection, Database


def get(database: Database, name: str) -> bytes | None:
    """Return the setting *name*, None if there is none."""
    rows = database.read("SELECT value FROM setting WHERE name = ?", (name,))
    return bytes(rows[0][0]) if rows else None


def put(database: Database, name: str, value: bytes) -> None:
    """Store the setting *name*, over the one that there is."""
    database.write(
        lambda connection: connection.execute(
            "INSERT INTO setting (name, value) VALUES (?, ?)"
            " ON CONFLICT DO UPDATE SET value = excluded.value",
            (name, value),
        ),
        uses_reserve=True,  # a start needs it, and it takes no more space than before
    )


def get_or_create(database: Database, name: str, make: Callable[[], bytes]) -> bytes:
    """Return the setting *name*, made by *make* when it is asked for the first time."""

    def operation(connection: Connection) -> bytes:
        connection.execute(
            "INSERT INTO setting (name, value) VALUES (?, ?) ON CONFLICT DO NOTHING", (name, make())
        )
        rows = connection.execute("SELECT value FROM setting WHERE name = ?", (name,)).fetchall()
        return bytes(rows[0][0])

    return database.write(operation, uses_reserve=True)  # a start needs them
