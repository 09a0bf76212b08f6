"""A real nginx in front, with the very file of docs/deploy.md: only its ports are other ones."""

import json
import os
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urljoin

import httpx2
import pytest
from websockets.sync.client import connect

from tests.conftest import wait_until
from tests.contract.api import TEXT, Answer, refused, rest_of, state
from tests.contract.conftest import Local
from tests.services import ECHO, ROOT, Service
from tools.ports import free_port

NGINX = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
pytestmark = pytest.mark.skipif(not NGINX, reason="needs nginx")

PAGE = re.search(r"```nginx\n(.*?)```", (ROOT / "docs/deploy.md").read_text(), re.DOTALL)
MAIN = f"""
daemon off;
{"user root;" if os.geteuid() == 0 else ""}  # else its workers may not enter the test's folder
worker_processes 1;
pid nginx.pid;
error_log stderr;
events {{{{}}}}
http {{{{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
{{}}
}}}}
"""
START_S = 20.0
STOP_S = 20.0


class Nginx:
    """One that serves at `host`, a name with a port, in front of what listens on `port`."""

    def __init__(self, folder: Path, port: int, change: Callable[[str], str]) -> None:
        assert PAGE
        own = free_port()
        self.host = f"localhost:{own}"
        text = PAGE[1]
        for found, ours in (
            ("server 127.0.0.1:8080;", f"server 127.0.0.1:{port};"),
            ("listen 80;", f"listen 127.0.0.1:{own};"),
            ("listen [::]:80;", f"listen [::1]:{own};" if socket.has_dualstack_ipv6() else ""),
        ):
            assert text.count(found) == 1
            text = text.replace(found, ours)
        configuration = folder / "nginx.conf"
        configuration.write_text(MAIN.format(change(text)))
        self._log = folder / "nginx.log"
        with self._log.open("wb") as log:
            command = [str(NGINX), "-p", str(folder), "-c", str(configuration)]
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        # not by name: it may be that of an IPv6 address first
        self.url = f"http://127.0.0.1:{own}"
        self.http = httpx2.Client(base_url=self.url, timeout=30, trust_env=False)
        wait_until(self._serves, START_S)

    def _serves(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", int(self.host.rpartition(":")[2]))) == 0

    def post(self, headers: dict[str, str] | None = None, *, path: str = "/foretell/predict") -> Answer:
        """A prediction, asked for as a browser or curl does: by the name with the port."""
        sent = {"Host": self.host, **(headers or {})}
        return self.http.post(path, json={"input": TEXT}, headers=sent)

    def stop(self) -> None:
        self.http.close()
        self._process.terminate()
        self._process.wait(STOP_S)


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[Callable[..., Nginx]]:
    """`nginx(port)`: one in front of that port; `change` is made to its file."""
    with ExitStack() as stack:

        def start_one(port: int, change: Callable[[str], str] = str) -> Nginx:
            folder = tmp_path / f"nginx-{port}"
            folder.mkdir()
            one = Nginx(folder, port, change)
            stack.callback(one.stop)
            return one

        yield start_one


def followed(proxy: Nginx, answer: Answer, query: str = "") -> Answer:
    """What is at the answer's Location, as a client finds it there."""
    return proxy.http.get(urljoin(str(answer.request.url), answer.headers["location"]) + query)


def without_prefix(text: str) -> str:
    return text.replace("/foretell", "").replace("X-Forwarded-Prefix ;", 'X-Forwarded-Prefix "";')


def with_host(text: str) -> str:
    """nginx's usual `$host`, which has no port, and nothing else that names the host."""
    lines = [line for line in text.splitlines() if "X-Forwarded-Host" not in line]
    return "\n".join(lines).replace("Host $http_host;", "Host $host;")


@pytest.mark.parametrize("settings", [{}, {"TRUSTED_PROXIES": "127.0.0.1"}, {"ROOT_PATH": "/foretell"}])
def test_under_a_prefix(
    start: Callable[..., Local], nginx: Callable[..., Nginx], settings: dict[str, str]
) -> None:
    proxy = nginx(start(model=ECHO, **settings).gateway.port)
    now = proxy.post()
    assert now.json() == {"input": TEXT, "result": TEXT}
    state(followed(proxy, now), now.headers["prediction-id"], TEXT, "succeeded")
    later = proxy.post({"Async-Mode": "true"})
    assert later.status_code == 202
    state(followed(proxy, later, "?wait=20"), later.headers["prediction-id"], TEXT, "succeeded")
    if settings:
        assert later.headers["location"] == f"/foretell/predict/{later.headers['prediction-id']}"


def test_at_the_root(start: Callable[..., Local], nginx: Callable[..., Nginx]) -> None:
    gateway = start(model=ECHO, TRUSTED_PROXIES="127.0.0.1").gateway
    proxy = nginx(gateway.port, without_prefix)
    answer = proxy.post(path="/predict")
    assert answer.headers["location"] == f"/predict/{answer.headers['prediction-id']}"
    assert followed(proxy, answer).status_code == 200


def test_a_page_of_the_own_origin_and_its_websocket(
    start: Callable[..., Local], nginx: Callable[..., Nginx]
) -> None:
    proxy = nginx(start(model=ECHO).gateway.port)
    own = f"http://{proxy.host}"
    answer = proxy.post({"Origin": own, "Async-Mode": "true"})
    prediction_id = answer.headers["prediction-id"]
    path = f"/foretell/ws/predict/{prediction_id}"
    with connect(f"ws://{proxy.host}{path}", origin=own, proxy=None) as subscriber:
        frames, code = rest_of(subscriber)
    assert (frames[-1]["status"], code) == ("succeeded", 1000)
    foreign = {"Origin": "https://evil.example"}
    assert f"'{proxy.host}'" in refused(proxy.post(foreign), 403)
    assert proxy.http.get(path, headers={"Host": proxy.host}).status_code == 426


@pytest.mark.parametrize("name", ["localhost", "page.example", "[::1]"])
@pytest.mark.parametrize(
    ("change", "settings"), [(str, {}), (with_host, {}), (with_host, {"TRUSTED_PROXIES": "127.0.0.1"})]
)
def test_the_own_page_by_any_name_without_a_port(
    start: Callable[..., Local],
    nginx: Callable[..., Nginx],
    change: Callable[[str], str],
    settings: dict[str, str],
    name: str,
) -> None:
    """The proxy is at port 80 or 443 for its clients."""
    proxy = nginx(start(model=ECHO, **settings).gateway.port, change)
    for scheme in ("http", "https"):
        assert proxy.post({"Host": name, "Origin": f"{scheme}://{name}"}).status_code == 200
    assert proxy.post({"Host": name, "Origin": "https://evil.example"}).status_code == 403


def test_host_without_its_port_is_made_good(start: Callable[..., Local], nginx: Callable[..., Nginx]) -> None:
    """By a browser that says where the request comes from, or by a header of a trusted proxy; else there is a 403 that
    says what was compared and how to mend it."""
    silent, trusting = start(model=ECHO), start(TRUSTED_PROXIES="127.0.0.1")
    proxy = nginx(silent.gateway.port, with_host)
    own = {"Origin": f"http://{proxy.host}"}
    sentence = refused(proxy.post(own), 403)
    for words in (f"'http://{proxy.host}'", "'localhost'", "$http_host", "ALLOWED_ORIGINS"):
        assert words in sentence
    assert proxy.post({**own, "Sec-Fetch-Site": "same-origin"}).status_code == 200
    named = nginx(trusting.gateway.port, lambda text: text.replace("Host $http_host;", "Host $host;", 1))
    assert named.post({"Origin": f"http://{named.host}"}).status_code == 200


def test_the_client_s_address_is_logged(start: Callable[..., Local], nginx: Callable[..., Nginx]) -> None:
    gateway = start(model=ECHO, TRUSTED_PROXIES="127.0.0.1", ACCESS_LOG="true").gateway
    proxy = nginx(gateway.port)
    transport = httpx2.HTTPTransport(local_address="127.0.0.2")
    invented = {"X-Forwarded-For": "203.0.113.9", "Forwarded": "for=203.0.113.9"}
    with httpx2.Client(transport=transport, base_url=proxy.url, trust_env=False) as client:
        assert client.post("/foretell/predict", json={"input": TEXT}, headers=invented).status_code == 200
    lines = wait_until(lambda: [line for line in gateway.log.splitlines() if '"request"' in line])
    assert [json.loads(line)["client"] for line in lines] == ["127.0.0.2"]


HIDDEN = [
    "dead",
    "queue",
    "metrics",
    "livez",
    "readyz",
    "predict/../dead",
    "predict/%2e%2e/dead",
    "predict/..%2fdead",
    "ws/../dead",
    "foretell/dead",
]


def test_only_what_clients_need_is_published(
    start: Callable[..., Local], nginx: Callable[..., Nginx]
) -> None:
    proxy = nginx(start(TRUSTED_PROXIES="127.0.0.1").gateway.port)
    port = int(proxy.host.rpartition(":")[2])
    for path in HIDDEN:
        head = f"GET /foretell/{path} HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-Prefix: /x\r\nConnection: close\r\n\r\n"
        code, answer = first_code_at(port, head)
        assert code == 404, path
        assert b"<center>nginx" in answer, "the gateway was asked"


def first_code_at(port: int, head: str) -> tuple[int, bytes]:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(head.encode())
        answer = b""
        while part := client.recv(65536):
            answer += part
    return int(answer[9:12]), answer


def test_a_body_that_is_too_large_is_refused_by_the_gateway(
    start: Callable[..., Local], nginx: Callable[..., Nginx]
) -> None:
    proxy = nginx(start().gateway.port)
    body = json.dumps({"input": "x" * (1 << 20)}).encode()
    headers = {"Content-Type": "application/json"}
    assert "MAX_BODY_BYTES" in refused(
        proxy.http.post("/foretell/predict", content=body, headers=headers), 413
    )


def test_its_limits_are_above_ours() -> None:
    assert PAGE
    timeouts = re.findall(r"proxy_(?:read|send)_timeout (\d+)s;", PAGE[1])
    assert len(timeouts) == 2
    assert min(map(int, timeouts)) > 300  # docs/api.md: the longest ?wait


@contextmanager
def upstream(release: threading.Event) -> Iterator[int]:
    """Sends the first event of a stream, and the rest when it is released. Gives its port."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: 1\n\n")
            release.wait(60)
            connection.sendall(b"data: 2\n\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, name="upstream")
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            release.set()
            thread.join(60)


def test_nothing_is_held_back(nginx: Callable[..., Nginx]) -> None:
    """Where more comes later, what is there goes out at once."""
    release = threading.Event()
    with upstream(release) as port, nginx(port).http.stream("GET", "/foretell/predict/x/events") as answer:
        parts = answer.iter_raw()
        assert next(parts) == b"data: 1\n\n"
        release.set()
        assert b"".join(parts) == b"data: 2\n\n"


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
def test_over_ipv6(start: Callable[..., Local], nginx: Callable[..., Nginx]) -> None:
    gateway: Service = start(model=ECHO, TRUSTED_PROXIES="127.0.0.1", ACCESS_LOG="true").gateway
    proxy = nginx(gateway.port)
    own = f"[::1]:{proxy.host.rpartition(':')[2]}"
    answer = httpx2.post(
        f"http://{own}/foretell/predict",
        json={"input": TEXT},
        headers={"Origin": f"http://{own}"},
        trust_env=False,
    )
    assert answer.status_code == 200
    assert wait_until(lambda: '"client":"::1"' in gateway.log)
