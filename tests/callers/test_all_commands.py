"""What all commands of callers have in common."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import grpc
import pytest

from callers.images import images
from callers.listen import listen
from callers.queries import match, queries, query
from callers.upload import upload

if TYPE_CHECKING:
    from collections.abc import Iterator


DOCS = Path(__file__).parents[2] / "docs/cli.md"


def _commands(group: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    if isinstance(group, click.Group):
        for key, command in group.commands.items():
            yield from _commands(command, f"{name} {key}")
    else:
        yield name, group


COMMANDS = [
    pair
    for command in (
        upload,
        match,
        query,
        queries,
        images,
        listen,
    )
    for pair in _commands(command, command.name or "")
]


@pytest.mark.parametrize(("name", "command"), COMMANDS, ids=[name for name, _ in COMMANDS])
def test_every_option_has_a_variable_and_both_stand_in_the_documentation(
    name: str, command: click.Command
) -> None:
    text = DOCS.read_text()
    options = [each for each in command.params if isinstance(each, click.Option)]

    assert f"picback {name}" in text
    assert options
    for option in options:
        assert isinstance(option.envvar, str)
        assert option.envvar.startswith("PICBACK_")
        assert option.show_envvar
        assert option.help
        assert f"`{max(option.opts, key=len)}" in text
        assert f"`{option.envvar}`" in text


def test_no_two_options_of_different_meaning_share_a_variable() -> None:
    meanings: dict[object, set[str]] = {}
    for _, command in COMMANDS:
        for option in command.params:
            if isinstance(option, click.Option):
                meanings.setdefault(option.envvar, set()).add(max(option.opts, key=len))

    assert {} == {name: options for name, options in meanings.items() if len(options) > 1}


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_every_failure_has_an_exit_code_that_is_documented(code: grpc.StatusCode) -> None:
    from callers.client import CallError
    from callers.errors import exit_code_of

    exit_code = exit_code_of(CallError(code, "x"))

    assert 0 != exit_code
    assert f"| {exit_code} |" in DOCS.read_text()
