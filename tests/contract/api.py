"""A deployment as its users have it: a base URL. And what every answer must be, whatever it says."""

import json
import re
import socket
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx2
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

TEXT = "Bonjour tout le monde"
JSON = {"Content-Type": "application/json"}
TIMEOUT_S = 30.0

Answer = httpx2.Response


class Api:
    """HTTP and WebSocket, nothing else."""

    def __init__(self, base_url: str) -> None:
        self.url = base_url.rstrip("/")
        limits = httpx2.Limits(max_connections=None)
        self.http = httpx2.Client(base_url=self.url, timeout=TIMEOUT_S, limits=limits, trust_env=False)

    def close(self) -> None:
        self.http.close()

    def post(self, value: Any, headers: Mapping[str, str] | list[tuple[str, str]] = ()) -> Answer:
        """POST /predict with `value` as input."""
        return self.send(json.dumps({"input": value}).encode(), headers)

    def send(self, body: Any, headers: Mapping[str, str] | list[tuple[str, str]] = ()) -> Answer:
        """POST /predict with any body."""
        more = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
        return self.http.post("/predict", content=body, headers=[*JSON.items(), *more])

    def put(
        self, prediction_id: str, value: Any, headers: Mapping[str, str] = MappingProxyType({})
    ) -> Answer:
        """PUT /predict/{id} with `value` as input."""
        body = json.dumps({"input": value}).encode()
        return self.http.put(f"/predict/{prediction_id}", content=body, headers={**JSON, **headers})

    def dead(self, query: str = "") -> dict[str, Any]:
        """By id, what GET /dead lists."""
        answer = self.http.get(f"/dead{query}")
        assert answer.status_code == 200, answer.text
        check_headers(answer)
        assert set(answer.json()) == {"dead", "next"}
        return {one["prediction_id"]: one for one in answer.json()["dead"]}

    def submit(self, value: Any) -> str:
        """The id of a prediction that was accepted asynchronously."""
        return accepted(self.post(value, {"Async-Mode": "true"}))

    def read(self, prediction_id: str, query: str = "") -> Answer:
        return self.http.get(f"/predict/{prediction_id}{query}")

    def end(self, prediction_id: str) -> Answer:
        """The answer about its final state."""
        answer = self.read(prediction_id, "?wait=25")
        assert answer.status_code == 200, answer.text
        return answer

    def result(self, prediction_id: str) -> Any:
        return self.end(prediction_id).json()["output"]["result"]

    def cancel(self, prediction_id: str) -> Answer:
        return self.http.delete(f"/predict/{prediction_id}")

    def subscribe(
        self, prediction_id: str, subprotocols: Sequence[str] = ()
    ) -> AbstractContextManager[ClientConnection]:
        return connect(
            f"{self.url.replace('http', 'ws', 1)}/ws/predict/{prediction_id}",
            subprotocols=[Subprotocol(name) for name in subprotocols] or None,
            open_timeout=TIMEOUT_S,
            proxy=None,
        )

    def all_frames(self, prediction_id: str) -> tuple[list[Any], int | None]:
        with self.subscribe(prediction_id) as subscriber:
            return rest_of(subscriber)

    def raw(self, data: bytes = b"", *, then_close: bool = False) -> "Raw":
        """A connection on which `data` has been sent as it is; `then_close`: and that is all the client has to say."""
        raw = Raw(self.url)
        raw.send(data)
        if then_close:
            raw.socket.shutdown(socket.SHUT_WR)
        return raw

    def works(self) -> bool:
        return self.post(TEXT).status_code in (200, 422)


class RawAnswer(NamedTuple):
    status_code: int
    headers: dict[str, str]
    content: bytes


