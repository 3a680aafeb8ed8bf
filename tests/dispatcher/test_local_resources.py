"""What this machine lacks costs no query an attempt, wherever in a callback it is missed."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import threading
from typing import TYPE_CHECKING, Any

import pytest

from dispatcher import local_resources
from dispatcher.deliverer import Failed, HttpDeliverer
from dispatcher.local_resources import LACKING, LocalResourceError
from dispatcher.shortage import Shortage
from dispatcher.url_guard import UrlGuard
from storage.database import Database
from tests.descriptors import descriptors_left
from tests.dispatcher.delivering import Bench
from tests.fakes import START
from tests.receiver import Receiver

if TYPE_CHECKING:
    from collections.abc import Callable


PUBLIC = "http://example.com/"
LACKS = sorted(LACKING)


def no_such_call(*_: object) -> socket.socket:
    raise AssertionError


def refusing(error: Exception) -> Callable[..., socket.socket]:
    def refuse(*_: object) -> socket.socket:
        raise error

    return refuse


def deliver(deliverer: HttpDeliverer, url: str = PUBLIC) -> object:
    try:
        return deliverer.deliver(url, headers={}, body=[b"{}"])
    finally:
        deliverer.close()


@pytest.mark.parametrize("number", LACKS, ids=errno.errorcode.get)
def test_a_lack_in_connecting_is_raised_and_is_no_outcome(number: int) -> None:
    deliverer = HttpDeliverer(
        UrlGuard(allow=["127.0.0.1:80"]), begin=refusing(OSError(number, os.strerror(number)))
    )

    with pytest.raises(LocalResourceError, match=LACKING[number]):
        deliver(deliverer, "http://127.0.0.1:80/")


@pytest.mark.parametrize("number", LACKS, ids=errno.errorcode.get)
def test_a_lack_in_looking_up_is_raised_and_is_no_outcome(number: int) -> None:
    deliverer = HttpDeliverer(
        UrlGuard(),
        resolver=refusing(OSError(number, os.strerror(number))),  # type: ignore[arg-type]
        begin=no_such_call,
    )

    with pytest.raises(LocalResourceError, match=LACKING[number]):
        deliver(deliverer)


class FailingSocket(socket.socket):
    """Fails in one operation, which is named, and works in all others."""

    def __init__(self, operation: str, error: Exception) -> None:
        super().__init__()
        self.operation = operation
        self.error = error

    def _do(self, operation: str) -> None:
        if operation == self.operation:
            raise self.error

    def setsockopt(self, *args: Any) -> None:
        self._do("setsockopt")
        super().setsockopt(*args)

    def sendmsg(self, *args: Any) -> int:
        self._do("sendmsg")
        return super().sendmsg(*args)

    def recv(self, *args: Any) -> bytes:
        self._do("recv")
        return super().recv(*args)


@pytest.mark.parametrize("operation", ["setsockopt", "sendmsg", "recv"])
@pytest.mark.parametrize("number", [errno.ENOBUFS, errno.ENOMEM], ids=errno.errorcode.get)
def test_a_lack_on_an_open_connection_is_raised_and_is_no_outcome(
    operation: str, number: int
) -> None:
    def begin(address: str, port: int) -> socket.socket:
        sock = FailingSocket(operation, OSError(number, os.strerror(number)))
        sock.connect((address, port))
        return sock

    with Receiver() as receiver:
        deliverer = HttpDeliverer(UrlGuard(allow=[receiver.address]), begin=begin)
        with pytest.raises(LocalResourceError, match=LACKING[number]):
            deliver(deliverer, receiver.url)


def test_a_resolver_without_memory_is_a_lack_and_an_unknown_name_is_none() -> None:
    def outcome_of(code: int) -> object:
        error = socket.gaierror(code, "scripted")
        return deliver(HttpDeliverer(UrlGuard(), resolver=refusing(error)))  # type: ignore[arg-type]

    with pytest.raises(LocalResourceError, match="memory"):
        outcome_of(socket.EAI_MEMORY)
    outcome = outcome_of(socket.EAI_NONAME)
    assert isinstance(outcome, Failed)
    assert "DNS_ERROR" == outcome.reason


def test_a_thread_that_cannot_be_started_for_a_look_up_is_a_lack(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(_: threading.Thread) -> None:
        msg = "can't start new thread"
        raise RuntimeError(msg)

    deliverer = HttpDeliverer(UrlGuard(), resolver=no_such_call)  # type: ignore[arg-type]
    monkeypatch.setattr(threading.Thread, "start", start)

    with pytest.raises(LocalResourceError, match="threads"):
        deliver(deliverer)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), "CONNECTION_REFUSED"),
        (OSError(errno.ENETUNREACH, "no route"), "CONNECTION_FAILED"),
        (TimeoutError(errno.ETIMEDOUT, "late"), "TIMEOUT"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_the_network_does_is_an_outcome(error: OSError, reason: str) -> None:
    outcome = deliver(
        HttpDeliverer(UrlGuard(allow=["127.0.0.1:80"]), begin=refusing(error)),
        "http://127.0.0.1:80/",
    )

    assert isinstance(outcome, Failed)
    assert reason == outcome.reason


def test_numbers_of_other_libraries_are_not_taken_for_the_systems() -> None:
    for number in LACKS:
        assert local_resources.lack_of(ssl.SSLError(number, "OpenSSL's")) is None
        assert local_resources.lack_of(socket.gaierror(number, "the resolver's")) is None


def test_an_address_that_this_machine_has_no_address_for_is_no_lack_of_ports(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dispatcher.happy_eyeballs.has_route", lambda *_: False)
    error = OSError(errno.EADDRNOTAVAIL, "cannot assign requested address")
    outcome = deliver(
        HttpDeliverer(UrlGuard(allow=["127.0.0.1:80"]), begin=refusing(error)),
        "http://127.0.0.1:80/",
    )

    assert isinstance(outcome, Failed)
    assert "CONNECTION_FAILED" == outcome.reason


def test_loopback_has_a_route_and_a_malformed_address_has_none() -> None:
    assert local_resources.has_route("127.0.0.1", 80)
    assert not local_resources.has_route("fe80::1", 80)  # link-local, of no interface


def test_an_address_that_could_not_be_tried_leaves_the_receiver_in_doubt() -> None:
    errors = [OSError(errno.ENOBUFS, "none"), ConnectionRefusedError()]

    def begin(*_: object) -> socket.socket:
        raise errors.pop(0)

    deliverer = HttpDeliverer(
        UrlGuard(), resolver=lambda _host, _port: ["8.8.8.8", "8.8.4.4"], begin=begin
    )

    with pytest.raises(LocalResourceError, match="socket buffers"):
        deliver(deliverer)
    assert [] == errors


def test_idle_connections_are_closed_for_one_that_is_needed() -> None:
    with Receiver() as idle, Receiver() as busy:
        deliverer = HttpDeliverer(UrlGuard(allow=[idle.address, busy.address]))
        deliverer.deliver(idle.url, headers={}, body=[b"{}"])
        # The receivers are in this process, too: what the idle one closes is there to accept with.
        with descriptors_left(0):
            outcome = deliverer.deliver(busy.url, headers={}, body=[b"{}"])
        deliverer.close()

    assert 200 == getattr(outcome, "status", None)
    assert 2 == deliverer.connections


def test_real_look_ups_and_connections_without_descriptors_are_a_lack() -> None:
    deliverer = HttpDeliverer(UrlGuard(allow=["127.0.0.1:80"]))
    with descriptors_left(0):
        for url in ("http://127.0.0.1:80/", PUBLIC):
            with pytest.raises(LocalResourceError, match="descriptors"):
                deliver(deliverer, url)


def lack_of_ports() -> None:
    raise LocalResourceError(LACKING[errno.EADDRNOTAVAIL])


def test_a_query_that_a_lack_held_up_waits_a_moment_and_spends_no_attempt(
    database: Database,
) -> None:
    bench = Bench(database)
    query = bench.store.submit("dog")
    bench.before_post = lack_of_ports
    bench.work()
    held_up = bench.query(query.id)
    bench.before_post = lambda: None
    bench.clock.advance(1)
    bench.work()

    assert ((), START + 1000) == (held_up.attempts, held_up.due_at)
    assert 1 == len(bench.query(query.id).attempts)
    assert "DELIVERED" == bench.query(query.id).state


def test_a_lack_opens_no_breaker_however_long_it_lasts(database: Database) -> None:
    bench = Bench(database)
    query = bench.store.submit("dog")
    bench.before_post = lack_of_ports
    for _ in range(50):
        bench.work()
        bench.clock.advance(10)

    assert () == bench.query(query.id).attempts
    assert [] == bench.store.breakers.not_closed()
    assert bench.shortage.has_lasted(400)


def test_a_database_that_cannot_be_opened_costs_no_attempt(database: Database) -> None:
    bench = Bench(database)
    query = bench.store.submit("dog")

    def open_without_descriptors() -> None:
        with descriptors_left(0):
            Database.beside(database.folder)

    bench.before_post = open_without_descriptors
    bench.work()

    assert () == bench.query(query.id).attempts


def test_memory_that_a_body_lacks_costs_no_attempt(database: Database) -> None:
    bench = Bench(database)
    query = bench.store.submit("dog")

    def no_memory() -> None:
        raise MemoryError

    bench.before_post = no_memory
    bench.work()

    assert () == bench.query(query.id).attempts


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_shortage_is_logged_once_a_minute_and_at_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    clock = Clock()
    shortage = Shortage(monotonic=clock)
    error = LocalResourceError("memory")
    for _ in range(120):
        shortage.hold_up(error)
        clock.now += 1
    shortage.end()
    shortage.end()

    assert [
        ("ERROR", "delivery.resources_lacking", 1),
        ("ERROR", "delivery.resources_lacking", 61),
        ("INFO", "delivery.resources_found", 120),
    ] == [(each.levelname, each.message, vars(each)["held_up"]) for each in caplog.records]


def test_pauses_grow_with_a_shortage_and_start_over_after_it() -> None:
    clock = Clock()
    shortage = Shortage(monotonic=clock)
    error = LocalResourceError("memory")
    pauses = []
    for passing in (0, 4, 100, 0):
        clock.now += passing
        pauses.append(shortage.hold_up(error))
    shortage.end()

    assert [1.0, 4.0, 10.0, 10.0] == pauses
    assert 1.0 == shortage.hold_up(error)


def test_a_shortage_has_lasted_since_the_first_callback_that_it_held_up() -> None:
    clock = Clock()
    shortage = Shortage(monotonic=clock)
    assert not shortage.has_lasted(0)
    shortage.hold_up(LocalResourceError("memory"))
    clock.now += 90
    shortage.hold_up(LocalResourceError("memory"))

    assert shortage.has_lasted(90)
    assert not shortage.has_lasted(91)
    shortage.end()
    assert not shortage.has_lasted(0)


def test_an_owner_that_has_its_share_is_no_shortage_for_health_or_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    clock = Clock()
    shortage = Shortage(monotonic=clock, uniform=lambda low, high: (low + high) / 2)
    pauses = []
    for _ in range(3):
        pauses.append(shortage.hold_up(LocalResourceError("places", only_for_owner=True)))
        clock.now += 100

    assert [3.0] * 3 == pauses
    assert not shortage.has_lasted(0)
    assert [] == caplog.records
