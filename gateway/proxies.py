"""Who asked, and how this gateway is called there, where proxies stand in between: TRUSTED_PROXIES are believed.

It reads what they say and changes nothing of the request: `scope["client"]` stays who connected, and headers and path
stay as they came, so that nobody gets by these headers where they could not get without. What makes no sense is not
believed, and is no reason to refuse.
"""

import re
from functools import lru_cache
from typing import NamedTuple

from starlette.types import ASGIApp, Receive, Scope, Send

from common.addresses import Address, Network, parse_address, parse_network
from common.settings import ROOT_PATH

ANYBODY = "*"
MAX_HOPS = 32  # so many are looked at
MAX_PREFIX = 1024  # characters
#: Whoever sends one of these has cut something off the path: what is left of it is all that is known.
CUT_OFF = frozenset({b"x-forwarded-prefix", b"x-envoy-original-path"})

_HOP = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::\w+)?|([0-9.]+)(?::\w+)?|([0-9A-Fa-f:.]+)", re.ASCII)
_PAIR = re.compile(r'[ \t]*([\w-]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s",;]*))[ \t]*(?:[;,]|$)', re.ASCII)


class Asked(NamedTuple):
    """One request as its client sees it, at `scope["asked"]`."""

    client: str  # its address; empty on a Unix socket
    scheme: str
    hosts: list[str]  # that the proxies name beside the Host header
    prefix: str | None  # in front of every path; None: nobody has said


class Said(NamedTuple):
    """What the headers of proxies say; the nearest proxy speaks last."""

    hops: list[str]
    hosts: list[str]
    schemes: list[str]
    ports: list[str]
    prefixes: list[str]


class Proxies:
    """Puts `Asked` into every request."""

    def __init__(self, app: ASGIApp, *, trusted: list[str], root_path: str) -> None:
        self._app = app
        self._anybody = ANYBODY in trusted
        self._networks: list[Network] = [network for text in trusted if (network := parse_network(text))]
        self._root_path = root_path or None
        self._peer = lru_cache(1024)(self._look_at)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = scope.get("client")
        address, trusted = self._peer(client[0] if client else "")
        if trusted:
            scope["asked"] = self._asked(scope, address)
        else:
            scope["asked"] = Asked(address, scope["scheme"], [], self._root_path)
        await self._app(scope, receive, send)

    def _look_at(self, peer: str) -> tuple[str, bool]:
        address = parse_address(peer)
        return str(address or peer), self._trusts(address)

    def _trusts(self, address: Address | None) -> bool:
        return self._anybody or any(address in network for network in self._networks if address)

    def _asked(self, scope: Scope, peer: str) -> Asked:
        said = _read(scope)
        scheme = said.schemes[0].lower() if said.schemes else ""
        hosts = said.hosts[:MAX_HOPS]
        with_ports = [f"{name}:{port}" for name in hosts or [host_header(scope)] for port in said.ports[:1]]
        return Asked(
            client=self._client(peer, said.hops),
            scheme=scheme if scheme in ("http", "https") else scope["scheme"],
            hosts=hosts + with_ports,
            prefix=self._root_path if (prefix := _prefix(said.prefixes)) is None else prefix,
        )

    def _client(self, peer: str, hops: list[str]) -> str:
        """The nearest that is not trusted; the farthest that is known, if all are."""
        client = peer
        for hop in reversed(hops[-MAX_HOPS:]):
            address = _address_of(hop)
            if address is None:
                break
            client = str(address)
            if not self._trusts(address):
                break
        return client


def host_header(scope: Scope) -> str:
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")


def location(scope: Scope, prediction_id: str) -> str:
    """Where a client reads it, as a reference that leads there from the URL that the client asked for."""
    asked: Asked = scope["asked"]
    path = f"/predict/{prediction_id}"
    if asked.prefix is None and not CUT_OFF.isdisjoint([name for name, _ in scope["headers"]]):
        deep: int = scope["raw_path"].count(b"/") - 1
        return "../" * deep + path[1:]
    return (asked.prefix or "") + path


def _read(scope: Scope) -> Said:
    found: dict[bytes, list[str]] = {}
    for name, value in scope["headers"]:
        if name == b"forwarded" or name.startswith(b"x-forwarded-"):
            found.setdefault(name, []).append(value.decode("latin-1"))

    def entries(name: bytes) -> list[str]:
        return [entry for text in found.get(name, ()) for part in text.split(",") if (entry := part.strip())]

    said = Said(
        hops=entries(b"x-forwarded-for"),
        hosts=entries(b"x-forwarded-host"),
        schemes=entries(b"x-forwarded-proto"),
        ports=entries(b"x-forwarded-port"),
        prefixes=entries(b"x-forwarded-prefix"),
    )
    if said.hops or said.hosts or said.schemes:
        return said  # not both: a proxy that writes one may pass on a client's other
    standard = _pairs(",".join(found.get(b"forwarded", ())))
    return said._replace(
        hops=[value for name, value in standard if name == "for"],
        hosts=[value for name, value in standard if name == "host"],
        schemes=[value for name, value in standard if name == "proto"],
    )


def _pairs(text: str) -> list[tuple[str, str]]:
    """Those of RFC 7239, of all its elements; none if it is not well-formed: who knows what the nearest proxy said."""
    found = []
    at = 0
    while match := _PAIR.match(text, at):
        name, quoted, plain = match.groups()
        found.append((name.lower(), plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)))
        at = match.end()
    return found if at == len(text) else []


def _address_of(hop: str) -> Address | None:
    """Bare or with a port; None for a word such as `unknown`."""
    match = _HOP.fullmatch(hop)
    return parse_address(next(filter(None, match.groups()), "")) if match else None


def _prefix(parts: list[str]) -> str | None:
    """One in another, if there are several. None: there is none, or it is no path."""
    if not parts:
        return None
    joined = "".join(part.rstrip("/") for part in parts)
    return joined if len(joined) <= MAX_PREFIX and (not joined or ROOT_PATH.fullmatch(joined)) else None
