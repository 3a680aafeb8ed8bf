"""The connections that read, lent to one thread at a time.

Each holds descriptors, so there are fewer than threads, and a thread that finds none free waits
for one; no thread keeps one for longer than a SELECT takes. When no more can be opened, those that
are open serve everybody.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

from storage.errors import StorageBusyError

if TYPE_CHECKING:
    from collections.abc import Callable

#: Descriptors that a connection holds: the database's and its write-ahead log's.
DESCRIPTORS_EACH: Final = 2


class Readers:
    """Lends connections. Safe to use from any thread.

    Args:
        connect: Opens one, with all its descriptors, or raises.
        most: Most connections.
    """

    def __init__(self, connect: Callable[[], Any], *, most: int) -> None:
        self._connect = connect
        self._most = most
        self._condition = threading.Condition()
        self._free: list[Any] = []
        self._open = 0
        self._closed = False

    def take(self) -> Any:
        """Return a connection that no other thread uses until it is given back.

        Raises:
            StorageBusyError: It is closed.
            Exception: What *connect* raised, if no connection is open that could be waited for.
        """
        failure: Exception | None = None
        while (connection := self._take_free(failure)) is None:
            try:
                connection = self._connect()
            except Exception as error:  # noqa: BLE001 - raised, unless another one gets free
                failure = error
                self._forget_one()
            else:
                break
        return connection

    def give_back(self, connection: Any) -> None:
        """End the use of *connection*."""
        with self._condition:
            self._free.append(connection)
            self._condition.notify_all() if self._closed else self._condition.notify()

    def close(self) -> None:
        """Refuse from now on, and close every connection when its use has ended."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
            self._condition.wait_for(lambda: self._open == len(self._free))
            for connection in self._free:
                connection.close()
            self._free.clear()
            self._open = 0

    def _take_free(self, failure: Exception | None) -> Any | None:
        """Return a free connection, or None to open one, which is counted already.

        After a *failure* to open one, wait for another thread's.
        """
        with self._condition:
            while not self._closed:
                if self._free:
                    return self._free.pop()  # the one used last, which remembers most
                if failure is not None and self._open == 0:
                    raise failure
                if failure is None and self._open < self._most:
                    self._open += 1
                    return None
                self._condition.wait()
        msg = "the database is closed"
        raise StorageBusyError(msg)

    def _forget_one(self) -> None:
        with self._condition:
            self._open -= 1
            self._condition.notify_all()
