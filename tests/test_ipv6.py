"""Where there is IPv6 and where there is none: what the services listen on, and the Redis that they find.

Over real sockets, and in network namespaces that have only one of the two, where this machine lets a test make some.
"""

import errno
import json
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from redis import exceptions

from common.errors import StartFault
from common.http import listener
from common.http.listener import ANY, bind
from common.store.connections.dial import Dial
from common.store.connections.redis_url import parse_url
from tests.conftest import wait_until
from tests.http.test_healthcheck import ask
from tests.services import ECHO, ROOT, Service, Services, running_services, services
from tests.tools.test_dev import DevRun
from tools.embedded_server import EmbeddedServer
from tools.ports import free_port
from tools.redis_topologies import ClusterSet, SentinelSet

__all__ = ["services"]

IPV4, IPV6 = "127.0.0.1", "::1"
BOTH = {IPV4, IPV6}


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind((IPV6, 0))
    except OSError:
        return False
    return True


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback address"),
]


def reached(port: int) -> set[str]:
    """The loopback addresses at which somebody listens."""
    found = set()
    for address in BOTH:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as client:
            if client.connect_ex((address, port)) == 0:
                found.add(address)
    return found


def predicts(url: str) -> bool:
    with httpx2.Client(trust_env=False, timeout=30) as client:
        return bool(client.post(f"{url}/predict", json={"input": 1}).json() == {"input": 1, "result": 1})


# -- what the services listen on


@pytest.mark.parametrize(
    ("host", "addresses"),
    [("", BOTH), ("::", BOTH), ("0.0.0.0", {IPV4}), (IPV4, {IPV4}), (IPV6, {IPV6}), ("localhost", {IPV4})],
)
def test_host_decides_for_both_services_and_their_health_checks(
    services: Services, host: str, addresses: set[str]
) -> None:
    gateway = services.gateway(HOST=host, wait=False)
    processor = services.processor(ECHO, HOST=host, wait=False)
    for service, variable in ((gateway, "PORT"), (processor, "PROBE_PORT")):
        environment = {variable: str(service.port), "HOST": host}
        wait_until(lambda: ask(service.name, "/readyz", **environment).returncode == 0, 60)  # noqa: B023
        assert reached(service.port) == addresses


def test_a_port_that_is_taken_for_ipv4_is_taken() -> None:
    for host in (IPV4, IPV6, "0.0.0.0", "::"):
        with bind(host, 0, variable="PORT") as taken:
            taken.listen()
            port = taken.getsockname()[1]
            with pytest.raises(
                StartFault, match=rf"^PORT {port} on :: cannot be used: Address already in use"
            ):
                bind(ANY, port, variable="PORT")


@pytest.mark.parametrize("host", ["::2", "2001:db8::1", "fe80::1%nowhere", "[::1]", "nowhere.invalid"])
def test_an_address_that_is_not_here_is_one_sentence(host: str) -> None:
    with pytest.raises(StartFault, match=r"^PORT 0 on .* cannot be used: .*\.$"):
        bind(host, 0, variable="PORT")


def test_a_kernel_without_ipv6_is_served_over_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    class WithoutIpv6(socket.socket):
        def __init__(self, family: int = socket.AF_INET, *more: Any, **rest: Any) -> None:
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
            super().__init__(family, *more, **rest)

    monkeypatch.setattr(listener.socket, "socket", WithoutIpv6)
    with bind(ANY, 0, variable="PORT") as found:
        assert found.getsockname()[0] == "0.0.0.0"


#: What is done to a machine, and where it then serves.
ONE_OF_THEM = {
    "no IPv6": ("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6", "127.0.0.1"),
    "no IPv6 on the loopback": ("ip -6 addr flush dev lo", "127.0.0.1"),
    "no IPv4": ("ip -4 addr flush dev lo", "[::1]"),
    "IPv6 sockets that are for IPv6 alone": ("echo 1 > /proc/sys/net/ipv6/bindv6only", "127.0.0.1"),
}


