"""Connections go to vetted addresses, share one deadline, and names are looked up once."""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING, TypeVar

import pytest

from dispatcher.deadline import Deadline
from dispatcher.dialer import Dialer
from dispatcher.resolver import BoundedResolver
from dispatcher.url_guard import ForbiddenCallbackError, UrlGuard
from tests.fault_server import FaultServer, hang

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

T = TypeVar("T")

PUBLIC = "8.8.8.8"


class Network:
    """A network in which every dial ends as scripted.

    Answers and peers are given out in turn; the last one stays.
    """

    def __init__(
        self,
        server: FaultServer | None = None,
        *,
        answers: Sequence[Sequence[str]] = ((PUBLIC,),),
        peers: Sequence[str] = (PUBLIC,),
        failures: Sequence[OSError] = (),
    ) -> None:
        self.now = 0.0
        self.looked_up: list[str] = []
        self.dialled: list[str] = []
        self._server = server
        self._answers = list(answers)
        self._peers = list(peers)
        self._failures = list(failures)

    def dialer(self, guard: UrlGuard | None = None) -> Dialer:
        return Dialer(
            guard or UrlGuard(),
            resolver=BoundedResolver(self.resolve),
            ssl_context=ssl.create_default_context(),
            begin=self.connect,
        )

    def deadline(self, seconds: float) -> Deadline:
        return Deadline(self.now + seconds, lambda: self.now)

    def resolve(self, host: str, port: int) -> list[str]:
        del port
        self.looked_up.append(host)
        answer = _next(self._answers)
        return list(answer)

    def connect(self, address: str, port: int) -> socket.socket:
        del port
        self.dialled.append(address)
        if self._failures:
            raise self._failures.pop(0)
        assert self._server is not None
        sock = _SocketWithPeer(_next(self._peers))
        sock.connect(("127.0.0.1", self._server.port))
        return sock


class _SocketWithPeer(socket.socket):
    """A socket that is connected to this machine and claims to be connected elsewhere."""

    def __init__(self, peer: str) -> None:
        super().__init__()
        self._peer = peer

    def getpeername(self) -> tuple[str, int]:
        return (self._peer, 80)


def _next(items: list[T]) -> T:
    return items.pop(0) if len(items) > 1 else items[0]


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer(hang) as server:
        yield server


def test_a_name_is_looked_up_once_and_exactly_its_vetted_address_is_dialled(
    server: FaultServer,
) -> None:
    network = Network(server, answers=[(PUBLIC,), ("127.0.0.1",)])  # rebinding
    network.dialer().dial("http", "example.com", 80, network.deadline(15)).close()

    assert ["example.com."] == network.looked_up
    assert [PUBLIC] == network.dialled


def test_a_later_connection_is_vetted_anew(server: FaultServer) -> None:
    network = Network(server, answers=[(PUBLIC,), ("127.0.0.1",)])
    dialer = network.dialer()
    dialer.dial("http", "example.com", 80, network.deadline(15)).close()

    with pytest.raises(ForbiddenCallbackError):
        dialer.dial("http", "example.com", 80, network.deadline(15))
    assert 1 == len(network.dialled)


def test_a_peer_that_is_not_public_is_not_talked_to(server: FaultServer) -> None:
    network = Network(server, peers=["127.0.0.1"])  # the network is not what DNS said

    with pytest.raises(ForbiddenCallbackError):
        network.dialer().dial("http", "example.com", 80, network.deadline(15))


def test_only_a_name_that_the_operator_allowed_may_be_completed_by_this_machine(
    server: FaultServer,
) -> None:
    network = Network(server)
    dialer = network.dialer(UrlGuard(allow=["backend:80"]))
    for host in ("backend", "example.com"):
        dialer.dial("http", host, 80, network.deadline(15)).close()

    assert ["backend", "example.com."] == network.looked_up


@pytest.mark.parametrize("host", [PUBLIC, "2606:4700::1"])
def test_a_literal_address_is_not_looked_up(server: FaultServer, host: str) -> None:
    network = Network(server)
    network.dialer().dial("http", host, 80, network.deadline(15)).close()

    assert [] == network.looked_up
    assert [host] == network.dialled


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (TimeoutError(), TimeoutError),
        (ConnectionRefusedError(), ConnectionRefusedError),
        (OSError("no route to host"), OSError),
    ],
)
def test_the_last_failure_is_told(failure: OSError, error: type[Exception]) -> None:
    network = Network(failures=[failure])

    with pytest.raises(error):
        network.dialer().dial("http", "example.com", 80, network.deadline(15))


def test_nothing_is_begun_after_the_deadline() -> None:
    network = Network()

    with pytest.raises(TimeoutError):
        network.dialer().dial("http", "example.com", 80, network.deadline(0))
    assert [] == network.dialled
