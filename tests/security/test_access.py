"""Keys and origins, as a client meets them."""

import base64
import json
import socket
from collections.abc import Callable

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.security.test_raw_bytes import SOCKET, codes, tell
from tests.services import Service

KEY = "a-key,another"
ID = "00000000-0000-4000-8000-000000000000"


def request(first: str, *headers: str) -> bytes:
    return "\r\n".join([f"{first} HTTP/1.1", "host: here:81", *headers, "connection: close", "", ""]).encode()


def handshake(*headers: str) -> bytes:
    return SOCKET.replace(b"host: x\r\n", "\r\n".join(["host: here:81", *headers, ""]).encode())


def first_code(service: Service, data: bytes) -> tuple[int, bytes]:
    """Code and head of the first answer; a WebSocket stays open for a while."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as client:
        client.sendall(data)
        answer = client.recv(65536)
    return int(answer[9:12]), answer


def test_keys(start_gateway: Callable[..., Service]) -> None:
    gateway = start_gateway(API_KEYS=KEY, LOG_LEVEL="debug")
    get = f"GET /predict/{ID}"
    code, answer = first_code(gateway, request(get))
    assert code == 401
    assert b"www-authenticate: Bearer" in answer
    assert first_code(gateway, request(get, "authorization: Bearer wrong"))[0] == 401
    assert first_code(gateway, request(get, "authorization: bearer another"))[0] == 404
    assert first_code(gateway, request(get, "x-api-key: a-key"))[0] == 404
    assert first_code(gateway, request("POST /predict", "content-length: 0"))[0] == 401
    assert [gateway.answers(path) for path in ("/livez", "/readyz", "/metrics")] == [200] * 3
    assert first_code(gateway, handshake())[0] == 401
    secret = base64.urlsafe_b64encode(b"a-key").rstrip(b"=").decode()
    offer = f"sec-websocket-protocol: foretell, base64url.bearer.authorization.foretell.{secret}"
    code, answer = first_code(gateway, handshake(offer))
    assert code == 101
    assert b"sec-websocket-protocol: foretell\r\n" in answer.lower()
    assert "a-key" not in gateway.log
    assert secret not in gateway.log


@pytest.mark.parametrize(
    ("allowed", "origin", "code"),
    [
        ("", "http://here:81", 404),
        ("", "https://here:82", 403),
        ("", "https://here", 403),
        ("", "null", 403),
        ("", "http://[", 403),
        ("https://app.example", "https://app.example", 404),
        ("https://app.example", "https://app.example.org", 403),
        ("*", "https://any.example", 404),
    ],
)
def test_origins(start_gateway: Callable[..., Service], allowed: str, origin: str, code: int) -> None:
    gateway = start_gateway(ALLOWED_ORIGINS=allowed)
    sent = f"origin: {origin}"
    answer = tell(gateway, request(f"DELETE /predict/{ID}", sent))
    assert codes(answer) == [code]
    assert (b"access-control-allow-origin" in answer) is (bool(allowed) and code != 403)
    assert first_code(gateway, handshake(sent))[0] == (101 if code == 404 else 403)
    preflight = request("OPTIONS /predict", sent, "access-control-request-method: POST")
    assert (b" 200 " in tell(gateway, preflight)[:16]) is (bool(allowed) and code != 403)


def counted(gateway: Service) -> set[tuple[str, ...]]:
    """Code, method and route of what was answered with 401 and 403."""
    labels = ("http_response_status_code", "http_request_method", "http_route")
    return {
        tuple(sample.labels[label] for label in labels)
        for family in text_string_to_metric_families(gateway.get("/metrics")[1].decode())
        for sample in family.samples
        if sample.name == "http_server_request_duration_seconds_count"
        and sample.labels["http_response_status_code"].startswith("40")
    }


def test_refusals_are_counted_under_their_route(start_gateway: Callable[..., Service]) -> None:
    gateway = start_gateway(API_KEYS=KEY)
    key = "x-api-key: another"
    foreign = "origin: https://foreign.example"
    for sent in (
        request(f"GET /predict/{ID}"),
        request("PATCH /dead"),
        request("GET /dead/nothing/here"),
        request("POST /predict", key, foreign, "content-length: 0"),
        handshake(),
    ):
        first_code(gateway, sent)
    assert counted(gateway) == {
        ("401", "GET", "/predict/{prediction_id}"),
        ("401", "_OTHER", "/dead"),
        ("401", "GET", "other"),
        ("403", "POST", "/predict"),
        ("401", "_OTHER", "/ws/predict/{prediction_id}"),
    }


def test_a_slash_at_the_end_is_the_same_route(start_gateway: Callable[..., Service]) -> None:
    gateway = start_gateway(API_KEYS=KEY)
    for sent in (
        request(f"GET /predict/{ID}/"),
        request(f"GET /predict/{ID}/", "x-api-key: another"),
        request("POST /predict/", "content-length: 0"),
        request("GET /dead/"),
        handshake().replace(b"/ws/predict/x", b"/ws/predict/x/"),
        request("GET /ws/predict/x"),
        request("GET /predict//"),
    ):
        first_code(gateway, sent)
    assert counted(gateway) == {
        ("401", "GET", "/predict/{prediction_id}"),
        ("404", "GET", "/predict/{prediction_id}"),
        ("401", "POST", "/predict"),
        ("401", "GET", "/dead"),
        ("401", "_OTHER", "/ws/predict/{prediction_id}"),
        ("401", "GET", "/ws/predict/{prediction_id}"),
        ("401", "GET", "other"),
    }


PREFLIGHT = ("access-control-request-method: POST", "access-control-request-headers: content-type")


def answered(service: Service, data: bytes) -> tuple[int, bytes, dict[str, str]]:
    """Code, head and body of the one answer; the body is JSON."""
    head, _, body = tell(service, data).partition(b"\r\n\r\n")
    return int(head[9:12]), head.lower(), json.loads(body)


@pytest.mark.parametrize("allowed", ["", "https://app.example"])
@pytest.mark.parametrize("keys", ["", KEY])
@pytest.mark.parametrize("more", [(), PREFLIGHT], ids=["OPTIONS", "preflight"])
def test_options_of_a_foreign_origin(
    start_gateway: Callable[..., Service], allowed: str, keys: str, more: tuple[str, ...]
) -> None:
    """What a developer sees in the browser's network tab names the setting."""
    gateway = start_gateway(ALLOWED_ORIGINS=allowed, API_KEYS=keys)
    for path in ("/predict", f"/predict/{ID}", "/dead"):
        code, head, body = answered(
            gateway, request(f"OPTIONS {path}", "origin: https://foreign.example", *more)
        )
        assert code == 403
        assert "ALLOWED_ORIGINS" in body["error"]
        assert b"access-control-allow-origin" not in head


