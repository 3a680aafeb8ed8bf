"""Whom a callback URL makes us call: what the parser accepted is what is dialled, and no other.

Every accepted URL is delivered to a network that remembers who was looked up, who was dialled,
under which name, and what was sent; two parsers that are not ours say who that should have been.
"""

from __future__ import annotations

import socket
import ssl
from contextlib import closing, suppress
from ipaddress import ip_address
from typing import Any, Final, cast
from urllib.parse import urlsplit

import httpx
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from dispatcher.deliverer import Answered, Failed, HttpDeliverer
from dispatcher.url_guard import CallbackUrlError, ForbiddenCallbackError, UrlGuard
from tests.dispatcher.urls import PLAIN_URLS, TRICKY_URLS, URLS_WITH_ONE_TRICK

ANSWER: Final = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
DEFAULT_PORTS: Final = {"http": 80, "https": 443}

#: Guards, and the kinds of address in `ANSWERS` that each must let through.
GUARDS: Final = {
    "plain": (UrlGuard(), {"public"}),
    "nat64": (UrlGuard(nat64=True), {"public", "nat64"}),
    "private": (UrlGuard(allow=["10.0.0.0/8"]), {"public", "private"}),
}
#: What a name server may answer, and what kind of address that is.
ANSWERS: Final = {
    "8.8.8.8": "public",
    "2606:4700::1": "public",
    "::ffff:8.8.4.4": "public",
    "64:ff9b::808:808": "nat64",
    "10.0.0.1": "private",
    "::ffff:10.0.0.1": "private",
    "127.0.0.1": "never",
    "::1": "never",
    "0.0.0.0": "never",
    "169.254.169.254": "never",
    "::ffff:169.254.169.254": "never",
    "64:ff9b::7f00:1": "never",
    "64:ff9b::a00:1": "never",
    "64:ff9b:1::808:808": "never",
    "2002:808:808::1": "never",
    "fe80::1%eth0": "never",
}


class Network:
    """Looks every name up to the same addresses, and answers at each of them with 200."""

    def __init__(self, addresses: list[str]) -> None:
        self._addresses = addresses
        self._receiver: socket.socket | None = None
        self.looked_up: list[str] = []
        self.dialled: list[tuple[str, int]] = []
        self.proven: list[str] = []

    def resolve(self, host: str, port: int) -> list[str]:
        del port
        self.looked_up.append(host)
        return list(self._addresses)

    def connect(self, address: str, port: int) -> socket.socket:
        self.dialled.append((address, port))
        sender, self._receiver = socket.socketpair()
        self._receiver.sendall(ANSWER)
        return _Sender(sender, peer=(address, port))

    def received_head(self) -> list[str]:
        """Return the lines before the body of what was sent."""
        assert self._receiver is not None
        with closing(self._receiver):
            return self._receiver.recv(65536).decode("ascii").partition("\r\n\r\n")[0].split("\r\n")


class _Sender(socket.socket):
    """One end of a pair that says it were a TCP connection."""

    def __init__(self, pair: socket.socket, *, peer: tuple[str, int]) -> None:
        super().__init__(fileno=pair.detach())
        self._peer = peer

    def getpeername(self) -> tuple[str, int]:
        return self._peer

    def setsockopt(self, *_: Any) -> None:
        """Pairs know no TCP options."""


class _Authority(ssl.SSLContext):
    """Believes every receiver, and remembers the names."""

    network: Network

    def wrap_socket(self, sock: socket.socket, *_: Any, **options: Any) -> ssl.SSLSocket:
        self.network.proven.append(options["server_hostname"])
        return cast("ssl.SSLSocket", sock)


def deliver(url: str, guard: UrlGuard, network: Network) -> Answered | Failed:
    authority = _Authority(ssl.PROTOCOL_TLS_CLIENT)
    authority.network = network
    deliverer = HttpDeliverer(
        guard, resolver=network.resolve, begin=network.connect, ssl_context=authority
    )
    with closing(deliverer):
        return deliverer.deliver(url, headers={}, body=[])


def parsed_by_others(url: str) -> tuple[str, str, int, str]:
    """Return scheme, host, port and target of *url*, on which others must agree."""
    split, seen = urlsplit(url), httpx.URL(url)
    by_urllib = (split.scheme, _canonical(split.hostname or ""), split.port)
    by_httpx = (seen.scheme, _canonical(seen.raw_host.decode("ascii")), seen.port)
    default = DEFAULT_PORTS[split.scheme]

    assert (*by_urllib[:2], by_urllib[2] or default) == (*by_httpx[:2], by_httpx[2] or default)
    return (*by_urllib[:2], by_urllib[2] or default, seen.raw_path.decode("ascii"))


def _canonical(host: str) -> str:
    with suppress(ValueError):
        return str(ip_address(host))
    return host


def _is_literal(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


@settings(max_examples=600, deadline=None)
@given(
    url=st.one_of(PLAIN_URLS, URLS_WITH_ONE_TRICK, TRICKY_URLS),
    kind=st.sampled_from(sorted(GUARDS)),
    addresses=st.one_of(
        st.lists(st.sampled_from(["8.8.8.8", "2606:4700::1"]), min_size=1, max_size=3),
        st.lists(st.sampled_from(sorted(ANSWERS)), min_size=1, max_size=3),
    ),
)
@example(url="https://example.com/", kind="plain", addresses=["8.8.8.8"])
@example(url="HTTP://EXAMPLE.com:8443//a?b=/?c", kind="plain", addresses=["2606:4700::1"])
@example(url="https://[2606:4700:0:0::A]:444", kind="plain", addresses=["127.0.0.1"])
@example(url="http://[64:ff9b::8.8.8.8]/", kind="nat64", addresses=["127.0.0.1"])
@example(url="http://example.com/", kind="nat64", addresses=["64:ff9b::808:808"])
@example(url="http://example.com/", kind="private", addresses=["10.0.0.1"])
@example(url="http://example.com/", kind="plain", addresses=["8.8.8.8", "127.0.0.1"])
@example(url="http://example.com/", kind="plain", addresses=["127.0.0.1", "8.8.8.8"])
@example(url="http://127.0.0.1\\@8.8.8.8/", kind="plain", addresses=["8.8.8.8"])
def test_what_the_parser_accepted_is_what_is_dialled(
    url: str, kind: str, addresses: list[str]
) -> None:
    guard, allowed = GUARDS[kind]
    network = Network(addresses)
    outcome = deliver(url, guard, network)
    try:
        guard.check(url)
    except (CallbackUrlError, ForbiddenCallbackError):
        event("refused before look-up")

        assert isinstance(outcome, Failed)
        assert ([], []) == (network.looked_up, network.dialled)
        return
    scheme, host, port, target = parsed_by_others(url)
    if _is_literal(host):
        addresses = [host]
    else:
        assert [f"{host}."] == network.looked_up
        if not {ANSWERS[address] for address in addresses} <= allowed:
            event("refused after look-up")

            assert isinstance(outcome, Failed)
            assert ("ADDRESS_FORBIDDEN", []) == (outcome.reason, network.dialled)
            return
    event(f"called by {scheme}")
    written = f"[{host}]" if ":" in host else host
    written += "" if port == DEFAULT_PORTS[scheme] else f":{port}"
    request_line, *headers = network.received_head()

    assert isinstance(outcome, Answered)
    assert [(addresses[0], port)] == network.dialled
    assert f"POST {target} HTTP/1.1" == request_line
    assert [f"host: {written}"] == [
        header.lower() for header in headers if header.lower().startswith("host:")
    ]
    assert ([host] if scheme == "https" else []) == network.proven
