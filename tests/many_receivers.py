"""Many receivers of callbacks in one thread: one port, and an address of loopback for each.

They keep connections open, as healthy receivers do, and answer 204 to everything.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncio import StreamReader, StreamWriter


class ManyReceivers:
    """Receives while the block runs. Linux only: elsewhere loopback has one address.

    Attributes:
        received: How many requests each host got.
        open: Connections that are open now.
    """

    def __init__(self, count: int) -> None:
        self.hosts = [f"127.1.{number // 250}.{number % 250 + 1}" for number in range(count)]
        self.received: Counter[str] = Counter()
        self.open = 0
        self.port = 0
        self._changed = threading.Condition()
        self._started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)

    @property
    def addresses(self) -> list[str]:
        """HOST:PORT of each, as ``--allow-callback`` takes it."""
        return [f"{host}:{self.port}" for host in self.hosts]

    @property
    def urls(self) -> list[str]:
        """A URL of each."""
        return [f"http://{address}/" for address in self.addresses]

    def wait_for(self, each: int, *, timeout: float = 60) -> bool:
        """Return whether every host has got at least *each* requests within *timeout* seconds."""
        with self._changed:
            return self._changed.wait_for(
                lambda: all(self.received[host] >= each for host in self.hosts), timeout
            )

    def __enter__(self) -> ManyReceivers:
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, "0.0.0.0", 0, backlog=4096)
        )
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        host = writer.get_extra_info("sockname")[0]
        self.open += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                _, _, rest = head.lower().partition(b"content-length:")
                await reader.readexactly(int(rest.partition(b"\r\n")[0]))
                writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
                with self._changed:
                    self.received[host] += 1
                    self._changed.notify_all()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            writer.close()
        finally:
            self.open -= 1
