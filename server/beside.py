"""What commands beside a server share: the data folder, opened, and options."""

from __future__ import annotations

import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from callers.secret_files import SecretFileError
from server.keyring import REFRESH_SECONDS
from server.secrets_key_file import read_sealer
from storage.api_keys import ApiKeys
from storage.database import Database
from storage.errors import KeyNameTakenError, KeyNotFoundError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Which data folder; `picback serve` has it as well.
data_option = click.option(
    "--data",
    envvar="PICBACK_DATA",
    show_envvar=True,
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("picback-data"),
    help="The data folder: one per server.",
)
#: What encrypts signing secrets; for `picback serve` and all that make secrets beside it.
secrets_key_option = click.option(
    "--secrets-key-file",
    envvar="PICBACK_SECRETS_KEY_FILE",
    show_envvar=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file with the key that encrypts signing secrets, from picback keys "
    "new-secrets-key-file. Once they are, it is always needed.",
)
json_option = click.option(
    "--json", "as_json", envvar="PICBACK_JSON", show_envvar=True, is_flag=True, help="Print JSON."
)


@contextmanager
def opened(data: Path, *, changes: bool = True) -> Iterator[Database]:
    """Open a data folder beside its server, and tell errors the way a command does.

    With *changes*, what the command prints after the block is true of a running server, too:
    it has read the keys again by then.
    """
    try:
        database = Database.beside(data)
        try:
            yield database
            served = changes and database.is_served()
        finally:
            database.close()
    except (StorageError, KeyNameTakenError, KeyNotFoundError) as error:
        raise click.ClickException(str(error)) from error
    if served:
        time.sleep(2 * REFRESH_SECONDS)


@contextmanager
def opened_keys(data: Path, secrets_key_file: Path | None) -> Iterator[ApiKeys]:
    """Open a data folder beside its server to change its API keys and their secrets."""
    try:
        sealer = read_sealer(secrets_key_file, data=data)
    except SecretFileError as error:
        raise click.ClickException(str(error)) from error
    with opened(data) as database:
        yield ApiKeys(database, sealer=sealer)


def iso_time(milliseconds: int | None) -> str | None:
    """Return a time as RFC 3339; None for none."""
    if milliseconds is None:
        return None
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(milliseconds / 1000))
