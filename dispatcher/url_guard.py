"""Where callbacks may go: the policy for hosts, ports and addresses.

The rule a newcomer would break: a URL is parsed by `callback_url` and by nothing else, and what
is dialled is an address that `UrlGuard.vet` returned for the host parsed there. A second parser,
a second look-up or a followed redirect would each be a way around all of this.

What is refused, and how to allow it, is in ``docs/callbacks.md``.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Protocol

from dispatcher.addresses import METADATA, PRIVATE, is_public, unmapped
from dispatcher.callback_url import CallbackUrlError, Target, parse_authority, parse_url

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dispatcher.addresses import Address, Network

__all__ = ["CallbackUrlError", "ForbiddenCallbackError", "Resolver", "Target", "UrlGuard"]

#: Ports of other protocols, where a POST could do harm or nobody can mean a callback:
#: FTP, SSH, Telnet, SMTP, DNS, POP3, portmapper, RPC, NetBIOS, IMAP, LDAP, SMB, SMTPS, r-commands,
#: submission, LDAPS, rsync, IMAPS, POP3S, SQL Server, Oracle, NFS, Docker, etcd, MySQL, RDP,
#: PostgreSQL, VNC, Redis, IRC, Cassandra, Elasticsearch, kubelet, memcached, MongoDB.
REFUSED_PORTS: frozenset[int] = frozenset(
    {21, 22, 23, 25, 53, 110, 111, 135, 139, 143, 389, 445, 465, 512, 513, 514, 587, 636, 873, 993}
    | {995, 1433, 1521, 2049, 2375, 2376, 2379, 2380, 3306, 3389, 5432, 5900, 6379, 6667, 9042}
    | {9200, 9300, 10250, 11211, 27017}
)

#: Names that mean this machine or this network. Names without a dot are refused as well.
LOCAL_DOMAINS: tuple[str, ...] = ("localhost", "local", "internal", "localdomain", "home.arpa")


class ForbiddenCallbackError(Exception):
    """The callback's host is not one that this server may call."""


class Resolver(Protocol):
    """Looks a host name up."""

    def __call__(self, host: str, port: int) -> list[str]:
        """Return all addresses of *host* as IP literals, best first.

        Args:
            host: A name in ASCII. It ends in a dot when it must be taken as absolute, that is,
                without the search domains and the hosts file of this machine.
            port: Only because ``getaddrinfo`` takes one.

        Raises:
            OSError: The name has no address, or nobody could say; the latter may pass.
        """
        ...


class UrlGuard:
    """Decides which callback URLs may be called. Immutable, safe to share between threads.

    Public hosts are allowed. Everything else needs an entry in *allow*:

    * ``HOST:PORT`` allows exactly this destination, whatever it resolves to, loopback and metadata
      services included. The host is compared as written: ``localhost:8080`` does not allow
      ``127.0.0.1:8080``. IPv6 addresses are bracketed.
    * a range such as ``10.0.0.0/8`` allows its addresses, and public-looking names that resolve to
      them, on ordinary ports. Only private ranges can be opened (RFC 1918, RFC 6598, RFC 4193),
      and the clouds' metadata addresses inside them stay shut.

    Args:
        allow: The entries.
        nat64: This host is in a NAT64 network: ``64:ff9b::a.b.c.d`` gets the verdict of a.b.c.d.

    Raises:
        ValueError: An entry is neither, or a range is not private; the message says which.
    """

    def __init__(self, *, allow: Iterable[str] = (), nat64: bool = False) -> None:
        entries = list(allow)
        self._ranges = [_parse_range(entry) for entry in entries if "/" in entry]
        self._exact = {_parse_host_port(entry) for entry in entries if "/" not in entry}
        self._nat64 = nat64

    def parse(self, url: str) -> Target:
        """Take *url* apart; see `callback_url.parse_url`.

        Raises:
            CallbackUrlError: Another parser might read it differently.
        """
        return parse_url(url)

    def check(self, url: str) -> Target:
        """Parse *url* and apply all of the policy that needs no look-up.

        Raises:
            CallbackUrlError: As `parse`.
            ForbiddenCallbackError: The host or port is not one that we may call.
        """
        target = self.parse(url)
        self._check_destination(target.host, target.port)
        return target

    def vet(self, host: str, port: int, addresses: Sequence[str]) -> list[str]:
        """Return *addresses* if *host* may be called at each of them, else refuse all.

        One forbidden address spoils the others: a name with a public and a private answer is
        either an attack or a mistake, and which of them gets dialled would be chance.

        Args:
            host: As parsed, before look-up.
            port: As parsed.
            addresses: IP literals: what the look-up answered, or the peer of a connection.

        Raises:
            ForbiddenCallbackError: With a message that does not tell the address.
        """
        self._check_destination(host, port)
        if not self.allows_exactly(host, port):
            for text in addresses:
                address = _parse_address(text)
                if address is None or not self._allows(address):
                    msg = "The callback's host has an address that this server may not call."
                    raise ForbiddenCallbackError(msg)
        return list(addresses)

    def allows_exactly(self, host: str, port: int) -> bool:
        """Return whether the operator allowed *host*, as written, and *port* by name."""
        return (host, port) in self._exact

    def _check_destination(self, host: str, port: int) -> None:
        if self.allows_exactly(host, port):
            return
        if port in REFUSED_PORTS:
            msg = f"Port {port} belongs to another protocol than HTTP; this server may not call it."
            raise ForbiddenCallbackError(msg)
        address = _parse_address(host)
        if address is None and _is_local_name(host):
            msg = "The callback's host is a local name, which this server may not call."
            raise ForbiddenCallbackError(msg)
        if address is not None and not self._allows(address):
            msg = "The callback's host is not a public address; this server may not call it."
            raise ForbiddenCallbackError(msg)

    def _allows(self, address: Address) -> bool:
        address = unmapped(address)
        if is_public(address, nat64=self._nat64):
            return True
        return address not in METADATA and any(address in network for network in self._ranges)


def _is_local_name(host: str) -> bool:
    return "." not in host or any(host.endswith(f".{domain}") for domain in LOCAL_DOMAINS)


def _parse_address(text: str) -> Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _parse_host_port(entry: str) -> tuple[str, int]:
    try:
        host, port = parse_authority(entry)
    except CallbackUrlError as exc:
        msg = f"allowed callback {entry!r} is neither HOST:PORT nor a range like 10.0.0.0/8"
        raise ValueError(msg) from exc
    if port is None:
        msg = f"allowed callback {entry!r} lacks a port: write HOST:PORT"
        raise ValueError(msg)
    return host, port


def _parse_range(entry: str) -> Network:
    try:
        network = ip_network(entry)
    except ValueError as exc:
        msg = f"allowed callback {entry!r} is not a range like 10.0.0.0/8: {exc}"
        raise ValueError(msg) from exc
    ends = (network.network_address, network.broadcast_address)
    if not any(ends[0] in private and ends[1] in private for private in PRIVATE):
        msg = (
            f"allowed callback {entry!r} is not inside a private range "
            f"({', '.join(map(str, PRIVATE))}): allow loopback, link-local and metadata addresses "
            "one by one, as HOST:PORT"
        )
        raise ValueError(msg)
    if network.num_addresses == 1 and network.network_address in METADATA:
        msg = f"allowed callback {entry!r} is a cloud's metadata service: allow it as HOST:PORT"
        raise ValueError(msg)
    return network
