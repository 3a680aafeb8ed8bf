"""Fixtures of the server's tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.receiver import Receiver
from tests.service import running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.service import Service


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    """A receiver that takes everything."""
    with Receiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def calling_service(
    tmp_path_factory: pytest.TempPathFactory, receiver: Receiver
) -> Iterator[Service]:
    """A running server without a tagger that may call the receiver, and a port of nobody's."""
    folder = tmp_path_factory.mktemp("calling") / "data"
    with running(folder, allow_callback=(receiver.address, "127.0.0.1:1")) as service:
        yield service
