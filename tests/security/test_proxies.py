"""TRUSTED_PROXIES: what proxies say of the client and of themselves is believed of those, and of nobody else."""

import json
import random
import uuid
from collections.abc import Callable

import httpx2
import pytest
from starlette.types import Receive, Scope, Send

from gateway.proxies import Proxies
from tests.conftest import wait_until
from tests.security.test_access import answered, first_code, handshake, request
from tests.security.test_raw_bytes import codes, tell
from tests.services import Service

HERE = "127.0.0.1"
TRUSTED = f"{HERE},10.0.0.0/8, 2001:db8::/32,::ffff:192.168.7.0/120,fe80::1"


def clients(gateway: Service, asked: list[tuple[str, ...]]) -> list[str]:
    """What the access log calls who asked with each of these headers."""
    ids = [str(uuid.uuid4()) for _ in asked]
    for prediction_id, headers in zip(ids, asked, strict=True):
        assert codes(tell(gateway, request(f"GET /predict/{prediction_id}", *headers))) == [404], headers

    def logged() -> list[str] | None:
        lines = [line for line in map(json.loads, gateway.log.splitlines()) if line["event"] == "request"]
        found = {line["prediction_id"]: line["client"] for line in lines}
        return [found[prediction_id] for prediction_id in ids] if len(found) == len(ids) else None

    return list(wait_until(logged))


#: Headers of a request, and whom the access log names.
BELIEVED = [
    ((), HERE),
    (("x-forwarded-for: 203.0.113.9",), "203.0.113.9"),
    (("x-forwarded-for: 198.51.100.1, 203.0.113.9",), "203.0.113.9"),  # the first is what the client said
    (("x-forwarded-for: 198.51.100.1, 203.0.113.9, 10.1.2.3",), "203.0.113.9"),
    (("x-forwarded-for: 198.51.100.1", "x-forwarded-for: 203.0.113.9 , 10.1.2.3"), "203.0.113.9"),
    (("x-forwarded-for: 10.9.9.9, 10.1.2.3",), "10.9.9.9"),
    (("x-forwarded-for: ::ffff:203.0.113.9, ::ffff:10.1.2.3",), "203.0.113.9"),
    (("x-forwarded-for: 203.0.113.9, 192.168.7.1",), "203.0.113.9"),
    (("x-forwarded-for: 2001:0DB9::0001, 2001:db8::2",), "2001:db9::1"),
    (("x-forwarded-for: [2001:db9::1]:4711, [2001:db8::2]",), "2001:db9::1"),
    (("x-forwarded-for: 203.0.113.9:4711",), "203.0.113.9"),
    (("x-forwarded-for: 203.0.113.9,, 10.1.2.3,",), "203.0.113.9"),
    (("forwarded: for=198.51.100.1, for=203.0.113.9;proto=https;by=10.1.2.3",), "203.0.113.9"),
    (('Forwarded: For="[2001:db9::1]:4711";host="a,b;c"', "forwarded: for=10.1.2.3"), "2001:db9::1"),
    # one that is passed on must not outdo the one that is written
    (("forwarded: for=198.51.100.1", "x-forwarded-for: 203.0.113.9"), "203.0.113.9"),
    # what makes no sense: the nearest that is known
    (("x-forwarded-for: unknown",), HERE),
    (("x-forwarded-for: 203.0.113.9, unknown, 10.1.2.3",), "10.1.2.3"),
    (("x-forwarded-for: 203.0.113.9, 10.1.2.3evil",), HERE),
    (("x-forwarded-for: 203.0.113.9%eth0",), HERE),
    (("x-forwarded-for: fe80::1%x",), HERE),
    (("x-forwarded-for: 0203.0.113.9",), HERE),
    (("x-forwarded-for: [203.0.113.9",), HERE),
    (("x-forwarded-for: ",), HERE),
    (("x-forwarded-for: \xe4",), HERE),
    (("forwarded: for=198.51.100.1, =, for=203.0.113.9",), HERE),
    (('forwarded: for="198.51.100.1, for=203.0.113.9',), HERE),
    (("forwarded: for=_hidden",), HERE),
]


def test_the_access_log_names_the_nearest_address_that_is_not_trusted(
    start_gateway: Callable[..., Service],
) -> None:
    gateway = start_gateway(TRUSTED_PROXIES=TRUSTED, ACCESS_LOG="true")
    asked = [headers for headers, _ in BELIEVED]
    assert list(zip(asked, clients(gateway, asked), strict=True)) == BELIEVED


