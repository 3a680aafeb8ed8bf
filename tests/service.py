"""A real picback server on loopback, for tests: what `picback serve` runs, in this process."""

from __future__ import annotations

import io
import random
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
from PIL import Image

from dispatcher import DispatcherSettings, new_secret
from picback.v1 import image_service_pb2_grpc
from server.app import App, wall_clock
from server.config import Config
from storage.api_keys import DEFAULT_SCOPES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

#: Every port of loopback's IPv4 address cannot be allowed at once, so tests name a receiver's.
Metadata = tuple[tuple[str, str], ...]


class Service:
    """A running app with its first key, and a stub."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.address = app.address
        credentials = app.make_first_key()
        assert credentials is not None
        self.key_id = credentials.id
        self.api_key = credentials.token
        self.signing_secret = credentials.signing_secret
        self.channel = grpc.insecure_channel(
            self.address, options=[("grpc.use_local_subchannel_pool", 1)]
        )
        self.stub = image_service_pb2_grpc.ImageServiceStub(self.channel)

    @property
    def metadata(self) -> Metadata:
        """What every call must bring."""
        return (("x-api-key", self.api_key),)

    def now(self) -> int:
        """Return the server's time."""
        return self.app._clock()

    def make_key(self, name: str, *, scopes: Sequence[str] = DEFAULT_SCOPES, **options: Any) -> str:
        """Make another key, known to the server at once; return its token."""
        credentials = self.app.api_keys.create(
            name,
            scopes=scopes,
            signing_secret=new_secret(),
            expires_at=options.get("expires_at"),
            now=options.get("now", 0),
        )
        self.app._keyring.refresh()
        return credentials.token

    def row_counts(self) -> dict[str, int]:
        """Return how many rows every table has: what a refused call must not change."""
        database = self.app._database
        tables = [
            name
            for (name,) in database.read("SELECT name FROM sqlite_schema WHERE type = 'table'")
            if not name.startswith("sqlite_")
        ]
        return {table: database.read(f"SELECT count(*) FROM {table}")[0][0] for table in tables}


@contextmanager
def running(
    folder: Path, *, clock: Callable[[], int] = wall_clock, **options: Any
) -> Iterator[Service]:
    """Run a server on *folder* and a free port while the block runs; options as in Config."""
    options.setdefault("listen", "127.0.0.1:0")
    options.setdefault("tagger", "none")
    options.setdefault("dispatcher", DispatcherSettings(delivery_threads=8))
    options.setdefault("reserve_bytes", 0)  # data folders of tests are many, and kept
    app = App(Config(data=folder, **options), clock=clock)
    app.start()
    service = None
    try:
        service = Service(app)
        app._keyring.refresh()
        yield service
    finally:
        if service is not None:
            service.channel.close()
        app.stop()


def picture(seed: int = 0, *, size: tuple[int, int] = (8, 8), format_: str = "PNG") -> bytes:
    """Return a small picture of random pixels; other seeds give other bytes."""
    width, height = size
    pixels = random.Random(seed).randbytes(width * height * 3)
    data = io.BytesIO()
    Image.frombytes("RGB", size, pixels).save(data, format_)
    return data.getvalue()
