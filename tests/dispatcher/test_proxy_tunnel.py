"""Callbacks through an HTTP proxy: where it is asked to connect, and whose fault a failure is."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from dispatcher.deliverer import HttpDeliverer
from dispatcher.local_resources import LocalResourceError
from dispatcher.proxy_tunnel import ProxyError, parse_proxy
from dispatcher.url_guard import UrlGuard
from tests.connect_proxy import ConnectProxy
from tests.dispatcher.calling import (
    BODY,
    HEADERS,
    LATE,
    NAME,
    SOON,
    TLS,
    answer_from,
    deliverer_for,
    failure_at,
    url_of,
)
from tests.dispatcher.delivering import Bench
from tests.dispatcher.faults import server_context
from tests.fakes import START
from tests.receiver import Receiver

if TYPE_CHECKING:
    from dispatcher.url_guard import Resolver
    from storage.database import Database


def _response(status: int, rest: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d Reason\r\ncontent-length: 0\r\n\r\n%s" % (status, rest)


def _public(*addresses: str) -> Resolver:
    def resolve(host: str, port: int) -> list[str]:
        del host, port
        return list(addresses)

    return resolve


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_proxy_is_asked_for_the_vetted_address_and_the_receiver_sees_its_own_name(
    scheme: str,
) -> None:
    context = server_context() if scheme == "https" else None
    names: list[str | None] = []
    if context is not None:
        context.sni_callback = lambda _socket, name, _context: names.append(name)
    with (
        ConnectProxy() as proxy,
        Receiver(ssl_context=context) as receiver,
        deliverer_for(receiver, ca_file=TLS / "ca.pem", proxy=proxy.place) as deliverer,
    ):
        url = url_of(receiver, scheme=scheme, host=NAME)
        statuses = [answer_from(deliverer, url).status for _ in range(3)]

    assert [200] * 3 == statuses
    assert [f"127.0.0.1:{receiver.port}"] == proxy.targets  # one tunnel for all three
    assert proxy.requests[0].startswith(
        f"CONNECT 127.0.0.1:{receiver.port} HTTP/1.1\r\nhost: 127.0.0.1:{receiver.port}\r\n"
    )
    assert f"{NAME}:{receiver.port}" == receiver.requests[0].headers["host"]
    assert BODY == receiver.requests[0].body
    assert ([NAME] if scheme == "https" else []) == names
    assert "webhook-id" not in proxy.requests[0]


def test_what_the_guard_forbids_never_reaches_the_proxy() -> None:
    guard, private = UrlGuard(), _public("10.0.0.1")
    with ConnectProxy() as proxy:
        deliverer = HttpDeliverer(guard, resolver=private, proxy=proxy.place)
        failures = [
            failure_at(deliverer, url) for url in ("https://a.example/", "http://127.0.0.1/")
        ]
        deliverer.close()

    assert ["ADDRESS_FORBIDDEN"] * 2 == [failure.reason for failure in failures]
    assert [] == proxy.requests


def test_an_ipv6_address_is_bracketed() -> None:
    with ConnectProxy(lambda _: _response(502)) as proxy:
        deliverer = HttpDeliverer(
            UrlGuard(), resolver=_public("2606:4700::1111"), proxy=proxy.place
        )
        failure_at(deliverer, "https://a.example/")
        deliverer.close()

    assert ["[2606:4700::1111]:443"] == proxy.targets


def test_each_address_is_tried_until_the_proxy_connects_and_that_one_is_remembered() -> None:
    with Receiver() as receiver:
        places = [f"{address}:{receiver.port}" for address in ("1.1.1.1", "8.8.8.8", "9.9.9.9")]
        with ConnectProxy(lambda target: None if target == places[1] else _response(503)) as proxy:
            deliverer = HttpDeliverer(
                UrlGuard(),
                resolver=_public("1.1.1.1", "8.8.8.8", "9.9.9.9"),
                proxy=proxy.place,
                keep_idle=0,
            )
            url = f"http://a.example:{receiver.port}/"
            statuses = [answer_from(deliverer, url).status for _ in range(2)]
            deliverer.close()

    assert [200, 200] == statuses
    assert [places[0], places[1], places[1]] == proxy.targets


@pytest.mark.parametrize("status", [403, 502, 503, 504])
def test_what_the_proxy_says_of_the_receiver_is_a_failed_attempt(status: int) -> None:
    with (
        ConnectProxy(lambda _: _response(status)) as proxy,
        Receiver() as receiver,
        deliverer_for(receiver, proxy=proxy.place) as deliverer,
    ):
        failure = failure_at(deliverer, url_of(receiver))

    assert "CONNECTION_FAILED" == failure.reason
    assert "egress proxy" in failure.message
    assert [] == receiver.requests


def test_a_proxy_that_waits_for_a_silent_receiver_is_a_timeout_of_the_attempt() -> None:
    with (
        ConnectProxy(lambda _: b"") as proxy,
        Receiver() as receiver,
        deliverer_for(receiver, proxy=proxy.place, timeout=SOON) as deliverer,
    ):
        failure = failure_at(deliverer, url_of(receiver))

    assert "TIMEOUT" == failure.reason


@pytest.mark.parametrize(
    ("response", "word"),
    [
        (_response(407), "407"),
        (_response(400), "400"),
        (_response(404), "404"),
        (_response(500), "500"),
        (_response(301), "301"),
        (b"SSH-2.0-OpenSSH_9\r\n\r\n", "breaks off"),
        (b"HTTP/1.1 200 OK\r\n", "breaks off"),
        (b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * 100_000, "breaks off"),
        (b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "bytes of its own"),
    ],
)
def test_what_the_proxy_does_wrong_is_no_attempt(response: bytes, word: str) -> None:
    with (
        ConnectProxy(lambda _: response) as proxy,
        Receiver() as receiver,
        deliverer_for(receiver, proxy=proxy.place, timeout=LATE) as deliverer,
        pytest.raises(ProxyError) as caught,
    ):
        deliverer.deliver(url_of(receiver), headers=HEADERS, body=[BODY])

    assert word in caught.value.lacking
    assert [] == receiver.requests


def test_a_proxy_that_cannot_be_reached_is_no_attempt() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with (
        Receiver() as receiver,
        deliverer_for(receiver, proxy=("127.0.0.1", port)) as deliverer,
        pytest.raises(LocalResourceError) as caught,
    ):
        deliverer.deliver(url_of(receiver), headers=HEADERS, body=[BODY])

    assert "egress proxy: it cannot be reached (ConnectionRefusedError)" == caught.value.lacking
    assert not caught.value.held_by_connections


def test_a_proxy_whose_name_cannot_be_resolved_is_no_attempt() -> None:
    def resolve(host: str, port: int) -> list[str]:
        del port
        if host == "proxy":
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return ["127.0.0.1"]

    with (
        Receiver() as receiver,
        deliverer_for(receiver, proxy=("proxy", 1), resolver=resolve) as deliverer,
        pytest.raises(ProxyError),
    ):
        deliverer.deliver(url_of(receiver), headers=HEADERS, body=[BODY])


def test_a_query_that_a_broken_proxy_held_up_has_used_no_attempt(database: Database) -> None:
    bench = Bench(database)

    def fail() -> None:
        problem = "it responded 407"
        raise ProxyError(problem)

    bench.before_post = fail
    query = bench.store.submit()
    (lease,) = bench.work()
    waiting = bench.query(query.id)

    assert () == waiting.attempts
    assert waiting.due_at is not None
    assert waiting.due_at > START
    again = bench.store.lease(limit=1, now=waiting.due_at)
    assert [lease.attempt_of_cycle] == [each.attempt_of_cycle for each in again]


def test_variables_of_the_environment_name_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with ConnectProxy() as proxy, Receiver() as receiver:
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        with deliverer_for(receiver) as deliverer:
            assert 200 == answer_from(deliverer, url_of(receiver)).status

    assert [] == proxy.requests


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("http://proxy.internal:3128", ("proxy.internal", 3128)),
        ("http://proxy:3128/", ("proxy", 3128)),
        ("http://[::1]:8080", ("::1", 8080)),
        ("http://10.0.0.1", ("10.0.0.1", 80)),
    ],
)
def test_a_proxy_is_named_by_host_and_port(url: str, place: tuple[str, int]) -> None:
    assert place == parse_proxy(url)


@pytest.mark.parametrize(
    "url",
    ["", "proxy:3128", "https://proxy:3128", "http://user:secret@proxy:3128", "http://proxy/x"],
)
def test_what_names_no_proxy_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="must be http://HOST:PORT"):
        parse_proxy(url)
