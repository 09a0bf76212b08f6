"""REDIS_URL, taken apart: which kind of topology it names, whom to ask and what redis-py gets.

It must never connect to anything, and never show the URL, not even a part of it in an error: it may hold a password.
"""

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from redis.asyncio.connection import parse_url as connection_settings

from common.store.connections.url_options import read_options

LIKE = "must be like redis://user:password@host:port/database, with %2F for / and %3F for ? in a password"
_DEFAULT_PORTS = {"sentinel": 26379, "cluster": 6379}

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """REDIS_URL, taken apart. `kind` is "" (one server), "sentinel" or "cluster"; `plain` is what redis-py
    understands, with the user and the password; `addresses` are those to ask, none for one server; `options` are more
    arguments of a connection; `ignored` names what is left to Foretell."""

    kind: str
    plain: str
    addresses: tuple[Address, ...] = ()
    service: str = ""
    sentinel_user: str | None = None
    sentinel_password: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()


def parse_url(url: str) -> RedisUrl:
    """Raises ValueError with half a sentence, which does not show the URL: it may hold a password."""
    if url != url.strip():
        raise ValueError("begins or ends with a blank")
    scheme, _, rest = url.partition("://")
    scheme, _, kind = scheme.lower().partition("+")
    scheme = {"valkey": "redis", "valkeys": "rediss"}.get(scheme, scheme)
    if scheme not in ("redis", "rediss", "unix") or kind not in ("", "sentinel", "cluster"):
        raise ValueError(
            "must start with redis://, redis+sentinel:// or redis+cluster:// (rediss for TLS), or unix://"
        )
    if "#" in url:
        raise ValueError("cannot contain #: write %23 for it in a password")
    place, _, query = rest.partition("?")
    values = dict(parse_qsl(query, keep_blank_values=True))
    if not kind:
        plain = f"{scheme}://{place}"
        _check_plain(plain)
        options, ignored = _read_options(values, query, tls=scheme == "rediss")
        return RedisUrl("", plain, options=options, ignored=ignored)
    if scheme == "unix":
        raise ValueError(f"cannot have a {kind} behind unix://")
    # by hand: urllib knows of no list of hosts
    authority, _, tail = place.partition("/")
    user, at, hosts = authority.rpartition("@")
    addresses = tuple(_address(host, _DEFAULT_PORTS[kind]) for host in hosts.split(","))
    path = [unquote(part) for part in tail.split("/") if part]
    db = "0"
    if kind == "sentinel":
        if not path:
            raise ValueError("must name the service: redis+sentinel://host:port,host:port/service/0")
        service, *path = path
        db = path.pop(0) if path else "0"
    else:
        service = ""
        if path not in ([], ["0"]):
            raise ValueError("cannot name a database: a cluster has one")
        path = []
    if path or not db.isdecimal():
        raise ValueError("must end with /service/database, the database a number")
    sentinel_user, sentinel_password = (
        values.pop("sentinel_username", None) if kind == "sentinel" else None,
        values.pop("sentinel_password", None) if kind == "sentinel" else None,
    )
    plain = f"{scheme}://{user}{at}localhost/{db}"
    _check_plain(plain)
    options, ignored = _read_options(values, query, tls=scheme == "rediss")
    if kind == "cluster" and options.get("db"):
        raise ValueError("cannot name a database: a cluster has one")
    return RedisUrl(kind, plain, addresses, service, sentinel_user, sentinel_password, options, ignored)


def _read_options(values: dict[str, str], query: str, *, tls: bool) -> tuple[dict[str, Any], tuple[str, ...]]:
    try:
        return read_options(values, tls=tls)
    except ValueError:
        if "@" in query:  # the rest of a password, which no error may show
            raise ValueError(LIKE) from None
        raise


def _check_plain(url: str) -> None:
    """Raises ValueError now: redis-py's, later, would show parts of the URL, and it takes database 0 for no number."""
    try:
        connection_settings(url)
    except ValueError:
        raise ValueError(LIKE) from None
    parts = urlsplit(url)
    database = parts.path.strip("/")
    if parts.scheme != "unix" and database and not database.isdecimal():
        raise ValueError("must end with /database, a number")


def _address(text: str, default: int) -> Address:
    """A host and port, of `host`, `host:port` or `[address]:port`."""
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
        text = ""
    if not host or not text:
        raise ValueError("must be a list of host:port with commas between them")
    return host, port or default
