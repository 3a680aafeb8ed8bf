from __future__ import annotations

import threading

import pytest

from dispatcher.patience import Patience
from storage.errors import ImageNotFoundError, StorageBusyError, StorageFullError


class Storage:
    """Refuses a few times before it works."""

    def __init__(self, *refusals: Exception) -> None:
        self.refusals = list(refusals)
        self.asked = 0

    def __call__(self) -> str:
        self.asked += 1
        if self.refusals:
            raise self.refusals.pop(0)
        return "done"


def test_storage_is_asked_until_it_does_not_refuse(caplog: pytest.LogCaptureFixture) -> None:
    storage = Storage(StorageFullError("full"), StorageBusyError("busy"))

    assert "done" == Patience(pause=0).insist(storage, on="qry_1")
    assert [
        ("ERROR", "storage.refused", "qry_1", "full"),
        ("ERROR", "storage.refused", "qry_1", "busy"),
    ] == [
        (record.levelname, record.message, vars(record)["on"], vars(record)["error"])
        for record in caplog.records
    ]
    assert [None, None] == [record.exc_info for record in caplog.records]  # no bug, no traceback


def test_what_no_patience_can_mend_is_raised() -> None:
    storage = Storage(ImageNotFoundError("gone"))
    with pytest.raises(ImageNotFoundError):
        Patience(pause=0).insist(storage, on="img_1")

    assert 1 == storage.asked


def test_a_wait_is_told_when_it_is_long_and_no_more_when_it_is_over() -> None:
    now = 1000.0
    told: list[bool] = []
    patience = Patience(pause=0, monotonic=lambda: now)

    def refuse_for_ninety_seconds() -> None:
        nonlocal now
        told.append(patience.has_waited(90))
        if len(told) < 4:
            now += 45
            raise StorageFullError

    patience.insist(refuse_for_ninety_seconds, on="qry_1")

    # First refused after 45 s: it has been for 0, 45 and 90 s.
    assert [False, False, False, True] == told
    assert not patience.has_waited(0)


def test_stopping_ends_a_wait_however_long() -> None:
    patience = Patience(pause=3600)
    asked = threading.Event()
    answers: list[None] = []

    def refuse() -> None:
        asked.set()
        raise StorageFullError

    def insist() -> None:
        answers.append(patience.insist(refuse, on="qry_1"))

    waiting = threading.Thread(target=insist)
    waiting.start()
    asked.wait()
    patience.stop()
    waiting.join()

    assert [None] == answers


def test_after_stopping_storage_is_still_asked_once() -> None:
    patience = Patience(pause=3600)
    patience.stop()
    refusing = Storage(StorageFullError("full"))

    assert "done" == patience.insist(Storage(), on="qry_1")
    assert patience.insist(refusing, on="qry_1") is None
    assert 1 == refusing.asked