@pytest.mark.parametrize("trusted", ["", "192.0.2.1,::1,126.0.0.0/8", "::ffff:127.0.0.2"])
def test_nobody_else_is_believed(start_gateway: Callable[..., Service], trusted: str) -> None:
    gateway = start_gateway(TRUSTED_PROXIES=trusted, ACCESS_LOG="true")
    asked = [headers for headers, _ in BELIEVED]
    assert clients(gateway, asked) == [HERE] * len(asked)
    host = ("x-forwarded-host: page.example", "x-forwarded-proto: https", "forwarded: host=page.example")
    assert posted(gateway, "https://page.example", *host) == 403


@pytest.mark.parametrize(
    "trusted", ["*", "::ffff:127.0.0.1", "0.0.0.0/0", "127.0.0.9/8", " 10.0.0.1 , ::ffff:7f00:1"]
)
def test_ways_to_write_it(start_gateway: Callable[..., Service], trusted: str) -> None:
    gateway = start_gateway(TRUSTED_PROXIES=trusted, ACCESS_LOG="true")
    assert clients(gateway, [("x-forwarded-for: 203.0.113.9",)]) == ["203.0.113.9"]


def test_whoever_trusts_everybody_hears_of_the_farthest(start_gateway: Callable[..., Service]) -> None:
    gateway = start_gateway(TRUSTED_PROXIES="*", ACCESS_LOG="true")
    endless = "x-forwarded-for: 198.51.100.1" + ", 203.0.113.9" * 4000
    asked = [("x-forwarded-for: 203.0.113.9, 10.1.2.3",), (endless,)]
    assert clients(gateway, asked) == ["203.0.113.9", "203.0.113.9"]


@pytest.mark.parametrize(
    "trusted", ["proxy.example", "10.0.0.0/33", "10.0.0.1:80", "[::1]", "10.0.0.1 10.0.0.2", "1", "10.0.0.1,"]
)
def test_what_is_no_address_stops_the_start(start_gateway: Callable[..., Service], trusted: str) -> None:
    gateway = start_gateway(wait=False, TRUSTED_PROXIES=trusted)
    assert gateway.process.wait(20) == 1
    assert gateway.last_sentence().startswith("TRUSTED_PROXIES is wrong: ")
    gateway.kill()


# -- where a page may come from


def posted(gateway: Service, origin: str, *headers: str) -> int:
    """The code of a page's POST, 400 if it is let in; its Host is here:81. A WebSocket must be treated alike."""
    sent = (f"origin: {origin}", *headers)
    code = codes(tell(gateway, request("POST /predict", *sent, "content-length: 0")))[0]
    assert first_code(gateway, handshake(*sent))[0] == {400: 101, 403: 403}[code], headers
    return code


ORIGINS = [
    ("http://here:81", (), 400),
    ("https://page.example", (), 403),
    ("https://page.example", ("x-forwarded-host: page.example",), 400),
    ("https://page.example:8443", ("x-forwarded-host: page.example:8443",), 400),
    ("https://page.example:8443", ("x-forwarded-host: page.example",), 403),
    ("https://page.example:8443", ("x-forwarded-host: page.example", "x-forwarded-port: 8443"), 400),
    ("https://page.example", ("x-forwarded-host: page.example", "x-forwarded-port: 80"), 400),
    ("https://[2001:db8::1]:8443", ("x-forwarded-host: [2001:DB8::1]:8443",), 400),
    ("https://page.example", ("x-forwarded-host: page.example, inner.example",), 400),
    ("https://page.example", ("forwarded: for=203.0.113.9;host=page.example",), 400),
    ("https://[2001:db8::1]:8443", ('forwarded: host="[2001:db8::1]:8443"',), 400),
    ("http://here:81", ("x-forwarded-host: page.example",), 400),
    ("null", ("x-forwarded-host: null",), 403),
    *[
        ("https://page.example", (f"x-forwarded-host: {host}", f"x-forwarded-port: {port}"), 403)
        for host, port in [("[", "1"), ("page.example:x", "x"), ("", ""), ("\xe4", "99999"), ("@:,/", "-1")]
    ],
]


def test_the_host_that_a_trusted_proxy_names_is_the_own_one(start_gateway: Callable[..., Service]) -> None:
    gateway = start_gateway(TRUSTED_PROXIES=TRUSTED)
    for origin, headers, code in ORIGINS:
        assert posted(gateway, origin, *headers) == code, (origin, headers)
    foreign = request("POST /predict", "origin: https://evil.example", "x-forwarded-host: page.example")
    assert "'here:81' or 'page.example'" in answered(gateway, foreign)[2]["error"]