class Raw:
    """One TCP connection, for what no HTTP client would send."""

    def __init__(self, url: str) -> None:
        place = urlsplit(url)
        self.socket = socket.create_connection((place.hostname, place.port or 80), timeout=TIMEOUT_S)
        self._rest = b""

    def __enter__(self) -> "Raw":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> RawAnswer:
        """The next one. EOFError if the server closes without."""
        while b"\r\n\r\n" not in self._rest:
            self._more()
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", 0))
        while len(self._rest) < length:
            self._more()
        content, self._rest = self._rest[:length], self._rest[length:]
        return RawAnswer(int(status.split()[1]), headers, content)

    def _more(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise EOFError(f"the server closed after {self._rest!r}")
        self._rest += data


def rest_of(subscriber: ClientConnection) -> tuple[list[Any], int | None]:
    """The frames still to come, and the code the server closed with."""
    frames = []
    try:
        while True:
            frames.append(frame(subscriber))
    except ConnectionClosed:
        return frames, subscriber.protocol.close_code


def frame(subscriber: ClientConnection) -> Any:
    """The next frame: text, one JSON object."""
    text = subscriber.recv(timeout=TIMEOUT_S)
    assert isinstance(text, str)
    return json.loads(text)


def post_head(*headers: str, length: int | None = None) -> bytes:
    """The head of a POST /predict, for raw connections."""
    lines = ["POST /predict HTTP/1.1", "Host: foretell", *headers]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode("latin-1")


# -- what every answer of a kind must be


def is_uuid(text: str) -> bool:
    return str(uuid.UUID(text)) == text


def accepted(answer: Answer) -> str:
    """A 202 of a POST, to the letter; returns the id."""
    assert answer.status_code == 202, answer.text
    prediction_id: str = answer.json()["prediction_id"]
    assert answer.json() == {
        "prediction_id": prediction_id,
        "message": "Request received. Processing asynchronously.",
    }
    assert is_uuid(prediction_id)
    check_headers(answer)
    assert named(answer) == prediction_id
    return prediction_id


def succeeded(answer: Answer, value: Any) -> Any:
    """A 200 of a synchronous POST, to the letter; returns the result."""
    assert answer.status_code == 200, answer.text
    assert set(answer.json()) == {"input", "result"}
    assert same(answer.json()["input"], value)
    check_headers(answer)
    assert is_uuid(named(answer))
    assert re.fullmatch(r"queue;dur=\d+(\.\d+)?, predict;dur=\d+(\.\d+)?", answer.headers["server-timing"])
    return answer.json()["result"]


def named(answer: Answer) -> str:
    """The id in the headers of an answer to a POST."""
    prediction_id = answer.headers["prediction-id"]
    assert answer.headers["location"] == f"/predict/{prediction_id}"
    return prediction_id


def refused(answer: Any, code: int, *, prediction_id: str | None = None) -> str:
    """An error, to the letter; returns its sentence. `prediction_id`: the one that must be in it."""
    assert answer.status_code == code, answer.content
    assert answer.headers["content-type"] == "application/json"
    body = json.loads(answer.content)
    assert set(body) == ({"error", "prediction_id"} if prediction_id else {"error"})
    assert body.get("prediction_id") == prediction_id
    sentence: str = body["error"]
    assert re.fullmatch(r"\w[^\n]+", sentence), sentence
    assert sentence.endswith(".") or prediction_id  # a model's exception ends as it likes
    assert "Traceback" not in sentence
    if code in (429, 503):
        assert int(answer.headers["retry-after"]) >= 1
    return sentence


def not_found(answer: Answer) -> None:
    assert answer.status_code == 404
    assert answer.json() == {"error": "Prediction ID not found."}
    assert "prediction-status" not in answer.headers
    check_headers(answer)


def state(answer: Answer, prediction_id: str, value: Any, status: str) -> Any:
    """An answer about a prediction, to the letter; returns its result (or the word in place of one)."""
    final = status not in ("queued", "processing")
    failed = status in ("failed", "cancelled", "expired")
    assert answer.headers["prediction-status"] == status
    assert answer.status_code == (200 if final else 202)
    assert answer.headers.get("retry-after") == (None if final else "1")
    check_headers(answer)
    body = answer.json()
    assert set(body) == {"prediction_id", "output"} | ({"error"} if failed else set())
    return _output(body, prediction_id, value, status)


def news(body: Any, prediction_id: str, value: Any, status: str) -> Any:
    """A frame about a prediction, to the letter; returns its result (or the word in place of one)."""
    failed = status in ("failed", "cancelled", "expired")
    assert body["status"] == status
    assert set(body) == {"prediction_id", "status", "output"} | ({"error"} if failed else set())
    return _output(body, prediction_id, value, status)


def _output(body: Any, prediction_id: str, value: Any, status: str) -> Any:
    assert body["prediction_id"] == prediction_id
    assert set(body["output"]) == {"input", "result"}
    assert same(body["output"]["input"], value)
    result = body["output"]["result"]
    if status != "succeeded":
        assert result == ("processing" if status in ("queued", "processing") else status)
    if "error" in body:
        assert re.fullmatch(r"[A-Z][^\n]+", body["error"])
    return result


def check_headers(answer: Answer) -> None:
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"


def same(one: Any, other: Any) -> bool:
    """The same JSON value; 1 and 1.0 are two, and true is not 1."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
