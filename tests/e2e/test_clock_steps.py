"""The wall clock of a real server is set, forward and back, while it delivers and between runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.duration_pb2 import Duration

from picback.v1 import image_service_pb2
from picback.v1.query_pb2 import QueryState
from server.app import App, wall_clock
from server.config import Config
from storage.breakers import Breakers
from tests.receiver import Answer, Receiver
from tests.service import running

if TYPE_CHECKING:
    from pathlib import Path

    from storage.queries import Queries
    from storage.query_records import Query
    from tests.receiver import Received
    from tests.service import Service

HOUR = 3_600_000
STEPS = (HOUR, -HOUR, 24 * HOUR, -24 * HOUR, -24 * HOUR)
EACH = 5
#: Long enough for a retry on a busy machine; only a failing test waits for it.
PATIENCE = 60.0


class Wall:
    """A wall clock that can be set."""

    def __init__(self) -> None:
        self.step = 0

    def __call__(self) -> int:
        return wall_clock() + self.step


def second_time_lucky(seen: set[str]) -> object:
    def answer(request: Received) -> Answer:
        query_id = request.headers["webhook-id"]
        is_new = query_id not in seen
        seen.add(query_id)
        return Answer(500 if is_new else 204)

    return answer


def submit(service: Service, url: str, *, give_up_after: int = 3_600) -> str:
    return service.stub.SubmitQuery(
        image_service_pb2.SubmitQueryRequest(
            text="a dog", callback_url=url, give_up_after=Duration(seconds=give_up_after)
        ),
        metadata=service.metadata,
    ).query.id


def ended(queries: Queries, query_id: str) -> Query:
    with queries.changes.watch(query_id) as changed:
        while (found := queries.get(query_id)).ended_at is None:
            assert changed.wait(PATIENCE)
            changed.clear()
    return found


def test_nothing_waits_longer_ends_early_or_is_lost_when_the_clock_is_set(tmp_path: Path) -> None:
    wall, seen = Wall(), set[str]()
    folder = tmp_path / "data"
    with Receiver(second_time_lucky(seen)) as receiver, Receiver() as paused:  # type: ignore[arg-type]
        allowed = (receiver.address, paused.address)
        with running(folder, clock=wall, allow_callback=allowed) as service:
            submit(service, paused.url)
            paused.wait_for(1)
            assert Breakers(service.app._database).hold(f"http://{paused.address}")
            held = submit(service, paused.url)
            ids = []
            for number, step in enumerate(STEPS, 1):
                ids += [submit(service, receiver.url) for _ in range(EACH)]
                receiver.wait_for(number * EACH)  # each has failed once by then, and waits
                wall.step += step
                assert not service.app._dispatcher.is_stuck(grace=30.0)
            shown = service.stub.GetQuery(
                image_service_pb2.GetQueryRequest(query_id=ids[-1]), metadata=service.metadata
            ).query
            service.app._steady_clock.notice_step()
            found = [ended(service.app._queries, query_id) for query_id in ids]
            last = [submit(service, receiver.url) for _ in range(EACH)]
            receiver.wait_for(2 * len(ids) + EACH)
            still_held = service.stub.GetQuery(
                image_service_pb2.GetQueryRequest(query_id=held), metadata=service.metadata
            ).query

        assert {("DELIVERED", 2)} == {(query.state, len(query.attempts)) for query in found}
        assert all(0 <= each.latency_ms < 60_000 for query in found for each in query.attempts)
        assert QueryState.QUERY_STATE_QUEUED == still_held.state
        assert shown.id == ids[-1]

        wall.step += 48 * HOUR  # while no server runs
        app = App(
            Config(data=folder, listen="127.0.0.1:0", tagger="none", allow_callback=allowed),
            clock=wall,
        )
        app.start()
        try:
            again = [ended(app._queries, query_id) for query_id in last]
            assert "QUEUED" == app._queries.get(held).state
            assert not app._dispatcher.is_stuck(grace=60.0)
        finally:
            app.stop()
        assert {("DELIVERED", 2)} == {(query.state, len(query.attempts)) for query in again}
