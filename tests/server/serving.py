"""Servers whose lives are the test's subject: started, stopped and started again."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc

from picback.v1 import image_service_pb2_grpc
from server.app import App
from server.config import Config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def config_of(folder: Path, **options: Any) -> Config:
    """Return a configuration for loopback, without a tagger."""
    return Config(**{"listen": "127.0.0.1:0", "tagger": "none", "data": folder, **options})


@contextmanager
def serving(folder: Path, **options: Any) -> Iterator[App]:
    """Serve *folder*, which may have been served before, while the block runs."""
    app = App(config_of(folder, **options))
    app.start()
    try:
        yield app
    finally:
        app.stop()


@contextmanager
def stub_of(address: str) -> Iterator[Any]:
    """Connect to *address* while the block runs, on a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(address, options=options) as channel:
        yield image_service_pb2_grpc.ImageServiceStub(channel)


def first_key(app: App) -> tuple[tuple[str, str], ...]:
    """Return the metadata of the first key of a new data folder."""
    credentials = app.make_first_key()
    assert credentials is not None
    app._keyring.refresh()
    return (("x-api-key", credentials.token),)
