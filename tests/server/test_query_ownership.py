"""A query belongs to the key that submitted it: for any other it does not exist."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import grpc
import pytest

from picback.v1 import image_service_pb2 as pb
from picback.v1 import query_pb2
from server.interceptors import SCOPES
from storage.api_keys import DEFAULT_SCOPES, QUERIES_ALL
from tests.receiver import Receiver
from tests.server.refusals import refusal_of, refused
from tests.service import running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from google.protobuf.descriptor import Descriptor

    from tests.server.refusals import Refusal
    from tests.service import Service

METHODS: Final = pb.DESCRIPTOR.services_by_name["ImageService"].methods
NOBODY: Final = "http://127.0.0.1:1/callback"
UNKNOWN: Final = "qry_00000000000000000000000000"
#: The RPCs that take a query by its id.
BY_ID: Final = [
    method.name
    for method in METHODS
    if any(field.name == "query_id" for field in method.input_type.fields)
]
#: The other RPCs of queries: each has tests of its own, below or in test_query_filters.py.
OTHERS: Final = ["SubmitQuery", "ListQueries", "CancelQueries", "RedeliverQueries"]
#: States that a query of the owner's reaches by itself: on which path, and how it is submitted.
FINAL: Final[dict[str, dict[str, Any]]] = {
    "DELIVERED": {"path": "/taken"},
    "FAILED": {"path": "/gone"},
    "UNMATCHED": {"path": "/taken", "on_unmatched": query_pb2.ON_UNMATCHED_END},
}
TOKEN: Final = "?token=secret"


class Caller:
    """Calls with one key."""

    def __init__(self, service: Service, token: str) -> None:
        self._stub = service.stub
        self._metadata = (("x-api-key", token),)

    def call(self, method: str, **fields: Any) -> Any:
        """Make a call; of a stream, return the last message."""
        request = getattr(pb, f"{method}Request")(**fields)
        call = getattr(self._stub, method)(request, metadata=self._metadata, timeout=30)
        return list(call)[-1] if method == "WatchQuery" else call

    def submit(self, url: str, **fields: Any) -> query_pb2.Query:
        fields.setdefault("text", "a dog")
        query = self.call("SubmitQuery", callback_url=url, **fields).query
        assert isinstance(query, query_pb2.Query)
        return query

    def listed(self, **fields: Any) -> list[str]:
        """Return the ids of all queries, read page by page."""
        ids: list[str] = []
        while True:
            page = self.call("ListQueries", page_size=1, **fields)
            ids += [query.id for query in page.queries]
            if not page.next_page_token:
                return ids
            fields["page_token"] = page.next_page_token


class Stage:
    """A server, a receiver with a path that is gone, and the owner's query in each state."""

    def __init__(self, service: Service, receiver: Receiver) -> None:
        self.service = service
        self.base = f"http://{receiver.address}"
        self.owner = Caller(service, service.api_key)
        self.stranger = self.caller("stranger")
        self.overseer = self.caller("overseer", scopes=(*DEFAULT_SCOPES, QUERIES_ALL))
        self.queries = {state: self.submit(state) for state in (*FINAL, "CANCELLED", "DELIVERING")}

    def caller(self, name: str, **options: Any) -> Caller:
        return Caller(self.service, self.service.make_key(name, **options))

    def submit(self, state: str) -> query_pb2.Query:
        """Return a query of the owner's in *state*."""
        if state in FINAL:
            fields = dict(FINAL[state])
            query = self.owner.submit(f"{self.base}{fields.pop('path')}{TOKEN}", **fields)
            query = self.owner.call("WatchQuery", query_id=query.id).query
        else:
            query = self.owner.submit(f"{NOBODY}{TOKEN}")
            if state == "CANCELLED":
                query = self.owner.call("CancelQuery", query_id=query.id).query
        if state != "DELIVERING":
            assert query_pb2.QueryState.Value(f"QUERY_STATE_{state}") == query.state
        return query

    def rows(self) -> list[Any]:
        """Return what a call could change of queries, without what happens by itself."""
        return self.service.app._database.read(
            "SELECT id, iif(ended_at IS NULL, '', state), cycle_start, ended_at FROM query"
        )


