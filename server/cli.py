"""The command `picback`: which commands there are, each imported when it is asked for.

Serving needs the libraries of models, which take a second to import; what callers type must
not wait for them.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Final, NamedTuple

import click

if TYPE_CHECKING:
    from collections.abc import Mapping


class _Place(NamedTuple):
    """Where a command is, and its help in a line (a test holds it to the command's own)."""

    module: str
    attribute: str
    help: str


_COMMANDS: Final[Mapping[str, _Place]] = {
    "destinations": _Place(
        "server.destinations_command",
        "destinations",
        "List what is called back; close and open circuit breakers.",
    ),
    "images": _Place("callers.images", "images", "List, show, fetch, tag and delete images."),
    "keys": _Place("server.keys_command", "keys", "Make, list, rotate and revoke API keys."),
    "listen": _Place(
        "callers.listen",
        "listen",
        "Receive callbacks: check their signatures, show them, save the...",
    ),
    "match": _Place("callers.queries", "match", "Show which images TEXT matches now, and why."),
    "queries": _Place(
        "callers.queries", "queries", "List, show, watch, cancel and redeliver queries."
    ),
    "query": _Place(
        "callers.queries",
        "query",
        "Submit TEXT; the picture that fits best is sent to the callback.",
    ),
    "serve": _Place(
        "server.serve_command",
        "serve",
        "Run the server and its dispatcher until SIGTERM or Ctrl-C.",
    ),
    "upload": _Place("callers.upload", "upload", "Upload images and print their tags."),
}


class _Commands(click.Group):
    def list_commands(self, _ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return list(_COMMANDS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None when there is none of this name."""
        place = _COMMANDS.get(cmd_name)
        if place is None:
            return None
        command = getattr(import_module(place.module), place.attribute)
        assert isinstance(command, click.Command)  # noqa: S101 - for the type checker
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, place.help) for name, place in _COMMANDS.items()])


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.version_option(metadata.version("picback"), prog_name="picback")
def main() -> None:
    """Send words, get the picture called back."""
