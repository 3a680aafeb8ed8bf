"""picback destinations: operators see breakers, close and open them beside a running server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from server.cli import main
from storage.breakers import Breaker

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

    from tests.store import Store


def run(store: Store, *arguments: str) -> Result:
    data: Path = store.database.folder
    return CliRunner().invoke(main, ["destinations", *arguments, "--data", str(data)])


def open_breaker(store: Store, name: str) -> None:
    store.submit(destination=name)
    (row,) = store.database.read("SELECT id FROM destination WHERE name = ?", (name,))
    store.breakers.save(
        Breaker(destination=row[0], state="OPEN", probe_at=1_795_341_600_000, openings=3)
    )


def test_destinations_with_an_open_breaker_are_listed_first(store: Store) -> None:
    store.submit(destination="https://a.test:443")
    open_breaker(store, "https://b.test:443")

    found = [json.loads(line) for line in run(store, "list", "--json").stdout.splitlines()]

    assert [
        {
            "name": "https://b.test:443",
            "breaker": "OPEN",
            "probe_time": "2026-11-22T10:00:00Z",
            "waiting": 1,
        },
        {"name": "https://a.test:443", "breaker": "CLOSED", "probe_time": None, "waiting": 1},
    ] == found


def test_the_table_tells_the_same(store: Store) -> None:
    open_breaker(store, "https://b.test:443")

    heading, row = run(store, "list").stdout.splitlines()

    assert ["DESTINATION", "BREAKER", "PROBED", "AT", "WAITING"] == heading.split()
    assert ["https://b.test:443", "OPEN", "2026-11-22T10:00:00Z", "1"] == row.split()


def test_a_breaker_is_closed_by_name(store: Store) -> None:
    open_breaker(store, "https://b.test:443")

    result = run(store, "close", "https://b.test:443")

    assert (0, "closed https://b.test:443\n") == (result.exit_code, result.stdout)
    assert [] == store.breakers.not_closed()


def test_a_breaker_is_opened_by_name_until_it_is_closed(store: Store) -> None:
    store.submit(destination="https://b.test:443")

    result = run(store, "open", "https://b.test:443")
    listed = json.loads(run(store, "list", "--json").stdout)
    run(store, "close", "https://b.test:443")

    assert (0, "opened https://b.test:443\n") == (result.exit_code, result.stdout)
    assert ("HELD", None, 1) == (listed["breaker"], listed["probe_time"], listed["waiting"])
    assert [] == store.breakers.not_closed()


def test_a_destination_is_paused_before_its_first_query(store: Store) -> None:
    result = run(store, "pause", "HTTPS://New.test")
    store.submit(destination="https://new.test:443")
    listed = json.loads(run(store, "list", "--json").stdout)
    again = run(store, "pause", "https://new.test:443")
    resumed = run(store, "resume", "https://new.test:443")

    assert (0, "paused https://new.test:443\n") == (result.exit_code, result.stdout)
    assert ("https://new.test:443", "HELD", 1) == (
        listed["name"],
        listed["breaker"],
        listed["waiting"],
    )
    assert (0, "paused https://new.test:443\n") == (again.exit_code, again.stdout)
    assert (0, "resumed https://new.test:443\n") == (resumed.exit_code, resumed.stdout)
    assert [] == store.breakers.not_closed()


@pytest.mark.parametrize("name", ["new.test", "ftp://new.test", "https://new.test/path", ""])
def test_only_scheme_host_and_port_can_be_paused(store: Store, name: str) -> None:
    result = run(store, "pause", name)

    assert 1 == result.exit_code
    assert 0 == store.count("destination")


@pytest.mark.parametrize("command", ["close", "open", "resume"])
def test_what_is_no_destination_is_an_error(store: Store, command: str) -> None:
    result = run(store, command, "https://nobody.test:443")

    assert 1 == result.exit_code
    assert "there is no destination https://nobody.test:443" in result.stderr
