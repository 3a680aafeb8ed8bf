"""What calls that are refused unread may write into the log."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import grpc

from server.call_log import CallLog
from tests.server.waiting import wait_until

if TYPE_CHECKING:
    import pytest

    from tests.service import Service


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def _refuse(log: CallLog, *, reason: str = "API_KEY_MISSING", key_id: str = "") -> None:
    log.refused(
        "/s/Method",
        code=grpc.StatusCode.UNAUTHENTICATED,
        reason=reason,
        key_id=key_id,
        request_id="r",
    )


def _lines(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, Any]]:
    return [vars(record) for record in caplog.records if record.getMessage() == event]


def test_a_thousand_refusals_are_some_lines_and_a_number(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clock = Clock()
    log = CallLog(now=clock)

    for _ in range(1_000):
        _refuse(log)
    _refuse(log, reason="API_KEY_INVALID")
    _refuse(log, reason="LIMIT_EXCEEDED", key_id="key_1")
    clock.now += 1
    log.flush()

    assert 22 == len(_lines(caplog, "rpc.finished"))
    (suppressed,) = _lines(caplog, "rpc.suppressed")
    assert ("API_KEY_MISSING", "", 980) == (
        suppressed["reason"],
        suppressed["key"],
        suppressed["lines"],
    )


def test_each_second_has_its_own_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clock = Clock()
    log = CallLog(now=clock)

    for _ in range(3):
        for _ in range(25):
            _refuse(log)
        clock.now += 1
    log.flush()

    assert 60 == len(_lines(caplog, "rpc.finished"))
    assert [5, 5, 5] == [line["lines"] for line in _lines(caplog, "rpc.suppressed")]


def test_a_strangers_method_name_is_cut(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    call: Any = service.channel.unary_unary("/stranger/" + "m" * 3_000)

    call.future(b"").code()

    wait_until(lambda: bool(_lines(caplog, "rpc.finished")))
    assert ["m" * 60] == [line["method"] for line in _lines(caplog, "rpc.finished")]
