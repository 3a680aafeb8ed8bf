"""Servers whose lives are the test's subject: started, stopped and started again.

Within the test's own process by `serving`, as a process of its own by `serve_process`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
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
    defaults = {"listen": "127.0.0.1:0", "tagger": "none", "data": folder, "reserve_bytes": 0}
    return Config(**{**defaults, **options})


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


@dataclass(frozen=True, slots=True)
class ServeProcess:
    """A running `picback serve`."""

    process: subprocess.Popen[str]
    folder: Path
    #: All of stdout until it was ready.
    first_line: str

    @property
    def address(self) -> str:
        """Where it says that it listens."""
        return self.first_line.split()[-1]

    @property
    def first_key(self) -> dict[str, str]:
        """What it left of the first key."""
        found = json.loads((self.folder / "first-key.json").read_text())
        assert isinstance(found, dict)
        return found

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call must bring."""
        return (("x-api-key", self.first_key["key"]),)


def serve_command(folder: Path, *arguments: str) -> list[str]:
    """Return the command that serves *folder* on a free port, without a tagger."""
    options = ["--data", str(folder), "--listen", "127.0.0.1:0", "--tagger", "none"]
    return [sys.executable, "-m", "server", "serve", *options, *arguments]


@contextmanager
def serve_process(
    folder: Path,
    *arguments: str,
    environment: dict[str, str] | None = None,
    max_files: int | None = None,
) -> Iterator[ServeProcess]:
    """Run `picback serve` while the block runs, unless that ends it.

    With *max_files*, that is its soft and hard limit of descriptors.
    """
    command = serve_command(folder, *arguments)
    if max_files is not None:
        command = ["sh", "-c", f'ulimit -n {max_files} && exec "$@"', "sh", *command]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    ) as process:
        try:
            assert process.stdout is not None
            yield ServeProcess(process, folder, process.stdout.readline())
        finally:
            process.kill()
