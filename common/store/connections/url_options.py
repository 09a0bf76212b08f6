"""The options of REDIS_URL, what stands behind its `?`: which a connection gets, which are left to us, which are wrong.

It must never show a value: it may be a password. What is not known is refused, because whoever wrote it relies on it.
"""

import ssl
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from common.errors import StoreMisconfigured

Value = TypeVar("Value")

#: Pools, timeouts and retries of other clients: Foretell has its own.
IGNORED = frozenset(
    (
        "max_connections", "pool_size", "pool_timeout", "min_idle_conns", "max_idle_conns", "conn_max_idle_time",
        "max_retries", "retry_on_timeout", "retry_on_error", "health_check_interval", "socket_keepalive",
        "socket_timeout", "socket_connect_timeout", "socket_read_size", "timeout", "dial_timeout", "read_timeout",
        "write_timeout", "protocol", "legacy_responses", "decode_responses", "encoding", "client_name",
    )
)  # fmt: skip
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_BOOLEANS = {
    **dict.fromkeys(("1", "t", "true", "y", "yes", "on"), True),
    **dict.fromkeys(("0", "f", "false", "n", "no", "off"), False),
}
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


def read_options(given: Mapping[str, str], *, tls: bool) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The arguments of a connection, and the names of options that are left to us.

    Raises ValueError with half a sentence that names the option.
    """
    options: dict[str, Any] = {}
    ignored = []
    for name, text in given.items():
        if name in IGNORED:
            ignored.append(name)
        elif (reader := _READERS.get(name)) is None:
            shown = name if name.isidentifier() and name.isascii() and len(name) <= 40 else "one"
            raise ValueError(f"has an option that Foretell does not know, {shown}: take it out")
        elif not text:
            continue
        elif name.startswith("ssl_") and not tls:
            raise ValueError(f"has the option {name}, which is for TLS: it must start with rediss://")
        else:
            options[name] = reader(name, text)
    if "ssl_keyfile" in options and "ssl_certfile" not in options:
        raise ValueError("has the option ssl_keyfile without ssl_certfile")
    return options, tuple(ignored)


def check_files(options: Mapping[str, Any]) -> None:
    """Raises StoreMisconfigured for a file that cannot be used: a connection would try it for ever."""
    if not any(name.startswith("ssl_") for name in options):
        return
    for name in _FILES:
        if name in options:
            try:
                open(options[name], "rb").close()
            except OSError as error:
                raise StoreMisconfigured(
                    f"{name} in REDIS_URL names a file that cannot be read: {error.strerror}."
                ) from None
    context = ssl.create_default_context()
    names = "ssl_certfile and ssl_keyfile"
    try:
        if "ssl_certfile" in options:
            key, password = options.get("ssl_keyfile"), options.get("ssl_password", "")
            context.load_cert_chain(options["ssl_certfile"], key, password)
        names = "ssl_ca_certs, ssl_ca_path and ssl_ca_data"
        where = [options.get(name) for name in ("ssl_ca_certs", "ssl_ca_path", "ssl_ca_data")]
        if any(where):
            context.load_verify_locations(*where)
        names = "ssl_ciphers"
        if "ssl_ciphers" in options:
            context.set_ciphers(options["ssl_ciphers"])
    except (OSError, ValueError):
        raise StoreMisconfigured(
            f"{names} in REDIS_URL cannot be used: they must be PEM, and fit each other."
            if names != "ssl_ciphers"
            else "ssl_ciphers in REDIS_URL cannot be used: it must be a list of OpenSSL's ciphers."
        ) from None


def _text(name: str, text: str) -> str:
    return text


def _boolean(name: str, text: str) -> bool:
    return _one_of(_BOOLEANS, name, text.lower(), "true or false")


def _database(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(f"has a wrong {name}: it must be a number")
    return int(text)


def _cert_reqs(name: str, text: str) -> str:
    words = {word: word for word in ("none", "optional", "required")}
    return _one_of(words, name, text.lower().removeprefix("cert_"), "none, optional or required")


def _version(name: str, text: str) -> ssl.TLSVersion:
    number = text.lower().removeprefix("tlsv").replace("_", ".")
    known = _VERSIONS | {str(int(version)): version for version in _VERSIONS.values()}
    return _one_of(known, name, number, "1.2 or 1.3")


def _flags(name: str, text: str) -> list[ssl.VerifyFlags]:
    names = [part.strip() for part in text.strip("[]").split(",")]
    return [
        _one_of(ssl.VerifyFlags.__members__, name, part, "names like VERIFY_X509_STRICT") for part in names
    ]


def _one_of(known: Mapping[str, Value], name: str, text: str, choice: str) -> Value:
    if text not in known:
        raise ValueError(f"has a wrong {name}: it must be {choice}")
    return known[text]


_READERS: dict[str, Callable[[str, str], Any]] = {
    "username": _text,
    "password": _text,
    "db": _database,
    "ssl_cert_reqs": _cert_reqs,
    "ssl_check_hostname": _boolean,
    "ssl_ca_certs": _text,
    "ssl_ca_path": _text,
    "ssl_ca_data": _text,
    "ssl_certfile": _text,
    "ssl_keyfile": _text,
    "ssl_password": _text,
    "ssl_ciphers": _text,
    "ssl_min_version": _version,
    "ssl_include_verify_flags": _flags,
    "ssl_exclude_verify_flags": _flags,
}
