"""How callers' commands fail: one readable line on stderr, and an exit code.

A command lets `CallError` pass to `caller_options`, or collects it where one failure must
not stop the rest; it never prints a failure in words of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NoReturn

import click
import grpc

from callers.client import CallError
from callers.tables import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

#: Exit codes; 2 is click's own, for a wrong command line. All stand in docs/cli.md.
EXIT_FAILED: Final = 1
EXIT_UNREACHABLE: Final = 3
EXIT_NOT_AUTHORISED: Final = 4
EXIT_NOT_FOUND: Final = 5
EXIT_INTERRUPTED: Final = 130  # 128 + SIGINT, as shells have it

#: Failures that every other call would share: it makes no sense to go on.
HOPELESS: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
    }
)
_EXIT_CODES: Final = {
    grpc.StatusCode.UNAVAILABLE: EXIT_UNREACHABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: EXIT_UNREACHABLE,
    grpc.StatusCode.UNAUTHENTICATED: EXIT_NOT_AUTHORISED,
    grpc.StatusCode.PERMISSION_DENIED: EXIT_NOT_AUTHORISED,
    grpc.StatusCode.NOT_FOUND: EXIT_NOT_FOUND,
}
#: What to do about it, where the server cannot know: it does not see our options.
_HINTS: Final = {
    "API_KEY_MISSING": "set PICBACK_API_KEY or give --api-key-file",
}


def fail(message: str, exit_code: int = EXIT_FAILED) -> NoReturn:
    """End the command with *message* and *exit_code*."""
    print_error(message)
    raise click.exceptions.Exit(exit_code)


def print_error(message: str) -> None:
    """Print *message* as one line on stderr."""
    click.echo(f"picback: {one_line(message)}", err=True)


def exit_code_of(error: CallError) -> int:
    """Return the exit code of a command that ended with *error*."""
    return _EXIT_CODES.get(error.code, EXIT_FAILED)


def error_text(error: CallError) -> str:
    """Return what a person needs to know of *error*: message, bad fields, reason, hint."""
    fields = "; ".join(f"{field}: {description}" for field, description in error.violations)
    if error.reason == "FIELD_INVALID":
        text = fields or error.message  # the server's message names the first of them
    else:
        text = f"{error.message or 'no explanation'}{': ' if fields else ''}{fields}"
    hint = f": {_HINTS[error.reason]}" if error.reason in _HINTS else ""
    return f"{text} ({error.reason or error.code.name}){hint}"


def error_dict(error: CallError) -> dict[str, object]:
    """Return *error* for programs."""
    return {
        "code": error.code.name,
        "reason": error.reason,
        "message": error.message,
        "violations": [
            {"field": field, "description": description} for field, description in error.violations
        ],
    }


def for_each(ids: Iterable[str], action: Callable[[str], None]) -> None:
    """Do *action* with every one of *ids*, then fail if any failed.

    The exit code is what all failures share, or EXIT_FAILED.

    Raises:
        CallError: One that the rest would share, at once.
    """
    exit_codes = set()
    for id_ in ids:
        try:
            action(id_)
        except CallError as error:
            if error.code in HOPELESS:
                raise
            print_error(f"{id_}: {error_text(error)}")
            exit_codes.add(exit_code_of(error))
    if exit_codes:
        raise click.exceptions.Exit(exit_codes.pop() if len(exit_codes) == 1 else EXIT_FAILED)