@pytest.mark.parametrize(("change", "host"), ONE_OF_THEM.values(), ids=ONE_OF_THEM)
def test_the_default_serves_a_machine_with_only_one_of_them(tmp_path: Path, change: str, host: str) -> None:
    """Redis is behind a Unix socket, which no network namespace changes."""
    if not shutil.which("unshare") or subprocess.run(["unshare", "--net", "true"], check=False).returncode:
        pytest.skip("may not make network namespaces")
    python = shlex.quote(sys.executable)
    post = (
        "import urllib.request as u\n"
        f"asked = u.Request('http://{host}:8080/predict', b'{{\"input\": 1}}', {{'Content-Type': 'application/json'}})\n"
        "print(u.urlopen(asked, timeout=30).read().decode())"
    )
    script = f"""
        set -e
        ip link set lo up
        {change}
        {python} -m gateway >&2 & gateway=$!
        {python} -m processor >&2 & processor=$!
        trap 'kill $gateway $processor' EXIT
        for service in gateway processor; do
            until {python} -m common.http.healthcheck $service /readyz >&2; do
                kill -0 $gateway
                kill -0 $processor
                sleep 0.1
            done
        done
        {python} -c {shlex.quote(post)}
        trap - EXIT
        kill $gateway $processor
        wait $gateway
        wait $processor
    """
    with EmbeddedServer(tmp_path / "server", aof=False) as server:
        env = {
            "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": str(ROOT),
        }
        env |= {"REDIS_URL": server.url, "MODEL": ECHO, "DRAIN_S": "5"}
        done = subprocess.run(
            ["unshare", "--net", "sh", "-c", script],
            env=env, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"input": 1, "result": 1}


# -- what clients see


def at(address: str, service: Service) -> str:
    return f"http://{f'[{address}]' if ':' in address else address}:{service.port}"


@pytest.fixture
def gateway(services: Services) -> Service:
    """It listens on both."""
    return services.gateway(HOST="::", ACCESS_LOG="true", TRUSTED_PROXIES="127.0.0.1,::1")


@pytest.mark.parametrize("address", sorted(BOTH))
def test_the_own_page_and_the_operator_at_either_address(gateway: Service, address: str) -> None:
    url = at(address, gateway)
    with httpx2.Client(base_url=url, trust_env=False) as client:
        for origin, code in (
            (url, 400),
            (f"http://[::2]:{gateway.port}", 403),
            (at(address, gateway) + "1", 403),
        ):
            assert client.post("/predict", headers={"Origin": origin}).status_code == code, origin
        assert client.get("/dead").status_code == 200
        assert client.get("/dead", headers={"X-Forwarded-For": address}).status_code == 403


def test_an_address_is_written_as_what_it_is(gateway: Service) -> None:
    """Over a socket for both, the kernel calls an IPv4 address ::ffff:127.0.0.1."""
    for address in (IPV4, IPV6):
        for headers in ({}, {"X-Forwarded-For": "2001:DB8::1"}):
            httpx2.get(f"{at(address, gateway)}/queue", headers=headers, trust_env=False)
    expected = [IPV4, "2001:db8::1", IPV6, "2001:db8::1"]

    def clients() -> list[str]:
        lines = [line for line in map(json.loads, gateway.log.splitlines()) if line["event"] == "request"]
        return [line["client"] for line in lines]

    wait_until(lambda: len(clients()) == len(expected))
    assert clients() == expected


@pytest.mark.parametrize(("host", "shown"), [("", "localhost"), ("::", "localhost"), (IPV6, "[::1]")])
def test_make_run_prints_a_url_that_works(tmp_path: Path, host: str, shown: str) -> None:
    run = DevRun(tmp_path / "run", HOST=host)
    try:
        run.ready()
        assert f" at http://{shown}:{run.port}\n" in run.out
        assert predicts(f"http://{shown}:{run.port}")
        assert reached(run.port) == ({IPV6} if host == IPV6 else BOTH)
    finally:
        run.process.terminate()
        assert run.process.wait(60) == 0


# -- Redis


@pytest.mark.parametrize("kind", [SentinelSet, ClusterSet, None])
def test_redis_at_an_ipv6_address(tmp_path: Path, kind: Callable[..., Any] | None, partitions: int) -> None:
    folder = tmp_path / "servers"
    servers = (
        kind(folder, host=IPV6) if kind else EmbeddedServer(folder, port=free_port(), host=IPV6, aof=False)
    )
    assert "[::1]:" in servers.url
    with servers, running_services(servers.url, tmp_path, partitions=partitions) as started:
        started.processor(ECHO)
        assert predicts(started.gateway().url)


async def test_an_error_names_the_address_as_a_url_has_it() -> None:
    port = free_port()
    with pytest.raises(exceptions.ConnectionError, match=rf"\[::1\]:{port}"):
        await Dial(parse_url(f"redis://[::1]:{port}/0"))()
