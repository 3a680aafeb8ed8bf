"""`give_up_after` is kept with a real server, whatever the receiver does."""

from __future__ import annotations

import socket
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

from google.protobuf.duration_pb2 import Duration

from picback.v1 import image_service_pb2
from storage.breakers import Breakers
from storage.database import Database
from tests.receiver import Answer, Receiver
from tests.service import running

if TYPE_CHECKING:
    from pathlib import Path

    from picback.v1.query_pb2 import Query
    from tests.receiver import Received
    from tests.service import Service

#: Queries to each of the four receivers.
EACH = 50
GIVE_UP_SECONDS = 3
#: By how many milliseconds a query may end later than that.
TOLERANCE_MS = 2_000


def submit(service: Service, url: str, *, seconds: int | None = GIVE_UP_SECONDS) -> str:
    answer = service.stub.SubmitQuery(
        image_service_pb2.SubmitQueryRequest(
            text="a dog",
            callback_url=url,
            give_up_after=None if seconds is None else Duration(seconds=seconds),
        ),
        metadata=service.metadata,
    )
    return answer.query.id


def last_seen(service: Service, query_id: str) -> Query:
    """Watch a query until it is final."""
    *_, last = service.stub.WatchQuery(
        image_service_pb2.WatchQueryRequest(query_id=query_id),
        metadata=service.metadata,
        timeout=60,
    )
    return last.query


def test_queries_to_dead_hanging_paused_and_busy_receivers_are_given_up_on_time(
    tmp_path: Path,
) -> None:
    over = threading.Event()

    def hang(_: Received) -> Answer:
        over.wait()
        return Answer()

    with ExitStack() as stack:
        hanging, paused, busy = (stack.enter_context(Receiver(hang)) for _ in range(3))
        dead = stack.enter_context(socket.socket())
        dead.bind(("127.0.0.1", 0))  # and does not listen
        dead_address = f"127.0.0.1:{dead.getsockname()[1]}"
        stack.callback(over.set)
        allowed = (hanging.address, paused.address, busy.address, dead_address)
        service = stack.enter_context(running(tmp_path / "data", allow_callback=allowed))
        for _ in range(EACH):
            submit(service, busy.url, seconds=None)
        submit(service, paused.url, seconds=1)
        database = Database.beside(tmp_path / "data")
        stack.callback(database.close)
        assert Breakers(database).hold(f"http://{paused.address}")
        ids = [
            submit(service, url)
            for url in (hanging.url, paused.url, busy.url, f"http://{dead_address}/")
            for _ in range(EACH)
        ]
        found = [last_seen(service, query_id) for query_id in ids]

    assert {"DEADLINE_PASSED"} == {query.failure.reason for query in found}
    late = [
        query.end_time.ToMilliseconds()
        - query.create_time.ToMilliseconds()
        - 1000 * GIVE_UP_SECONDS
        for query in found
    ]
    assert max(late) <= TOLERANCE_MS
