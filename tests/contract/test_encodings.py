"""Content-Encoding: what is taken, what is refused, that a small body cannot become a large one; and answers as gzip."""

import bz2
import gzip
import http.client
import json
import subprocess
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.contract.api import TEXT, Api, accepted, named, post_head, refused, state, succeeded
from tests.contract.conftest import IDLE_BODY_BYTES, Local
from tests.services import ECHO

ASYNC = {"Async-Mode": "true"}
BODY = json.dumps({"input": TEXT}).encode()


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


def two_members(data: bytes) -> bytes:
    return gzip.compress(data[:5]) + gzip.compress(b"") + gzip.compress(data[5:])


PACKED: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "x-gzip": ("x-gzip", gzip.compress),
    "capitals": ("GZip", gzip.compress),
    "stored": ("gzip", lambda data: gzip.compress(data, 0)),
    "members": ("gzip", two_members),
    "zlib": ("deflate", zlib.compress),
    "raw": ("deflate", raw_deflate),
    "identity": ("identity", bytes),
    "nothing": ("", bytes),
}


def in_bytes(body: bytes) -> Iterator[bytes]:
    for at in range(len(body)):
        yield body[at : at + 1]


@pytest.mark.parametrize("framed", [bytes, in_bytes], ids=["with a length", "byte by byte"])
@pytest.mark.parametrize("name", PACKED)
def test_a_body_that_is_packed(api: Api, name: str, framed: Callable[[bytes], Any]) -> None:
    encoding, pack = PACKED[name]
    succeeded(api.send(framed(pack(BODY)), {"Content-Encoding": encoding}), TEXT)


def test_it_is_taken_by_put_too(idle: Local) -> None:
    prediction_id = "5c7d1f3e-0a64-4a1b-8f53-2a0c9e6b7d18"
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json", **ASYNC}
    accepted(idle.http.put(f"/predict/{prediction_id}", content=gzip.compress(BODY), headers=headers))
    state(idle.read(prediction_id), prediction_id, TEXT, "queued")


@pytest.mark.parametrize(
    "encodings", [["br"], ["zstd"], ["compress"], ["gzip, gzip"], ["gzip", "deflate"], ["identity, gzip"], ["gzip;q=1"]]
)  # fmt: skip
def test_415_names_what_is_taken(api: Api, encodings: list[str]) -> None:
    answer = api.send(gzip.compress(BODY), [("Content-Encoding", encoding) for encoding in encodings])
    assert "gzip" in refused(answer, 415)
    assert answer.headers["accept-encoding"] == "gzip, deflate"


@pytest.mark.parametrize("name", ["gzip", "stored", "members", "zlib", "raw"])
def test_400_for_what_ends_early(api: Api, name: str) -> None:
    encoding, pack = PACKED[name]
    packed = pack(BODY)
    for end in (0, 1, 2, 12, len(packed) - 1):
        sentence = refused(api.send(packed[:end], {"Content-Encoding": encoding}), 400)
        assert f"ends before its {encoding} data" in sentence


def test_400_for_what_is_corrupt(api: Api) -> None:
    for encoding, body in (
        ("gzip", BODY),
        ("gzip", zlib.compress(BODY)),
        ("gzip", bz2.compress(BODY)),
        ("gzip", gzip.compress(BODY)[:-8] + b"01234567"),
        ("gzip", gzip.compress(BODY) + b"more"),
        ("deflate", BODY),
        ("deflate", gzip.compress(BODY)),
        ("deflate", zlib.compress(BODY) + b"x"),
        ("deflate", raw_deflate(BODY) + b"x"),
        ("deflate", zlib.compress(BODY)[:-4] + b"0123"),
    ):
        assert f"not valid {encoding} data" in refused(api.send(body, {"Content-Encoding": encoding}), 400)


def body_of(size: int) -> bytes:
    return b'{"input": "%b"}' % (b"x" * (size - 13))


@pytest.mark.parametrize("name", ["gzip", "stored", "members", "zlib", "raw"])
def test_413_from_the_first_byte_over_the_limit(idle: Local, name: str) -> None:
    """Of what is unpacked: what came may be a little larger, and is never much larger."""
    encoding, pack = PACKED[name]
    headers = {**ASYNC, "Content-Encoding": encoding}
    accepted(idle.send(pack(body_of(IDLE_BODY_BYTES)), headers))
    assert "MAX_BODY_BYTES" in refused(idle.send(pack(body_of(IDLE_BODY_BYTES + 1)), headers), 413)


@pytest.mark.parametrize("name", ["gzip", "zlib", "raw"])
def test_a_bomb_is_stopped_where_it_crosses_the_limit(idle: Local, name: str) -> None:
    """100 MB in 100 kB, of which it needs to see a part."""
    encoding, pack = PACKED[name]
    packed = pack(b" " * 100_000_000)
    head = post_head(f"Content-Encoding: {encoding}", "Transfer-Encoding: chunked")
    with idle.raw(head + b"400\r\n%b\r\n" % packed[:1024]) as client:
        refused(client.answer(), 413)


def test_413_for_much_that_unpacks_to_nothing(idle: Local) -> None:
    empty = b"\0\0\0\xff\xff" * IDLE_BODY_BYTES
    for body in (empty, gzip.compress(b"") * IDLE_BODY_BYTES):
        encoding = "deflate" if body is empty else "gzip"
        refused(idle.send(body, {"Content-Encoding": encoding}), 413)


