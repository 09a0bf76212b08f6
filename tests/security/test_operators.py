"""What reaches beyond one's own prediction is for operators: who is one, with and without keys."""

import socket
from collections.abc import Callable

import pytest

from tests.contract.test_read import UNKNOWN
from tests.security.test_access import counted, first_code, request
from tests.security.test_raw_bytes import tell
from tests.services import Service

ID = UNKNOWN[0]
CLIENT, ADMIN = "the-client's-key", "the-admin's-key"

#: Each with the code that an operator gets.
OPERATORS = {
    "GET /dead": 200,
    f"DELETE /dead/{ID}": 404,
    f"POST /dead/{ID}/retry": 404,
    "GET /queue/waiting": 200,
    "DELETE /queue?model=default&sure=yes": 200,
}
CLIENTS = {"GET /queue": 200, f"GET /predict/{ID}": 404, f"DELETE /predict/{ID}": 404}
ALL = OPERATORS | CLIENTS

HERE = "host: localhost:8080"


def code(gateway: Service, first: str, *headers: str) -> int:
    lines = [f"{first} HTTP/1.1", *headers, "content-length: 0", "connection: close", "", ""]
    return first_code(gateway, "\r\n".join(lines).encode())[0]


def everything(gateway: Service, *headers: str) -> dict[str, int]:
    return {first: code(gateway, first, *headers) for first in ALL}


def all_of(codes: dict[str, int], found: int) -> dict[str, int]:
    return dict.fromkeys(codes, found)


@pytest.mark.parametrize(
    ("keys", "shown", "expected"),
    [
        ({}, None, ALL),
        ({"API_KEYS": CLIENT}, None, all_of(ALL, 401)),
        ({"API_KEYS": CLIENT}, "wrong", all_of(ALL, 401)),
        ({"API_KEYS": CLIENT}, CLIENT, ALL),
        ({"ADMIN_API_KEYS": ADMIN}, None, all_of(OPERATORS, 401) | CLIENTS),
        ({"ADMIN_API_KEYS": ADMIN}, "wrong", all_of(OPERATORS, 401) | CLIENTS),
        ({"ADMIN_API_KEYS": f"other,{ADMIN}"}, ADMIN, ALL),
        ({"API_KEYS": CLIENT, "ADMIN_API_KEYS": ADMIN}, None, all_of(ALL, 401)),
        ({"API_KEYS": CLIENT, "ADMIN_API_KEYS": ADMIN}, "wrong", all_of(ALL, 401)),
        ({"API_KEYS": CLIENT, "ADMIN_API_KEYS": ADMIN}, CLIENT, all_of(OPERATORS, 403) | CLIENTS),
        ({"API_KEYS": CLIENT, "ADMIN_API_KEYS": ADMIN}, ADMIN, ALL),
    ],
)
def test_keys(
    start_gateway: Callable[..., Service], keys: dict[str, str], shown: str | None, expected: dict[str, int]
) -> None:
    gateway = start_gateway(**keys)
    for header in ("authorization: Bearer {}", "x-api-key: {}"):
        assert everything(gateway, HERE, *([header.format(shown)] if shown else [])) == expected


def test_no_way_of_writing_a_path_leads_past_it(start_gateway: Callable[..., Service]) -> None:
    gateway = start_gateway(ADMIN_API_KEYS=ADMIN)
    for path in ("/dead/", "//dead", "/queue/waiting/", "/./dead", "/%64ead", "/dead?x=/predict", "/dead%2F"):
        assert code(gateway, f"GET {path}", HERE) in (401, 404), path


OF_THIS_MACHINE = [
    ["host: localhost"],
    ["host: LOCALHOST:80"],
    ["host: 127.0.0.1:8080"],
    ["host: 127.9.9.9"],
    ["host: [::1]:8080"],
    [HERE, "origin: http://localhost:3000"],
]
FROM_ELSEWHERE = [
    [HERE, "x-forwarded-for: 127.0.0.1"],
    [HERE, "X-Forwarded-Proto: https"],
    [HERE, "forwarded: for=127.0.0.1"],
    [HERE, "x-real-ip: 127.0.0.1"],
    [HERE, "via: 1.1 proxy"],
    # a name of the page's own that leads here
    ["host: rebound.example:8080"],
    ["host: localhost.example"],
    ["host: 127.0.0.1.example"],
    ["host: [::1"],
    ["host: "],
    ["host: 0.0.0.0:8080"],
    ["host: localhost@rebound.example"],
    # who may use the API is no operator yet
    [HERE, "origin: https://page.example"],
    [HERE, "origin: null"],
]


def test_without_keys_this_machine_is_the_operator(start_gateway: Callable[..., Service]) -> None:
    gateway = start_gateway(ALLOWED_ORIGINS="*")
    for headers in OF_THIS_MACHINE:
        assert everything(gateway, *headers) == ALL, headers


def test_without_keys_what_may_come_from_elsewhere_is_told_what_to_set(
    start_gateway: Callable[..., Service],
) -> None:
    gateway = start_gateway(ALLOWED_ORIGINS="*")
    for headers in FROM_ELSEWHERE:
        assert everything(gateway, *headers) == all_of(OPERATORS, 403) | CLIENTS, headers
    assert b"set ADMIN_API_KEYS" in tell(gateway, request("GET /dead"))


def test_without_keys_another_machine_is_none(start_gateway: Callable[..., Service]) -> None:
    gateway = start_gateway(HOST="0.0.0.0")
    asked = f"GET /dead HTTP/1.1\r\n{HERE}\r\nconnection: close\r\n\r\n".encode()
    with socket.create_connection((own_address(), gateway.port), timeout=20) as client:
        client.sendall(asked)
        assert client.recv(65536).startswith(b"HTTP/1.1 403 ")


def own_address() -> str:
    """One at which other machines reach this one; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address but loopback")
        return str(probe.getsockname()[0])


def test_refusals_are_counted_under_their_route(start_gateway: Callable[..., Service]) -> None:
    gateway = start_gateway(API_KEYS=CLIENT, ADMIN_API_KEYS=ADMIN)
    code(gateway, f"POST /dead/{ID}/retry", HERE, f"x-api-key: {CLIENT}")
    code(gateway, "DELETE /queue", HERE)
    assert counted(gateway) == {("403", "POST", "/dead/{prediction_id}/retry"), ("401", "DELETE", "/queue")}
