"""ListQueries, CancelQueries and RedeliverQueries: filters, counts, continuation, bounds."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

import grpc
import pytest
from google.protobuf import timestamp_pb2

from picback.v1 import image_pb2, query_pb2
from picback.v1 import image_service_pb2 as pb
from server import bulk_queries
from server.interceptors import SCOPES
from server.paging import MAX_PAGE_BYTES, fill_page
from storage.api_keys import DEFAULT_SCOPES, QUERIES_ALL
from tests.receiver import Receiver
from tests.server.refusals import refused
from tests.server.waiting import wait_until
from tests.service import running
from tests.store import new_image

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.service import Service

NOBODY: Final = "http://127.0.0.1:1"
#: What gRPC clients accept if nobody tells them otherwise.
MAX_RECEIVED: Final = 4 * 1024 * 1024
FAILED, CANCELLED = query_pb2.QUERY_STATE_FAILED, query_pb2.QUERY_STATE_CANCELLED


class Caller:
    """Calls with one key."""

    def __init__(self, service: Service, token: str) -> None:
        self._stub = service.stub
        self._metadata = (("x-api-key", token),)

    def call(self, method: str, timeout: float = 30, **fields: Any) -> Any:
        request = getattr(pb, f"{method}Request")(**fields)
        return getattr(self._stub, method)(request, metadata=self._metadata, timeout=timeout)

    def submit(self, url: str = f"{NOBODY}/") -> str:
        return str(self.call("SubmitQuery", text="a dog", callback_url=url).query.id)

    def listed(self, **fields: Any) -> set[str]:
        found = {query.id for query in self.call("ListQueries", **fields).queries}
        assert found == {
            query.id for page in self.pages(page_size=1, **fields) for query in page.queries
        }
        return found

    def pages(self, **fields: Any) -> Iterator[Any]:
        token = ""
        while True:
            page = self.call("ListQueries", page_token=token, **fields)
            yield page
            token = page.next_page_token
            if not token:
                return

    def states(self) -> list[str]:
        queries = self.call("ListQueries").queries
        return [query_pb2.QueryState.Name(query.state)[12:] for query in queries]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with (
        Receiver(lambda request: (410 if request.path == "/gone" else 200, {}, b"")) as receiver,
        running(tmp_path / "data", allow_callback=(receiver.address, "127.0.0.1:1")) as service,
    ):
        service.receiver = receiver  # type: ignore[attr-defined]
        yield service


@pytest.fixture
def owner(service: Service) -> Caller:
    return Caller(service, service.api_key)


@pytest.fixture
def base(service: Service) -> str:
    return f"http://{service.receiver.address}"  # type: ignore[attr-defined]


def _time(milliseconds: int) -> timestamp_pb2.Timestamp:
    timestamp = timestamp_pb2.Timestamp()
    timestamp.FromMilliseconds(milliseconds)
    return timestamp


def _wait_for(owner: Caller, state: query_pb2.QueryState.ValueType, count: int) -> None:
    wait_until(lambda: len(owner.call("ListQueries", state=state).queries) == count)


def test_queries_are_listed_by_each_condition_and_by_several(owner: Caller, base: str) -> None:
    gone = owner.submit(f"{base}/gone")
    _wait_for(owner, FAILED, 1)
    waiting = owner.submit()
    since = owner.call("GetQuery", query_id=waiting).query.create_time.ToMilliseconds()
    cancelled = owner.call("CancelQuery", query_id=owner.submit(f"{NOBODY}/2")).query.id

    assert {gone} == owner.listed(state=FAILED)
    assert {gone} == owner.listed(destination=base)
    assert {gone} == owner.listed(failure_reason="ATTEMPTS_EXHAUSTED") | owner.listed(
        failure_reason="RECEIVER_GONE"
    )
    assert {waiting, cancelled} == owner.listed(destination="HTTP://127.0.0.1:1/")
    assert {cancelled} == owner.listed(destination=NOBODY, state=CANCELLED)
    assert set() == owner.listed(destination=base, state=CANCELLED)
    assert set() == owner.listed(destination="https://never.example")
    assert {waiting, cancelled} == owner.listed(created_after=_time(since))
    assert {gone} == owner.listed(created_before=_time(since))
    assert {waiting, cancelled, gone} == owner.listed(created_after=_time(-1))


def test_only_queries_all_may_ask_for_a_key_and_a_token_is_good_for_its_filter_only(
    service: Service, owner: Caller
) -> None:
    overseer = Caller(service, service.make_key("all", scopes=(*DEFAULT_SCOPES, QUERIES_ALL)))
    own, others = overseer.submit(), {owner.submit() for _ in range(2)}
    token = overseer.call("ListQueries", page_size=1, key=service.key_id).next_page_token

    assert {own, *others} == overseer.listed()
    assert others == overseer.listed(key=service.key_id)
    assert set() == overseer.listed(key="key_unknown")
    others_filters: list[tuple[Caller, dict[str, Any]]] = [
        (overseer, {}),
        (overseer, {"key": service.key_id, "destination": NOBODY}),
        (owner, {}),
    ]
    for caller, fields in others_filters:
        refusal = refused(lambda: caller.call("ListQueries", page_token=token, **fields))  # noqa: B023 - called at once
        assert "PAGE_TOKEN_INVALID" == refusal.reason
    by_key: list[tuple[str, dict[str, Any]]] = [
        ("ListQueries", {"key": service.key_id}),
        ("CancelQueries", {"filter": {"key": service.key_id}}),
        ("RedeliverQueries", {"filter": {"key": service.key_id, "state": FAILED}}),
    ]
    for method, fields in by_key:
        refusal = refused(lambda: owner.call(method, **fields))  # noqa: B023 - called at once
        assert ("SCOPE_MISSING", {"scope": QUERIES_ALL}) == (refusal.reason, refusal.metadata)
        assert QUERIES_ALL not in SCOPES.values()


def test_cancelling_changes_the_callers_queries_that_match_and_are_not_final(
    service: Service, owner: Caller, base: str
) -> None:
    stranger = Caller(service, service.make_key("stranger"))
    elsewhere = stranger.submit()
    owner.submit(f"{base}/gone")
    _wait_for(owner, FAILED, 1)
    for _ in range(2):
        owner.submit()
    where = {"destination": NOBODY}

    planned = owner.call("CancelQueries", filter=where, validate_only=True)
    before = owner.states()
    done = owner.call("CancelQueries", filter=where)
    again = owner.call("CancelQueries", filter=where)

    assert pb.CancelQueriesResponse(matched_count=2) == planned
    assert "CANCELLED" not in before
    assert pb.CancelQueriesResponse(matched_count=2, cancelled_count=2) == done
    assert ["CANCELLED", "CANCELLED", "FAILED"] == owner.states()
    assert pb.CancelQueriesResponse() == again
    assert {elsewhere} == stranger.listed()
    assert ["CANCELLED"] != stranger.states()


def test_everything_is_cancelled_only_when_the_request_says_so(owner: Caller) -> None:
    owner.submit()

    refusal = refused(lambda: owner.call("CancelQueries"))
    unchanged = owner.states()
    done = owner.call("CancelQueries", all=True)

    assert ("FIELD_INVALID", ["filter"]) == (refusal.reason, refusal.fields)
    assert unchanged != ["CANCELLED"] == owner.states()
    assert 1 == done.cancelled_count


def test_redelivered_queries_are_delivered_at_once_and_watchers_see_it(
    service: Service, owner: Caller, base: str
) -> None:
    receiver: Receiver = service.receiver  # type: ignore[attr-defined]
    ids = {owner.submit(f"{base}/there") for _ in range(3)}
    _wait_for(owner, query_pb2.QUERY_STATE_DELIVERED, 3)
    where = {"state": query_pb2.QUERY_STATE_DELIVERED, "destination": base}

    planned = owner.call("RedeliverQueries", filter=where, validate_only=True)
    done = owner.call("RedeliverQueries", filter=where)
    wait_until(lambda: len(receiver.requests) == 6)

    assert pb.RedeliverQueriesResponse(matched_count=3) == planned
    assert pb.RedeliverQueriesResponse(matched_count=3, redelivered_count=3) == done
    sent = [request.headers["webhook-id"] for request in receiver.requests]
    assert sorted([*ids, *ids]) == sorted(sent)


def test_a_query_is_redelivered_ten_times_a_minute_at_most(owner: Caller, base: str) -> None:
    query_id = owner.submit(f"{base}/gone")
    for _ in range(9):
        _wait_for(owner, FAILED, 1)
        owner.call("RedeliverQuery", query_id=query_id)
    _wait_for(owner, FAILED, 1)

    refusal = refused(lambda: owner.call("RedeliverQuery", query_id=query_id))
    many = owner.call("RedeliverQueries", filter={"state": FAILED})

    assert grpc.StatusCode.RESOURCE_EXHAUSTED == refusal.code
    assert ("LIMIT_EXCEEDED", {"limit": "attempts_per_minute"}) == (
        refusal.reason,
        refusal.metadata,
    )
    assert 0 < int(str(refusal.trailers["grpc-retry-pushback-ms"])) <= 60_000
    assert pb.RedeliverQueriesResponse(matched_count=1) == many


@pytest.mark.parametrize("validate_only", [False, True])
def test_a_call_that_ends_for_lack_of_time_is_continued_with_its_token(
    owner: Caller, monkeypatch: pytest.MonkeyPatch, *, validate_only: bool
) -> None:
    ids = [owner.submit() for _ in range(5)]
    monkeypatch.setattr(bulk_queries, "_BATCH", 2)
    monkeypatch.setattr(bulk_queries, "_MAX_SECONDS", 0.0)
    monkeypatch.setattr("storage.query_filters.MAX_EXAMINED", 2)
    fields: dict[str, Any] = {"all": True, "validate_only": validate_only}
    responses = [owner.call("CancelQueries", **fields)]
    while responses[-1].next_page_token:
        if len(responses) == 1:
            owner.submit()  # after the first call began: left as it is
        token = responses[-1].next_page_token
        other = refused(
            lambda: owner.call("CancelQueries", filter={"destination": NOBODY}, page_token=token)  # noqa: B023 - called at once
        )
        assert "PAGE_TOKEN_INVALID" == other.reason
        responses.append(owner.call("CancelQueries", page_token=token, **fields))

    assert len(responses) > 1
    assert 5 == sum(each.matched_count for each in responses)
    assert (0 if validate_only else 5) == sum(each.cancelled_count for each in responses)
    monkeypatch.undo()
    assert (set() if validate_only else set(ids)) == owner.listed(state=CANCELLED)


def test_what_a_call_had_changed_when_its_caller_left_stays_changed_and_the_rest_can_follow(
    service: Service, owner: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(6):
        owner.submit()
    monkeypatch.setattr(bulk_queries, "_BATCH", 2)
    begun, ended = threading.Event(), threading.Event()
    must_stop = bulk_queries.BulkQueries._must_stop

    def stop_when_the_caller_has_left(self: Any, context: Any, until: float) -> bool:
        begun.set()
        wait_until(lambda: not context.is_active())
        ended.set()
        return must_stop(self, context, until)

    monkeypatch.setattr(bulk_queries.BulkQueries, "_must_stop", stop_when_the_caller_has_left)
    call = service.stub.CancelQueries.future(
        pb.CancelQueriesRequest(all=True), metadata=service.metadata
    )
    assert begun.wait(20)
    call.cancel()
    assert ended.wait(20)
    monkeypatch.undo()
    rest = owner.call("CancelQueries", all=True)

    assert 4 == rest.cancelled_count
    assert ["CANCELLED"] * 6 == owner.states()


def test_pages_end_before_a_response_is_larger_than_clients_accept(
    service: Service, owner: Caller
) -> None:
    """50 queries with 170 redeliveries each, and a receiver that answers at length."""
    ids = {owner.call("CancelQuery", query_id=owner.submit()).query.id for _ in range(50)}
    database = service.app._database
    seqs = [seq for (seq,) in database.read("SELECT seq FROM query")]

    def add_attempts(connection: Any) -> None:
        connection.execute("DELETE FROM attempt").fetchall()
        connection.execute("UPDATE query SET attempt = 170").fetchall()
        connection.executemany(
            "INSERT INTO attempt (query_seq, number, started_at, latency_ms, http_status,"
            " failure_reason, failure_message, excerpt) VALUES (?, ?, 1, 1, 503, 'HTTP_STATUS',"
            " 'the receiver answered 503', ?)",
            [(seq, number, "x" * 1024) for seq in seqs for number in range(1, 171)],
        )

    database.write(add_attempts)
    pages = list(owner.pages())

    assert len(pages) > 1
    assert all(page.ByteSize() <= MAX_PAGE_BYTES + 1000 < MAX_RECEIVED for page in pages)
    found = [query for page in pages for query in page.queries]
    assert (50, ids) == (len(found), {query.id for query in found})
    assert {100} == {len(query.attempts) for query in found}
    assert {170} == {query.latest_attempt_number for query in found}


def test_pages_of_images_end_by_bytes_too(service: Service, owner: Caller) -> None:
    images = service.app._images
    tags = {f"{number:03} {'x' * 90}": 1_000_000 for number in range(100)}
    for number in range(400):
        images.add(
            new_image(str(number).encode()), tags_of_caller=tags, request=None, tag_it=False, now=1
        )
    ids: list[str] = []
    sizes, token = [], ""
    while True:
        page = owner.call("ListImages", page_size=1000, page_token=token)
        ids += [image.id for image in page.images]
        sizes.append(page.ByteSize())
        token = page.next_page_token
        if not token:
            break

    assert (400, 400) == (len(ids), len(set(ids)))
    assert len(sizes) > 1
    assert max(sizes) < MAX_RECEIVED


def test_an_entry_larger_than_a_page_has_a_page_of_its_own() -> None:
    large = image_pb2.Tag(name="x" * MAX_PAGE_BYTES)
    small = image_pb2.Tag(name="x")

    assert ([large], 9) == fill_page(iter([(9, large), (8, small)]))
    assert ([small], 9) == fill_page(iter([(9, small), (8, large)]))
    assert ([small, small], None) == fill_page(iter([(9, small), (8, small)]))
    assert ([], None) == fill_page(iter(()))


def test_few_calls_change_queries_at_once(
    service: Service, owner: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner.submit()
    held, entered = threading.Event(), threading.Semaphore(0)
    bulk = service.app._queries.bulk
    cancel = bulk.cancel

    def hold(*arguments: Any, **named: Any) -> Any:
        entered.release()
        assert held.wait(20)
        return cancel(*arguments, **named)

    monkeypatch.setattr(bulk, "cancel", hold)
    request = pb.CancelQueriesRequest(all=True)
    calls: list[Any] = [
        service.stub.CancelQueries.future(request, metadata=service.metadata) for _ in range(2)
    ]
    for _ in calls:
        assert entered.acquire(timeout=20)
    refusal = refused(lambda: owner.call("CancelQueries", all=True))
    held.set()

    assert "OVERLOADED" == refusal.reason
    assert [1, 1] == [call.result().matched_count for call in calls]
