"""What a request's headers, query and body mean, as tables."""

from collections.abc import Sequence
from typing import Any

import pytest

from gateway.errors import HttpError
from gateway.requests import MAX_DEADLINE_US, MAX_WAIT_S, RequestOptions, read_body, read_options, read_wait

SYNC = RequestOptions()
ASYNC = RequestOptions(wait_s=0.0, then_202=True)
PREFER_ASYNC = RequestOptions(wait_s=0.0, then_202=True, applied=b"respond-async")


def waits(seconds: int) -> RequestOptions:
    return RequestOptions(wait_s=float(seconds), then_202=True, applied=b"wait=%d" % seconds)


def headers(text: str) -> list[tuple[bytes, bytes]]:
    """Raw headers as the server passes them on: names in lower case."""
    pairs = [line.split(": ", 1) for line in text.split("\n") if line]
    return [(name.lower().encode(), value.encode("latin-1")) for name, value in pairs]


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("", SYNC),
        ("Content-Type: application/json", SYNC),
        ("Content-Type: application/json; charset=utf-8", SYNC),
        ("Content-Type: APPLICATION/JSON", SYNC),
        ("Content-Type: application/vnd.api+json", SYNC),
        ("Content-Length: 17", RequestOptions(length=17)),
        ("Async-Mode: false", SYNC),
        ("Async-Mode: true", ASYNC),
        ("Async-Mode: TRUE", ASYNC),
        ("Async-Mode:  True ", ASYNC),
        ("Prefer: respond-async", PREFER_ASYNC),
        ("Prefer: Respond-Async", PREFER_ASYNC),
        ("Prefer: wait=10", waits(10)),
        ('Prefer: wait="10"', waits(10)),
        ("Prefer: wait = 10", waits(10)),
        ("Prefer: wait=0", waits(0)),
        # both: wait so long for the result, and be answered 202 then (the example of RFC 7240, section 4.1)
        ("Prefer: respond-async, wait=10", waits(10)),
        ("Prefer: wait=10, respond-async", waits(10)),
        ("Prefer: respond-async\nPrefer: wait=10", waits(10)),
        ("Prefer: return=minimal, respond-async; foo=bar", PREFER_ASYNC),
        ("Prefer: return=minimal", SYNC),
        ("Prefer: waiting=10", SYNC),
        ("Prefer: ", SYNC),
        ("Async-Mode: true\nPrefer: wait=10", ASYNC),
        ("Prefer: wait=10\nAsync-Mode: true", ASYNC),
        ("Async-Mode: false\nPrefer: respond-async", SYNC),
        ("Async-Mode: false\nPrefer: wait=0", SYNC),
        ("Async-Mode: false\nPrefer: wait=10", waits(10)),
        ("X-Async-Mode: maybe", SYNC),
    ],
)
def test_headers(text: str, options: RequestOptions) -> None:
    assert read_options(headers(text)) == options


@pytest.mark.parametrize(
    ("text", "code", "sentence"),
    [
        ("Async-Mode: yes", 400, "Async-Mode must be 'true' or 'false'."),
        ("Async-Mode: ", 400, "Async-Mode must be 'true' or 'false'."),
        ("Async-Mode: 1", 400, "Async-Mode must be 'true' or 'false'."),
        ("Async-Mode: true\nAsync-Mode: false", 400, "Async-Mode must be 'true' or 'false'."),
        ("Async-Mode: trüe", 400, "Async-Mode must be 'true' or 'false'."),
        *(
            (
                f"Prefer: wait{value}",
                400,
                "Prefer: wait must be a whole number of seconds, such as wait=10.",
            )
            for value in ("", "=", "=soon", "=-1", "=1.5", "=²", "=99999999999")
        ),
        *(
            (
                f"Idempotency-Key: {value}",
                400,
                "Idempotency-Key must be one string of 1 to 255 bytes.",
            )
            for value in ("", " \t ", "x" * 256, "a\nIdempotency-Key: a")
        ),
        *(
            (
                f"Prediction-Deadline: {value}",
                400,
                "Prediction-Deadline must be one time such as 500ms, 30s or 5m, at most 10080m.",
            )
            for value in (
                *(
                    "",
                    "30",
                    "s",
                    "0s",
                    "0.0000m",
                    "-1s",
                    "+1s",
                    "1h",
                    "1 s",
                    "1e3s",
                    "²s",
                    ".5s",
                    "5.s",
                    "nans",
                ),
                *("10080.1m", "1000000000ms", "1s, 2s", "1s\nPrediction-Deadline: 1s"),
            )
        ),
        *(
            (
                f"Content-Type: {kind}",
                415,
                "The body must be JSON: send the header 'Content-Type: application/json'.",
            )
            for kind in ("text/plain", "application/x-www-form-urlencoded", "application/jsonp", "json", "")
        ),
    ],
)
def test_refused_headers(text: str, code: int, sentence: str) -> None:
    with pytest.raises(HttpError) as error:
        read_options(headers(text))
    assert (error.value.code, error.value.sentence) == (code, sentence)


