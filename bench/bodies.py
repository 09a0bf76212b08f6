"""How long a service answers nobody while one large body passes through it: the longest /livez during it.

Each asks on a connection of its own, one request after the other. What the machine itself holds up is seen at rest, over
as long a time.
"""

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bench.jobs import JobsWrong
from bench.report import Row, Section, Target
from bench.stage import Service, Stage

BYTES = 40 << 20
INPUTS = {
    "numbers": b"0.12345678,",
    "records": b'{"id":12,"name":"some text","v":[1,2.5,null]},',
    "one text": b"",
}
PAUSE_S = 0.002
LIMIT_MS = 50.0


def measure() -> Section:
    with Stage() as stage, stage.processor("echo.py:echo") as processor:
        services = [stage.gateway(MAX_BODY_BYTES=str(2 * BYTES)), processor]
        rows = [_row(name, services, _body(part)) for name, part in INPUTS.items()]
    worst = max(float(row[f"{service.name} ms"]) for row in rows for service in services)
    targets = [Target("longest that a service answers nobody during a body of 40 MB, ms", worst, LIMIT_MS)]
    return Section("One body of 40 MB, in and out", rows, targets)


def _body(part: bytes) -> bytes:
    if not part:
        return b'{"input":"' + b"a" * BYTES + b'"}'
    return b'{"input":[' + part * (BYTES // len(part)) + b"0]}"


def _row(name: str, services: list[Service], body: bytes) -> Row:
    with _longest(services) as during:
        began = time.perf_counter()
        _post(services[0], body)
        seconds = time.perf_counter() - began
    with _longest(services) as at_rest:
        time.sleep(seconds)
    row: Row = {"input": name, "seconds": seconds}
    for service in services:
        row[f"{service.name} ms"] = during[service.name]
        row[f"{service.name} ms, at rest"] = at_rest[service.name]
    return row


def _post(gateway: Service, body: bytes) -> None:
    client = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=120)
    client.request("POST", "/predict", body, {"Content-Type": "application/json"})
    answer = client.getresponse()
    while answer.read(1 << 20):
        pass
    if answer.status != 200:
        raise JobsWrong(f"The gateway answered {answer.status} to a large body.")


@contextmanager
def _longest(services: list[Service]) -> Iterator[dict[str, float]]:
    """The longest answer of each until the end of the block, in ms."""
    over = threading.Event()
    found: dict[str, float] = {}
    threads = [threading.Thread(target=_ask, args=(service, over, found)) for service in services]
    for thread in threads:
        thread.start()
    yield found
    over.set()
    for thread in threads:
        thread.join()


def _ask(service: Service, over: threading.Event, found: dict[str, float]) -> None:
    client = http.client.HTTPConnection("127.0.0.1", service.port, timeout=120)
    longest = 0.0
    while not over.is_set():
        began = time.perf_counter()
        client.request("GET", "/livez")
        client.getresponse().read()
        longest = max(longest, time.perf_counter() - began)
        time.sleep(PAUSE_S)
    client.close()
    found[service.name] = longest * 1000
