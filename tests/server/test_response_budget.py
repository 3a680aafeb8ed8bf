"""What responses take until they are read."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, cast

import grpc
import pytest

from picback.v1 import image_service_pb2 as pb
from server import response_budget
from server.errors import RequestError
from server.response_budget import _CALL_BYTES, _COPIES, _MAX_UNCOUNTED, ResponseBudget
from server.timer import Timer
from tests.server.raw_http2 import calls_that_take_no_answer
from tests.server.refusals import refused
from tests.server.waiting import wait_until
from tests.service import picture, running

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.service import Service

CONTENT = "/picback.v1.ImageService/GetImageContent"
MB = 1_000_000


class FakeContext:
    """A call's end, as the budget sees it."""

    def __init__(self) -> None:
        self.callbacks: list[Callable[[], None]] | None = []
        self.was_cancelled = False

    def add_callback(self, callback: Callable[[], None]) -> bool:
        if self.callbacks is not None:
            self.callbacks.append(callback)
        return self.callbacks is not None

    def cancel(self) -> None:
        self.was_cancelled = True

    def end(self) -> None:
        callbacks, self.callbacks = self.callbacks, None
        for callback in callbacks or ():
            callback()


def _budget(copies_of_mb: float) -> ResponseBudget:
    """Return a budget for so many responses of a megabyte."""
    return ResponseBudget(int(copies_of_mb * (_COPIES * MB + _CALL_BYTES)), timer=Timer())


def _send(budget: ResponseBudget, key: str, size_bytes: int = MB) -> FakeContext | None:
    """Send a response; None if there is no room for it."""
    context = FakeContext()
    try:
        budget.send(cast("Any", context), key, size_bytes)
    except RequestError:
        return None
    return context


def test_one_keys_unread_responses_leave_as_much_for_others() -> None:
    budget = _budget(8)

    first = [_send(budget, "a") for _ in range(8)]
    second = [_send(budget, "b") for _ in range(8)]

    assert [4, 2] == [8 - sent.count(None) for sent in (first, second)]
    assert _send(budget, "c") is not None  # one that holds nothing may take what is free


def test_what_was_read_makes_room_again() -> None:
    budget = _budget(2)
    first = _send(budget, "a")
    assert first is not None
    assert _send(budget, "a") is None

    first.end()

    assert 0 == budget.held_bytes
    assert _send(budget, "a") is not None


def test_a_response_that_is_larger_than_the_budget_is_sent_alone() -> None:
    budget = _budget(1)

    assert _send(budget, "a", 10 * MB) is not None
    assert _send(budget, "b", MB) is None


def test_a_reservation_becomes_what_the_response_has_come_to() -> None:
    budget = _budget(8)
    context = cast("Any", FakeContext())

    budget.reserve(context, "a", MB)
    reserved = budget.held_bytes
    budget.send(context, "a", 1_000)

    assert _COPIES * MB + _CALL_BYTES == reserved
    assert _COPIES * 1_000 + _CALL_BYTES == budget.held_bytes


def test_a_call_that_has_ended_before_holds_nothing() -> None:
    budget = _budget(8)
    context = FakeContext()
    context.end()

    budget.reserve(cast("Any", context), "a", 2 * MB)
    budget.abandon(cast("Any", context))
    budget.send(cast("Any", context), "a", 2 * MB)

    assert 0 == budget.held_bytes
    assert not any(budget._timer._pending.values())


def test_large_responses_are_built_two_at_a_time_and_none_keeps_its_place() -> None:
    budget = _budget(1_000)
    contexts: list[Any] = [FakeContext() for _ in range(4)]
    for context in contexts[:2]:
        budget.reserve(context, "a", 2 * MB)
    waiting = [
        threading.Thread(target=budget.reserve, args=(context, "a", 2 * MB))
        for context in contexts[2:]
    ]
    for thread in waiting:
        thread.start()
    were_waiting = [thread.is_alive() for thread in waiting]

    budget.abandon(contexts[0])  # its handler has failed
    contexts[1].end()  # its caller has left
    for thread in waiting:
        thread.join(30)
    for context in contexts[2:]:
        budget.send(context, "a", 2 * MB)

    assert [True, True] == were_waiting
    assert budget._large_builds.acquire(blocking=False)
    assert budget._large_builds.acquire(blocking=False)


def test_a_response_that_is_not_read_in_time_is_cancelled() -> None:
    budget = _budget(8)
    unread, read = _send(budget, "a"), _send(budget, "a")
    assert unread is not None
    assert read is not None
    read.end()

    for pending in budget._timer._pending.values():
        for timeout in pending:
            timeout.expire()

    assert (True, False) == (unread.was_cancelled, read.was_cancelled)


def _image(service: Service) -> str:
    content = picture(size=(200, 200), format_="BMP")
    return service.stub.UploadImage(
        pb.UploadImageRequest(content=content), metadata=service.metadata
    ).image.id


def test_unread_responses_of_a_key_hold_up_no_other_key(tmp_path: Path) -> None:
    """A budget for 20 images of 120 KB, and 200 of them unread."""
    limit = 20 * (_COPIES * 120_000 + _CALL_BYTES)
    with running(tmp_path / "data", max_response_bytes=limit) as service:
        image_id = _image(service)
        request = pb.GetImageContentRequest(image_id=image_id)
        other = (("x-api-key", service.make_key("other")),)
        with calls_that_take_no_answer(
            service.app.port,
            [CONTENT] * 200,
            metadata=service.metadata,
            message=request.SerializeToString(),
        ):
            responses = service.app._responses
            wait_until(lambda: responses.held_bytes > limit / 2 - 2 * 120_000 * _COPIES)
            refusal = refused(
                lambda: service.stub.GetImageContent(request, metadata=service.metadata)
            )
            content = service.stub.GetImageContent(request, metadata=other, timeout=20).content
            held = responses.held_bytes
        wait_until(lambda: 0 == responses.held_bytes)

    assert ("OVERLOADED", 1.0) == (refusal.reason, refusal.retry_after)
    assert grpc.StatusCode.RESOURCE_EXHAUSTED == refusal.code
    assert content
    assert held <= limit / 2 + 120_000 * _COPIES + _CALL_BYTES


@pytest.mark.parametrize("method", ["GetImageContent", "ListImages"])
def test_a_client_that_reads_nothing_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(response_budget, "_READ_SECONDS", 0.1)
    with running(tmp_path / "data") as service:
        request = pb.GetImageContentRequest(image_id=_image(service))
        message = request.SerializeToString() if method == "GetImageContent" else b""
        paths = [f"/picback.v1.ImageService/{method}"] * 50
        with calls_that_take_no_answer(
            service.app.port, paths, metadata=service.metadata, message=message
        ):
            responses = service.app._responses
            wait_until(lambda: responses.held_bytes > 0)
            wait_until(lambda: responses.held_bytes == 0)
            wait_until(lambda: not service.app._server._state.rpc_states)  # type: ignore[attr-defined] # gRPC tells it nowhere else


def test_small_responses_are_counted_once_there_are_many() -> None:
    budget = _budget(1)

    sent = [_send(budget, "a", 100) for _ in range(_MAX_UNCOUNTED + 200)]
    before = sent.count(None)
    for context in sent:
        if context is not None:
            context.end()

    assert before > 0
    assert 0 == budget.held_bytes
    assert not any(budget._timer._pending.values())
