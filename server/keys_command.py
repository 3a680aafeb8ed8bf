"""`picback keys`: make, list, rotate and revoke API keys, beside a running server or without one."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from callers.tables import print_table
from server.keyring import REFRESH_SECONDS
from storage.api_keys import SCOPES, ApiKeys
from storage.database import Database
from storage.errors import KeyNameTakenError, KeyNotFoundError, StorageError

if TYPE_CHECKING:
    from storage.api_keys import ApiKey, Credentials

#: Which data folder; `picback serve` has it as well.
data_option = click.option(
    "--data",
    envvar="PICBACK_DATA",
    show_envvar=True,
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("picback-data"),
    help="The data folder: one per server.",
)
json_option = click.option(
    "--json", "as_json", envvar="PICBACK_JSON", show_envvar=True, is_flag=True, help="Print JSON."
)


@click.group()
def keys() -> None:
    """Make, list, rotate and revoke API keys. Works beside a running server."""


def _checked_name(_: click.Context, __: click.Parameter, name: str) -> str:
    if not name.strip() or not name.isprintable() or len(name) > 100 or name.startswith("key_"):
        msg = "a name is 1 to 100 printable characters, and does not begin like an id, with key_"
        raise click.BadParameter(msg)
    return name


@keys.command("create")
@click.argument("name", callback=_checked_name)
@click.option(
    "--scope",
    "scopes",
    envvar="PICBACK_SCOPE",
    show_envvar=True,
    multiple=True,
    type=click.Choice(SCOPES),
    help="What the key may do; repeatable. All of it if not given.",
)
@click.option(
    "--expires-in-days",
    envvar="PICBACK_EXPIRES_IN_DAYS",
    show_envvar=True,
    type=click.IntRange(1, 36_500),
    help="After how many days the key ends. Never if not given.",
)
@data_option
@json_option
def create_key(
    name: str, scopes: tuple[str, ...], expires_in_days: int | None, data: Path, *, as_json: bool
) -> None:
    """Make an API key and print it, this once."""
    from dispatcher import new_secret  # noqa: PLC0415 - imports models' libraries

    now = _now()
    with _database(data) as database:
        credentials = ApiKeys(database).create(
            name,
            scopes=scopes or SCOPES,
            signing_secret=new_secret(),
            expires_at=None if expires_in_days is None else now + expires_in_days * 86_400_000,
            now=now,
        )
    print_credentials(credentials, as_json=as_json)


@keys.command("list")
@data_option
@json_option
def list_keys(data: Path, *, as_json: bool) -> None:
    """List all keys; never with what they are."""
    with _database(data, changes=False) as database:
        found = ApiKeys(database).all()
    if as_json:
        for key in found:
            facts = {
                "id": key.id,
                "name": key.name,
                "scopes": list(key.scopes),
                "create_time": _iso(key.created_at),
                "expire_time": _iso(key.expires_at),
                "revoke_time": _iso(key.revoked_at),
                "last_use_time": _iso(key.last_used_at),
            }
            click.echo(json.dumps(facts))
        return
    print_table(
        ["name", "id", "created", "last used", "state", "scopes"],
        [
            (
                key.name,
                key.id,
                _iso(key.created_at) or "",
                _iso(key.last_used_at) or "-",
                _state(key),
                "all" if set(key.scopes) == set(SCOPES) else " ".join(key.scopes),
            )
            for key in found
        ],
    )


@keys.command("rotate")
@click.argument("name_or_id")
@click.option(
    "--overlap-hours",
    envvar="PICBACK_OVERLAP_HOURS",
    show_envvar=True,
    type=click.IntRange(0, 8_760),
    default=24,
    help="How long the old key and the old signing secret go on working.",
)
@data_option
@json_option
def rotate_key(name_or_id: str, overlap_hours: int, data: Path, *, as_json: bool) -> None:
    """Give a key a new token and a new signing secret."""
    from dispatcher import new_secret  # noqa: PLC0415 - imports models' libraries

    with _database(data) as database:
        credentials = ApiKeys(database).rotate(
            name_or_id,
            signing_secret=new_secret(),
            overlap=overlap_hours * 3_600_000,
            now=_now(),
        )
    print_credentials(credentials, as_json=as_json)


@keys.command("revoke")
@click.argument("name_or_id")
@data_option
@json_option
def revoke_key(name_or_id: str, data: Path, *, as_json: bool) -> None:
    """End a key now. Its queries are still delivered, signed as before."""
    with _database(data) as database:
        key = ApiKeys(database).revoke(name_or_id, now=_now())
    if as_json:
        click.echo(json.dumps({"id": key.id, "name": key.name}))
    else:
        click.echo(f"revoked {key.name} ({key.id})")


def _state(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return f"revoked {_iso(key.revoked_at)}"
    if key.expires_at is not None:
        return f"{'expired' if key.expires_at <= _now() else 'until'} {_iso(key.expires_at)}"
    return "active"


class _database:  # noqa: N801 - reads as a word at its call sites
    """Opens a data folder beside its server, and tells errors the way a command does."""

    def __init__(self, data: Path, *, changes: bool = True) -> None:
        self._data = data
        self._changes = changes

    def __enter__(self) -> Database:
        try:
            self._database = Database.beside(self._data)
        except StorageError as error:
            raise click.ClickException(str(error)) from error
        return self._database

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        served = self._changes and error is None and self._database.is_served()
        self._database.close()
        if isinstance(error, (StorageError, KeyNameTakenError, KeyNotFoundError)):
            raise click.ClickException(str(error)) from error
        if served:
            # What this command prints next is true: the running server knows it by then.
            time.sleep(2 * REFRESH_SECONDS)


def credentials_json(credentials: Credentials) -> str:
    """Return what a key's owner is shown once, as the contract names it."""
    return json.dumps(
        {
            "id": credentials.id,
            "key": credentials.token,
            "signing_secret": credentials.signing_secret,
        }
    )


def print_credentials(credentials: Credentials, *, as_json: bool) -> None:
    """Show a key's owner what is shown once."""
    if as_json:
        click.echo(credentials_json(credentials))
        return
    click.echo(f"id              {credentials.id}")
    click.echo(f"key             {credentials.token}")
    click.echo(f"signing secret  {credentials.signing_secret}")
    click.echo("\nKeep both now: they are not shown again.")


def _now() -> int:
    return time.time_ns() // 1_000_000


def _iso(milliseconds: int | None) -> str | None:
    if milliseconds is None:
        return None
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(milliseconds / 1000))
