"""What clients send by mistake or by malice. Each gets the right code and a JSON error, and the next client is served."""

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.contract.api import TEXT, Api, accepted, post_head, refused, same, state, succeeded
from tests.contract.conftest import Local

ASYNC = {"Async-Mode": "true"}
BODY = b'{"input": "x"}'


@pytest.fixture(autouse=True)
def served_afterwards(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever one client did, the next is served, by the same process."""
    yield
    if "api" in request.fixturenames:
        succeeded(request.getfixturevalue("api").post(TEXT), TEXT)
    else:
        assert succeeded(request.getfixturevalue("echo").post(TEXT), TEXT) == TEXT


def nested(depth: int, opening: str = "[", closing: str = "]") -> bytes:
    return b'{"input": %b}' % (opening * depth + "1" + closing * depth).encode()


# -- JSON that is none


@pytest.mark.parametrize(
    "value",
    [
        "NaN", "Infinity", "-Infinity", "nan", "undefined", "None", "True", "1e400", "-1e400", "1" * 400, "01", "+1",
        ".5", "1.", "0x10", "'x'", '"', '"\\x41"', '"\\ud800"', '"\\udc00\\ud800"', '"a\tb"', '"a\nb"', '"a\x00b"',
        "[1,]", "[1 2]", '{"a": 1,}', '{"a"}', "{1: 2}", '{"a": NaN}', "[[[1e999]]]", "/* x */ 1", "1 // x", "1}", "]",
        "1} {}", '"x"} garbage', "",
    ],
)  # fmt: skip
@pytest.mark.parametrize("more", ["", ', "other": 1'], ids=["alone", "with another key"])
def test_not_json(api: Api, value: str, more: str) -> None:
    body = f'{{"input": {value}{more}}}'.encode()
    assert "JSON" in refused(api.send(body), 400)
    refused(api.send(body, ASYNC), 400)


@pytest.mark.parametrize(
    "body",
    [
        b"\xef\xbb\xbf" + BODY,
        BODY.decode().encode("utf-16"),
        BODY.decode().encode("utf-16-le"),
        BODY.decode().encode("utf-32"),
        '{"input": "é"}'.encode("latin-1"),
        b'{"input": "\xc0\xaf"}',
        b'{"input": "\xed\xa0\x80"}',
        b'{"input": "\xf5\x80\x80\x80"}',
        b"\x1f\x8b\x08\x00",
        b"\x00" * 100,
        b" " * 100_000,
    ],
    ids=["BOM", "UTF-16", "UTF-16LE", "UTF-32", "Latin-1", "overlong", "surrogate", "beyond", "gzip", "NUL", "spaces"],
)  # fmt: skip
def test_not_utf8_json(api: Api, body: bytes) -> None:
    assert "JSON" in refused(api.send(body), 400)


@pytest.mark.parametrize("depth", [1000, 1024, 1025, 100_000])
@pytest.mark.parametrize("brackets", [("[", "]"), ('{"a":', "}")], ids=["lists", "objects"])
def test_nested_too_deep(api: Api, depth: int, brackets: tuple[str, str]) -> None:
    assert refused(api.send(nested(depth, *brackets)), 400)
    refused(api.send(b'{"other": 1, ' + nested(depth, *brackets)[1:]), 400)


@pytest.mark.parametrize("depth", [1000, 100_000])
def test_brackets_that_never_close(api: Api, depth: int) -> None:
    refused(api.send(b'{"input": ' + b"[" * depth), 400)
    refused(api.send(b"[" * depth), 400)


@pytest.mark.parametrize("padding", [" ", "\n", "\\t", "}", "{", '\\"', "1"])
@pytest.mark.parametrize("end", ['x"}', 'x", "other": 1}', ""])
def test_half_a_megabyte_of_anything_is_no_work(api: Api, padding: str, end: str) -> None:
    """A parser that looks back takes hours for it, and holds up everybody."""
    body = f'{{"input": "{padding * (500_000 // len(padding))}{end}'.encode()
    answer = api.send(body, ASYNC)
    if end and padding != "\n":
        accepted(answer)
    else:
        refused(answer, 400)


def test_2_mb_body(api: Api) -> None:
    refused(api.post("x" * 2_000_000), 413)


# -- JSON that is odd, and comes back as it was


@pytest.mark.parametrize(
    "text",
    [
        "null", "false", "0", "-0", "-0.0", "1.0", "1e-400", "5e-324", "1.7976931348623157e308", "0.1", "1E5",
        str(2**53 + 1), str(2**63), str(2**64 + 1), "123456789012345678901234567890", "-" + "9" * 300,
        "[1, 1.0, true, [123456789012345678901234567890]]", '{"a": 18446744073709551617, "b": 1e22, "c": "1e5"}',
        '""', '"\\u0000"', '"\\ud83e\\udd8a"', '"\U0001f98a"', '"\\/\\b\\f\\n\\r\\t\\"\\\\"', '"\u2028\u202e\ufeff\ufffe"',
        '"</script>"', '"processing"', '{"": ""}', '{"input": {"input": null}}', '{"prediction_id": 1, "error": "x"}',
        "[]", "{}", "[[], {}]", '{"__proto__": 1, "constructor": {}}', " [ 1 , 2 ] ",
    ],
)  # fmt: skip
@pytest.mark.parametrize("more", ["", ', "other": 1'], ids=["alone", "with another key"])
def test_odd_values_come_back(echo: Local, text: str, more: str) -> None:
    value = json.loads(text)
    body = f'{{"input": {text}{more}}}'.encode()
    assert same(succeeded(echo.send(body), value), value)
    prediction_id = accepted(echo.send(body, ASYNC))
    assert same(state(echo.end(prediction_id), prediction_id, value, "succeeded"), value)
    assert echo.all_frames(prediction_id)[0][0]["output"] == {"input": value, "result": value}


@pytest.mark.parametrize("brackets", [("[", "]"), ('{"a":', "}")], ids=["lists", "objects"])
def test_249_levels_come_back(echo: Local, brackets: tuple[str, str]) -> None:
    body = nested(249, *brackets)
    value = json.loads(body)["input"]
    assert succeeded(echo.send(body), value) == value
    assert succeeded(echo.send(b'{"other": 1, ' + body[1:]), value) == value


@pytest.mark.parametrize(
    "value",
    [
        list(range(100_000)),
        {str(i): i for i in range(50_000)},
        [[]] * 100_000,
        "🦊" * 100_000,
        [[["x"]]] * 50_000,
    ],
    ids=["list", "object", "brackets", "foxes", "nests"],
)
def test_wide_values_come_back(echo: Local, value: Any) -> None:
    body = json.dumps({"input": value}, ensure_ascii=False).encode()
    assert succeeded(echo.send(body), value) == value


def test_of_a_key_that_comes_twice_the_last_counts(echo: Local) -> None:
    assert succeeded(echo.send(b'{"input": 1, "input": 2}'), 2) == 2
    assert succeeded(echo.send(b'{"input": {"a": 1, "a": 2}}'), {"a": 2}) == {"a": 2}


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**300), 10**300)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=30,
)


@given(value=JSON_VALUES, others=st.booleans(), ascii_only=st.booleans(), indent=st.sampled_from([None, 1]))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_json_value_comes_back(
    echo: Local, value: Any, others: bool, ascii_only: bool, indent: int | None
) -> None:
    request = {"first": 1, "input": value, "last": []} if others else {"input": value}
    body = json.dumps(request, ensure_ascii=ascii_only, indent=indent).encode()
    assert same(succeeded(echo.send(body), value), value)


# -- HTTP that is none


def head(*lines: str) -> bytes:
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode("latin-1")


@pytest.mark.parametrize(
    "data",
    [
        b"NONSENSE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 32,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        head("GET /livez HTTP/9.9", "Host: x"),
        head("GET /livez SPDY/3", "Host: x"),
        head("BREW /predict HTTP/1.1", "Host: x"),
        head("POST  /predict  HTTP/1.1", "Host: x"),
        head("GET /pr\xe9dict HTTP/1.1", "Host: x"),
        head("GET /pr\x00dict HTTP/1.1", "Host: x"),
        head("CONNECT predict:80 HTTP/1.1", "Host: x"),
        b"GET /livez HTTP/1.1\nHost: x\n\n",
        b"\x00" * 1000,
    ],
    ids=[
        "no request line", "TLS", "HTTP/2 preface", "HTTP/9.9", "SPDY", "unknown method", "two spaces",
        "not ASCII", "NUL in the path", "CONNECT", "bare LF", "zeros",
    ],
)  # fmt: skip
def test_not_http(echo: Local, data: bytes) -> None:
    with echo.raw(data) as client:
        refused(client.answer(), 400)


def test_a_long_path(echo: Local) -> None:
    with echo.raw(b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n") as client:
        refused(client.answer(), 414)


@pytest.mark.parametrize(
    "line",
    [
        "X-A: a\x00b", "X\x00A: a", "Async-Mode: true\x00", "X-A: a\r\n folded", "Async-Mode: tr\r\n\tue", "X-A : a",
        "X-A", ": a", "X(A): a", "X-A: a\rb", "X-A: a\x7fb\x01",
    ],
)  # fmt: skip
def test_header_junk(echo: Local, line: str) -> None:
    with echo.raw(post_head(line, length=len(BODY)) + BODY) as client:
        refused(client.answer(), 400)


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Length: -1"], ["Content-Length: +14"], ["Content-Length: 14.0"], ["Content-Length: 0x0e"],
        ["Content-Length: fourteen"], ["Content-Length:"], ["Content-Length: 99999999999999999999999"],
        ["Content-Length: 14", "Content-Length: 15"], ["Content-Length: 14", "Content-Length: 14"],
        ["Content-Length: 14, 14"], ["Content-Length: 14", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: chunked", "Content-Length: 14"], ["Transfer-Encoding: xchunked"],
        ["Transfer-Encoding: gzip"], ["Transfer-Encoding: chunked, identity"],
        ["Transfer-Encoding: chunked", "Transfer-Encoding: identity"], ["Transfer-Encoding:\x0bchunked"],
    ],
    ids=" & ".join,
)  # fmt: skip
def test_two_minds_about_the_length(echo: Local, lines: list[str]) -> None:
    """One of them could hide a second request in the body of the first."""
    with echo.raw(post_head(*lines) + BODY) as client:
        refused(client.answer(), 400)
        with pytest.raises((EOFError, ConnectionError)):
            client.answer()


@pytest.mark.parametrize(
    "chunks",
    [
        b"zz\r\n",
        b"-1\r\n",
        b"5\r\n" + BODY,
        b"ffffffffffffffffff\r\n",
        b"e\r\n" + BODY + b"XX0\r\n\r\n",
        b"\r\n",
    ],
)
def test_bad_chunks(echo: Local, chunks: bytes) -> None:
    with echo.raw(post_head("Transfer-Encoding: chunked") + chunks + b"\r\n0\r\n\r\n") as client:
        refused(client.answer(), 400)


def test_chunks_of_one_byte(echo: Local) -> None:
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\nTrailer: x\r\n\r\n"
    with echo.raw(post_head("Transfer-Encoding: chunked") + chunks) as client:
        assert json.loads(client.answer().content) == {"input": "x", "result": "x"}


def test_no_body_at_all(echo: Local) -> None:
    with echo.raw(post_head()) as client:
        refused(client.answer(), 400)


@pytest.mark.parametrize(
    ("framing", "sent"),
    [
        ("Content-Length: 14", b""),
        ("Content-Length: 14", BODY[:5]),
        ("Transfer-Encoding: chunked", b""),
        ("Transfer-Encoding: chunked", b"5\r\n" + BODY[:5]),
        ("Transfer-Encoding: chunked", b"e\r\n" + BODY + b"\r\n"),
    ],
)
def test_early_close_in_mid_body(echo: Local, framing: str, sent: bytes) -> None:
    with (
        echo.raw(post_head(framing) + sent, then_close=True) as client,
        pytest.raises((EOFError, ConnectionError)),
    ):
        client.answer()


@pytest.mark.parametrize("at", [1, 20, 60, 100])
def test_early_close_in_mid_head(echo: Local, at: int) -> None:
    data = post_head("X-A: a", "X-B: b", "X-C: c", "X-D: d", length=len(BODY)) + BODY
    with echo.raw(data[:at], then_close=True) as client, pytest.raises((EOFError, ConnectionError)):
        client.answer()


def test_byte_by_byte(echo: Local) -> None:
    with echo.raw() as client:
        for byte in post_head(length=len(BODY)) + BODY:
            client.send(bytes([byte]))
        assert json.loads(client.answer().content) == {"input": "x", "result": "x"}


def test_pipelined_requests_are_answered_in_order(echo: Local) -> None:
    bodies = [b'{"input": %d}' % i for i in range(20)]
    with echo.raw(b"".join(post_head(length=len(body)) + body for body in bodies)) as client:
        for i in range(20):
            assert json.loads(client.answer().content) == {"input": i, "result": i}


def test_a_connection_goes_on_after_an_error(echo: Local) -> None:
    with echo.raw() as client:
        for body, code in [(b"x", 400), (b"{}", 422), (BODY, 200), (b"[]", 400), (BODY, 200)]:
            client.send(post_head(length=len(body)) + body)
            assert client.answer().status_code == code


def test_http_1_0_is_served(echo: Local) -> None:
    data = head("POST /predict HTTP/1.0", f"Content-Length: {len(BODY)}") + BODY
    with echo.raw(data) as client:
        assert json.loads(client.answer().content) == {"input": "x", "result": "x"}


@pytest.mark.parametrize("async_mode", ["\ttrue ", "TRUE\t"])
def test_white_space_around_a_header_value_is_none_of_it(echo: Local, async_mode: str) -> None:
    with echo.raw(post_head(f"Async-Mode:{async_mode}", length=len(BODY)) + BODY) as client:
        assert client.answer().status_code == 202


@pytest.mark.parametrize("value", ["tr\xfce", "\xff", "\u00a0true"])
def test_headers_beyond_ascii_are_refused_where_they_matter(echo: Local, value: str) -> None:
    with echo.raw(post_head("X-A: \xfc\xff", length=len(BODY)) + BODY) as client:
        assert client.answer().status_code == 200
    with echo.raw(post_head(f"Async-Mode: {value}", length=len(BODY)) + BODY) as client:
        refused(client.answer(), 400)


def test_waiting_for_a_100_continue(echo: Local) -> None:
    with echo.raw(post_head("Expect: 100-continue", length=len(BODY))) as client:
        assert client.answer().status_code == 100
        client.send(BODY)
        assert client.answer().status_code == 200


@pytest.mark.parametrize("upgrade", ["h2c", "TLS/1.2", "foo"])
def test_an_upgrade_that_is_not_on_offer_is_ignored(echo: Local, upgrade: str) -> None:
    """Java's HttpClient offers h2c with every request, `curl --http2` too."""
    headers = [
        f"Upgrade: {upgrade}",
        "Connection: Upgrade, HTTP2-Settings",
        "HTTP2-Settings: AAMAAABkAAQAAP__",
    ]
    with echo.raw() as client:
        for _ in range(2):
            client.send(post_head(*headers, length=len(BODY)) + BODY)
            assert json.loads(client.answer().content) == {"input": "x", "result": "x"}


@pytest.mark.parametrize(
    "endless",
    [b"X-A: " + b"a" * 4_000_000, b"X-A: a\r\n" * 500_000],
    ids=["one header", "many headers"],
)
def test_a_head_without_end_is_refused(echo: Local, endless: bytes) -> None:
    with echo.raw(b"POST /predict HTTP/1.1\r\nHost: x\r\n") as client:
        with suppress(ConnectionError):  # it is refused long before
            client.send(endless)
        refused(client.answer(), 431)


def test_a_large_head_is_no_problem(echo: Local) -> None:
    with echo.raw(post_head(f"Cookie: {'x' * 20_000}", length=len(BODY)) + BODY) as client:
        assert client.answer().status_code == 200


@pytest.mark.parametrize("mess", [0, 1, 2, 3])
def test_many_half_open_clients_harm_nobody(echo: Local, mess: int) -> None:
    beginnings = [b"", b"POST", post_head(length=len(BODY)), post_head(length=len(BODY)) + BODY[:5]]
    clients = [echo.raw(beginnings[mess]) for _ in range(50)]
    assert succeeded(echo.post("now"), "now") == "now"
    for client in clients:
        client.close()
