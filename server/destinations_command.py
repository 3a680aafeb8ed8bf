"""`picback destinations`: what is called back, what waits for it, and its circuit breaker."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from callers.tables import print_table
from server.beside import data_option, iso_time, json_option, opened
from storage.breakers import Breakers

if TYPE_CHECKING:
    from pathlib import Path


@click.group()
def destinations() -> None:
    """List what is called back; close and open circuit breakers."""


@destinations.command("list")
@data_option
@json_option
def list_destinations(data: Path, *, as_json: bool) -> None:
    """List all destinations, those with an open breaker first."""
    with opened(data, changes=False) as database:
        found = Breakers(database).destinations()
    rows = [
        {
            "name": each.name,
            "breaker": each.breaker.state,
            "probe_time": None
            if each.breaker.state in ("CLOSED", "HELD")
            else iso_time(each.breaker.probe_at),
            "waiting": each.waiting,
        }
        for each in found
    ]
    if as_json:
        for row in rows:
            click.echo(json.dumps(row))
        return
    print_table(
        ["destination", "breaker", "probed at", "waiting"],
        [
            (
                str(row["name"]),
                str(row["breaker"]),
                str(row["probe_time"] or "-"),
                str(row["waiting"]),
            )
            for row in rows
        ],
    )


@destinations.command("close")
@click.argument("name", metavar="SCHEME://HOST:PORT")
@data_option
def close_breaker(name: str, data: Path) -> None:
    """Close a destination's breaker: call it back again at once.

    A running server notices within a minute.
    """
    with opened(data, changes=False) as database:
        _require(name, is_known=Breakers(database).close(name))
    click.echo(f"closed {name}")


@destinations.command("open")
@click.argument("name", metavar="SCHEME://HOST:PORT")
@data_option
def open_breaker(name: str, data: Path) -> None:
    """Hold back a destination's callbacks until its breaker is closed.

    Those under way go on; what is accepted waits and uses up no attempt.
    """
    with opened(data, changes=False) as database:
        _require(name, is_known=Breakers(database).hold(name))
    click.echo(f"opened {name}")


def _require(name: str, *, is_known: bool) -> None:
    if not is_known:
        msg = f"there is no destination {name}; picback destinations list shows them"
        raise click.ClickException(msg)