@pytest.mark.parametrize(
    ("text", "us"),
    [
        ("500ms", 500_000),
        ("30s", 30_000_000),
        ("5m", 300_000_000),
        ("1.5S", 1_500_000),
        (" 2s\t", 2_000_000),
        ("0.001ms", 1),
        ("604800s", MAX_DEADLINE_US),
        ("10080m", MAX_DEADLINE_US),
    ],
)
def test_deadline(text: str, us: int) -> None:
    assert read_options(headers(f"Prediction-Deadline: {text}")) == RequestOptions(deadline_us=us)


def key_of(text: str) -> str:
    return read_options(headers(f"Idempotency-Key: {text}")).key


def test_key() -> None:
    """Kept as a digest; spaces around it are not part of a header's value."""
    texts = ["a", "A", "0", '"a"', "a b, c", "ü", "x" * 254, "x" * 255]
    digests = {key_of(text) for text in texts}
    assert {len(digest) for digest in digests} == {32}
    assert len(digests) == len(texts)
    assert key_of("  a\t") == key_of("a")


@pytest.mark.parametrize(
    ("query", "seconds"),
    [
        (b"", 0.0),
        (b"other=1", 0.0),
        (b"wait=0", 0.0),
        (b"wait=10", 10.0),
        (b"wait=0.5", 0.5),
        (b"a=b&wait=2", 2.0),
        (b"wait=1&wait=2", 2.0),
        (b"wait=301", MAX_WAIT_S),
        (b"wait=1e9", MAX_WAIT_S),
    ],
)
def test_wait(query: bytes, seconds: float) -> None:
    assert read_wait({"query_string": query}) == seconds


@pytest.mark.parametrize(
    "value", [b"", b"soon", b"-1", b"nan", b"inf", b"-inf", b"1e999", b"%ff", b"\xff", b"1,5"]
)
def test_refused_wait(value: bytes) -> None:
    with pytest.raises(HttpError) as error:
        read_wait({"query_string": b"wait=" + value})
    assert error.value.code == 400
    assert error.value.sentence == "wait must be a number of seconds, such as ?wait=10."


class Client:
    """Sends the body in these parts, and then hangs up."""

    def __init__(self, parts: Sequence[bytes], *, whole: bool = True) -> None:
        last = len(parts) - 1 if whole else len(parts)
        self.messages: list[dict[str, Any]] = [
            {"type": "http.request", "body": part, "more_body": n != last} for n, part in enumerate(parts)
        ]
        self.messages.append({"type": "http.disconnect"})
        self.read = 0

    async def receive(self) -> dict[str, Any]:
        self.read += 1
        return self.messages[self.read - 1]


@pytest.mark.parametrize("parts", [[b""], [b"12345"], [b"123", b"45"], [b"", b"12345", b""], [b"1"] * 5])
async def test_a_body_up_to_the_limit(parts: list[bytes]) -> None:
    assert await read_body(Client(parts).receive, None, 5) == b"".join(parts)


async def test_a_declared_length_over_the_limit_is_refused_unread() -> None:
    client = Client([b"123456"])
    with pytest.raises(HttpError) as error:
        await read_body(client.receive, 6, 5)
    assert error.value.code == 413
    assert error.value.headers == {"Connection": "close"}
    assert client.read == 0


async def test_a_long_body_is_refused_where_it_crosses_the_limit() -> None:
    client = Client([b"12"] * 100)
    with pytest.raises(HttpError) as error:
        await read_body(client.receive, None, 5)
    assert error.value.code == 413
    assert client.read == 3


async def test_one_part_over_the_limit() -> None:
    with pytest.raises(HttpError) as error:
        await read_body(Client([b"123456"]).receive, None, 5)
    assert error.value.code == 413


@pytest.mark.parametrize("parts", [[], [b"12"]])
async def test_a_client_that_hangs_up_early(parts: list[bytes]) -> None:
    with pytest.raises(HttpError) as error:
        await read_body(Client(parts, whole=False).receive, None, 5)
    assert error.value.code == 400