def test_options_of_the_own_origin_and_of_none(start_gateway: Callable[..., Service]) -> None:
    gateway = start_gateway(ALLOWED_ORIGINS="https://app.example")
    for more in ((), ("origin: http://here:81",)):
        code, head, body = answered(gateway, request("OPTIONS /predict", *more))
        assert (code, b"allow: post" in head) == (405, True)
        assert "POST" in body["error"]


@pytest.mark.parametrize(("origin", "method"), [("http://here:81", "POST"), ("https://app.example", "PATCH")])
def test_a_preflight_is_refused_in_json(
    start_gateway: Callable[..., Service], origin: str, method: str
) -> None:
    gateway = start_gateway(ALLOWED_ORIGINS="https://app.example")
    preflight = request("OPTIONS /predict", f"origin: {origin}", f"access-control-request-method: {method}")
    code, head, body = answered(gateway, preflight)
    assert code == 400
    assert b"content-type: application/json" in head
    assert b"cache-control: no-store" in head
    assert ("(origin)" if method == "POST" else "(method)") in body["error"]
    assert (b"access-control-allow-origin" in head) is (method == "PATCH")


@pytest.mark.parametrize(
    ("host", "origin"),
    [("here", "http://here:8443"), ("127.0.0.1:8080", "https://app.example"), ("here:81", "null")],
)
def test_a_refused_origin_is_told_what_was_compared(
    start_gateway: Callable[..., Service], host: str, origin: str
) -> None:
    """The first is nginx's usual `proxy_set_header Host $host`, which loses the port of the own page."""
    gateway = start_gateway()
    post = request("POST /predict", f"origin: {origin}", "content-length: 0").replace(
        b"here:81", host.encode()
    )
    code, _, body = answered(gateway, post)
    assert code == 403
    for words in (f"'{origin}'", f"'{host}'", "ALLOWED_ORIGINS", "Host"):
        assert words in body["error"]
