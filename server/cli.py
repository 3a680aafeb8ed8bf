"""The command `picback`: serve, keys, and what callers need.

Environment variables are read here and nowhere else, by click; what comes out is one
`Config` that can refuse.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from server import callers, logs
from server.config import ClarifaiSettings, Config, ConfigError, TlsSettings
from server.keyring import REFRESH_SECONDS
from server.listen import listen
from server.secret_files import SecretFileError, read_secret
from server.tables import print_table
from storage.api_keys import SCOPES, ApiKeys
from storage.database import Database
from storage.errors import KeyNameTakenError, KeyNotFoundError, StorageError

if TYPE_CHECKING:
    from storage.api_keys import ApiKey, Credentials


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(metadata.version("picback"), prog_name="picback")
def main() -> None:
    """Send words, get the picture called back."""


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


@main.command()
@click.option(
    "--listen",
    envvar="PICBACK_LISTEN",
    show_envvar=True,
    default="127.0.0.1:50051",
    help="HOST:PORT; port 0 picks a free one, and the first line printed names it.",
)
@data_option
@click.option(
    "--tagger",
    envvar="PICBACK_TAGGER",
    show_envvar=True,
    type=click.Choice(["auto", "clarifai", "local", "none"]),
    default="auto",
    help="Who tags images. auto: Clarifai when a token is set, the local model otherwise.",
)
@click.option(
    "--allow-callback",
    envvar="PICBACK_ALLOW_CALLBACK",
    show_envvar=True,
    multiple=True,
    metavar="HOST:PORT|CIDR",
    help="A private or loopback place that may be called back; repeatable. "
    "In the variable, separated by spaces.",
)
@click.option(
    "--clarifai-pat",
    envvar=["PICBACK_CLARIFAI_PAT", "CLARIFAI_PAT"],
    show_envvar=True,
    default="",
    show_default=False,
    help="Clarifai's personal access token. Prefer the variable or the file: other users of "
    "the machine can read command lines.",
)
@click.option(
    "--clarifai-pat-file",
    envvar="PICBACK_CLARIFAI_PAT_FILE",
    show_envvar=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file that holds the token.",
)
@click.option(
    "--clarifai-base",
    envvar=["PICBACK_CLARIFAI_BASE", "CLARIFAI_GRPC_BASE"],
    show_envvar=True,
    help="HOST or HOST:PORT to reach Clarifai at, instead of its own.",
)
@click.option(
    "--clarifai-insecure",
    envvar="PICBACK_CLARIFAI_INSECURE",
    show_envvar=True,
    is_flag=True,
    help="Reach it without TLS: for a stand-in on this machine.",
)
@click.option(
    "--pipeline",
    envvar="PICBACK_PIPELINE",
    show_envvar=True,
    default=Config().pipeline,
    help="The spaCy pipeline that lemmas come from: an installed package, or a path.",
)
@click.option(
    "--max-image-bytes",
    envvar="PICBACK_MAX_IMAGE_BYTES",
    show_envvar=True,
    default=Config().max_image_bytes,
    help="Largest image, in bytes.",
)
@click.option(
    "--max-image-pixels",
    envvar="PICBACK_MAX_IMAGE_PIXELS",
    show_envvar=True,
    default=Config().max_image_pixels,
    help="Largest image, in pixels.",
)
@click.option(
    "--callback-timeout",
    envvar="PICBACK_CALLBACK_TIMEOUT",
    show_envvar=True,
    default=Config().callback_timeout,
    help="Seconds that one attempt to call back may take as a whole.",
)
@click.option(
    "--stop-grace",
    envvar="PICBACK_STOP_GRACE",
    show_envvar=True,
    default=Config().stop_grace,
    help="Seconds that calls under way may take to end when the server stops.",
)
@click.option(
    "--tls-cert",
    envvar="PICBACK_TLS_CERT",
    show_envvar=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The server's certificate (PEM). With it the port speaks TLS.",
)
@click.option(
    "--tls-key",
    envvar="PICBACK_TLS_KEY",
    show_envvar=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The certificate's private key (PEM).",
)
@click.option(
    "--tls-client-ca",
    envvar="PICBACK_TLS_CLIENT_CA",
    show_envvar=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Callers must show a certificate that this authority (PEM) signed.",
)
@click.option(
    "--insecure",
    envvar="PICBACK_INSECURE",
    show_envvar=True,
    is_flag=True,
    help="Allow a plaintext port that other machines can reach.",
)
@click.option(
    "--log-format",
    envvar="PICBACK_LOG_FORMAT",
    show_envvar=True,
    type=click.Choice(["text", "json"]),
    default="text",
    help="How to log to standard error.",
)
@click.option(
    "--log-level",
    envvar="PICBACK_LOG_LEVEL",
    show_envvar=True,
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    help="What to log.",
)
def serve(**options: Any) -> None:
    """Run the server and its dispatcher until SIGTERM or Ctrl-C."""
    # Blocked before any thread exists, so that none but this one ever takes them.
    stop_signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals)
    logs.configure(level=options["log_level"], json_lines=options["log_format"] == "json")
    # Imported late, so that `picback --help` need not wait for models' libraries.
    from server.app import App  # noqa: PLC0415

    try:
        app = App(_config(options))
        first_key = app.make_first_key()
        app.start()
        on_a_terminal = sys.stdout.isatty()
        if first_key is not None and not on_a_terminal:
            # Before the first line, so that whoever waits for that can read the file.
            _write_first_key(first_key, options["data"])
    except (ConfigError, SecretFileError, StorageError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"picback is serving on {app.address}")
    if first_key is not None and on_a_terminal:
        click.echo("This is a new data folder. Its first API key, shown only now:\n")
        _print_credentials(first_key, as_json=False)
    sys.stdout.flush()
    signal.sigwait(stop_signals)
    # A second one ends the process at once; what was accepted is on disk.
    for each in stop_signals:
        signal.signal(each, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, stop_signals)
    app.stop()


def _config(options: dict[str, Any]) -> Config:
    token_file = options["clarifai_pat_file"]
    certificate, key = options["tls_cert"], options["tls_key"]
    if (certificate is None) != (key is None):
        msg = "--tls-cert and --tls-key belong together"
        raise ConfigError(msg)
    if options["tls_client_ca"] is not None and certificate is None:
        msg = "--tls-client-ca needs --tls-cert and --tls-key"
        raise ConfigError(msg)
    return Config(
        listen=options["listen"],
        data=options["data"],
        tagger=options["tagger"],
        clarifai=ClarifaiSettings(
            token=read_secret(token_file, "token") if token_file else options["clarifai_pat"],
            base=options["clarifai_base"] or None,
            insecure=options["clarifai_insecure"],
        ),
        allow_callback=options["allow_callback"],
        pipeline=options["pipeline"],
        max_image_bytes=options["max_image_bytes"],
        max_image_pixels=options["max_image_pixels"],
        tls=None
        if certificate is None
        else TlsSettings(certificate=certificate, key=key, client_ca=options["tls_client_ca"]),
        insecure=options["insecure"],
        callback_timeout=options["callback_timeout"],
        stop_grace=options["stop_grace"],
    )


def _write_first_key(credentials: Credentials, data: Path) -> None:
    """Leave the key in a file that only its owner can read, never in a log."""
    path = data / "first-key.json"
    try:
        path.unlink(missing_ok=True)  # whatever is there may be a link, or open to others
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(_credentials_json(credentials) + "\n")
    except OSError as error:
        msg = f"cannot write the first key to {path}: {error.strerror}; make one by picback keys"
        raise ConfigError(msg) from error


@main.group()
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
    from dispatcher import new_secret  # noqa: PLC0415 - see serve

    now = _now()
    with _database(data) as database:
        credentials = ApiKeys(database).create(
            name,
            scopes=scopes or SCOPES,
            signing_secret=new_secret(),
            expires_at=None if expires_in_days is None else now + expires_in_days * 86_400_000,
            now=now,
        )
    _print_credentials(credentials, as_json=as_json)


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
    from dispatcher import new_secret  # noqa: PLC0415 - see serve

    with _database(data) as database:
        credentials = ApiKeys(database).rotate(
            name_or_id,
            signing_secret=new_secret(),
            overlap=overlap_hours * 3_600_000,
            now=_now(),
        )
    _print_credentials(credentials, as_json=as_json)


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


def _credentials_json(credentials: Credentials) -> str:
    return json.dumps(
        {
            "id": credentials.id,
            "key": credentials.token,
            "signing_secret": credentials.signing_secret,
        }
    )


def _print_credentials(credentials: Credentials, *, as_json: bool) -> None:
    if as_json:
        click.echo(_credentials_json(credentials))
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


for command in (
    callers.upload,
    callers.match,
    callers.query,
    callers.queries,
    callers.images,
    listen,
):
    main.add_command(command)
