"""What all callers' commands share: the options that reach a server, and how they fail.

A command is decorated with `caller_command` and gets a `Caller`. What it cannot handle it
lets pass: here a `CallError` becomes a line on stderr and an exit code.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Final, TypeVar

import click
from click.core import ParameterSource

from callers.client import CallError, Client, Tls
from callers.errors import EXIT_INTERRUPTED, error_text, exit_code_of, fail
from callers.secret_files import SecretFileError, is_plain, read_secret

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., None]")

_PEM_FILE: Final = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """What a command works with."""

    client: Client
    as_json: bool


def json_option(function: F) -> F:
    """Add --json, passed on as *as_json*."""
    return click.option(
        "--json",
        "as_json",
        is_flag=True,
        envvar="PICBACK_JSON",
        show_envvar=True,
        help="Print one JSON document per line.",
    )(function)


def limit_option(envvar: str) -> Callable[[F], F]:
    """Add --limit for a list."""
    return click.option(
        "--limit",
        metavar="N",
        type=click.IntRange(min=0),
        default=50,
        envvar=envvar,
        show_envvar=True,
        show_default=True,
        help="Most lines; 0 for all there are.",
    )


def given_secret(option: str, value: str | None, path: Path | None, *, field: str) -> str:
    """Return the secret that --OPTION or --OPTION-file gives; "" for none.

    Args:
        option: Name of the option for the secret itself.
        value: What it gave.
        path: What the option for a file gave.
        field: Where the secret stands in a file that is JSON.

    Raises:
        click.UsageError: Both gave something, or what they gave is no secret.
    """
    if value is not None and path is not None:
        # What stands on the command line is meant for this command; a variable is not.
        source = click.get_current_context().get_parameter_source
        name = option.replace("-", "_")
        value_commanded = source(name) is ParameterSource.COMMANDLINE
        if value_commanded is (source(f"{name}_file") is ParameterSource.COMMANDLINE):
            msg = f"give one of --{option} and --{option}-file"
            raise click.UsageError(msg)
        value, path = (value, None) if value_commanded else (None, path)
    if path is not None:
        try:
            return read_secret(path, field)
        except SecretFileError as error:
            raise click.BadParameter(str(error), param_hint=f"--{option}-file") from error
    if value and not is_plain(value):
        msg = "a secret has visible ASCII characters only"
        raise click.BadParameter(msg, param_hint=f"--{option}")
    return value or ""


def caller_command(function: Callable[Concatenate[Caller, ...], None]) -> Callable[..., None]:
    """Give a command the options that reach a server, and a `Caller` as first argument."""

    @functools.wraps(function)
    def run(
        *arguments: object,
        address: str,
        api_key: str | None,
        api_key_file: Path | None,
        timeout: float,
        tls: bool,
        tls_ca: Path | None,
        tls_cert: Path | None,
        tls_key: Path | None,
        as_json: bool,
        **own: Any,
    ) -> None:
        try:
            with Client(
                address,
                api_key=given_secret("api-key", api_key, api_key_file, field="key"),
                timeout=timeout,
                tls=_tls(tls_ca, tls_cert, tls_key, wanted=tls),
            ) as client:
                function(Caller(client=client, as_json=as_json), *arguments, **own)
        except CallError as error:
            fail(error_text(error), exit_code_of(error))
        except KeyboardInterrupt:
            raise click.exceptions.Exit(EXIT_INTERRUPTED) from None

    for option in reversed(_OPTIONS):
        run = option(run)
    return json_option(run)


def _address(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    if value.startswith(("http://", "https://")):
        msg = "give HOST:PORT, without http:// (and --tls for an encrypted connection)"
        raise click.BadParameter(msg)
    return value


_OPTIONS: Final = (
    click.option(
        "--address",
        metavar="HOST:PORT",
        default="127.0.0.1:50051",
        envvar="PICBACK_ADDRESS",
        show_envvar=True,
        show_default=True,
        callback=_address,
        help="Where the server listens.",
    ),
    click.option(
        "--api-key",
        metavar="KEY",
        envvar="PICBACK_API_KEY",
        show_envvar=True,
        help="The API key. Other users of this machine can see command lines: prefer the"
        " variable or the file.",
    ),
    click.option(
        "--api-key-file",
        metavar="FILE",
        type=click.Path(path_type=Path),
        envvar="PICBACK_API_KEY_FILE",
        show_envvar=True,
        help="A file with the API key, or what `picback keys create --json` printed.",
    ),
    click.option(
        "--timeout",
        metavar="SECONDS",
        type=click.FloatRange(min=0.001),
        default=30,
        envvar="PICBACK_TIMEOUT",
        show_envvar=True,
        show_default=True,
        help="Longest wait for the answer to one call, retries included.",
    ),
    click.option(
        "--tls",
        is_flag=True,
        envvar="PICBACK_TLS",
        show_envvar=True,
        help="Encrypt the connection, and trust the system's certificate authorities.",
    ),
    click.option(
        "--tls-ca",
        metavar="FILE",
        type=_PEM_FILE,
        envvar="PICBACK_TLS_CA",
        show_envvar=True,
        help="Encrypt, and trust the authorities in this PEM file only.",
    ),
    click.option(
        "--tls-cert",
        metavar="FILE",
        type=_PEM_FILE,
        envvar="PICBACK_TLS_CLIENT_CERT",
        show_envvar=True,
        help="Encrypt, and show this certificate (PEM) to a server that asks for one.",
    ),
    click.option(
        "--tls-key",
        metavar="FILE",
        type=_PEM_FILE,
        envvar="PICBACK_TLS_CLIENT_KEY",
        show_envvar=True,
        help="The private key (PEM) of --tls-cert.",
    ),
)


def _tls(ca: Path | None, cert: Path | None, key: Path | None, *, wanted: bool) -> Tls | None:
    if (cert is None) != (key is None):
        msg = "--tls-cert and --tls-key belong together"
        raise click.UsageError(msg)
    if not (wanted or ca or cert):
        return None
    authority, certificate, private_key = (
        None if path is None else path.read_bytes() for path in (ca, cert, key)
    )
    return Tls(authority=authority, certificate=certificate, key=private_key)
