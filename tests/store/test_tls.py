"""A server behind TLS, and what is said when the two sides of a connection do not mean the same."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis import Redis

from common.errors import StoreMisconfigured, StoreUnavailable
from common.store.connections import link
from tests.conftest import wait_until
from tests.services import running_services
from tests.store.conftest import MakeStore
from tests.tls import TlsSentinel, TlsServer, tls_binary
from tools.embedded_server import EmbeddedServer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.leaves_jobs("no job is submitted to a server that another test looks at"),
]


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServer]:
    with TlsServer(tmp_path_factory.mktemp("tls") / "server", tls_binary()) as server:
        yield server


@pytest.fixture
async def mute() -> AsyncIterator[int]:
    """A port that accepts and never answers."""
    open_ones = []
    listener = await asyncio.start_server(
        lambda reader, writer: open_ones.append(writer), "127.0.0.1", 0, start_serving=True
    )
    yield listener.sockets[0].getsockname()[1]
    for writer in open_ones:
        writer.close()
    listener.close()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "COMMAND_TIMEOUT_S", 1.0)


async def why_not(open_store: MakeStore, url: str) -> str:
    with pytest.raises(StoreUnavailable) as caught:
        await open_store(url, name="a").queue.prepare()
    return str(caught.value)


async def test_a_ca_of_ones_own(tls: TlsServer, open_store: MakeStore) -> None:
    at = f"rediss://127.0.0.1:{tls.tls_port}/0"
    assert "ssl_ca_certs" in await why_not(open_store, at)
    await open_store(f"{at}?ssl_ca_certs={tls.certificates.ca}", name="a").queue.prepare()
    await open_store(
        f"valkeys://localhost:{tls.tls_port}?ssl_ca_certs={tls.certificates.ca}", name="a"
    ).queue.prepare()
    for none in ("none", "CERT_NONE"):
        await open_store(f"{at}?ssl_cert_reqs={none}&max_connections=10", name="a").queue.prepare()


async def test_a_certificate_of_ones_own(tmp_path: Path, open_store: MakeStore) -> None:
    with TlsServer(tmp_path / "server", tls_binary(), ask_clients=True) as server:
        certificate, key = server.certificates.of("client")
        at = f"rediss://127.0.0.1:{server.tls_port}/0?ssl_ca_certs={server.certificates.ca}"
        assert "ssl_certfile" in await why_not(open_store, at)
        await open_store(f"{at}&ssl_certfile={certificate}&ssl_keyfile={key}", name="a").queue.prepare()


async def test_a_cluster(tmp_path: Path, open_store: MakeStore) -> None:
    more = ["--cluster-enabled", "yes", "--tls-cluster", "yes"]
    with TlsServer(tmp_path / "server", tls_binary(), more=more) as server:
        with Redis.from_url(server.url) as client:
            client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
            wait_until(lambda: client.execute_command("CLUSTER INFO")["cluster_state"] == "ok")
        at = f"rediss+cluster://localhost:{server.tls_port}?ssl_ca_certs={server.certificates.ca}"
        await open_store(at, name="a").queue.prepare()


async def test_sentinels(tls: TlsServer, tmp_path: Path, open_store: MakeStore) -> None:
    with TlsSentinel(tmp_path / "sentinel", tls_binary(), tls) as sentinel:
        at = f"valkeys+sentinel://localhost:{sentinel.tls_port}/main/0?ssl_ca_certs={tls.certificates.ca}"
        await open_store(at, name="a").queue.prepare()


@pytest.mark.parametrize("option", ["ssl_ca_certs", "ssl_certfile"])
def test_a_file_that_is_missing_or_nonsense(tmp_path: Path, open_store: MakeStore, option: str) -> None:
    with pytest.raises(StoreMisconfigured, match=f"{option} in REDIS_URL names a file that cannot be read"):
        open_store(f"rediss://127.0.0.1:1?{option}={tmp_path}/missing.pem", name="a")
    (tmp_path / "nonsense.pem").write_text("nonsense")
    with pytest.raises(StoreMisconfigured, match=f"{option}.* in REDIS_URL cannot be used"):
        open_store(f"rediss://127.0.0.1:1?{option}={tmp_path}/nonsense.pem", name="a")


async def test_a_plain_connection_to_a_port_for_tls(tls: TlsServer, open_store: MakeStore) -> None:
    said = await why_not(open_store, f"redis://:secret@127.0.0.1:{tls.tls_port}/0")
    assert f"127.0.0.1:{tls.tls_port}" in said
    assert "use rediss://" in said
    assert "secret" not in said


async def test_tls_to_a_port_without(tls: TlsServer, open_store: MakeStore) -> None:
    said = await why_not(open_store, f"rediss://:secret@127.0.0.1:{tls.port}/0")
    assert f"no answer from 127.0.0.1:{tls.port}" in said
    assert "is it a port for TLS" in said
    assert "secret" not in said


@pytest.mark.parametrize("kind", ["redis", "rediss", "redis+cluster", "redis+sentinel"])
async def test_a_port_that_never_answers(mute: int, open_store: MakeStore, kind: str) -> None:
    path = "/main/0" if kind == "redis+sentinel" else ""
    said = await why_not(open_store, f"{kind}://127.0.0.1:{mute}{path}")
    assert f"no answer from 127.0.0.1:{mute}: is it a port for TLS" in said


async def test_a_server_that_falls_silent(mute: int, open_store: MakeStore, server: EmbeddedServer) -> None:
    """It is named after it has answered, too; there TLS is no question."""
    store = open_store(server.url, name="a")
    await store.queue.prepare()
    server.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(StoreUnavailable, match=r"TimeoutError: no answer from \S+\)\.$"):
            await store.queue.prepare()
    finally:
        server.send_signal(signal.SIGCONT)


def test_services_behind_tls(tls: TlsServer, tmp_path: Path, partitions: int) -> None:
    url = f"rediss://127.0.0.1:{tls.tls_port}/0?ssl_ca_certs={tls.certificates.ca}&max_connections=10"
    with running_services(url, tmp_path, partitions=partitions) as services:
        services.gateway()
        services.processor()
