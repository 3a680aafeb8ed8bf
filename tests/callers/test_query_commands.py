"""`picback match`, `query` and `queries`: what they print, and how they end."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from callers.queries import query
from server.cli import main
from tests.receiver import Answer, Receiver
from tests.service import picture, running

if TYPE_CHECKING:
    from pathlib import Path

    from tests.service import Service
from tests.callers.typing_commands import documents, run, submit, upload_content
from tests.server.waiting import wait_until

#: An address that nobody listens at.
NOBODY = "127.0.0.1:1"


def test_match_shows_the_lemmas_and_why_an_image_matches(service: Service) -> None:
    image_id = upload_content(service, picture(50), "walrus", "space suit")
    result = run(service, "match", "Walruses in a space suit")
    document = json.loads(run(service, "match", "Walruses in a space suit", "--json").stdout)

    lemmas, empty, heading, best, *_ = result.stdout.splitlines()
    assert 0 == result.exit_code
    assert ("lemmas  walrus, in, a, space, suit", "") == (lemmas, empty)
    assert ["ID", "SCORE", "MATCHED", "TAGS"] == heading.split()
    assert f"{image_id}  2.00   space suit 1.00, walrus 1.00" == best
    assert ["walrus", "in", "a", "space", "suit"] == document["lemmas"]
    assert image_id == document["matches"][0]["image_id"]
    assert 2.0 == document["matches"][0]["score"]


def test_a_text_that_matches_nothing_is_no_failure(service: Service) -> None:
    result = run(service, "match", "quarterly revenue")

    assert 0 == result.exit_code
    assert "lemmas  quarterly, revenue\nnothing matches\n" == result.stdout


def test_query_watch_tells_what_happens_and_ends_well_when_delivered(
    calling_service: Service, receiver: Receiver
) -> None:
    image_id = upload_content(calling_service, picture(51), "heron")
    result = run(calling_service, "query", "Herons", "--callback", receiver.url, "--watch")

    assert 0 == result.exit_code
    sent = json.loads(receiver.requests[-1].body)
    query_id = sent["data"]["query_id"]
    assert image_id == sent["data"]["image"]["id"]
    assert f"{query_id}  DELIVERED  attempt 1: 200" == result.stdout.splitlines()[-1]


def test_query_watch_fails_when_the_query_does(tmp_path: Path) -> None:
    with (
        Receiver(lambda _: (410, {}, b"")) as gone,
        running(tmp_path / "data", allow_callback=(gone.address,)) as service,
    ):
        result = run(service, "query", "anything", "--callback", gone.url, "--watch", "--json")

    assert 1 == result.exit_code
    last = documents(result)[-1]
    assert "QUERY_STATE_FAILED" == last["state"]
    assert [410] == [attempt["http_status"] for attempt in last["attempts"]]


def test_a_query_that_matches_nothing_can_end_without_a_callback(
    calling_service: Service, receiver: Receiver
) -> None:
    seen = len(receiver.requests)
    arguments = ("query", "Quarterly revenue", "--callback", receiver.url, "--watch")
    result = run(calling_service, *arguments, "--on-unmatched", "end")
    query_id = result.stdout.split()[0]
    listed = run(calling_service, "queries", "list", "--state", "UNMATCHED", "--json")
    shown = run(calling_service, "queries", "show", query_id).stdout
    again = run(calling_service, "queries", "redeliver", query_id, "--dry-run")

    assert 1 == result.exit_code  # nothing was delivered
    assert f"{query_id}  UNMATCHED  nothing matches" == result.stdout.splitlines()[-1]
    assert query_id in {document["id"] for document in documents(listed)}
    assert "match     nothing matches\n" in shown
    assert f"{query_id}  UNMATCHED" in again.stdout.splitlines()
    assert seen == len(receiver.requests)

    default = run(calling_service, *arguments)
    assert 0 == default.exit_code
    assert default.stdout.splitlines()[-1].endswith("DELIVERED  attempt 1: 200")
    assert run(calling_service, *arguments, PICBACK_QUERY_ON_UNMATCHED="end").exit_code == 1


def test_the_same_request_id_is_one_query(calling_service: Service, receiver: Receiver) -> None:
    arguments = ["query", "herons", "--callback", receiver.url, "--request-id", "only-one"]
    first, second = (run(calling_service, *arguments) for _ in range(2))

    query_id = first.stdout.split()[0]
    assert query_id == second.stdout.split()[0]
    assert second.stdout.rstrip().endswith("submitted before")


@pytest.mark.parametrize(
    ("span", "seconds"),
    [("90", 90), ("90s", 90), ("15m", 900), ("1h30m", 5400), ("2d", 172_800)],
)
def test_give_up_after_takes_a_span_of_time(span: str, seconds: int) -> None:
    options = {parameter.name: parameter for parameter in query.params}

    assert seconds == options["give_up_after"].type.convert(span, None, None)


@pytest.mark.parametrize("span", ["", "1 h", "1.5h", "-5", "h", "5w", "٣s"])
def test_what_is_no_span_of_time_is_a_usage_error(service: Service, span: str) -> None:
    result = run(service, "query", "x", "--callback", "http://x.test", "--give-up-after", span)

    assert 2 == result.exit_code
    assert "a span of time is written like" in result.stderr


def test_the_fields_that_a_server_refuses_are_named(service: Service) -> None:
    result = run(service, "query", "", "--callback", "")

    assert 1 == result.exit_code
    assert "" == result.stdout
    assert (
        "picback: text: must not be empty; callback_url: must not be empty (FIELD_INVALID)\n"
        == result.stderr
    )


def test_queries_list_filters_by_state_and_stops_at_its_limit(
    calling_service: Service, receiver: Receiver
) -> None:
    waiting = [submit(calling_service, f"wait {n}", f"http://{NOBODY}/") for n in range(3)]
    delivered = submit(calling_service, "arrive", receiver.url)
    run(calling_service, "queries", "watch", delivered)

    def delivering() -> set[str]:
        found = run(calling_service, "queries", "list", "--state", "delivering", "--json")
        return {document["id"] for document in documents(found)}

    wait_until(lambda: delivering() >= set(waiting))
    two = run(calling_service, "queries", "list", "--state", "DELIVERING", "--limit", "2")

    assert delivered not in delivering()
    heading, *rows = two.stdout.splitlines()
    assert ["ID", "STATE", "ATTEMPTS", "ACCEPTED", "TEXT"] == heading.split()
    assert 2 == len(rows)


def test_queries_show_prints_every_attempt(tmp_path: Path) -> None:
    answers = [Answer(410, {}, b"moved away"), Answer(200)]
    with (
        Receiver(answers) as receiver,
        running(tmp_path / "data", allow_callback=(receiver.address,)) as service,
    ):
        query_id = submit(service, "a heron", receiver.url)
        run(service, "queries", "watch", query_id)
        run(service, "queries", "redeliver", query_id)
        run(service, "queries", "watch", query_id)
        result = run(service, "queries", "show", query_id)

    facts, _, attempts = result.stdout.partition("\n\n")
    labels = [line.split("  ")[0] for line in facts.splitlines()]
    assert ["query", "state", "text", "lemmas", "match", "callback", "accepted", "ended"] == labels
    heading, first, second = attempts.splitlines()
    assert ["ATTEMPT", "STARTED", "TOOK", "ANSWER", "EXPLANATION"] == heading.split()
    assert first.startswith("1 ")
    assert "410 RECEIVER_GONE" in first
    assert second.startswith("2 ")
    assert "200" in second


def test_each_query_is_cancelled_even_if_one_of_them_is_unknown(calling_service: Service) -> None:
    first, second = (submit(calling_service, "wait", f"http://{NOBODY}/") for _ in range(2))
    unknown = "qry_" + "0" * 26
    result = run(calling_service, "queries", "cancel", first, unknown, second)

    assert 5 == result.exit_code
    assert [f"{first}  CANCELLED", f"{second}  CANCELLED"] == result.stdout.splitlines()
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"picback: {unknown}: ")
    assert line.endswith("(QUERY_NOT_FOUND)")


def test_a_query_in_the_wrong_state_is_a_failure_of_its_own(calling_service: Service) -> None:
    waiting = submit(calling_service, "wait", f"http://{NOBODY}/")
    unknown = "qry_" + "0" * 26
    result = run(calling_service, "queries", "redeliver", waiting, unknown)

    assert 1 == result.exit_code  # not 5: the two failures differ
    assert ["STATE_CONFLICT", "QUERY_NOT_FOUND"] == [
        line.rpartition("(")[2].rstrip(")") for line in result.stderr.splitlines()
    ]


def test_queries_of_a_state_and_a_destination_are_redelivered_together(tmp_path: Path) -> None:
    gone, back = [Answer(410), Answer(410)], [Answer(410)]
    with (
        Receiver(gone) as receiver,
        Receiver(back) as other,
        running(tmp_path / "data", allow_callback=(receiver.address, other.address)) as service,
    ):
        lost = [submit(service, "a heron", receiver.url) for _ in range(2)]
        elsewhere = submit(service, "a heron", other.url)
        for each in (*lost, elsewhere):
            run(service, "queries", "watch", each)
        destination = f"http://{receiver.address}"
        chosen = ("--state", "failed", "--destination", destination)
        planned = run(service, "queries", "redeliver", *chosen, "--dry-run")
        shown = run(service, "queries", "list", *chosen, "--json")
        done = run(service, "queries", "redeliver", *chosen, "--json")
        for each in lost:
            run(service, "queries", "watch", each)
        left = run(service, "queries", "list", "--state", "failed", "--json")

    assert (planned.exit_code, planned.stdout, planned.stderr) == (0, "2 match\n", "")
    assert set(lost) == {document["id"] for document in documents(shown)}
    assert [{"matched_count": "2", "redelivered_count": "2", "next_page_token": ""}] == documents(
        done
    )
    assert [elsewhere] == [document["id"] for document in documents(left)]


def test_queries_are_cancelled_by_a_filter_or_all_at_once(tmp_path: Path) -> None:
    with running(tmp_path / "data", allow_callback=(NOBODY,)) as service:
        for _ in range(3):
            submit(service, "wait", f"http://{NOBODY}/")
        arguments = ("queries", "cancel", "--created-after")
        later = run(service, *arguments, "2100-01-01T00:00:00Z")
        planned = run(service, *arguments, "1h", "--dry-run")
        by_filter = run(service, *arguments, "1h")
        submit(service, "wait", f"http://{NOBODY}/")
        everything = run(service, "queries", "cancel", "--all", "--json")

    assert "0 match; 0 cancelled\n" == later.stdout
    assert "3 match\n" == planned.stdout
    assert "3 match; 3 cancelled\n" == by_filter.stdout
    assert "1" == documents(everything)[0]["cancelled_count"]


@pytest.mark.parametrize(
    "arguments", [(), ("--destination", "http://a:1"), ("qry_1", "--state", "failed")]
)
def test_redelivering_takes_either_ids_or_a_filter_with_a_state(arguments: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, ["queries", "redeliver", *arguments])

    assert 2 == result.exit_code
    assert "give ids of queries, or a filter with --state" in result.stderr


@pytest.mark.parametrize("arguments", [(), ("qry_1", "--all"), ("--state", "queued", "--all")])
def test_cancelling_takes_one_of_ids_a_filter_and_all(arguments: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, ["queries", "cancel", *arguments])

    assert 2 == result.exit_code
    assert "give one of: ids of queries, a filter, --all" in result.stderr


@pytest.mark.parametrize("moment", ["", "yesterday", "2026-11-22", "2026-11-22T10:00:00", "-2h"])
def test_what_is_no_time_is_a_usage_error(moment: str) -> None:
    result = CliRunner().invoke(main, ["queries", "list", "--created-before", moment])

    assert 2 == result.exit_code
    assert "a time is written like 2026-11-22T10:00:00Z" in result.stderr
