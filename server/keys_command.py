"""`picback keys`: make, list, rotate and revoke API keys, beside a running server or without one.

The key that encrypts their signing secrets is made here, too.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from callers.secret_files import SecretFileError
from callers.tables import print_table
from server.beside import (
    data_option,
    iso_time,
    json_option,
    opened,
    opened_keys,
    secrets_key_option,
)
from server.secrets_key_file import write_new_key
from storage.api_keys import DEFAULT_SCOPES, SCOPES, ApiKeys

if TYPE_CHECKING:
    from storage.api_keys import ApiKey, Credentials


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
    help="What the key may do; repeatable. All but queries.all if not given.",
)
@click.option(
    "--expires-in-days",
    envvar="PICBACK_EXPIRES_IN_DAYS",
    show_envvar=True,
    type=click.IntRange(1, 36_500),
    help="After how many days the key ends. Never if not given.",
)
@data_option
@secrets_key_option
@json_option
def create_key(
    name: str,
    scopes: tuple[str, ...],
    expires_in_days: int | None,
    data: Path,
    secrets_key_file: Path | None,
    *,
    as_json: bool,
) -> None:
    """Make an API key and print it, this once."""
    from dispatcher import new_secret  # noqa: PLC0415 - imports models' libraries

    now = _now()
    with opened_keys(data, secrets_key_file) as api_keys:
        credentials = api_keys.create(
            name,
            scopes=scopes or DEFAULT_SCOPES,
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
    with opened(data, changes=False) as database:
        found = ApiKeys(database).all()
    if as_json:
        for key in found:
            facts = {
                "id": key.id,
                "name": key.name,
                "scopes": list(key.scopes),
                "create_time": iso_time(key.created_at),
                "expire_time": iso_time(key.expires_at),
                "revoke_time": iso_time(key.revoked_at),
                "last_use_time": iso_time(key.last_used_at),
            }
            click.echo(json.dumps(facts))
        return
    print_table(
        ["name", "id", "created", "last used", "state", "scopes"],
        [
            (
                key.name,
                key.id,
                iso_time(key.created_at) or "",
                iso_time(key.last_used_at) or "-",
                _state(key),
                "default" if set(key.scopes) == set(DEFAULT_SCOPES) else " ".join(key.scopes),
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
@secrets_key_option
@json_option
def rotate_key(
    name_or_id: str,
    overlap_hours: int,
    data: Path,
    secrets_key_file: Path | None,
    *,
    as_json: bool,
) -> None:
    """Give a key a new token and a new signing secret."""
    from dispatcher import new_secret  # noqa: PLC0415 - imports models' libraries

    with opened_keys(data, secrets_key_file) as api_keys:
        credentials = api_keys.rotate(
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
    with opened(data) as database:
        key = ApiKeys(database).revoke(name_or_id, now=_now())
    if as_json:
        click.echo(json.dumps({"id": key.id, "name": key.name}))
    else:
        click.echo(f"revoked {key.name} ({key.id})")


@keys.command("new-secrets-key-file")
@click.argument("path", type=click.Path(path_type=Path))
def new_secrets_key_file(path: Path) -> None:
    """Write a new key to PATH, for --secrets-key-file."""
    try:
        sealer = write_new_key(path)
    except SecretFileError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"wrote key {sealer.current} to {path}")
    click.echo("\nKeep a copy of it, apart from those of the data folder: nothing else decrypts.")


def _state(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return f"revoked {iso_time(key.revoked_at)}"
    if key.expires_at is not None:
        return f"{'expired' if key.expires_at <= _now() else 'until'} {iso_time(key.expires_at)}"
    return "active"


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