def _answer(request: Any) -> tuple[int, dict[str, str], bytes]:
    return (410 if request.path.startswith("/gone") else 200), {}, b"internal words"


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("ownership") / "data"
    with (
        Receiver(_answer) as receiver,
        running(folder, allow_callback=(receiver.address, "127.0.0.1:1")) as service,
    ):
        yield Stage(service, receiver)


def _holds_a_query(message: Descriptor) -> bool:
    return message.name == "Query" or any(
        field.message_type is not None and _holds_a_query(field.message_type)
        for field in message.fields
    )


def test_every_rpc_of_queries_is_tested_here() -> None:
    """An RPC that is added later must join BY_ID by its field query_id, or OTHERS by a test."""
    by_scope = {
        path.rpartition("/")[2] for path, scope in SCOPES.items() if scope.startswith("queries.")
    }
    by_response = {method.name for method in METHODS if _holds_a_query(method.output_type)}

    assert {*BY_ID, *OTHERS} == by_scope | by_response
    assert 4 == len(BY_ID)


def _told(refusal: Refusal) -> tuple[object, ...]:
    trailers = {name: value for name, value in refusal.trailers.items() if name != "x-request-id"}
    return refusal.code, refusal.reason, refusal.message, refusal.metadata, trailers


@pytest.mark.parametrize("state", [*FINAL, "CANCELLED", "DELIVERING"])
@pytest.mark.parametrize("method", BY_ID)
def test_a_query_of_another_key_cannot_be_told_from_one_that_does_not_exist(
    stage: Stage, method: str, state: str
) -> None:
    query_id = stage.queries[state].id
    before = stage.rows()

    foreign = refused(lambda: stage.stranger.call(method, query_id=query_id))
    unknown = refused(lambda: stage.stranger.call(method, query_id=UNKNOWN))

    assert (grpc.StatusCode.NOT_FOUND, "QUERY_NOT_FOUND") == (foreign.code, foreign.reason)
    assert _told(unknown) == _told(foreign)
    assert before == stage.rows()
    assert query_id == stage.owner.call("GetQuery", query_id=query_id).query.id


def test_a_key_lists_its_own_queries_whatever_others_submit_between_them(stage: Stage) -> None:
    first, second = stage.caller("first"), stage.caller("second")
    made: dict[Caller, list[str]] = {first: [], second: []}
    for caller in (first, second, second, first, first, second):
        made[caller].insert(0, caller.submit(NOBODY).id)
    ended = first.call("CancelQuery", query_id=made[first][1]).query.id
    state = query_pb2.QUERY_STATE_CANCELLED

    assert made == {caller: caller.listed() for caller in made}
    assert [[ended], []] == [caller.listed(state=state) for caller in (first, second)]
    assert [] == stage.stranger.listed()
    page = stage.stranger.call("ListQueries", page_size=1)
    assert not page.next_page_token


def test_a_page_token_is_good_for_the_key_that_got_it_only(stage: Stage) -> None:
    thief = stage.caller("thief")
    for _ in range(2):
        thief.submit(NOBODY)
    callers = (stage.owner, stage.overseer, thief)
    tokens = [caller.call("ListQueries", page_size=1).next_page_token for caller in callers]

    def outcome(caller: Caller, token: str) -> str:
        try:
            caller.call("ListQueries", page_token=token)
        except grpc.RpcError as error:
            return refusal_of(error).reason
        return "OK"

    bad = "PAGE_TOKEN_INVALID"

    assert all(tokens)
    assert [
        ["OK", bad, bad],
        [bad, "OK", bad],
        [bad, bad, "OK"],
        [bad, bad, bad],
    ] == [[outcome(caller, token) for token in tokens] for caller in (*callers, stage.stranger)]


