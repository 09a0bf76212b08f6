"""WS /ws/predict/{prediction_id}."""

import json
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from tests.conftest import wait_until
from tests.contract.api import TEXT, Api, frame, news, refused, rest_of
from tests.contract.conftest import PATIENT, Local
from tests.services import Service

UNKNOWN = ["3f1c9a52-7b0e-4d61-9c3a-d84f27e6b015", "x", "0" * 36, "%00", "%ff", "0" * 5000]
KEY_OFFER = "base64url.bearer.authorization.foretell.YS1rZXk"
UPGRADE = (
    "Upgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


def test_late(api: Api) -> None:
    """After the end there is one frame: the state now."""
    prediction_id = api.submit(TEXT)
    result = api.result(prediction_id)
    for _ in range(2):
        frames, code = api.all_frames(prediction_id)
        assert [news(body, prediction_id, TEXT, "succeeded") for body in frames] == [result]
        assert code == 1000


def test_early(api: Api) -> None:
    """Whenever one comes: the states in their order, each once, the end, and nothing after it."""
    for i in range(20):
        prediction_id = api.submit(f"text {i}")
        frames, code = api.all_frames(prediction_id)
        assert code == 1000
        statuses = [body["status"] for body in frames]
        assert statuses in (["succeeded"], ["processing", "succeeded"], ["queued", "processing", "succeeded"],
                            ["queued", "succeeded"])  # fmt: skip
        for body in frames:
            news(body, prediction_id, f"text {i}", body["status"])


def test_many_at_once(api: Api) -> None:
    prediction_id = api.submit(TEXT)
    with ThreadPoolExecutor(20) as clients:
        ends = list(clients.map(api.all_frames, [prediction_id] * 20))
    assert all(code == 1000 for _, code in ends)
    assert all(frames[-1] == ends[0][0][-1] for frames, _ in ends)


@pytest.mark.parametrize("prediction_id", UNKNOWN)
def test_unknown_and_malformed_ids(api: Api, prediction_id: str) -> None:
    assert api.all_frames(prediction_id) == ([{"error": "Prediction ID not found."}], 4404)


def test_every_change_through_every_gateway(
    start: Callable[..., Local], start_processor: Callable[..., object], tmp_path: Path
) -> None:
    """Two subscribers on each of two gateways, one of which never saw the POST."""
    one, two = start(), start()
    value = {"after": str(tmp_path / "go"), "value": 7}
    prediction_id = one.submit(value)
    with ExitStack() as stack:
        subscribers = [stack.enter_context(g.subscribe(prediction_id)) for g in (one, one, two, two)]
        for subscriber in subscribers:
            news(frame(subscriber), prediction_id, value, "queued")
        start_processor(PATIENT)
        for subscriber in subscribers:
            news(frame(subscriber), prediction_id, value, "processing")
        (tmp_path / "go").touch()
        for subscriber in subscribers:
            (last,), code = rest_of(subscriber)
            assert news(last, prediction_id, value, "succeeded") == {"value": 7}
            assert code == 1000


def test_failed(moody: Local) -> None:
    value = {"mood": "raise"}
    prediction_id = moody.submit(value)
    frames, code = moody.all_frames(prediction_id)
    news(frames[-1], prediction_id, value, "failed")
    assert frames[-1]["error"] == "Prediction failed: ValueError: This input is not to my taste."
    assert code == 1000


def test_a_result_too_large_for_one_announcement(echo: Local) -> None:
    value = "x" * 500_000
    prediction_id = echo.submit(value)
    frames, code = echo.all_frames(prediction_id)
    assert news(frames[-1], prediction_id, value, "succeeded") == value
    assert code == 1000


@pytest.mark.parametrize("size", [100, 6000, 1 << 20], ids=["small", "larger", "as large as it may be"])
def test_the_input_is_left_out_where_nobody_wants_it(moody: Local, tmp_path: Path, size: int) -> None:
    """Then a frame is as large as the result, and a client's own limit (1 MiB, where websockets sets it) holds."""
    value = {"after": str(tmp_path / "go"), "value": 7, "more": ""}
    value["more"] = "x" * (size - len(json.dumps({"input": value})))
    prediction_id = moody.submit(value)
    wait_until(lambda: moody.read(prediction_id).headers["prediction-status"] == "processing")
    with moody.subscribe(f"{prediction_id}?input=false") as subscriber:
        assert news(frame(subscriber), prediction_id, None, "processing") == "processing"
        (tmp_path / "go").touch()
        (last,), code = rest_of(subscriber)
    assert news(last, prediction_id, None, "succeeded") == {"value": 7}
    assert code == 1000
    ((late,), code) = moody.all_frames(f"{prediction_id}?input=False")
    assert (late, code) == (last, 1000)


@pytest.mark.parametrize("value", ["", "no", "0", "%ff"])
def test_input_must_be_true_or_false(idle: Local, value: str) -> None:
    sentence = "input must be 'true' or 'false', such as ?input=false."
    assert idle.all_frames(f"{idle.submit(TEXT)}?input={value}") == ([{"error": sentence}], 1008)


def test_cancelled(idle: Local) -> None:
    prediction_id = idle.submit(TEXT)
    with idle.subscribe(prediction_id) as subscriber:
        news(frame(subscriber), prediction_id, TEXT, "queued")
        idle.cancel(prediction_id)
        news(frame(subscriber), prediction_id, TEXT, "cancelled")
        assert rest_of(subscriber) == ([], 1000)


def test_what_a_client_says_is_ignored(idle: Local) -> None:
    prediction_id = idle.submit(TEXT)
    with idle.subscribe(prediction_id) as subscriber:
        news(frame(subscriber), prediction_id, TEXT, "queued")
        for message in ("hello", '{"prediction_id": "x"}', b"\x00\xff", "", "x" * 1000):
            subscriber.send(message)
        assert subscriber.ping().wait(20)
        idle.cancel(prediction_id)
        news(frame(subscriber), prediction_id, TEXT, "cancelled")


def test_a_client_that_talks_too_much_is_closed(idle: Local) -> None:
    prediction_id = idle.submit(TEXT)
    with idle.subscribe(prediction_id) as subscriber:
        _say(subscriber, *["blah"] * 1000)
        assert rest_of(subscriber)[1] == 1008


@pytest.mark.parametrize("message", ["x" * 100_000, b"x" * 100_000])
def test_a_client_that_says_too_much_at_once_is_closed(idle: Local, message: str | bytes) -> None:
    prediction_id = idle.submit(TEXT)
    with idle.subscribe(prediction_id) as subscriber:
        _say(subscriber, message)
        assert rest_of(subscriber)[1] == 1009


def _say(subscriber: ClientConnection, *messages: str | bytes) -> None:
    try:
        for message in messages:
            subscriber.send(message)
    except ConnectionClosed:
        pass


def test_a_subscriber_that_leaves_harms_nobody(idle: Local) -> None:
    prediction_id = idle.submit(TEXT)
    with idle.subscribe(prediction_id) as staying:
        news(frame(staying), prediction_id, TEXT, "queued")
        with idle.subscribe(prediction_id) as leaving:
            frame(leaving)
            leaving.socket.close()
        idle.cancel(prediction_id)
        news(frame(staying), prediction_id, TEXT, "cancelled")


def test_a_stopping_gateway_says_1012(moody: Local, tmp_path: Path) -> None:
    gateway: Service = moody.services.gateway()
    value = {"after": str(tmp_path / "go")}
    prediction_id = moody.submit(value)
    with Api(gateway.url).subscribe(prediction_id) as subscriber:
        frame(subscriber)
        gateway.stop()
        assert rest_of(subscriber)[1] == 1012
    (tmp_path / "go").touch()
    frames, code = moody.all_frames(prediction_id)  # and who connects again elsewhere misses nothing
    news(frames[-1], prediction_id, value, "succeeded")
    assert code == 1000


@pytest.mark.parametrize("path", ["/ws", "/ws/predict", "/ws/predict/a/b", "/predict/x", "/"])
def test_a_handshake_elsewhere_is_not_found(echo: Local, path: str) -> None:
    with echo.raw(f"GET {path} HTTP/1.1\r\nHost: foretell\r\n{UPGRADE}\r\n".encode()) as client:
        refused(client.answer(), 404)


@pytest.mark.parametrize(
    ("request_line", "headers", "code"),
    [
        ("GET", UPGRADE.replace("Sec-WebSocket-Key", "X-Key"), 400),
        ("GET", UPGRADE.replace("13", "8"), 400),
        ("GET", UPGRADE.replace("dGhl", "?"), 400),
        ("POST", UPGRADE, 405),
        ("GET", UPGRADE + "Content-Length: 5\r\n", 400),
        ("GET", UPGRADE + f"Cookie: {'x' * 100_000}\r\n", 431),
    ],
    ids=["no key", "old version", "bad key", "POST", "with a body", "header of 100 kB"],
)
def test_a_wrong_handshake_is_an_error_in_json(
    echo: Local, request_line: str, headers: str, code: int
) -> None:
    head = f"{request_line} /ws/predict/{uuid.uuid4()} HTTP/1.1\r\nHost: foretell\r\n{headers}\r\n"
    with echo.raw(head.encode()) as client:
        refused(client.answer(), code)


@pytest.mark.parametrize("offer", [["foretell"], ["other", "foretell"], ["foretell", KEY_OFFER]])
def test_the_subprotocol_is_selected_when_it_is_offered(idle: Local, offer: list[str]) -> None:
    """A browser ends a WebSocket none of whose subprotocols was selected, with keys or without."""
    with idle.subscribe(idle.submit(TEXT), offer) as subscriber:
        assert subscriber.subprotocol == "foretell"


def test_no_subprotocol_that_was_not_offered(idle: Local) -> None:
    for offer in ([], ["other"]):
        with idle.subscribe(idle.submit(TEXT), offer) as subscriber:
            assert subscriber.subprotocol is None


def test_the_subprotocol_of_a_refusal_by_frame(idle: Local) -> None:
    with idle.subscribe("x", ["foretell"]) as subscriber:
        assert subscriber.subprotocol == "foretell"
        assert rest_of(subscriber)[1] == 4404


def test_a_slash_at_the_end_changes_nothing(idle: Local) -> None:
    prediction_id = idle.submit(TEXT)
    with idle.subscribe(f"{prediction_id}/") as subscriber:
        news(frame(subscriber), prediction_id, TEXT, "queued")


@pytest.mark.parametrize("path", ["x", "x/", UNKNOWN[0]])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_426_without_an_upgrade(api: Api, method: str, path: str) -> None:
    answer = api.http.request(method, f"/ws/predict/{path}")
    assert "WebSocket" in refused(answer, 426)
    assert answer.headers["upgrade"] == "websocket"
    assert answer.headers["connection"].lower() == "upgrade"


def test_426_for_another_upgrade(api: Api) -> None:
    with api.raw(
        b"GET /ws/predict/x HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    ) as client:
        refused(client.answer(), 426)