def test_a_browser_that_calls_a_request_same_origin_is_believed(
    start_gateway: Callable[..., Service],
) -> None:
    """Behind `Host $host` the own page's port is lost; which pages may not say so themselves."""
    gateway = start_gateway()
    assert posted(gateway, "https://here:8443", "sec-fetch-site: same-origin") == 400
    for word in ("same-site", "cross-site", "none", "same-origin, cross-site"):
        assert posted(gateway, "https://here:8443", f"sec-fetch-site: {word}") == 403


# -- what is protected stays so

FORWARDED = [
    ("x-forwarded-for: 127.0.0.1",),
    ("forwarded: for=127.0.0.1;host=localhost",),
    ("x-forwarded-host: localhost", "x-forwarded-prefix: /dead"),
    ("x-forwarded-prefix: /ml",),
]


def test_no_header_opens_what_is_for_operators(start_gateway: Callable[..., Service]) -> None:
    gateway = start_gateway(TRUSTED_PROXIES="*", ROOT_PATH="/ml")
    for headers in FORWARDED:
        for path in ("/dead", "/ml/dead", "//dead", "/ml//dead"):
            sent = request(f"GET {path}", *headers).replace(b"here:81", b"localhost:81")
            assert codes(tell(gateway, sent))[0] in (403, 404), (path, headers)
    assert codes(tell(gateway, request("GET /dead").replace(b"here:81", b"localhost:81"))) == [200]


def test_no_prefix_leads_past_the_keys(start_gateway: Callable[..., Service]) -> None:
    gateway = start_gateway(TRUSTED_PROXIES="*", ROOT_PATH="/ml", API_KEYS="a-key")
    for prefix in ("/ml", "/dead", "/ml/dead", "/", "/livez", "/.."):
        for path in ("/dead", "/ml/dead", "/livez/dead", "/ml/../dead", "/livez/../dead", "/predict/x"):
            code = codes(tell(gateway, request(f"GET {path}", f"x-forwarded-prefix: {prefix}")))[0]
            assert code == (401 if path in ("/dead", "/predict/x") else 404), (path, prefix)


def test_garbage_in_these_headers_is_no_fault(start_gateway: Callable[..., Service]) -> None:
    gateway = start_gateway(TRUSTED_PROXIES="*", ACCESS_LOG="true")
    dice = random.Random(15)
    names = ["forwarded", *(f"x-forwarded-{name}" for name in ("for", "host", "proto", "port", "prefix"))]
    pieces = [
        "for",
        "=",
        '"',
        "\\",
        ",",
        ";",
        "[",
        "]",
        ":",
        "::1",
        "/",
        "/a",
        "//",
        "..",
        "%",
        "\xff",
        "\t ",
        "1.2.3.4",
    ]
    for _ in range(300):
        headers = [
            f"{name}: {''.join(dice.choices(pieces, k=dice.randrange(12))).strip()}"
            for name in dice.choices(names, k=3)
        ]
        sent = request("POST /predict", "origin: http://x", *headers, "content-length: 0")
        assert tell(gateway, sent.decode().encode("latin-1"))[9:12] in (b"400", b"403"), headers
    long = [f"{name}: {'for=' if name == 'forwarded' else ''}{'/a,' * 2000}" for name in names]
    assert codes(tell(gateway, request("POST /predict", *long, "content-length: 0"))) == [400]
    assert "Traceback" not in gateway.log


@pytest.mark.parametrize(
    ("headers", "scheme"),
    [
        ({"x-forwarded-proto": "https"}, "https"),
        ({"x-forwarded-proto": "HTTPS, http"}, "https"),
        ({"forwarded": "for=203.0.113.9;proto=https"}, "https"),
        ({"x-forwarded-proto": "javascript"}, "http"),
        ({"x-forwarded-proto": ""}, "http"),
        ({}, "http"),
    ],
)
async def test_the_scheme_for_traces(headers: dict[str, str], scheme: str) -> None:
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((scope["asked"].scheme, scope["scheme"], scope["client"]))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    for trusted, expected in ((["127.0.0.0/8"], scheme), ([], "http")):
        transport = httpx2.ASGITransport(Proxies(app, trusted=trusted, root_path=""))
        async with httpx2.AsyncClient(transport=transport, base_url="http://here:81") as client:
            await client.get("/", headers=headers)
        assert seen.pop() == (expected, "http", (HERE, 123))
