"""Fixtures that many tests share. The rest stands beside the tests that use it."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from storage.database import Database
from tests.receiver import Receiver
from tests.service import running
from tests.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.service import Service

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's background jobs start so, and hand it down: Ctrl-C would be nothing to test.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _no_configuration_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test depends on, or sends anything by, what the machine has configured."""
    import os

    for name in list(os.environ):
        if name.startswith(("PICBACK_", "CLARIFAI_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """A real file, opened as a server opens it."""
    database = Database.own(tmp_path / "data")
    yield database
    database.close()


@pytest.fixture
def store(database: Database) -> Store:
    """The tables of that file, with short ways to fill them."""
    return Store(database)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A running server without a tagger, shared by a module's tests."""
    with running(tmp_path_factory.mktemp("service") / "data") as service:
        yield service


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