@pytest.mark.parametrize("headers", [{}, ASYNC], ids=["sync", "async"])
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"input": "é"}'.encode("latin-1"), "byte 11 is not UTF-8"),
        (b'{"more": 1, "input": "\xed\xa0\x80"}', "byte 22 is not UTF-8"),
        (BODY.decode().encode("utf-16"), "byte 0 is not UTF-8"),
        (gzip.compress(BODY), "Content-Encoding: gzip"),
        (b"\xef\xbb\xbf" + BODY, "byte order mark"),
    ],
    ids=["Latin-1", "surrogate", "UTF-16", "gzip", "BOM"],
)
def test_400_says_plainly_that_a_body_is_not_utf_8(
    api: Api, body: bytes, words: str, headers: dict[str, str]
) -> None:
    sentence = refused(api.send(body, headers), 400)
    assert words in sentence
    assert "surrogates" not in sentence


@pytest.fixture
def large(echo: Local) -> str:
    """The path of a prediction whose answer is above 1 KiB."""
    return f"/predict/{named(echo.post('y' * 2000))}"


def raw_answer(api: Local, path: str, accepted: str | None) -> tuple[dict[str, str], bytes]:
    """Headers and body as they come."""
    headers = {} if accepted is None else {"Accept-Encoding": accepted}
    client = http.client.HTTPConnection("127.0.0.1", api.gateway.port, timeout=30)
    with closing(client):
        client.request("GET", path, headers=headers)
        answer = client.getresponse()
        return {name.lower(): text for name, text in answer.getheaders()}, answer.read()


@pytest.mark.parametrize(
    "accepted", ["gzip", "GZIP", "x-gzip", "br;q=1.0, gzip;q=0.8, *;q=0.1", "gzip;q=0.001", "*", "deflate, gzip ; q=1", "identity;q=0, gzip", "gzip;q=0.5, identity;q=0.5", "identity;q=0.1, *"]
)  # fmt: skip
def test_an_answer_above_1_kib_is_gzip_for_who_accepts_it(echo: Local, large: str, accepted: str) -> None:
    headers, body = raw_answer(echo, large, accepted)
    assert headers["content-encoding"] == "gzip"
    assert headers["vary"] == "accept-encoding"
    assert int(headers["content-length"]) == len(body) < 1000
    plain_headers, plain = raw_answer(echo, large, None)
    assert gzip.decompress(body) == plain
    assert int(plain_headers["content-length"]) == len(plain)


@pytest.mark.parametrize(
    "accepted",
    [
        None,
        "",
        "identity",
        "br",
        "gzip;q=0",
        "gzip;q=0.000, *",
        "*;q=0",
        "gzip;q=0.0,*;q=0.0",
        "gzip;\tq=0",
        "gzip;q=0.5, identity",
        "identity;q=1, *;q=0.5",
    ],
)
def test_it_is_plain_for_who_does_not(echo: Local, large: str, accepted: str | None) -> None:
    headers, body = raw_answer(echo, large, accepted)
    assert "content-encoding" not in headers
    assert headers["vary"] == "accept-encoding"
    assert json.loads(body)["output"]["result"] == "y" * 2000


@pytest.fixture
def failing(start: Callable[..., Local], tmp_path: Path) -> Local:
    model = tmp_path / "failing.py"
    model.write_text("def predict(input):\n    raise ValueError(input)\n")
    return start(model=f"{model}:predict")


def test_a_large_error_is_gzip_too(failing: Local) -> None:
    headers = {"Accept-Encoding": "gzip"}
    answer = failing.http.post("/predict", json={"input": "z" * 1500}, headers=headers)
    assert "z" * 1500 in refused(answer, 500, prediction_id=answer.headers["prediction-id"])
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.headers["vary"] == "accept-encoding"
    assert int(answer.headers["content-length"]) < 1000
    plain = failing.http.post("/predict", json={"input": "z" * 1500}, headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.json()["error"] == answer.json()["error"]


def test_the_metrics_are_gzip_too(echo: Local) -> None:
    headers, body = raw_answer(echo, "/metrics", "gzip")
    assert headers["content-encoding"] == "gzip"
    assert int(headers["content-length"]) == len(body)
    assert b"foretell_" in gzip.decompress(body)
    assert "content-encoding" not in raw_answer(echo, "/metrics", None)[0]


def test_a_small_answer_is_plain(echo: Local) -> None:
    headers, body = raw_answer(echo, f"/predict/{named(echo.post('small'))}", "gzip")
    assert "content-encoding" not in headers
    assert json.loads(body)["output"]["result"] == "small"


def test_clients_unpack_it_by_themselves(echo: Local) -> None:
    value = {"rows": [[i, i / 7, "text"] for i in range(20_000)]}
    answer = echo.http.post("/predict", json={"input": value}, headers={"Accept-Encoding": "gzip"})
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.json() == {"input": value, "result": value}
    url = f"{echo.gateway.url}/predict/{answer.headers['prediction-id']}"
    read = subprocess.run(["curl", "-sS", "--compressed", url], capture_output=True, check=True, timeout=60)
    assert json.loads(read.stdout)["output"]["result"] == value


def test_a_client_that_asks_for_the_head_gets_the_same_one(echo: Local, large: str) -> None:
    client = http.client.HTTPConnection("127.0.0.1", echo.gateway.port, timeout=30)
    with closing(client):
        client.request("HEAD", large, headers={"Accept-Encoding": "gzip"})
        answer = client.getresponse()
        assert answer.read() == b""
    headers, _ = raw_answer(echo, large, "gzip")
    assert answer.getheader("content-length") == headers["content-length"]


def test_it_can_be_turned_off(start: Callable[..., Local]) -> None:
    api = start(model=ECHO, COMPRESS="false")
    headers, body = raw_answer(api, f"/predict/{named(api.post('y' * 2000))}", "gzip")
    assert not {"content-encoding", "vary"} & headers.keys()
    assert json.loads(body)["output"]["result"] == "y" * 2000
