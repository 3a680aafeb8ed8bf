"""The one parser of callback URLs: strict, so that no other parser could read them differently.

ASCII only, no user name, no fragment, no numeric host but a dotted quad, nothing to unescape or
to normalise that matters. What comes out goes on the wire as it is; see `url_guard`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address

import idna

#: Longest URL, in characters; the length that proxies and servers commonly accept.
MAX_URL_LENGTH = 2048

_DEFAULT_PORTS = {"http": 80, "https": 443}


class CallbackUrlError(Exception):
    """The callback URL cannot be parsed without doubt."""


@dataclass(frozen=True, slots=True)
class Target:
    """A parsed callback URL, in parts that go on the wire as they are.

    Attributes:
        scheme: ``http`` or ``https``.
        host: Lower-case ASCII name, dotted quad, or IPv6 address without brackets.
        port: 1 to 65535.
        target: Path and query as the caller wrote them, at least ``/``.
    """

    scheme: str
    host: str
    port: int
    target: str

    @property
    def destination(self) -> str:
        """Scheme, host and port: the unit of isolation, so the port is always there."""
        return f"{self.scheme}://{self._bracketed_host}:{self.port}"

    @property
    def url(self) -> str:
        """The canonical URL: parsing it again gives an equal target."""
        return f"{self.scheme}://{self.authority}{self.target}"

    @property
    def authority(self) -> str:
        """The ``Host`` header: the port is there unless it is the scheme's own."""
        port = "" if self.port == _DEFAULT_PORTS[self.scheme] else f":{self.port}"
        return f"{self._bracketed_host}{port}"

    @property
    def _bracketed_host(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host


@lru_cache(maxsize=1024)  # each attempt asks, and most go where others went
def parse_url(url: str) -> Target:
    """Take *url* apart, refusing whatever another parser might read differently.

    Raises:
        CallbackUrlError: It is not plainly ``http(s)://host[:port]/path[?query]`` in ASCII.
    """
    if len(url) > MAX_URL_LENGTH:
        msg = f"The callback URL is longer than {MAX_URL_LENGTH} characters."
        raise CallbackUrlError(msg)
    if not _PRINTABLE_ASCII.fullmatch(url):
        msg = (
            "The callback URL must be printable ASCII without spaces: write an international "
            "host name in its xn-- form and percent-encode the rest."
        )
        raise CallbackUrlError(msg)
    scheme, _, rest = url.partition("://")
    scheme = scheme.lower()
    if scheme not in _DEFAULT_PORTS:
        msg = "The callback URL must begin with http:// or https://."
        raise CallbackUrlError(msg)
    authority, slash, path = rest.partition("/")
    host, port = parse_authority(authority)
    return Target(scheme, host, port or _DEFAULT_PORTS[scheme], _checked_target(slash + path))


def parse_authority(text: str) -> tuple[str, int | None]:
    """Return the canonical host and the port, None without one, of ``host[:port]``.

    Raises:
        CallbackUrlError: It is not plainly that.
    """
    match = _AUTHORITY.fullmatch(text)
    if match is None:
        msg = (
            "The callback URL must have a plain host, an optional port from 1 to 65535, no user "
            "name, and a path before any query."
        )
        raise CallbackUrlError(msg)
    host, port = match.groups()
    if port is not None and int(port) > 65535:
        msg = "The callback URL's port must be from 1 to 65535."
        raise CallbackUrlError(msg)
    canonical = _parse_ipv6(host[1:-1]) if host.startswith("[") else _parse_name(host.lower())
    return canonical, None if port is None else int(port)


def parse_destination(text: str) -> str:
    """Return the canonical name of a destination: its scheme, host and port.

    Raises:
        CallbackUrlError: It is not plainly ``http(s)://host[:port]``.
    """
    target = parse_url(text)
    if target.target != "/":
        msg = "a destination is SCHEME://HOST:PORT, without a path"
        raise CallbackUrlError(msg)
    return target.destination


_PRINTABLE_ASCII = re.compile(r"[!-~]+")
# RFC 3986: pchar, "/" and "?". No fragment: it is never sent, so it can only mislead.
_TARGET = re.compile(r"/(?:[A-Za-z0-9\-._~!$&'()*+,;=:@/?]|%[0-9A-Fa-f]{2})*")
_DOT_SEGMENT = re.compile(r"(?:\.|%2e){1,2}", re.IGNORECASE)
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.\-]+)(?::([1-9][0-9]{0,4}))?")
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_DOTTED_QUAD = re.compile(rf"{_OCTET}(?:\.{_OCTET}){{3}}")
# As the WHATWG URL standard's "ends in a number": what inet_aton would take for an address.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9\-]{0,61}[a-z0-9])?")


def _checked_target(target: str) -> str:
    """Return path and query as given, or ``/`` if there are none."""
    if not target:
        return "/"
    if not _TARGET.fullmatch(target):
        msg = (
            "The callback URL's path and query must consist of the characters that RFC 3986 "
            "allows there, anything else percent-encoded, without a fragment."
        )
        raise CallbackUrlError(msg)
    path = target.partition("?")[0]
    if any(_DOT_SEGMENT.fullmatch(segment) for segment in path.split("/")):
        msg = 'The callback URL\'s path must not have "." or ".." as a segment.'
        raise CallbackUrlError(msg)
    return target


def _parse_ipv6(text: str) -> str:
    try:
        address = IPv6Address(text)
    except ValueError as exc:
        msg = "The callback URL's host in brackets is not an IPv6 address."
        raise CallbackUrlError(msg) from exc
    if address.ipv4_mapped is not None:
        msg = "The callback URL's host is an IPv4 address in IPv6 notation: write it plainly."
        raise CallbackUrlError(msg)
    return str(address)


def _parse_name(name: str) -> str:
    labels = name.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        if not _DOTTED_QUAD.fullmatch(name):
            msg = "The callback URL's host is a number, but not an IPv4 address like 192.0.2.1."
            raise CallbackUrlError(msg)
        return name
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        msg = (
            "The callback URL's host must be a name of letters, digits and hyphens, in parts of "
            "1 to 63 characters, without a dot at the end."
        )
        raise CallbackUrlError(msg)
    if not all(_is_valid_a_label(label) for label in labels if label.startswith("xn--")):
        msg = "The callback URL's host has an xn-- part that no international name encodes to."
        raise CallbackUrlError(msg)
    return name


def _is_valid_a_label(label: str) -> bool:
    try:
        return idna.alabel(idna.ulabel(label)).decode() == label
    except idna.IDNAError:
        return False
