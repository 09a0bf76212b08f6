"""Settings, read once at start from the environment and `.env`. A wrong value is one line that names it.

Each service has its own class, so that it knows nothing of the other's settings; names and defaults are documented
in docs/operations.md, and a test keeps the two equal.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from common.addresses import parse_network
from common.env_file import check_env_file
from common.errors import StartFault
from common.store.connections.redis_url import parse_url

ENV_FILE = ".env"
SECRETS = frozenset({"REDIS_URL", "API_KEYS", "ADMIN_API_KEYS"})  # no log shows them, and no model gets them
ENCODING = "utf-8-sig"  # some editors put a mark before the first letter

Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0)]


def _redis_url(url: str) -> str:
    parse_url(url)
    return url


def _list(text: str) -> str:
    parts = [part.strip() for part in text.split(",")]
    if text and not all(parts):
        raise ValueError("has an empty entry between its commas")
    return ",".join(parts)


def environment_without_secrets() -> dict[str, str]:
    """For a process that has no business to know them."""
    return {name: value for name, value in os.environ.items() if name.upper() not in SECRETS}


def entries(text: str) -> list[str]:
    """Those of a `List`."""
    return text.split(",") if text else []


#: Entries with commas between them; empty: none.
List = Annotated[str, AfterValidator(_list)]


def _proxies(text: str) -> str:
    for entry in entries(text):
        if entry != "*" and not parse_network(entry):
            raise ValueError(f"has {entry!r}, which is no address, no network such as 10.0.0.0/8, and not *")
    return text


#: A path that can stand in front of others.
ROOT_PATH = re.compile(r"(/[\w.~!$&'()*+,;=:@%-]+)+/?", re.ASCII)


def _root_path(text: str) -> str:
    if text and not ROOT_PATH.fullmatch(text):
        raise ValueError("is not a path such as /foretell")
    return text.rstrip("/")


def _key_prefix(text: str) -> str:
    # braces would move the keys of a cluster, and what an ACL takes for a pattern would let in others
    if not re.fullmatch(r"[\w.:/-]{0,64}", text, re.ASCII):
        raise ValueError("is not a prefix such as staging: (at most 64 letters, digits and _ . : / -)")
    return text


def _word(*words: str, **synonyms: str) -> BeforeValidator:
    """One of the words, in any case. What is none of them stays as it is, for the error to show."""
    known = {word: word for word in words} | synonyms

    def validate(given: object) -> object:
        return known.get(given.lower(), given) if isinstance(given, str) else given

    return BeforeValidator(validate)


LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"], _word("debug", "info", "warning", "error", warn="warning")
]
LogFormat = Annotated[Literal["json", "console"], _word("json", "console")]
Durability = Annotated[Literal["server", "replicated", "fsync"], _word("server", "replicated", "fsync")]


_SOURCES = SettingsConfigDict(
    env_file=ENV_FILE, env_file_encoding=ENCODING, extra="ignore", env_ignore_empty=True
)


class _LogFormat(BaseSettings):
    """What must be known to say that something else is wrong."""

    model_config = _SOURCES

    log_format: LogFormat | None = None


class CommonSettings(BaseSettings):
    """What both services read."""

    model_config = _SOURCES

    redis_url: Annotated[str, AfterValidator(_redis_url), Field(repr=False)] = "redis://localhost:6379/0"
    key_prefix: Annotated[str, AfterValidator(_key_prefix)] = ""
    result_ttl_s: Annotated[int, Field(ge=1)] = 3600
    max_queue: Annotated[int, Field(ge=1)] = 100_000
    max_queue_bytes: Annotated[int, Field(ge=0)] = 0
    max_attempts: Annotated[int, Field(ge=1)] = 3
    partitions: Annotated[int, Field(ge=1, le=256)] = 1
    drain_s: Seconds = 25.0
    host: str = "::"
    log_level: LogLevel = "info"
    log_format: LogFormat | None = None


class GatewaySettings(CommonSettings):
    """The gateway's own."""

    port: Port = 8080
    sync_wait_s: Seconds = 30.0
    max_body_bytes: Annotated[int, Field(ge=1)] = 1 << 20
    shutdown_delay_s: Annotated[float, Field(ge=0)] = 0.5
    max_in_flight: Annotated[int, Field(ge=1)] = 10_000
    max_connections: Annotated[int, Field(ge=1)] = 16_384
    durability: Durability = "server"
    keep_input: bool = True
    api_keys: Annotated[List, Field(repr=False)] = ""
    admin_api_keys: Annotated[List, Field(repr=False)] = ""
    allowed_origins: List = ""
    root_path: Annotated[str, AfterValidator(_root_path)] = ""
    compress: bool = True
    trusted_proxies: Annotated[List, AfterValidator(_proxies)] = ""
    access_log: bool = False


class ProcessorSettings(CommonSettings):
    """The processor's own."""

    model: str = "examples/language.py:Language"
    max_batch_size: Annotated[int, Field(ge=1, le=1024)] = 32
    max_batch_wait_ms: Annotated[float, Field(ge=0)] = 0.0
    model_processes: Annotated[int, Field(ge=1, le=256)] = 1
    predict_timeout_s: Seconds = 60.0
    lease_s: Annotated[float, Field(ge=0.5)] = 30.0
    probe_port: Port = 8081
    log_inputs: bool = False


Settings = TypeVar("Settings", bound=CommonSettings)


def read_settings(kind: type[Settings]) -> Settings:
    """The settings, or a StartFault whose text names the first wrong variable."""
    try:
        settings = kind()
        check_env_file(Path(ENV_FILE), ENCODING, SECRETS)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]).upper()
        given = "the value given" if name in SECRETS else repr(first["input"])
        raise StartFault(f"{name} is wrong: {first['msg']} (got {given}).") from None
    except UnicodeDecodeError:
        raise StartFault(f"{Path(ENV_FILE).absolute()} is not UTF-8: save it as UTF-8.") from None
    except OSError as error:
        raise StartFault(
            f"{Path(ENV_FILE).absolute()} cannot be read ({error.strerror}): let this user read it, or remove it."
        ) from None
    return settings


def settings_of_logs() -> CommonSettings:
    """For logs of a service whose settings are wrong: LOG_FORMAT if that can be read, the rest at its default."""
    try:
        log_format = _LogFormat().log_format
    except (ValidationError, UnicodeDecodeError, OSError):
        log_format = None
    return CommonSettings.model_construct(log_format=log_format)


def ignored_options(settings: CommonSettings) -> tuple[str, ...]:
    """Options of REDIS_URL that Foretell sets itself."""
    return parse_url(settings.redis_url).ignored
