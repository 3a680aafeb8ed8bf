"""Connecting to the first of a host's addresses that answers (RFC 8305, "Happy Eyeballs").

Addresses are tried one after the other, the families by turns, and the next begins when the one
before has failed or has taken a quarter of a second. So a dead family or a dead host costs that
long and not the whole deadline.
"""

from __future__ import annotations

import errno
import math
import os
import select
import socket
from collections import deque
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Final

from dispatcher.local_resources import has_route, lack_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from dispatcher.deadline import Deadline
    from dispatcher.local_resources import LocalResourceError

    #: Begins to connect to an IP literal and a port: see `begin_tcp`.
    Begin = Callable[[str, int], socket.socket]
    #: Waits at most so many seconds for sockets that have connected or failed.
    Wait = Callable[[Sequence[socket.socket], float], Sequence[socket.socket]]

#: Seconds until the next address is tried beside. Source: RFC 8305, section 5.
ATTEMPT_DELAY: Final = 0.25
#: Connections that one call begins at the same time; each holds a descriptor. With more addresses,
#: the one begun first is given up for the next, and the last ones have all of the deadline.
MAX_PENDING: Final = 4


def begin_tcp(address: str, port: int) -> socket.socket:
    """Return a socket, never blocking, that connects to the IP literal *address*.

    Raises:
        OSError: It failed at once.
    """
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    try:
        sock.settimeout(0)
        sock.connect((address, port))
    except BlockingIOError as error:
        if error.errno != errno.EINPROGRESS:
            sock.close()
            raise
    except BaseException:
        sock.close()
        raise
    return sock


def wait_for_any(socks: Sequence[socket.socket], seconds: float) -> Sequence[socket.socket]:
    """Return those of *socks* that have connected or failed, after at most *seconds*."""
    poll = select.poll()
    numbers = {sock.fileno(): sock for sock in socks}
    for number in numbers:
        poll.register(number, select.POLLOUT)
    return [numbers[number] for number, _ in poll.poll(math.ceil(1000 * seconds))]


def interleaved(addresses: Iterable[str]) -> list[str]:
    """Return *addresses* with the families by turns, beginning with that of the first."""
    families: dict[bool, list[str]] = {}
    for address in addresses:
        families.setdefault(":" in address, []).append(address)
    return [each for each in chain.from_iterable(zip_longest(*families.values())) if each]


class Race:
    """One call's attempts to connect to any of several addresses.

    Args:
        port: The port of each.
        deadline: For all of them together.
        begin: As `begin_tcp`.
        wait: As `wait_for_any`.
    """

    def __init__(
        self, port: int, deadline: Deadline, *, begin: Begin = begin_tcp, wait: Wait = wait_for_any
    ) -> None:
        self._port = port
        self._deadline = deadline
        self._begin = begin
        self._wait = wait
        self._pending: dict[socket.socket, str] = {}
        self._failure: OSError | None = None
        self._lack: LocalResourceError | None = None
        self._next_at = -math.inf

    def run(self, addresses: Sequence[str]) -> tuple[str, socket.socket]:
        """Return the first of *addresses* that connected, and its socket.

        Args:
            addresses: At least one, in the order to try them.

        Raises:
            LocalResourceError: None did, and one could not be tried for a lack of ours.
            TimeoutError: The deadline passed.
            OSError: All failed; this is the last failure.
        """
        untried = deque(addresses)
        try:
            while untried or self._pending:
                seconds = self._deadline.left()
                if untried:
                    until_next = self._next_at - self._deadline.clock()
                    if not self._pending or until_next <= 0:
                        self._start(untried.popleft())
                        continue
                    seconds = min(seconds, until_next)
                winner = self._settle(self._wait(list(self._pending), seconds))
                if winner is not None:
                    return winner
        finally:
            for sock in self._pending:
                sock.close()
        if self._lack is not None:  # what could not be tried leaves the receiver in doubt
            raise self._lack from self._failure
        assert self._failure is not None  # noqa: S101 - there was an address, and it did not connect
        raise self._failure

    def _start(self, address: str) -> None:
        if len(self._pending) >= MAX_PENDING:
            oldest = next(iter(self._pending))
            del self._pending[oldest]
            oldest.close()
        try:
            sock = self._begin(address, self._port)
        except OSError as error:
            self._note(error, address)
        else:
            self._pending[sock] = address
            self._next_at = self._deadline.clock() + ATTEMPT_DELAY

    def _settle(self, ready: Iterable[socket.socket]) -> tuple[str, socket.socket] | None:
        for sock in ready:
            address = self._pending.pop(sock)
            number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not number:
                return address, sock
            sock.close()
            self._note(OSError(number, os.strerror(number)), address)
            self._next_at = -math.inf  # no reason to wait for the next one
        return None

    def _note(self, error: OSError, address: str) -> None:
        self._failure = error
        if error.errno != errno.EADDRNOTAVAIL or has_route(address, self._port):
            self._lack = lack_of(error) or self._lack
