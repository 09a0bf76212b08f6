"""A redis-server that speaks TLS, with a certificate of a CA that nobody knows. The wheel's Valkey has none."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tools.embedded_server import EmbeddedServer
from tools.ports import free_port


class Certificates:
    """A CA of our own (`ca`), and a certificate and key of the server and of a client. `folder` must exist."""

    def __init__(self, folder: Path) -> None:
        self.ca = folder / "ca.pem"
        self._folder = folder
        # an extension for each: without subjectAltName no client finds the host's name in it
        _openssl(folder, "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=ca")
        (folder / "extensions").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        for name in ("server", "client"):
            _openssl(
                folder, f"req -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}"
            )
            _openssl(
                folder,
                f"x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out {name}.pem -days 2 "
                "-extfile extensions",
            )

    def of(self, name: str) -> tuple[Path, Path]:
        return self._folder / f"{name}.pem", self._folder / f"{name}.key"


class TlsServer(EmbeddedServer):
    """On `port` without TLS, on `tls_port` with it; `ask_clients`: only for clients with a certificate of the CA."""

    def __init__(
        self, folder: Path, binary: str, *, ask_clients: bool = False, more: Sequence[str] = ()
    ) -> None:
        folder.mkdir()
        self.certificates = Certificates(folder)
        certificate, key = self.certificates.of("server")
        self.port, self.tls_port = free_port(), free_port()
        extra = ["--tls-port", str(self.tls_port), "--tls-auth-clients", "yes" if ask_clients else "no"]
        extra += ["--tls-cert-file", str(certificate), "--tls-key-file", str(key)]
        extra += ["--tls-ca-cert-file", str(self.certificates.ca)]
        super().__init__(folder / "data", port=self.port, aof=False, extra=[*extra, *more], binary=binary)


class TlsSentinel(TlsServer):
    """A sentinel alone, which monitors `primary` by TLS under the name `main`."""

    def __init__(self, folder: Path, binary: str, primary: TlsServer) -> None:
        super().__init__(folder, binary)
        self.directory.mkdir()
        lines = [
            f"port {self.port}",
            f"tls-port {self.tls_port}",
            "tls-auth-clients no",
            "tls-replication yes",
        ]
        certificate, key = primary.certificates.of("server")
        lines += [f"tls-cert-file {certificate}", f"tls-key-file {key}"]
        lines += [f"tls-ca-cert-file {primary.certificates.ca}", f"dir {self.directory}"]
        lines += [f"sentinel monitor main 127.0.0.1 {primary.tls_port} 1"]
        (self.directory / "sentinel.conf").write_text("\n".join(lines) + "\n")

    def _options(self) -> list[str]:
        return [str(self.directory / "sentinel.conf"), "--sentinel"]


def tls_binary() -> str:
    """Skips the test where no redis-server speaks TLS, or openssl is missing."""
    binary = shutil.which("redis-server")
    if not binary or not shutil.which("openssl"):
        pytest.skip("needs redis-server and openssl")
    words = subprocess.run(["ldd", binary], capture_output=True, text=True, check=False).stdout
    if "libssl" not in words:
        pytest.skip("redis-server was built without TLS")
    return binary


def _openssl(folder: Path, arguments: str) -> None:
    subprocess.run(["openssl", *arguments.split()], cwd=folder, check=True, capture_output=True)
