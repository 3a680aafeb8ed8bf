"""`picback queries cancel` and `redeliver`: of given ids, or of all queries that match a filter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from callers import wording
from callers.errors import for_each
from callers.options import caller_command
from callers.query_filters import filter_options
from callers.tables import print_json, to_dict
from picback.v1 import image_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable

    from callers.options import Caller


def _dry_run_option(envvar: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(
        "--dry-run",
        is_flag=True,
        envvar=envvar,
        show_envvar=True,
        help="Change nothing; with a filter, only count what matches.",
    )


@click.command("redeliver")
@click.argument("query_ids", metavar="[QUERY_ID]...", nargs=-1)
@_dry_run_option("PICBACK_QUERIES_REDELIVER_DRY_RUN")
@caller_command
@filter_options("PICBACK_QUERIES_REDELIVER", "delivered", "failed", "cancelled", "unmatched")
def redeliver_queries(
    caller: Caller, query_ids: tuple[str, ...], where: pb.QueryFilter, *, dry_run: bool
) -> None:
    """Send the callbacks of finished queries again: of these ids, or of all that match a filter.

    A filter needs --state.
    """
    if bool(query_ids) == bool(where.ListFields()) or not (query_ids or where.state):
        msg = "give ids of queries, or a filter with --state"
        raise click.UsageError(msg)
    if query_ids:
        _each(caller, query_ids, _redeliver, dry_run=dry_run)
        return
    request = pb.RedeliverQueriesRequest(filter=where, validate_only=dry_run)
    total = pb.RedeliverQueriesResponse()
    while True:
        response = caller.client.call(caller.client.stub.RedeliverQueries, request)
        total.matched_count += response.matched_count
        total.redelivered_count += response.redelivered_count
        if not response.next_page_token:
            break
        request.page_token = response.next_page_token
    _print_total(caller, total, None if dry_run else f"{total.redelivered_count:,} redelivered")


@click.command("cancel")
@click.argument("query_ids", metavar="[QUERY_ID]...", nargs=-1)
@click.option(
    "--all",
    "cancel_all",
    is_flag=True,
    envvar="PICBACK_QUERIES_CANCEL_ALL",
    show_envvar=True,
    help="All queries that are not finished, without a filter.",
)
@_dry_run_option("PICBACK_QUERIES_CANCEL_DRY_RUN")
@caller_command
@filter_options("PICBACK_QUERIES_CANCEL", "queued", "delivering")
def cancel_queries(
    caller: Caller,
    query_ids: tuple[str, ...],
    where: pb.QueryFilter,
    *,
    cancel_all: bool,
    dry_run: bool,
) -> None:
    """Stop queries that are not finished: these ids, or all that match a filter."""
    if [bool(query_ids), bool(where.ListFields()), cancel_all].count(True) != 1:
        msg = "give one of: ids of queries, a filter, --all"
        raise click.UsageError(msg)
    if query_ids:
        _each(caller, query_ids, _cancel, dry_run=dry_run)
        return
    request = pb.CancelQueriesRequest(filter=where, validate_only=dry_run, all=cancel_all)
    total = pb.CancelQueriesResponse()
    while True:
        response = caller.client.call(caller.client.stub.CancelQueries, request)
        total.matched_count += response.matched_count
        total.cancelled_count += response.cancelled_count
        if not response.next_page_token:
            break
        request.page_token = response.next_page_token
    _print_total(caller, total, None if dry_run else f"{total.cancelled_count:,} cancelled")


def _each(
    caller: Caller,
    query_ids: tuple[str, ...],
    change: Callable[[Caller, str], Any],
    *,
    dry_run: bool,
) -> None:
    action = _get if dry_run else change

    def act(query_id: str) -> None:
        query = action(caller, query_id).query
        if caller.as_json:
            print_json(to_dict(query))
        else:
            click.echo(f"{query.id}  {wording.query_state(query)}")

    for_each(query_ids, act)


def _get(caller: Caller, query_id: str) -> pb.GetQueryResponse:
    return caller.client.call(caller.client.stub.GetQuery, pb.GetQueryRequest(query_id=query_id))


def _cancel(caller: Caller, query_id: str) -> pb.CancelQueryResponse:
    request = pb.CancelQueryRequest(query_id=query_id)
    return caller.client.call(caller.client.stub.CancelQuery, request)


def _redeliver(caller: Caller, query_id: str) -> pb.RedeliverQueryResponse:
    request = pb.RedeliverQueryRequest(query_id=query_id)
    return caller.client.call(caller.client.stub.RedeliverQuery, request)


def _print_total(
    caller: Caller,
    total: pb.CancelQueriesResponse | pb.RedeliverQueriesResponse,
    changed: str | None,
) -> None:
    if caller.as_json:
        print_json(to_dict(total))
    else:
        click.echo("; ".join([f"{total.matched_count:,} match", *([changed] if changed else [])]))
