"""A body of many megabytes is its own client's business: what others send meanwhile is answered meanwhile."""

import threading
from collections.abc import Callable

import httpx2
import pytest
from websockets.exceptions import ConnectionClosedOK
from websockets.sync.client import connect

from tests.contract.api import TEXT, succeeded
from tests.contract.conftest import Local
from tests.services import ECHO

SIZE = 8 << 20
INPUTS = {
    "many small lists": b"[" + b"[]," * (SIZE // 3) + b"1]",
    "many small objects": b"[" + b'{"a":[1,2.5,null]},' * (SIZE // 19) + b"1]",
}
#: While the large body was under way. Where the gateway itself parsed it, one or two came through.
LEAST = 20


@pytest.fixture
def large(start: Callable[..., Local]) -> Local:
    return start(model=ECHO, MAX_BODY_BYTES=4 * SIZE, MAX_BATCH_SIZE=1, MODEL_PROCESSES=2)


@pytest.mark.slow
@pytest.mark.parametrize("input_", INPUTS.values(), ids=INPUTS)
def test_others_are_answered_while_it_is_looked_through(large: Local, input_: bytes) -> None:
    accepted = threading.Event()
    codes: list[int] = []

    def submit() -> None:
        headers = {"Content-Type": "application/json", "Async-Mode": "true"}
        body = b'{"input":' + input_ + b',"more":1}'
        with httpx2.Client(base_url=large.gateway.url, timeout=120, trust_env=False) as client:
            codes.append(client.post("/predict", content=body, headers=headers).status_code)
        accepted.set()

    thread = threading.Thread(target=submit)
    thread.start()
    answered = 0
    while not accepted.is_set():
        succeeded(large.post(TEXT), TEXT)
        answered += 1
    thread.join()
    assert codes == [202]
    assert answered >= LEAST


@pytest.mark.slow
@pytest.mark.parametrize("input_", INPUTS.values(), ids=INPUTS)
def test_it_comes_back_as_it_was(large: Local, input_: bytes) -> None:
    answer = large.send(b'{"input":' + input_ + b"}")
    assert answer.status_code == 200
    assert answer.content == b'{"input":' + input_ + b',"result":' + input_ + b"}"
    with connect(
        f"ws://127.0.0.1:{large.gateway.port}/ws/predict/{answer.headers['prediction-id']}",
        max_size=None,
        proxy=None,
    ) as subscriber:
        frame = subscriber.recv(decode=False)
        with pytest.raises(ConnectionClosedOK):
            subscriber.recv()
    assert frame.endswith(b'"output":{"input":' + input_ + b',"result":' + input_ + b"}}")
    read = large.read(answer.headers["prediction-id"])
    assert read.content.endswith(b'"output":{"input":' + input_ + b',"result":' + input_ + b"}}")
