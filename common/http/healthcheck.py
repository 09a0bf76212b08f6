"""`python -m common.http.healthcheck gateway /readyz`: exit code 0 if the service of this container answers 200.

For health checks that run in the container, which has no curl. It runs every few seconds, so it imports next to nothing:
with http.client it would take three times the CPU.
"""

import os
import socket
import sys

from common.http.listener import ANY, local
from common.log_stream import LogStream

PORTS = {"gateway": ("PORT", "8080"), "processor": ("PROBE_PORT", "8081")}
TIMEOUT_S = 4.0


def main(service: str, path: str) -> int:
    variable, default = PORTS[service]
    port = int(os.environ.get(variable) or default)
    faults = []
    for host in local(os.environ.get("HOST") or ANY):
        try:
            first = ask(host, port, path)
        except OSError as error:
            faults.append(error)
            continue
        print(first)
        return int(first.split()[1:2] != ["200"])
    print(f"{service} does not answer at port {port}: {faults[0]}")
    return 1


def ask(host: str, port: int, path: str) -> str:
    """The first line of the answer."""
    with socket.create_connection((host, port), timeout=TIMEOUT_S) as connection:
        connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        with connection.makefile("rb") as answer:
            return answer.readline(1000).decode(errors="replace").strip()


if __name__ == "__main__":
    sys.stdout = LogStream(1)
    sys.exit(main(*sys.argv[1:]))
