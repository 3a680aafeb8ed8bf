"""Callback URLs of all sorts, for Hypothesis: plain ones, and every trick that we know of."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Final

from hypothesis import strategies as st


def _ipv4_spellings(address: IPv4Address) -> st.SearchStrategy[str]:
    a, b, c, d = address.packed
    number = int(address)
    return st.sampled_from(
        [
            f"{address}",
            f"{address}.",
            f"{number}",
            f"0x{number:x}",
            f"0{number:o}",
            f"{a}.{number & 0xFFFFFF}",
            f"{a}.{b}.{c << 8 | d}",
            f"0{a:o}.0{b:o}.0{c:o}.0{d:o}",
            f"{a}.{b}.{c}.0x{d:x}",
            f"{a:03}.{b:03}.{c:03}.{d:03}",
            f"{address}".replace(".", "%2e"),
            f"{address}".replace(".", "\u3002"),
            "".join(f"%{ord(each):x}" for each in f"{address}"),
            f"{address}".translate({ord("0") + n: chr(0xFF10 + n) for n in range(10)}),
            f"{address}".replace("1", "①").replace("2", "②"),
            f"[{address}]",
            f"[::ffff:{address}]",
            f"[::ffff:{number >> 16:x}:{number & 0xFFFF:x}]",
            f"[::{address}]",
            f"[::ffff:0:{address}]",
            f"[64:ff9b::{address}]",
            f"[64:ff9b:1::{address}]",
            f"[2002:{number >> 16:x}:{number & 0xFFFF:x}::1]",
            f"[2001:470::5efe:{address}]",
            f"{address}.example.com",
            f"{address}\x00.example.com",
        ]
    )


def _wrapped_in_ipv6(address: IPv6Address) -> st.SearchStrategy[str]:
    return st.sampled_from(
        [
            f"[{address}]",
            f"[{address.exploded.upper()}]",
            f"[{address}%eth0]",
            f"[{address}%25lo]",
            f"[{address}",
            f"{address}",
        ]
    )


#: What a well-meaning caller writes; most of it is accepted.
PLAIN_URLS: Final = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["http://", "https://", "HtTpS://"]),
    st.one_of(
        st.sampled_from(["example.com", "EXAMPLE.com", "a-b.example.com", "xn--fa-hia.de"]),
        st.from_regex(r"[A-Za-z0-9]{1,9}(-[a-z0-9]{1,9})?\.[a-z]{1,9}", fullmatch=True),
        st.sampled_from(["8.8.8.8", "10.1.2.3", "[2606:4700:0:0::A]", "[64:ff9b::8.8.8.8]"]),
        st.integers(0x2600 << 112, 0x2700 << 112).map(lambda number: f"[{IPv6Address(number)}]"),
    ),
    st.one_of(st.just(""), st.integers(1, 65535).map(":{}".format)),
    st.from_regex(
        r"(/[A-Za-z0-9\-._~!$&'()*+,;=:@/]{0,9}(%[0-9a-fA-F]{2})?(\?[a-z0-9=&/?@:]{0,9})?)?",
        fullmatch=True,
    ),
)
_TRICKY_SCHEMES: Final = st.sampled_from(
    [
        *("http://", "https://", "http:/", "http:", "http:\\\\", "//", "ftp://", "file://"),
        *(" http://", "\thttps://", "ht\ntp://", "http:///", "https:////", "gopher://", ""),
    ]
)
_TRICKY_USERS: Final = st.sampled_from(
    [
        *("", "user@", "user:password@", "@", "8.8.8.8@", "127.0.0.1\\@", "127.0.0.1#@"),
        *("127.0.0.1?@", "127.0.0.1/@", "127.0.0.1;@", "127.0.0.1 &@", "user%40", "127.0.0.1%23@"),
    ]
)
_TRICKY_HOSTS: Final = st.one_of(
    st.sampled_from(["8.8.8.8", "127.0.0.1", "10.0.0.1", "169.254.169.254", "0.0.0.0"]).flatmap(
        lambda text: _ipv4_spellings(IPv4Address(text))
    ),
    st.integers(0, 2**32 - 1).flatmap(lambda number: _ipv4_spellings(IPv4Address(number))),
    st.integers(0, 2**128 - 1).flatmap(lambda number: _wrapped_in_ipv6(IPv6Address(number))),
    st.sampled_from(
        [
            *("localhost", "LocalHost", "localhost.", "foo.localhost", "ⓛocalhost", "backend", ""),
            *("metadata.google.internal", "faß.de", "xn--.com", "xn--zz--.com", "example.com."),
            *(".example.com", "a..b", "-a.com", "a_b.com", "1.2.3.4.5", "example.0x"),
            *("example.com%00", "ex\u00adample.com", "ex\u200bample.com", "\u0430pple.com"),
        ]
    ),
)
_TRICKY_PORTS: Final = st.sampled_from(
    [
        *("", ":", ":0", ":080", ":65536", ":-1", ":+80", ":\uff18\uff10", ":80:22", ":25", ": 80"),
        *(":80\\", ":0x50", ":80@8.8.8.8", ":6379", ":8 0", ":1e2", ":99999999999999999999"),
    ]
)
_TRICKY_TARGETS: Final = st.lists(
    st.sampled_from(
        [
            *("/", "//", "?b=c", "?", "%2F", "%41", "%c3%a4", "/@8.8.8.8", ":80", ";p", "/.."),
            *("/.", "/%2e%2e", "#f", "\\", "\t", "\r\nx: y", " ", "%", "%0d%0a", "\u00e4", "/a:b"),
        ]
    ),
    max_size=4,
).map("".join)
#: Everything tricky at once.
TRICKY_URLS: Final = st.builds(
    "{}{}{}{}{}".format,
    _TRICKY_SCHEMES,
    _TRICKY_USERS,
    _TRICKY_HOSTS,
    _TRICKY_PORTS,
    _TRICKY_TARGETS,
)
#: One trick is more dangerous than five: the other parts are such as a guard lets through.
URLS_WITH_ONE_TRICK: Final = st.one_of(
    _TRICKY_USERS.map("http://{}example.com/".format),
    _TRICKY_HOSTS.map("https://{}/a".format),
    _TRICKY_PORTS.map("http://example.com{}/".format),
    _TRICKY_TARGETS.map("http://example.com{}".format),
    st.builds(
        lambda url, at, trick: url[: at % (len(url) + 1)] + trick + url[at % (len(url) + 1) :],
        PLAIN_URLS,
        st.integers(0, 60),
        st.sampled_from([*"\\\t\n\r\x00 @#?/:%[].&;|^`\x7f\u3002\u00ad\u200b\ufeff", "%00", "%2e"]),
    ),
)