def test_a_request_id_of_another_key_is_free(stage: Stage) -> None:
    request = {"request_id": "the-same", "text": "a cat"}
    mine = stage.caller("mine").submit(NOBODY, **request)
    theirs = stage.caller("theirs")
    response = theirs.call("SubmitQuery", callback_url=NOBODY, **request)

    assert response.created
    assert mine.id != response.query.id
    # Another request, too: it is not REQUEST_ID_REUSED.
    assert stage.caller("thirds").submit(NOBODY, request_id="the-same", text="a bird").id


def test_queries_all_sees_every_key_and_the_own_ones_as_before(stage: Stage) -> None:
    own = stage.overseer.submit(f"{NOBODY}{TOKEN}")
    found = stage.overseer.listed()

    assert own.id in found
    assert {query.id for query in stage.queries.values()} < set(found)
    assert f"{NOBODY}{TOKEN}" == own.callback_url
    assert own.callback_url == stage.overseer.call("GetQuery", query_id=own.id).query.callback_url


@pytest.mark.parametrize("state", FINAL)
def test_queries_all_does_not_show_credentials_nor_what_receivers_answered(
    stage: Stage, state: str
) -> None:
    expected = stage.owner.call("GetQuery", query_id=stage.queries[state].id).query
    assert expected.callback_url.endswith(TOKEN)
    for attempt in expected.attempts:
        assert "internal words" == attempt.response_excerpt
        attempt.response_excerpt = ""
    expected.callback_url = expected.callback_url.replace(TOKEN, "?***")
    listed = stage.overseer.call("ListQueries", page_size=1000).queries

    assert expected == stage.overseer.call("GetQuery", query_id=expected.id).query
    assert expected == stage.overseer.call("WatchQuery", query_id=expected.id).query
    assert [expected] == [query for query in listed if query.id == expected.id]


def test_queries_all_acts_on_every_key_and_shows_the_masked_url_then_too(stage: Stage) -> None:
    query = stage.submit("DELIVERING")

    cancelled = stage.overseer.call("CancelQuery", query_id=query.id).query
    again = stage.overseer.call("RedeliverQuery", query_id=query.id).query

    assert query_pb2.QUERY_STATE_CANCELLED == cancelled.state
    assert query_pb2.QUERY_STATE_CANCELLED != again.state
    assert {f"{NOBODY}?***"} == {cancelled.callback_url, again.callback_url}
    assert f"{NOBODY}{TOKEN}" == stage.owner.call("GetQuery", query_id=query.id).query.callback_url


@pytest.mark.parametrize("method", [*BY_ID, *OTHERS])
def test_queries_all_replaces_no_scope(stage: Stage, method: str) -> None:
    key = stage.caller(f"only all {method}", scopes=(QUERIES_ALL,))

    refusal = refused(lambda: key.call(method))

    assert "SCOPE_MISSING" == refusal.reason
    assert {"scope": SCOPES[f"/picback.v1.ImageService/{method}"]} == refusal.metadata


def test_a_rotated_key_keeps_its_queries_and_a_new_key_of_an_old_name_does_not_get_them(
    stage: Stage,
) -> None:
    keys = stage.service.app.api_keys
    before = stage.caller("ours")
    query = before.submit(NOBODY)
    token = keys.rotate("ours", signing_secret="whsec_" + 32 * "A", overlap=0, now=1).token
    stage.service.app._keyring.refresh()
    rotated = Caller(stage.service, token).listed()
    keys.revoke("ours", now=2)
    successor = stage.caller("ours").listed()

    assert [query.id] == rotated
    assert [] == successor
    assert query.id in stage.overseer.listed()  # who else could cancel it


def test_the_first_key_sees_its_own_queries_only(tmp_path: Path) -> None:
    with running(tmp_path / "data") as service:
        scopes = {key.name: key.scopes for key in service.app.api_keys.all()}

    assert {"default": DEFAULT_SCOPES} == scopes
    assert QUERIES_ALL not in DEFAULT_SCOPES
