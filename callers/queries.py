"""`picback match`, `picback query` and `picback queries`: ask, and see what becomes of it."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Final

import click
from google.protobuf import duration_pb2

from callers import wording
from callers.change_queries import cancel_queries, redeliver_queries
from callers.client import items
from callers.errors import EXIT_FAILED
from callers.options import caller_command, limit_option
from callers.param_types import SpanType
from callers.query_filters import filter_options
from callers.tables import one_line, print_facts, print_json, print_table, to_dict
from picback.v1 import image_service_pb2, query_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from callers.options import Caller

#: What to do when nothing matches, by the names that --on-unmatched takes.
_ON_UNMATCHED: Final = {
    "deliver": query_pb2.ON_UNMATCHED_DELIVER,
    "end": query_pb2.ON_UNMATCHED_END,
}


@click.command("match")
@click.argument("text")
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(1, 100),
    default=10,
    envvar="PICBACK_MATCH_LIMIT",
    show_envvar=True,
    show_default=True,
    help="Most images, best first.",
)
@caller_command
def match(caller: Caller, text: str, limit: int) -> None:
    """Show which images TEXT matches now, and why. Sends nothing to anybody."""
    request = image_service_pb2.MatchImagesRequest(text=text, limit=limit)
    response = caller.client.call(caller.client.stub.MatchImages, request)
    if caller.as_json:
        print_json(to_dict(response))
        return
    print_facts([("lemmas", ", ".join(response.lemmas) or "none")])
    if not response.matches:
        click.echo("nothing matches")
        return
    click.echo()
    rows = [
        (each.image_id, f"{each.score:.2f}", wording.tags(each.tags)) for each in response.matches
    ]
    print_table(("id", "score", "matched tags"), rows)


@click.command("query")
@click.argument("text")
@click.option(
    "--callback",
    "callback_url",
    metavar="URL",
    required=True,
    envvar="PICBACK_QUERY_CALLBACK",
    show_envvar=True,
    help="Where the picture is sent.",
)
@click.option(
    "--watch",
    is_flag=True,
    envvar="PICBACK_QUERY_WATCH",
    show_envvar=True,
    help="Stay and tell what happens, until it is delivered or has ended otherwise.",
)
@click.option(
    "--give-up-after",
    metavar="SPAN",
    type=SpanType(),
    envvar="PICBACK_QUERY_GIVE_UP_AFTER",
    show_envvar=True,
    help="Stop trying to deliver after so long: 90s, 15m, 1h30m, 2d. At most 30 days.",
)
@click.option(
    "--request-id",
    metavar="ID",
    envvar="PICBACK_QUERY_REQUEST_ID",
    show_envvar=True,
    help="A name of your own for this request: given twice, it is still one query.",
)
@click.option(
    "--on-unmatched",
    type=click.Choice(list(_ON_UNMATCHED), case_sensitive=False),
    default="deliver",
    envvar="PICBACK_QUERY_ON_UNMATCHED",
    show_envvar=True,
    show_default=True,
    help="When no image matches: deliver a callback without an image, or end without one.",
)
@caller_command
def query(
    caller: Caller,
    text: str,
    callback_url: str,
    give_up_after: int | None,
    request_id: str | None,
    *,
    on_unmatched: str,
    watch: bool,
) -> None:
    """Submit TEXT; the picture that fits best is sent to the callback."""
    request = image_service_pb2.SubmitQueryRequest(
        text=text,
        callback_url=callback_url,
        request_id=request_id or uuid.uuid4().hex,
        give_up_after=None
        if give_up_after is None
        else duration_pb2.Duration(seconds=give_up_after),
        on_unmatched=_ON_UNMATCHED[on_unmatched],
    )
    submitted = caller.client.call(caller.client.stub.SubmitQuery, request)
    if watch:
        _watch(caller, submitted.query.id)
    elif caller.as_json:
        print_json(to_dict(submitted))
    else:
        known = "" if submitted.created else "  submitted before"
        click.echo(f"{submitted.query.id}  {wording.query_state(submitted.query)}{known}")


@click.group("queries")
def queries() -> None:
    """List, show, watch, cancel and redeliver queries."""


@queries.command("list")
@limit_option("PICBACK_QUERIES_LIST_LIMIT")
@caller_command
@filter_options("PICBACK_QUERIES_LIST")
def list_queries(caller: Caller, where: image_service_pb2.QueryFilter, limit: int) -> None:
    """List queries, newest first."""
    found = _listed(caller, where, limit=limit)
    if caller.as_json:
        for each in found:
            print_json(to_dict(each))
    else:
        _print_rows(list(found))


@queries.command("show")
@click.argument("query_id")
@caller_command
def show_query(caller: Caller, query_id: str) -> None:
    """Show one query: its match, and every attempt to deliver it."""
    request = image_service_pb2.GetQueryRequest(query_id=query_id)
    found = caller.client.call(caller.client.stub.GetQuery, request).query
    if caller.as_json:
        print_json(to_dict(found))
    else:
        _print_query(found)


@queries.command("watch")
@click.argument("query_id")
@caller_command
def watch_query(caller: Caller, query_id: str) -> None:
    """Tell what happens to a query, until it is delivered or has ended otherwise."""
    _watch(caller, query_id)


queries.add_command(redeliver_queries)
queries.add_command(cancel_queries)


def _listed(
    caller: Caller, where: image_service_pb2.QueryFilter, *, limit: int
) -> Iterator[query_pb2.Query]:
    conditions = {field.name: value for field, value in where.ListFields()}
    return items(
        lambda size, token: caller.client.call(
            caller.client.stub.ListQueries,
            image_service_pb2.ListQueriesRequest(page_size=size, page_token=token, **conditions),
        ),
        lambda page: page.queries,
        limit=limit,
    )


def _watch(caller: Caller, query_id: str) -> None:
    """Print the query after each change; fail unless it ends delivered."""
    delivered = False
    for each in caller.client.watch(query_id):
        delivered = each.state == query_pb2.QUERY_STATE_DELIVERED
        if caller.as_json:
            print_json(to_dict(each))
        else:
            click.echo(f"{each.id}  {one_line(wording.news(each))}")
    if not delivered:
        raise click.exceptions.Exit(EXIT_FAILED)


def _print_rows(found: Sequence[query_pb2.Query]) -> None:
    rows = [
        (
            each.id,
            wording.query_state(each),
            str(len(each.attempts)),
            wording.time(each.create_time),
            each.text,
        )
        for each in found
    ]
    print_table(("id", "state", "attempts", "accepted", "text"), rows)


def _print_query(found: query_pb2.Query) -> None:
    print_facts(
        [
            ("query", found.id),
            ("state", wording.query_state(found)),
            ("failure", wording.failure(found.failure)),
            ("text", found.text),
            ("lemmas", ", ".join(found.lemmas)),
            ("match", wording.matched(found)),
            ("callback", found.callback_url),
            ("accepted", wording.time(found.create_time)),
            ("next attempt", wording.time(found.next_attempt_time)),
            ("ended", wording.time(found.end_time)),
        ]
    )
    if found.attempts:
        click.echo()
        rows = [
            (
                str(attempt.number),
                wording.time(attempt.start_time),
                wording.span(attempt.latency),
                wording.outcome(attempt),
                attempt.failure.message or attempt.response_excerpt,
            )
            for attempt in found.attempts
        ]
        print_table(("attempt", "started", "took", "answer", "explanation"), rows)
