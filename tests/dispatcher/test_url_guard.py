"""Where callbacks may go: every way of writing a forbidden place that we know of."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dispatcher.addresses import (
    FORBIDDEN_IPV4,
    FORBIDDEN_IPV6,
    PUBLIC_IPV6,
    is_public,
    unmapped,
)
from dispatcher.url_guard import (
    LOCAL_DOMAINS,
    REFUSED_PORTS,
    CallbackUrlError,
    ForbiddenCallbackError,
    Target,
    UrlGuard,
)

GUARD = UrlGuard()
CALLBACKS_DOC = Path(__file__).parents[2] / "docs" / "callbacks.md"

PUBLIC_HOSTS = (
    "8.8.8.8",
    "100.63.255.255",
    "100.128.0.1",
    "172.32.0.1",
    "223.255.255.255",
    "[2606:4700:4700::1111]",
    "example.com",
    "EXAMPLE.com",
    "a.b-c.example.com",
    "1.2.3.4.example.com",
    "r3---sn-4g5e.example.com",
    "xn--fa-hia.de",  # faß.de, as IDNA 2008 has it
    "xn--pple-43d.com",  # apple, its a in Cyrillic: confusing to people, but not to us
    "localhost.example.com",
    "internal.example.com",
)

FORBIDDEN_HOSTS = (
    "127.0.0.1",
    "127.255.255.254",
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "168.63.129.16",
    "169.254.169.254",
    "169.254.170.2",
    "172.16.0.0",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.9",
    "192.0.0.192",
    "192.0.2.1",
    "192.31.196.1",
    "192.52.193.1",
    "192.88.99.1",
    "192.168.0.1",
    "192.175.48.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "[::]",
    "[::1]",
    "[::1]:80",
    "[::127.0.0.1]",
    "[::7f00:1]",
    "[::ffff:0:127.0.0.1]",  # SIIT
    "[64:ff9b::7f00:1]",
    "[64:ff9b::a9fe:a9fe]",
    "[64:ff9b::808:808]",  # needs nat64=True
    "[64:ff9b:1::1]",
    "[64:ff9b:1:7f00:0:100::]",
    "[100::1]",
    "[100:0:0:1::1]",
    "[2001:0:7f00:1::]",
    "[2001:20::1]",
    "[2001:1ff:ffff::1]",
    "[2001:db8::1]",
    "[2001:470::5efe:7f00:1]",  # ISATAP under a public prefix
    "[2001:470::200:5efe:7f00:1]",
    "[2002:7f00:1::1]",
    "[2002:808:808::1]",
    "[2620:4f:8000::1]",
    "[3fff::1]",
    "[4000::1]",
    "[5f00::1]",
    "[fc00::1]",
    "[fd00:ec2::254]",
    "[fd20:ce::254]",
    "[fe80::1]",
    "[fec0::1]",
    "[ff02::1]",
    "localhost",
    "LOCALHOST",
    "foo.localhost",
    "printer.local",
    "metadata.google.internal",
    "db.internal",
    "host.localdomain",
    "nas.home.arpa",
    "backend",
)

UNPARSABLE_HOSTS = (
    "",
    "0",
    "2130706433",
    "4294967297",
    "0x7f000001",
    "0x7f.1",
    "0x7f.0.0.0x1",
    "example.0x",
    "017700000001",
    "0177.0.0.1",
    "127.1",
    "127.0.1",
    "127.0.0.1.",
    "127.000.000.001",
    "127.0.0.256",
    "127.0.0.01",
    "1.2.3.4.5",
    "example.1",
    "%31%32%37.0.0.1",
    "127%2e0%2e0%2e1",
    "①②⑦.⓪.⓪.①",  # NFKC makes it 127.0.0.1
    "１２７.0.0.1",  # noqa: RUF001 - the same
    "127。0。0。1",
    "ⓛocalhost",
    "аpple.com",  # noqa: RUF001 - the first letter is Cyrillic
    "faß.de",  # fass.de in IDNA 2003, another host in IDNA 2008
    "localhost.",
    "example.com.",
    "a..b",
    ".example.com",
    "-x.com",
    "x-.com",
    "under_score.com",
    "xn--.com",
    "xn--a.com",
    "xn--zzzzzz.com",
    "xn--FA-HIA-.de",
    f"{'a' * 64}.com",
    ".".join(["a" * 63] * 4) + ".com",
    "[127.0.0.1]",
    "[::ffff:127.0.0.1]",  # two ways to write one address are one too many
    "[::ffff:8.8.8.8]",
    "[0:0:0:0:0:ffff:7f00:1]",
    "[::1%25lo]",
    "[::1%lo]",
    "[fe80::1%25eth0]",
    "[:::1]",
    "[1::2::3]",
    "[::1",
    "::1",
    "[]",
    "[v1.a]",
    "127.0.0.1\x00.example.com",
    "exam\tple.com",
    "exam ple.com",
    "exam\nple.com",
    "a@127.0.0.1",
    "127.0.0.1@8.8.8.8",
    "user:password@8.8.8.8",
    "8.8.8.8\\@127.0.0.1",
    "127.0.0.1\\@8.8.8.8",
    "8.8.8.8#@127.0.0.1",
    "8.8.8.8?@127.0.0.1",
    "8.8.8.8;@127.0.0.1",
    "1.1.1.1 &@2.2.2.2# @3.3.3.3",
    "8.8.8.8:0",
    "8.8.8.8:-1",
    "8.8.8.8:65536",
    "8.8.8.8:99999",
    "8.8.8.8:080",
    "8.8.8.8:８０",  # noqa: RUF001 - digits to str.isdigit and int
    "8.8.8.8:80:22",
    "8.8.8.8:",
    "8.8.8.8:http",
    "[::1]8080",
)

UNPARSABLE_URLS = (
    "",
    "http",
    "http:",
    "http://",
    "http:///127.0.0.1/",
    "http:127.0.0.1",
    "http:/8.8.8.8/",
    "//127.0.0.1/",
    "8.8.8.8/",
    " http://8.8.8.8/",
    "\x00http://8.8.8.8/",
    "\thttp://8.8.8.8/",
    "http://8.8.8.8/\n",
    "ht\ntp://8.8.8.8/",
    "http://8.8.8.8/a\tb",
    "http://8.8.8.8/ HTTP/1.1\r\nx: y",
    "http://8.8.8.8/a\r\nx: y",
    "http://8.8.8.8/a b",
    "http://8.8.8.8/\x7f",
    "http://8.8.8.8/ä",
    "http://8.8.8.8\\a",
    "http://8.8.8.8/a\\b",
    "http://8.8.8.8/%",
    "http://8.8.8.8/%zz",
    "http://8.8.8.8/a<b",
    'http://8.8.8.8/a"b',
    "http://8.8.8.8/?a[]=b",
    "http://8.8.8.8/#fragment",
    "http://8.8.8.8?a=b",
    "http://8.8.8.8/a/../b",
    "http://8.8.8.8/a/%2E%2e/b",
    "http://8.8.8.8/.",
    "file:///etc/passwd",
    "gopher://8.8.8.8/",
    "ftp://8.8.8.8/",
    "data:text/plain,x",
    "dict://8.8.8.8/",
    "unix:///run/docker.sock",
    "javascript://8.8.8.8/",
    "https+unix://8.8.8.8/",
    "http://8.8.8.8/" + "a" * 8192,
)


@pytest.mark.parametrize("host", PUBLIC_HOSTS)
def test_a_public_host_may_be_called(host: str) -> None:
    target = GUARD.check(f"https://{host}/hook")

    assert host.lower().strip("[]") == target.host


@pytest.mark.parametrize("host", FORBIDDEN_HOSTS)
def test_a_host_that_is_not_public_is_forbidden(host: str) -> None:
    with pytest.raises(ForbiddenCallbackError):
        GUARD.check(f"http://{host}/")


@pytest.mark.parametrize("host", UNPARSABLE_HOSTS)
def test_a_host_that_leaves_doubt_is_refused(host: str) -> None:
    with pytest.raises(CallbackUrlError):
        GUARD.check(f"http://{host}/")


@pytest.mark.parametrize("url", UNPARSABLE_URLS)
def test_a_url_that_leaves_doubt_is_refused(url: str) -> None:
    with pytest.raises(CallbackUrlError):
        GUARD.check(url)


@pytest.mark.parametrize("port", sorted(REFUSED_PORTS))
def test_a_port_of_another_protocol_is_forbidden_unless_allowed_exactly(port: int) -> None:
    allowed = UrlGuard(allow=[f"example.com:{port}", "10.0.0.0/8"])

    with pytest.raises(ForbiddenCallbackError):
        GUARD.check(f"http://example.com:{port}/")
    with pytest.raises(ForbiddenCallbackError):
        allowed.check(f"http://10.0.0.1:{port}/")
    assert port == allowed.check(f"http://example.com:{port}/").port


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://example.com", Target("http", "example.com", 80, "/")),
        ("HTTPS://Example.COM:443/", Target("https", "example.com", 443, "/")),
        ("http://example.com:443/a//b?c=/?d", Target("http", "example.com", 443, "/a//b?c=/?d")),
        ("https://[2606:4700::0:1]:8443/@me", Target("https", "2606:4700::1", 8443, "/@me")),
        ("http://example.com/%2F%c3%a4?", Target("http", "example.com", 80, "/%2F%c3%a4?")),
    ],
)
def test_a_url_is_taken_apart(url: str, target: Target) -> None:
    assert target == GUARD.parse(url)


def test_a_destination_names_the_port_and_a_url_only_an_unusual_one() -> None:
    plain = GUARD.parse("https://example.com/a?b")
    bracketed = GUARD.parse("http://[2606:4700::1]:8080/")

    assert "https://example.com:443" == plain.destination
    assert "https://example.com/a?b" == plain.url
    assert "http://[2606:4700::1]:8080" == bracketed.destination
    assert "http://[2606:4700::1]:8080/" == bracketed.url


def test_an_exact_entry_allows_its_destination_as_written_and_nothing_else() -> None:
    guard = UrlGuard(allow=["LOCALHOST:8080", "127.0.0.1:8081", "[::1]:8082", "db.internal:6379"])

    for allowed in ("localhost:8080", "127.0.0.1:8081", "[::1]:8082", "db.internal:6379"):
        guard.check(f"http://{allowed}/")
    for other in ("localhost:8081", "127.0.0.1:8080", "[::1]:80", "db.internal:6380", "localhost"):
        with pytest.raises(ForbiddenCallbackError):
            guard.check(f"https://{other}/")


def test_an_exact_entry_lets_its_name_resolve_to_anything() -> None:
    guard = UrlGuard(allow=["localhost:8080"])

    assert ["127.0.0.1", "::1"] == guard.vet("localhost", 8080, ["127.0.0.1", "::1"])
    with pytest.raises(ForbiddenCallbackError):
        guard.vet("evil.example.com", 8080, ["127.0.0.1"])


def test_a_range_allows_its_addresses_and_the_names_that_resolve_to_them() -> None:
    guard = UrlGuard(allow=["10.1.0.0/16", "fd12::/32"])

    assert "10.1.2.3" == guard.check("http://10.1.2.3/").host
    assert "fd12::1" == guard.check("http://[fd12::1]/").host
    assert ["10.1.2.3"] == guard.vet("example.com", 80, ["10.1.2.3"])
    assert ["::ffff:10.1.2.3"] == guard.vet("example.com", 80, ["::ffff:10.1.2.3"])
    for url in ("http://10.2.0.1/", "http://[fd13::1]/", "http://db.internal/"):
        with pytest.raises(ForbiddenCallbackError):
            guard.check(url)


@pytest.mark.parametrize(
    ("network", "host"),
    [
        ("100.64.0.0/10", "100.100.100.200"),
        ("fd00::/8", "[fd00:ec2::254]"),
        ("fd00::/8", "[fd20:ce::254]"),
    ],
)
def test_a_range_does_not_allow_the_metadata_service_inside(network: str, host: str) -> None:
    guard = UrlGuard(allow=[network])

    with pytest.raises(ForbiddenCallbackError):
        guard.check(f"http://{host}/")
    UrlGuard(allow=[f"{host}:80"]).check(f"http://{host}/")


@pytest.mark.parametrize(
    ("entry", "hint"),
    [
        ("127.0.0.0/8", "HOST:PORT"),
        ("127.0.0.1/32", "HOST:PORT"),
        ("169.254.0.0/16", "HOST:PORT"),
        ("0.0.0.0/0", "HOST:PORT"),
        ("::/0", "HOST:PORT"),
        ("::1/128", "HOST:PORT"),
        ("fe80::/10", "HOST:PORT"),
        ("10.0.0.0/7", "HOST:PORT"),
        ("8.8.8.0/24", "HOST:PORT"),
        ("100.100.100.200/32", "HOST:PORT"),
        ("10.0.0.1/8", "host bits"),
        ("10.0.0.0/33", "10.0.0.0/33"),
        ("localhost", "lacks a port"),
        ("127.0.0.1", "lacks a port"),
        ("http://localhost:8080", "not a range"),
        ("localhost:0", "HOST:PORT"),
        ("local host:80", "HOST:PORT"),
        ("::1:80", "HOST:PORT"),
        ("", "HOST:PORT"),
    ],
)
def test_an_entry_that_allows_too_much_or_makes_no_sense_is_refused_with_a_hint(
    entry: str, hint: str
) -> None:
    with pytest.raises(ValueError, match=hint):
        UrlGuard(allow=[entry])


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["::1"],
        ["64:ff9b::7f00:1"],
        ["8.8.8.8", "10.0.0.1"],
        ["10.0.0.1", "8.8.8.8"],
        ["8.8.8.8"] * 500 + ["::ffff:169.254.169.254"],
        ["fe80::1%eth0"],
        ["2606:4700::1%eth0"],  # a zone, with an address that has none
        ["not an address"],
    ],
)
def test_one_forbidden_address_of_a_host_spoils_all_and_is_not_told(addresses: list[str]) -> None:
    with pytest.raises(ForbiddenCallbackError) as caught:
        GUARD.vet("example.com", 80, addresses)

    assert not any(address in str(caught.value) for address in addresses)


def test_public_addresses_of_a_host_are_returned_in_order() -> None:
    answers = ["2606:4700::1", "8.8.8.8", "::ffff:8.8.4.4"]

    assert answers == GUARD.vet("example.com", 80, answers)


def test_vetting_repeats_the_policy_for_names_and_ports() -> None:
    for host, port in (("localhost", 80), ("example.com", 6379), ("10.0.0.1", 80)):
        with pytest.raises(ForbiddenCallbackError):
            GUARD.vet(host, port, ["8.8.8.8"])


def test_in_a_nat64_network_the_wrapped_address_has_the_verdict_of_its_ipv4() -> None:
    guard = UrlGuard(nat64=True)

    assert ["64:ff9b::808:808"] == guard.vet("example.com", 80, ["64:ff9b::808:808"])
    for wrapped in ("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::808:808"):
        with pytest.raises(ForbiddenCallbackError):
            guard.vet("example.com", 80, [wrapped])


@given(st.ip_addresses(v=4))
@example(IPv4Address("127.0.0.1"))
@example(IPv4Address("8.8.8.8"))
def test_a_mapped_or_nat64_address_has_the_verdict_of_its_ipv4(address: IPv4Address) -> None:
    verdict = not any(address in network for network in FORBIDDEN_IPV4)

    assert verdict == is_public(address)
    assert verdict == is_public(IPv6Address(f"::ffff:{address}"))
    assert verdict == is_public(IPv6Address(f"64:ff9b::{address}"), nat64=True)
    assert not is_public(IPv6Address(f"64:ff9b::{address}"))


# Hypothesis draws from the special ranges on purpose.
@given(st.ip_addresses(v=4))
def test_what_python_calls_private_reserved_or_multicast_is_never_public(
    address: IPv4Address,
) -> None:
    if address.is_private or address.is_reserved or address.is_multicast:
        assert not is_public(address)


@given(st.ip_addresses(v=6))
@example(IPv6Address("4000::1"))
@example(IPv6Address("1fff:ffff::1"))
def test_outside_of_2000_3_only_mapped_ipv4_is_public(address: IPv6Address) -> None:
    if address not in PUBLIC_IPV6 and address.ipv4_mapped is None:
        assert not is_public(address)
    if any(address in network for network in FORBIDDEN_IPV6):
        assert not is_public(address)


_labels = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9\-]{0,8}[A-Za-z0-9])?", fullmatch=True)
_hosts = st.one_of(
    st.lists(_labels, min_size=1, max_size=4).map(".".join),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(lambda address: f"[{address}]"),
    st.text(st.characters(codec="utf-8"), max_size=12),
)
_targets = st.one_of(
    st.from_regex(
        r"(/[A-Za-z0-9\-._~!$&'()*+,;=:@%/]{0,12}(\?[A-Za-z0-9=&/?%]{0,8})?)?", fullmatch=True
    ),
    st.text(max_size=8),
)
_urls = st.builds(
    "{}://{}{}{}".format,
    st.sampled_from(["http", "https", "HTTP"]),
    _hosts,
    st.one_of(st.just(""), st.integers(0, 70000).map(":{}".format)),
    _targets,
)


@given(_urls)
@example("http://127.0.0.1\\@8.8.8.8/")
@example("http://8.8.8.8/a/./b")
@example("https://[2606:4700::1]:443//x?y")
def test_what_is_accepted_reads_back_equal_and_is_what_httpx_would_dial_and_send(url: str) -> None:
    try:
        target = GUARD.parse(url)
    except CallbackUrlError:
        return
    seen_by_httpx = httpx.URL(target.url)

    assert target == GUARD.parse(target.url)
    assert target.scheme == seen_by_httpx.scheme
    assert target.host == seen_by_httpx.raw_host.decode()
    assert target.port == (seen_by_httpx.port or {"http": 80, "https": 443}[target.scheme])
    assert target.target == seen_by_httpx.raw_path.decode()


@given(st.text())
@example("http://" + "a" * 3000)
def test_the_guard_says_yes_or_no_to_any_text_whatever(text: str) -> None:
    for url in (text, f"http://{text}", f"http://{text}/", f"http://8.8.8.8/{text}"):
        try:
            target = GUARD.check(url)
        except (CallbackUrlError, ForbiddenCallbackError):
            continue

        assert target.host.isascii()


@given(st.ip_addresses())
def test_a_literal_host_has_the_verdict_of_its_address(address: IPv4Address | IPv6Address) -> None:
    host = f"[{address}]" if isinstance(address, IPv6Address) else str(address)

    try:
        accepted = address == ip_address(GUARD.check(f"http://{host}/").host)
    except ForbiddenCallbackError:
        accepted = False
    except CallbackUrlError:
        assert unmapped(address) != address
        return

    assert accepted == is_public(address)


def test_the_documentation_lists_the_same_ports_and_names() -> None:
    text = CALLBACKS_DOC.read_text(encoding="utf-8")
    section = text.partition("## Where picback will not call")[2]
    ports = section.partition("Ports:")[2].partition(".")[0]

    assert REFUSED_PORTS == {int(port) for port in ports.replace(",", " ").split()}
    for domain in LOCAL_DOMAINS:
        assert f"`{domain}`" in section
