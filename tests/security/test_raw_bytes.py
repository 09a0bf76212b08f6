"""Bytes that no client should send: an answer in JSON or a close, in bounded time, and the service is well after."""

import json
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.conftest import wait_until
from tests.services import MOODY, Service

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


MUST_BE_REFUSED = [
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
]  # fmt: skip


def test_what_must_be_refused(start_gateway: Callable[..., Service]) -> None:
    gateway = start_gateway()
    for data, code in MUST_BE_REFUSED:
        assert codes(tell(gateway, data)) == [code], data


def test_one_connection_too_many(start_gateway: Callable[..., Service]) -> None:
    """It is told so at once, and those before it go on."""
    gateway = start_gateway(MAX_CONNECTIONS=3)
    with ExitStack() as stack:
        address = ("127.0.0.1", gateway.port)
        clients = [stack.enter_context(socket.create_connection(address, ANSWER_S)) for _ in range(2)]
        clients[0].sendall(GET)
        assert codes(clients[0].recv(65536)) == [404]
        stack.enter_context(subscriber(gateway))
        for data in (b"", GET, SOCKET):
            answer = tell(gateway, data)
            assert codes(answer) == [503]
            assert b"\r\nretry-after: 1\r\n" in answer
        for client in clients:
            client.sendall(GET)
            assert codes(client.recv(65536)) == [404]
    wait_until(lambda: codes(tell(gateway, GET[:-2] + b"connection: close\r\n\r\n")) == [404])
    assert "Traceback" not in gateway.log


def test_a_bad_request_does_not_lose_the_answer_before_it(start_gateway: Any, start_processor: Any) -> None:
    gateway = start_gateway()
    start_processor()
    assert codes(tell(gateway, POST + b"This is not HTTP\r\n\r\n")) == [200, 400]
    assert codes(tell(gateway, POST + b"POST /predict HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nz\r\n")) == [200, 400]  # fmt: skip


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
    assert codes(tell(gateway, POST.replace(b"content", b"connection: close\r\ncontent"))) == [200]
    assert "Traceback" not in gateway.log


# -- WebSocket frames

MASK = b"\1\2\3\4"
TEXT, BINARY, CLOSE, PING = 1, 2, 8, 9


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    reserved: int = 0,
    masked: bool = True,
    length: int | None = None,
) -> bytes:
    """A client's frame; `length`: what its head says, whatever follows."""
    said = len(payload) if length is None else length
    head = bytes([fin << 7 | reserved << 4 | opcode])
    mask = masked << 7
    if said < 126:
        head += bytes([mask | said])
    elif said < 1 << 16:
        head += bytes([mask | 126]) + said.to_bytes(2)
    else:
        head += bytes([mask | 127]) + said.to_bytes(8)
    if not masked:
        return head + payload
    return head + MASK + bytes(byte ^ MASK[at % 4] for at, byte in enumerate(payload))


#: What a client may not send, and the code (RFC 6455, 7.4.1) it is closed with.
BAD_FRAMES = {
    "a reserved opcode": (frame(3), 1002),
    "a reserved control opcode": (frame(11), 1002),
    "no mask": (frame(TEXT, b"x", masked=False), 1002),
    "a reserved bit": (frame(TEXT, b"x", reserved=4), 1002),
    "all reserved bits of a ping": (frame(PING, reserved=7), 1002),
    "half a ping": (frame(PING, b"x", fin=False), 1002),
    "a ping above 125 bytes": (frame(PING, b"x" * 126), 1002),
    "a continuation of nothing": (frame(0, b"x"), 1002),
    "a message inside another": (frame(TEXT, b"x", fin=False) + frame(TEXT, b"x"), 1002),
    "text that is not UTF-8": (frame(TEXT, b"\xff\xfe"), 1007),
    "text cut inside a character": (frame(TEXT, b"\xe2\x82", fin=False) + frame(0, b"("), 1007),
    "one byte too many": (frame(TEXT, b"x" * 4097), 1009),
    "fragments without end": (frame(TEXT, b"x", fin=False) + frame(0, b"x" * 100, fin=False) * 50, 1009),
    "a length of 2^62": (frame(BINARY, b"x" * 100, length=1 << 62), 1009),
    "a negative length": (frame(BINARY, b"x" * 100, length=(1 << 64) - 1), 1009),
    "a close of one byte": (frame(CLOSE, b"x"), 1002),
    "a close code below 1000": (frame(CLOSE, b"\0\1"), 1002),
    "a close code that is never sent": (frame(CLOSE, (1005).to_bytes(2)), 1002),
    "a close reason that is not UTF-8": (frame(CLOSE, (1000).to_bytes(2) + b"\xff"), 1007),
    "empty fragments without end": (frame(TEXT, fin=False) + frame(0, fin=False) * 100, 1008),
    "more than 64 messages": (frame(TEXT, b"x") * 65, 1008),
}  # fmt: skip


