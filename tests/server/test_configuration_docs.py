"""docs/configuration.md and the command line list the same options."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest
from click.testing import CliRunner

from server.cli import main

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCUMENT = Path(__file__).parents[2] / "docs/configuration.md"
#: An option as it is documented: names of its variables, and default.
Documented = tuple[list[str], str]


def _commands() -> Iterator[tuple[str, click.Command]]:
    """Yield the operators' commands, by what one types."""
    context = click.Context(main)
    for name in ("serve", "keys", "destinations"):
        command = main.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            for sub, each in command.commands.items():
                yield f"picback {name} {sub}", each
        else:
            yield f"picback {name}", command


COMMANDS = dict(_commands())


def _documented(command: str) -> dict[str, Documented]:
    """Read the table under the heading *command*."""
    section = DOCUMENT.read_text().split(f"\n## {command}\n")[1].split("\n## ")[0]
    found = {}
    for row in section.splitlines():
        if row.startswith("| `--"):
            option, variables, default, meaning = row.removeprefix("|").split("|", 3)
            assert meaning.strip(" |")
            found[option.strip(" `")] = (re.findall(r"`(\w+)`", variables), default.strip(" `"))
    return found


def _default(option: click.Option) -> str:
    if option.is_flag:
        return "off"
    default = option.to_info_dict()["default"]
    return "" if default is None or option.multiple else str(default)


def _real(command: click.Command) -> dict[str, Documented]:
    found: dict[str, Any] = {}
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            variables = (
                [parameter.envvar] if isinstance(parameter.envvar, str) else parameter.envvar
            )
            found[parameter.opts[0]] = (list(variables or ()), _default(parameter))
    return found


def test_every_command_of_operators_is_documented() -> None:
    headings = re.findall(r"^## (picback .+)$", DOCUMENT.read_text(), re.MULTILINE)

    assert list(COMMANDS) == headings


@pytest.mark.parametrize("command", COMMANDS)
def test_options_variables_and_defaults_are_those_of_the_document(command: str) -> None:
    assert _documented(command) == _real(COMMANDS[command])


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_what_the_document_lists(command: str) -> None:
    result = CliRunner().invoke(main, [*command.split()[1:], "--help"], terminal_width=200)

    listed = re.findall(r"^  (--[a-z0-9-]+)", result.output, re.MULTILINE)
    variables = re.findall(r"env var: ([A-Z0-9_, ]+)", result.output)
    documented = _documented(command)
    assert list(documented) == listed
    assert [", ".join(names) for names, _ in documented.values()] == variables


def test_every_variable_is_picbacks_or_clarifais_own() -> None:
    names = [
        name for command in COMMANDS for names, _ in _documented(command).values() for name in names
    ]

    assert {"CLARIFAI_PAT", "CLARIFAI_GRPC_BASE"} == {
        name for name in names if not name.startswith("PICBACK_")
    }
