"""`python -m common.healthcheck gateway /readyz`: exit code 0 if the service of this container answers 200.

For health checks that run in the container, which has no curl. Only the standard library is imported: it runs often.
"""

import http.client
import os
import sys

PORTS = {"gateway": ("PORT", "8080"), "processor": ("PROBE_PORT", "8081")}
TIMEOUT_S = 4.0


def main(service: str, path: str) -> int:
    variable, default = PORTS[service]
    port = int(os.environ.get(variable) or default)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        print(answer.read(1000).decode(errors="replace"))
        return int(answer.status != 200)
    except OSError as error:
        print(f"{service} does not answer at port {port}: {error}")
        return 1
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
