"""A dead address costs a quarter of a second, a refused one nothing, and all are tried."""

from __future__ import annotations

import errno
import socket
import ssl
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.deadline import Deadline
from dispatcher.dialer import Dialer
from dispatcher.happy_eyeballs import (
    ATTEMPT_DELAY,
    MAX_PENDING,
    Race,
    begin_tcp,
    interleaved,
    wait_for_any,
)
from dispatcher.local_resources import LocalResourceError
from dispatcher.resolver import BoundedResolver
from dispatcher.url_guard import UrlGuard
from tests.fault_server import FaultServer, hang

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SECONDS = 15.0


class End(NamedTuple):
    """How an attempt ends: after how long, with which error number; 0 connects."""

    after: float
    number: int = 0


GOOD, REFUSED, DEAD = End(0.02), End(0.001, errno.ECONNREFUSED), End(1e9, errno.ETIMEDOUT)
NO_ROUTE = End(0.0, errno.ENETUNREACH)
SLOW = End(0.6)


class ScriptedSocket:
    """An attempt that ends as its address is scripted to."""

    def __init__(self, network: Network, address: str, end: End) -> None:
        self.address = address
        self.ends_at = network.now + end.after
        self._number = end.number
        self.is_closed = False

    def getsockopt(self, *_: object) -> int:
        return self._number

    def close(self) -> None:
        self.is_closed = True

    def getpeername(self) -> tuple[str, int]:
        return (self.address, 80)

    def setsockopt(self, *_: object) -> None:
        """Nothing to set."""


class Network:
    """Scripted addresses, and a clock that waiting moves."""

    def __init__(self, ends: Mapping[str, End]) -> None:
        self.ends = ends
        self.now = 0.0
        self.sockets: list[ScriptedSocket] = []

    @property
    def begun(self) -> list[str]:
        return [each.address for each in self.sockets]

    def begin(self, address: str, port: int) -> Any:
        del port
        end = self.ends[address]
        if end is NO_ROUTE:
            raise OSError(end.number, "no route")
        self.sockets.append(ScriptedSocket(self, address, end))
        return self.sockets[-1]

    def wait(self, socks: Sequence[Any], seconds: float) -> Sequence[Any]:
        assert len(socks) <= MAX_PENDING
        self.now = min(self.now + seconds, max(self.now, min(each.ends_at for each in socks)))
        return [each for each in socks if each.ends_at <= self.now]

    def race(self, addresses: Sequence[str], seconds: float = SECONDS) -> tuple[str, Any]:
        deadline = Deadline(self.now + seconds, lambda: self.now)
        return Race(80, deadline, begin=self.begin, wait=self.wait).run(interleaved(addresses))


def v6(count: int) -> list[str]:
    return [f"2600::{number:x}" for number in range(1, count + 1)]


def v4(count: int) -> list[str]:
    return [f"8.8.8.{number}" for number in range(1, count + 1)]


@pytest.mark.parametrize(
    ("ends", "reached", "within"),
    [
        ([(v6(1), DEAD), (v4(1), GOOD)], "8.8.8.1", 0.3),
        ([(v6(4), DEAD), (v4(1), GOOD)], "8.8.8.1", 0.3),
        ([(v4(4), DEAD), (v6(1), GOOD)], "2600::1", 0.3),
        ([(v6(4), NO_ROUTE), (v4(1), GOOD)], "8.8.8.1", 0.03),
        ([(v4(8), REFUSED), (["8.8.8.9"], GOOD)], "8.8.8.9", 0.05),
        ([(v4(40), REFUSED), (["8.8.8.99"], GOOD)], "8.8.8.99", 0.1),
        ([(v6(8), REFUSED), (v4(8), DEAD), (["8.8.8.9"], GOOD)], "8.8.8.9", 8 * 0.3),
        ([(v6(20), DEAD), (v4(19), DEAD), (["8.8.8.99"], GOOD)], "8.8.8.99", 10.0),
        ([(v6(1), SLOW), (v4(1), DEAD)], "2600::1", 0.6),
        ([(v6(1), SLOW), (v4(1), GOOD)], "8.8.8.1", 0.3),
        ([(v6(1), GOOD), (v4(1), GOOD)], "2600::1", 0.03),
    ],
)
def test_the_first_address_that_answers_is_reached_soon(
    ends: Sequence[tuple[list[str], End]], reached: str, within: float
) -> None:
    network = Network({address: end for group, end in ends for address in group})

    address, sock = network.race(list(network.ends))

    assert reached == address == sock.address
    assert network.now <= within
    assert [sock] == [each for each in network.sockets if not each.is_closed]


