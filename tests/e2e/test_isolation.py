"""One receiver that hangs must not keep the others waiting."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

from dispatcher.breaker import FAILURES_IN_A_ROW, MAX_CONCURRENCY
from picback.v1 import image_service_pb2
from tests.receiver import Answer, Receiver
from tests.service import running

if TYPE_CHECKING:
    from pathlib import Path

    from tests.receiver import Received
    from tests.service import Service

BACKLOG = 200
HEALTHY = 5
EACH = 20


def _submit(service: Service, url: str, times: int) -> None:
    for _ in range(times):
        service.stub.SubmitQuery(
            image_service_pb2.SubmitQueryRequest(text="a dog", callback_url=url),
            metadata=service.metadata,
        )


def test_a_receiver_that_hangs_takes_its_own_share_of_threads_and_no_more(tmp_path: Path) -> None:
    over = threading.Event()

    def hang(_: Received) -> Answer:
        over.wait()
        return Answer()

    with ExitStack() as stack:
        hanging = stack.enter_context(Receiver(hang))
        stack.callback(over.set)
        healthy = [stack.enter_context(Receiver()) for _ in range(HEALTHY)]
        allowed = tuple(receiver.address for receiver in (hanging, *healthy))
        service = stack.enter_context(
            running(tmp_path / "data", allow_callback=allowed, callback_timeout=3.0)
        )
        _submit(service, hanging.url, BACKLOG)
        for receiver in healthy:
            _submit(service, receiver.url, EACH)
        for receiver in healthy:
            receiver.wait_for(EACH)
        tried = len(hanging.requests)

    # Had it got every thread that became free, it would have been tried BACKLOG times first.
    assert tried <= MAX_CONCURRENCY + FAILURES_IN_A_ROW


def test_a_receiver_that_comes_back_gets_what_waited_though_its_breaker_was_open(
    tmp_path: Path,
) -> None:
    down, everything = threading.Event(), threading.Event()
    down.set()
    delivered: set[str] = set()

    def answer(request: Received) -> Answer:
        if down.is_set():
            return Answer(500)
        delivered.add(request.headers["webhook-id"])
        if len(delivered) == 30:
            everything.set()
        return Answer(204)

    with (
        Receiver(answer) as receiver,
        running(tmp_path / "data", allow_callback=(receiver.address,)) as service,
    ):
        _submit(service, receiver.url, 30)
        receiver.wait_for(FAILURES_IN_A_ROW)
        down.clear()

        assert everything.wait(60)
