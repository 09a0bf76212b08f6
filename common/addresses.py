"""IP addresses and networks as people, proxies and kernels write them.

A socket that listens on both sees 10.0.0.1 as ::ffff:10.0.0.1. Here they are one address, whoever writes which.
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_MAPPED = IPv6Network("::ffff:0:0/96")


def parse_address(text: str) -> Address | None:
    """None: it is none."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def host_port(host: str, port: int) -> str:
    """As in a URL: an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_network(text: str) -> Network | None:
    """An address is the network of itself alone. None: it is neither."""
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        return None
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        mapped = network.network_address.ipv4_mapped
        return IPv4Network((mapped or 0, network.prefixlen - _MAPPED.prefixlen))
    return network
