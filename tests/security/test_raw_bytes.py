"""Bytes that no client should send: an answer in JSON or a close, in bounded time, and the service is well after."""

import json
import random
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from tests.services import Service

ANSWER_S = 20.0
GET = b"GET /predict/x HTTP/1.1\r\nhost: x\r\n\r\n"
POST = b'POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 11\r\n\r\n{"input":1}'
SOCKET = (
    b"GET /ws/predict/x HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


def tell(service: Service, data: bytes, *, listen_s: float | None = None) -> bytes:
    """All that comes back until the server closes. Raises TimeoutError for a hang.

    After `listen_s` without a byte our side is closed: the server must then close too.
    """
    answer = b""
    with socket.create_connection(("127.0.0.1", service.port), timeout=ANSWER_S) as client:
        try:
            client.sendall(data)
            if listen_s is not None:
                client.settimeout(listen_s)
                with suppress(TimeoutError):
                    while part := client.recv(65536):
                        answer += part
                client.settimeout(ANSWER_S)
                client.shutdown(socket.SHUT_WR)
            while part := client.recv(65536):
                answer += part
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise
            # refused while we were still talking
    return answer


def codes(answer: bytes) -> list[int]:
    """Of all the answers; each body must be JSON."""
    found = []
    while answer.startswith(b"HTTP/1.1 "):
        head, _, rest = answer.partition(b"\r\n\r\n")
        found.append(int(head[9:12]))
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        length = int(lengths[0].partition(b":")[2]) if lengths else 0
        if length:
            json.loads(rest[:length])
        answer = rest[length:]
    return found


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\nhost: x\r\n\r\n", 400),
        (b"GET /%b HTTP/1.1\r\nhost: x\r\n\r\n" % (b"a" * 9000), 414),
        (b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 101 + b"\r\n", 431),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab", 400),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\na: b\r\n c\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nhost: x\n\n", 400),
        (b"GET / HTTP/1.1\r\nhost : x\r\n\r\n", 400),
    ],
)  # fmt: skip
def test_what_must_be_refused(start_gateway: Callable[..., Service], data: bytes, code: int) -> None:
    assert codes(tell(start_gateway(), data)) == [code]


def test_a_bad_request_does_not_lose_the_answer_before_it(start_gateway: Any, start_processor: Any) -> None:
    gateway = start_gateway()
    start_processor()
    assert codes(tell(gateway, POST + b"This is not HTTP\r\n\r\n")) == [200, 400]
    assert codes(tell(gateway, POST + b"POST /predict HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nz\r\n")) == [200, 400]  # fmt: skip


@pytest.mark.parametrize("begun", [GET[:-2], POST[:-3]], ids=["head", "body"])
def test_who_stops_half_way_is_told(start_gateway: Callable[..., Service], begun: bytes) -> None:
    gateway = start_gateway()
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=60) as client:
        client.sendall(begun)
        assert codes(client.recv(65536)) == [408]
        assert client.recv(1) == b""


def mutated(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(changed) + 1)
        match rng.randrange(4):
            case 0:
                del changed[place:]
            case 1:
                changed[place:place] = rng.randbytes(rng.randint(1, 40))
            case 2:
                changed[place : place + 1] = bytes([rng.randrange(256)])
            case 3:
                changed[place:place] = rng.choice(
                    [b"\r\n", b"\n", b"\0", GET, POST, b"transfer-encoding: chunked\r\n"]
                )
    return bytes(changed)


@pytest.mark.leaves_jobs("what was sent by chance may be cancelled while it is queued")
def test_noise(start_gateway: Callable[..., Service], start_processor: Callable[..., Service]) -> None:
    gateway = start_gateway(SYNC_WAIT_S=5)
    start_processor()
    rng = random.Random(20)
    for _ in range(200):
        first = rng.choice([GET, POST, SOCKET, SOCKET])
        data = first + rng.randbytes(30) if rng.random() < 0.3 else mutated(rng, first)
        assert not {code for code in codes(tell(gateway, data, listen_s=0.05)) if code >= 500}, data
    assert codes(tell(gateway, POST)) == [200]
    assert "Traceback" not in gateway.log
