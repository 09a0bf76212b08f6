"""A password and a key get into no answer and no log, whatever Redis does; where Redis is, only into the log."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest
from redis import Redis
from websockets.sync.client import connect

from common.http.probes import NO_REDIS
from common.settings import GatewaySettings, ProcessorSettings
from tests.conftest import wait_until
from tests.services import Service, Services, running_services
from tools.embedded_server import EmbeddedServer
from tools.ports import free_port

PASSWORD = "the-password-of-redis"
KEY = "the-key-of-a-client"
ADMIN_KEY = "the-key-of-an-operator"
ID = "00000000-0000-4000-8000-000000000000"
ASKED = [
    ("POST", "/predict"),
    ("PUT", f"/predict/{ID}"),
    ("GET", f"/predict/{ID}"),
    ("GET", f"/predict/{ID}?wait=5"),
    ("DELETE", f"/predict/{ID}"),
    ("GET", "/queue"),
    ("DELETE", "/queue?model=default&sure=yes"),
    ("GET", "/queue/waiting"),
    ("GET", "/dead"),
    ("DELETE", f"/dead/{ID}"),
    ("POST", f"/dead/{ID}/retry"),
]
PROBES = [("GET", "/livez"), ("GET", "/readyz"), ("GET", "/metrics")]


class Guarded:
    """A server with a password, and both services on it, with a key, telling their logs all they can."""

    def __init__(self, server: EmbeddedServer, port: int, services: Services) -> None:
        self.server = server
        self.port = port
        self.services = services

    def start(self, *, wait: bool = True) -> None:
        keys = {"API_KEYS": KEY, "ADMIN_API_KEYS": ADMIN_KEY}
        self.gateway = self.services.gateway(**keys, LOG_LEVEL="debug", SYNC_WAIT_S=5, wait=wait)
        self.processor = self.services.processor(LOG_LEVEL="debug", wait=wait)

    def redis(self, password: str = PASSWORD) -> Any:
        return Redis(port=self.port, password=password)

    def said(self) -> dict[str, tuple[int, str]]:
        """Code and text, head included, of an answer of each kind."""
        found = {}
        headers = {"authorization": f"Bearer {ADMIN_KEY}"}
        with httpx2.Client(timeout=30, trust_env=False) as client:
            for service, asked in ((self.gateway, ASKED + PROBES), (self.processor, PROBES)):
                for method, path in asked:
                    body = {"json": {"input": "x"}} if method in ("POST", "PUT") else {}
                    answer = client.request(method, service.url + path, headers=headers, **body)
                    text = f"{answer.headers} {answer.text}"
                    found[f"{service.name} {method} {path}"] = answer.status_code, text
            refused = client.get(f"{self.gateway.url}/dead", headers={"x-api-key": KEY + "?"})
            found["wrong key"] = refused.status_code, f"{refused.headers} {refused.text}"
        url = f"ws://127.0.0.1:{self.gateway.port}/ws/predict/{ID}"
        with connect(url, additional_headers=headers, open_timeout=30, proxy=None) as socket:
            frame = str(socket.recv(timeout=30))
            socket.close()
            found["frame"] = 0, f"{frame} {socket.protocol.close_reason}"
        return found


@pytest.fixture
def guarded(tmp_path: Path, partitions: int) -> Iterator[Guarded]:
    port = free_port()
    with EmbeddedServer(tmp_path / "server", port=port, aof=False) as server:
        with Redis(port=port) as redis:
            redis.config_set("requirepass", PASSWORD)
        url = f"redis://:{PASSWORD}@127.0.0.1:{port}/0"
        with running_services(url, tmp_path, partitions=partitions) as services:
            yield Guarded(server, port, services)


def full(guarded: Guarded) -> None:
    guarded.start()
    with guarded.redis() as redis:
        redis.config_set("maxmemory", 1)


def killed(guarded: Guarded) -> None:
    guarded.start()
    guarded.server.kill()


def not_yet_there(guarded: Guarded) -> None:
    guarded.server.kill()
    guarded.start(wait=False)
    for service in (guarded.gateway, guarded.processor):
        wait_until(lambda: service.answers("/livez"), timeout=30)  # noqa: B023


@pytest.mark.slow
@pytest.mark.parametrize("fault", [full, killed, not_yet_there])
def test_nothing_is_shown_when_redis_fails(guarded: Guarded, fault: Callable[[Guarded], None]) -> None:
    fault(guarded)
    said = guarded.said()
    assert said["gateway POST /predict"][0] == 503
    assert said["wrong key"][0] == 401
    assert said["gateway GET /readyz"][0] == (200 if fault is full else 503)
    secrets = [PASSWORD, KEY, ADMIN_KEY, str(guarded.port), "127.0.0.1", "Error"]
    shown = {(where, secret) for where, (_, text) in said.items() for secret in secrets if secret in text}
    assert not shown
    for service in (guarded.gateway, guarded.processor):
        assert not [secret for secret in (PASSWORD, KEY, ADMIN_KEY) if secret in service.log]


@pytest.mark.slow
def test_the_log_has_what_the_probe_does_not_show_and_once(guarded: Guarded) -> None:
    guarded.start()
    guarded.server.kill()
    for service in (guarded.gateway, guarded.processor):
        wait_until(lambda: service.answers("/readyz") == 503)  # noqa: B023
        wait_until(lambda: f"127.0.0.1:{guarded.port}" in service.log)  # noqa: B023
    for _ in range(20):
        assert guarded.processor.get("/readyz") == (503, orjson.dumps({"error": NO_REDIS}))
    assert 1 <= guarded.processor.log.count('"not ready"') <= 2  # a lost connection, then none


@pytest.mark.parametrize(
    ("name", "variable", "value"),
    [
        ("gateway", "REDIS_URL", f"https://:{PASSWORD}@127.0.0.1:6379/0"),
        ("processor", "REDIS_URL", f"redis://:{PASSWORD}#1@127.0.0.1:6379/0"),
        ("gateway", "REDIS_URL", f"redis://:{PASSWORD}/1@127.0.0.1:6379/0"),
        ("gateway", "REDIS_URL", f"redis+sentinel://:{PASSWORD}#1@127.0.0.1:6379/0"),
        ("gateway", "REDIS_URL", f"redis://127.0.0.1:6379/{PASSWORD}"),
        ("gateway", "API_KEYS", f"{KEY},,more"),
        ("gateway", "API_KEYS", ","),
        ("gateway", "API_KEYS", " "),
        ("gateway", "ADMIN_API_KEYS", f"{KEY},"),
        ("gateway", "ALLOWED_ORIGINS", "https://a.example,"),
        ("gateway", "KEY_PREFIX", "{staging}"),
        ("processor", "KEY_PREFIX", "staging *"),
        ("processor", "KEY_PREFIX", "s" * 65),
        ("gateway", "ROOT_PATH", "foretell"),
        ("gateway", "ROOT_PATH", "/"),
        ("gateway", "ROOT_PATH", "//evil.example"),
        ("gateway", "ROOT_PATH", "/a b"),
        ("gateway", "ROOT_PATH", "https://a.example/foretell"),
    ],
)
def test_a_wrong_setting_stops_the_start_with_one_clean_line(
    services: Services, name: str, variable: str, value: str
) -> None:
    start = services.gateway if name == "gateway" else services.processor
    service = start(wait=False, **{variable: value})
    assert_stopped(service, f"{variable} is wrong: ")


@pytest.mark.slow
def test_a_refused_password_ends_a_start_with_one_clean_line_and_nobody_who_works(guarded: Guarded) -> None:
    guarded.start()
    with guarded.redis() as redis:
        redis.config_set("requirepass", "another-password")
    with guarded.redis("another-password") as redis:
        for kind in ("normal", "pubsub"):
            redis.execute_command("CLIENT", "KILL", "TYPE", kind)
    assert_stopped(guarded.services.gateway(wait=False), "Redis refuses us ")
    for service in (guarded.gateway, guarded.processor):
        wait_until(lambda s=service: s.log.count("Redis refuses us ") == 1)
        assert service.process.poll() is None
        assert_clean(service)
    with guarded.redis("another-password") as redis:
        redis.config_set("requirepass", PASSWORD)
    for service in (guarded.gateway, guarded.processor):
        service.ready()


def assert_clean(service: Service) -> None:
    assert "Traceback" not in service.log
    assert PASSWORD not in service.log
    assert KEY not in service.log


def assert_stopped(service: Service, begin: str) -> None:
    assert service.process.wait(30) == 1
    service.kill()
    assert service.last_sentence().startswith(begin)
    assert_clean(service)


@pytest.mark.parametrize("kind", [GatewaySettings, ProcessorSettings])
def test_settings_can_be_printed(kind: Any) -> None:
    settings = kind(
        redis_url=f"redis://:{PASSWORD}@here:6379/0", **({"api_keys": KEY} if kind is GatewaySettings else {})
    )
    assert "log_level" in repr(settings)
    assert not [secret for secret in (PASSWORD, KEY, ADMIN_KEY) if secret in f"{settings!r} {settings}"]