def test_an_address_that_answers_leaves_the_others_alone() -> None:
    network = Network(dict.fromkeys([*v6(2), *v4(2)], GOOD))
    network.race([*v6(2), *v4(2)])

    assert ["2600::1"] == network.begun


@pytest.mark.parametrize(
    ("ends", "error"),
    [
        ([REFUSED, REFUSED], ConnectionRefusedError),
        ([NO_ROUTE], OSError),
        ([DEAD], TimeoutError),
        ([REFUSED, DEAD], TimeoutError),
        ([DEAD] * 100, TimeoutError),
        ([End(0.0, errno.ENOBUFS), REFUSED], LocalResourceError),
    ],
)
def test_if_none_answers_the_cause_is_told_and_nothing_stays_open(
    ends: Sequence[End], error: type[Exception]
) -> None:
    network = Network(dict(zip(v4(len(ends)), ends, strict=True)))

    with pytest.raises(error):
        network.race(list(network.ends))
    assert network.now <= SECONDS
    assert all(each.is_closed for each in network.sockets)


def test_families_take_turns_and_keep_their_order() -> None:
    assert ["2600::1", "8.8.8.1", "2600::2", "2600::3"] == interleaved([*v6(3), *v4(1)])
    assert ["8.8.8.1", "2600::1", "8.8.8.2", "8.8.8.3"] == interleaved([*v4(3), *v6(1)])
    assert [] == interleaved([])


@given(
    st.lists(
        st.sampled_from([GOOD, SLOW, REFUSED, NO_ROUTE, DEAD, End(0.3, errno.ECONNRESET)]),
        min_size=1,
        max_size=30,
    ),
    st.randoms(use_true_random=False),
)
def test_any_good_address_is_reached_and_nothing_else_stays_open(ends: list[End], rng: Any) -> None:
    addresses = [*v4(15), *v6(15)]
    rng.shuffle(addresses)
    network = Network(dict(zip(addresses, ends, strict=False)))
    winner = None
    try:
        _, winner = network.race(list(network.ends))
    except OSError:
        assert not {GOOD, SLOW} & set(ends)
    else:
        assert not network.ends[winner.address].number

    assert all(each.is_closed for each in network.sockets if each is not winner)
    assert network.now <= max(len(ends) * (ATTEMPT_DELAY + 0.05), 1) or winner is None


class Resolver:
    """Answers with the addresses of now."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self.addresses = list(addresses)

    def __call__(self, host: str, port: int) -> list[str]:
        del host, port
        return list(self.addresses)


def test_what_worked_is_tried_first_as_long_as_dns_has_it() -> None:
    network = Network({**dict.fromkeys(v6(4), DEAD), **dict.fromkeys(v4(2), GOOD)})
    resolver = Resolver([*v6(4), "8.8.8.1"])
    dialer = Dialer(
        UrlGuard(),
        resolver=BoundedResolver(resolver),
        ssl_context=ssl.create_default_context(),
        begin=network.begin,
        wait=network.wait,
    )

    def dial() -> list[str]:
        network.sockets.clear()
        dialer.dial("http", "example.com", 80, Deadline(network.now + SECONDS, lambda: network.now))
        return network.begun

    first, second = dial(), dial()
    resolver.addresses = [*v6(4), "8.8.8.2"]
    third = dial()

    assert ["2600::1", "8.8.8.1"] == first
    assert ["8.8.8.1"] == second
    assert ["2600::1", "8.8.8.2"] == third


def test_real_sockets_race_too() -> None:
    with FaultServer(hang) as server:
        deadline = Deadline(time.monotonic() + SECONDS)
        address, sock = Race(server.port, deadline).run(["127.0.0.3", "127.0.0.2", "127.0.0.1"])
        with sock:
            assert ("127.0.0.1", server.port) == (address, sock.getpeername()[1])


def test_a_connection_is_ready_when_it_is_there() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        begin_tcp(*server.getsockname()) as connecting,
    ):
        assert [connecting] == list(wait_for_any([connecting], SECONDS))
