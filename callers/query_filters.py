"""Options that choose queries: for `picback queries list`, `cancel` and `redeliver`."""

from __future__ import annotations

import functools
import re
import time
from typing import TYPE_CHECKING, Any, Concatenate, Final

import click
from google.protobuf import timestamp_pb2

from callers.param_types import SpanType
from picback.v1 import image_service_pb2, query_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

    from callers.options import Caller

#: States by the names that --state takes.
STATES: Final = {
    name.removeprefix("QUERY_STATE_").lower(): number
    for name, number in query_pb2.QueryState.items()
    if number != query_pb2.QUERY_STATE_UNSPECIFIED
}


class TimeType(click.ParamType[timestamp_pb2.Timestamp]):
    """A time of RFC 3339 with its offset, or a span such as 2h, which means so long ago."""

    name = "time"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> timestamp_pb2.Timestamp:
        """Return the time."""
        timestamp = timestamp_pb2.Timestamp()
        text = str(value)
        if re.fullmatch(r"(\d+[smhd])+", text, re.ASCII):
            timestamp.FromMilliseconds(
                round(1000 * (time.time() - SpanType().convert(text, param, ctx)))
            )
            return timestamp
        try:
            timestamp.FromJsonString(text)
        except ValueError:
            self.fail(
                f"{text!r}: a time is written like 2026-11-22T10:00:00Z, or 2h for two hours ago",
                param,
                ctx,
            )
        return timestamp


def filter_options(
    command: str, *states: str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the options of a filter, passed on as the message *where*.

    Args:
        command: The beginning of their environment variables.
        states: What --state takes; none: every state.
    """

    def decorate(
        function: Callable[Concatenate[Caller, ...], None],
    ) -> Callable[..., None]:
        @functools.wraps(function)
        def run(
            caller: Caller,
            *arguments: object,
            state: str | None,
            destination: str | None,
            created_after: timestamp_pb2.Timestamp | None,
            created_before: timestamp_pb2.Timestamp | None,
            failure_reason: str | None,
            key: str | None,
            **own: Any,
        ) -> None:
            where = image_service_pb2.QueryFilter(
                state=STATES[state] if state else query_pb2.QUERY_STATE_UNSPECIFIED,
                destination=destination or "",
                created_after=created_after,
                created_before=created_before,
                failure_reason=(failure_reason or "").upper(),
                key=key or "",
            )
            function(caller, *arguments, where=where, **own)

        decorated: Callable[..., None] = run
        for name, metavar, kind, meaning in reversed(_options(states or tuple(STATES))):
            decorated = click.option(
                f"--{name}",
                metavar=metavar,
                type=kind,
                envvar=f"{command}_{name.replace('-', '_').upper()}",
                show_envvar=True,
                help=meaning,
            )(decorated)
        return decorated

    return decorate


def _options(states: tuple[str, ...]) -> list[tuple[str, str | None, click.ParamType[Any], str]]:
    return [
        ("state", None, click.Choice(states, case_sensitive=False), "Only queries in this state."),
        (
            "destination",
            "SCHEME://HOST:PORT",
            click.STRING,
            "Only queries whose callback URL has this scheme, host and port.",
        ),
        (
            "created-after",
            "TIME",
            TimeType(),
            "Only queries accepted at this time (2026-11-22T10:00:00Z) or later; 2h: two hours ago.",
        ),
        ("created-before", "TIME", TimeType(), "Only queries accepted earlier than this time."),
        (
            "failure-reason",
            "REASON",
            click.STRING,
            "Only FAILED queries with this reason, such as ATTEMPTS_EXHAUSTED.",
        ),
        (
            "key",
            "KEY_ID",
            click.STRING,
            "Only queries that the API key with this id submitted. Needs the scope queries.all.",
        ),
    ]
