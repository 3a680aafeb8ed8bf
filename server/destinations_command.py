"""`picback destinations`: what is called back, what waits for it, and its circuit breaker."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from callers.tables import print_table
from dispatcher import CallbackUrlError, parse_destination
from server.beside import data_option, iso_time, json_option, opened
from storage.breakers import Breakers

if TYPE_CHECKING:
    from pathlib import Path


@click.group()
def destinations() -> None:
    """List destinations of callbacks; pause and resume them."""


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


@destinations.command("pause")
@click.argument("name", metavar="SCHEME://HOST:PORT")
@data_option
def pause_destination(name: str, data: Path) -> None:
    """Hold back a destination's callbacks until it is resumed; it need not be known yet.

    Attempts in flight go on; queries that are accepted wait and use up no attempt.
    """
    try:
        name = parse_destination(name)
    except CallbackUrlError as error:
        raise click.ClickException(str(error)) from error
    with opened(data, changes=False) as database:
        Breakers(database).pause(name)
    click.echo(f"paused {name}")


@destinations.command("resume")
@click.argument("name", metavar="SCHEME://HOST:PORT")
@data_option
def resume_destination(name: str, data: Path) -> None:
    """Deliver to a destination again, at once, whether it was paused or its breaker is open.

    A running server notices within a minute.
    """
    with opened(data, changes=False) as database:
        _require(name, is_known=Breakers(database).close(name))
    click.echo(f"resumed {name}")


@destinations.command("close")
@click.argument("name", metavar="SCHEME://HOST:PORT")
@data_option
def close_breaker(name: str, data: Path) -> None:
    """Do the same as resume."""
    with opened(data, changes=False) as database:
        _require(name, is_known=Breakers(database).close(name))
    click.echo(f"closed {name}")


@destinations.command("open")
@click.argument("name", metavar="SCHEME://HOST:PORT")
@data_option
def open_breaker(name: str, data: Path) -> None:
    """Do the same as pause, for a destination that is known."""
    with opened(data, changes=False) as database:
        _require(name, is_known=Breakers(database).hold(name))
    click.echo(f"opened {name}")


def _require(name: str, *, is_known: bool) -> None:
    if not is_known:
        msg = f"there is no destination {name}; picback destinations list shows them"
        raise click.ClickException(msg)
