"""Which IP addresses are public receivers, which are private, which are never called by accident.

The tables are our own, on purpose: ``ipaddress.is_global`` and ``is_private`` change with the
interpreter (CVE-2024-4032) and call multicast, NAT64 and 6to4-wrapped loopback "global". IPv4 is
allowed but for a list; IPv6 is forbidden but for 2000::/3, so that a range assigned tomorrow is
closed until somebody has thought about it.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

#: What ``ipaddress.ip_address`` returns.
Address = IPv4Address | IPv6Address
#: What ``ipaddress.ip_network`` returns.
Network = IPv4Network | IPv6Network

#: Not public. Source: IANA IPv4 Special-Purpose Address Registry, multicast and class E.
FORBIDDEN_IPV4: tuple[IPv4Network, ...] = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",  # "this network"; Linux dials 0.0.0.0 as loopback
            "10.0.0.0/8",
            "100.64.0.0/10",  # carrier-grade NAT
            "127.0.0.0/8",
            "168.63.129.16/32",  # Azure's wire server: public by every registry, local in practice
            "169.254.0.0/16",  # link-local and most clouds' metadata
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.31.196.0/24",  # AS112: public by the registry, but nobody's receiver
            "192.52.193.0/24",  # AMT: the same
            "192.88.99.0/24",  # 6to4 relays
            "192.168.0.0/16",
            "192.175.48.0/24",  # AS112: the same
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",
            "240.0.0.0/4",
        ),
    )
)

#: The only part of IPv6 that has public hosts. Source: IANA IPv6 Address Space.
PUBLIC_IPV6 = IPv6Network("2000::/3")

#: Holes in `PUBLIC_IPV6`. Source: IANA IPv6 Special-Purpose Address Registry.
FORBIDDEN_IPV6: tuple[IPv6Network, ...] = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # Teredo, ORCHID, benchmarks, AMT: embeds IPv4 or is nobody's receiver
            "2001:db8::/32",
            "2002::/16",  # 6to4, embeds IPv4
            "2620:4f:8000::/48",  # AS112
            "3fff::/20",  # documentation
        ),
    )
)

#: DNS64 answers: IPv4 in the last 32 bits (RFC 6052). 64:ff9b:1::/48 hides it elsewhere: refused.
NAT64 = IPv6Network("64:ff9b::/96")

#: Ranges that an operator may open as a whole or in part (RFC 1918, RFC 6598, RFC 4193).
PRIVATE: tuple[Network, ...] = (
    IPv4Network("10.0.0.0/8"),
    IPv4Network("172.16.0.0/12"),
    IPv4Network("192.168.0.0/16"),
    IPv4Network("100.64.0.0/10"),
    IPv6Network("fc00::/7"),
)

#: Where clouds hand out credentials, inside `PRIVATE`: stay shut when the range around is opened.
METADATA: frozenset[Address] = frozenset(
    {
        IPv4Address("100.100.100.200"),  # Alibaba Cloud
        IPv6Address("fd00:ec2::254"),  # Amazon EC2
        IPv6Address("fd20:ce::254"),  # Google Cloud
    }
)


def is_public(address: Address, *, nat64: bool = False) -> bool:
    """Return whether *address* is on the public internet, as far as its number can tell.

    Args:
        address: Any address. An IPv4-mapped one (``::ffff:a.b.c.d``) gets the verdict of its IPv4.
        nat64: Let ``64:ff9b::a.b.c.d`` have the verdict of its IPv4 too, rather than be refused.
    """
    address = unmapped(address)
    if isinstance(address, IPv4Address):
        return not any(address in network for network in FORBIDDEN_IPV4)
    if nat64 and address in NAT64:
        return is_public(IPv4Address(int(address) & 0xFFFF_FFFF))
    if address not in PUBLIC_IPV6 or _is_isatap(address) or address.scope_id is not None:
        return False
    return not any(address in network for network in FORBIDDEN_IPV6)


def unmapped(address: Address) -> Address:
    """Return the IPv4 address inside an IPv4-mapped IPv6 address, any other one unchanged."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _is_isatap(address: IPv6Address) -> bool:
    """Return whether the interface id is ISATAP's, with IPv4 in it (RFC 5214, section 6.1)."""
    interface_id_head = int(address) >> 32 & 0xFFFF_FFFF
    return interface_id_head & 0xFDFF_FFFF == 0x0000_5EFE  # the masked bit is "universal"
