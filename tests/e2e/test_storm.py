"""A short storm of kills; `make storm` runs the long one."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.storm import IN_FLIGHT, Storm, integrity

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("signal_", "times", "most_duplicates"),
    [(signal.SIGKILL, 6, 6 * IN_FLIGHT), (signal.SIGTERM, 3, 0)],
    ids=["killed", "stopped"],
)
def test_a_server_that_ends_again_and_again_loses_nothing(
    tmp_path: Path, signal_: signal.Signals, times: int, most_duplicates: int
) -> None:
    books = Storm(tmp_path, times=times, signal_=signal_, seed=times).run()

    assert times == len(books.restarts)
    assert books.accepted
    assert set() == books.lost
    assert books.duplicates <= most_duplicates
    assert all(len(bodies) == 1 for bodies in books.bodies.values())
    assert "ok" == integrity(tmp_path)