@contextmanager
def subscriber(service: Service, prediction_id: str = "x") -> Iterator[socket.socket]:
    """A WebSocket that the server has accepted; its frames are still to be read."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=ANSWER_S) as client:
        client.sendall(SOCKET.replace(b"predict/x", f"predict/{prediction_id}".encode()))
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += client.recv(1)
        assert head.startswith(b"HTTP/1.1 101 ")
        yield client


def frames(answer: bytes) -> list[tuple[int, bytes]]:
    """Opcode and payload of each of the server's frames so far; nothing else may be there."""
    rest, found = answer, []
    while len(rest) > 1:
        opcode, length, at = rest[0] & 15, rest[1], 2
        assert opcode in (TEXT, CLOSE, PING, 10), rest
        if length == 126:
            length, at = int.from_bytes(rest[2:4]), 4
        if len(rest) < at + length:
            break
        found.append((opcode, rest[at : at + length]))
        rest = rest[at + length :]
    return found


def noise_frame(rng: random.Random) -> bytes:
    payload = rng.randbytes(rng.choice([0, 1, 2, 125, 126, 5000]))
    length = rng.choice([None, None, 0, 7, 126, 1 << 16, 1 << 40])
    flags = {"fin": rng.random() < 0.7, "masked": rng.random() < 0.8}
    return frame(rng.randrange(16), payload, length=length, reserved=rng.choice([0, 0, 0, 1, 4]), **flags)


def resident_bytes(service: Service) -> int:
    status = Path(f"/proc/{service.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


@pytest.fixture
def running(start_gateway: Any, start_processor: Any) -> Iterator[tuple[Service, str]]:
    """A gateway, and a prediction that runs until the test is over; neither service may stumble."""
    gateway, processor = start_gateway(), start_processor(MOODY)
    answer = httpx2.post(
        f"{gateway.url}/predict", json={"input": {"mood": "hang"}}, headers={"Async-Mode": "true"}
    )
    prediction = answer.headers["Location"]
    yield gateway, answer.headers["Prediction-Id"]
    assert httpx2.delete(gateway.url + prediction).status_code == 200
    assert httpx2.post(f"{gateway.url}/predict", json={"input": {}}).status_code == 200
    for service in (gateway, processor):
        assert "Traceback" not in service.log


def closed_with(service: Service, prediction_id: str, data: bytes) -> int | None:
    """The code; the server's close is answered, and it must then close the connection."""
    answer = b""
    with (
        subscriber(service, prediction_id) as client,
        suppress(ConnectionError),
    ):  # closed while we still talked
        client.sendall(data)
        while part := client.recv(65536):
            answer += part
            if frames(answer) and frames(answer)[-1][0] == CLOSE:
                with suppress(OSError):  # it may be closed already
                    client.sendall(frame(CLOSE, frames(answer)[-1][1][:2]))
    opcode, payload = frames(answer)[-1]
    return int.from_bytes(payload[:2]) if opcode == CLOSE else None


def test_bad_frames_are_refused_by_name(running: tuple[Service, str]) -> None:
    gateway, prediction_id = running
    found = {what: closed_with(gateway, prediction_id, data) for what, (data, _) in BAD_FRAMES.items()}
    assert found == {what: code for what, (_, code) in BAD_FRAMES.items()}


def test_noise_in_frames(running: tuple[Service, str]) -> None:
    gateway, prediction_id = running
    rng = random.Random(21)
    before = resident_bytes(gateway)
    for _ in range(150):
        with subscriber(gateway, prediction_id) as client, suppress(ConnectionError):
            client.sendall(b"".join(noise_frame(rng) for _ in range(rng.randint(1, 5))))
            client.shutdown(socket.SHUT_WR)
            answer = b""
            while part := client.recv(65536):
                answer += part
            frames(answer)
    floods = [
        frame(PING, b"x" * 125) * 10_000,
        frame(0, fin=False) * 100_000,
        frame(BINARY, b"x" * 1_000_000),
    ]
    with ExitStack() as stack:
        for flood in floods:  # and none of them reads
            client = stack.enter_context(subscriber(gateway, prediction_id))
            with suppress(ConnectionError):
                client.sendall(frame(TEXT, fin=False))
                for _ in range(20):
                    client.sendall(flood)
        assert gateway.answers("/livez") == 200
        # some megabytes are the allocator's; what was sent would be fifty
        assert resident_bytes(gateway) - before < 12 << 20
