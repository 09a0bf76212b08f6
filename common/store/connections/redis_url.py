"""REDIS_URL, taken apart: which kind of topology it names, whom to ask and what redis-py gets.

It must never connect to anything, and never show the URL, not even a part of it in an error: it may hold a password.
"""

from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from redis.asyncio.connection import parse_url as connection_settings

_DEFAULT_PORTS = {"sentinel": 26379, "cluster": 6379}

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """REDIS_URL, taken apart. `kind` is "" (one server), "sentinel" or "cluster"; `plain` is what redis-py
    understands, with the user, the password and the options; `addresses` are those to ask, none for one server."""

    kind: str
    plain: str
    addresses: tuple[Address, ...] = ()
    service: str = ""
    sentinel_user: str | None = None
    sentinel_password: str | None = None


def parse_url(url: str) -> RedisUrl:
    """Raises ValueError with half a sentence, which does not show the URL: it may hold a password."""
    scheme, _, rest = url.partition("://")
    scheme, _, kind = scheme.partition("+")
    if scheme not in ("redis", "rediss", "unix") or kind not in ("", "sentinel", "cluster"):
        raise ValueError(
            "must start with redis://, redis+sentinel:// or redis+cluster:// (rediss for TLS), or unix://"
        )
    if "#" in url:
        raise ValueError("cannot contain #: write %23 for it in a password")
    if not kind:
        _check_plain(url)
        return RedisUrl("", url)
    if scheme == "unix":
        raise ValueError(f"cannot have a {kind} behind unix://")
    # by hand: urllib knows of no list of hosts
    place, _, options = rest.partition("?")
    authority, _, tail = place.partition("/")
    user, at, hosts = authority.rpartition("@")
    addresses = tuple(_address(host, _DEFAULT_PORTS[kind]) for host in hosts.split(","))
    query = dict(parse_qsl(options, keep_blank_values=True))
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
        query.pop("sentinel_username", None),
        query.pop("sentinel_password", None),
    )
    plain = f"{scheme}://{user}{at}localhost/{db}" + (f"?{urlencode(query)}" if query else "")
    _check_plain(plain)
    return RedisUrl(kind, plain, addresses, service, sentinel_user, sentinel_password)


def _check_plain(url: str) -> None:
    """Raises ValueError now: redis-py's, later, would show parts of the URL, and it takes database 0 for no number."""
    try:
        connection_settings(url)
    except ValueError:
        text = "must be like redis://user:password@host:port/database, with %2F for / and %3F for ? in a password"
        raise ValueError(text) from None
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
