"""MAX_QUEUE_BYTES, as a client meets it."""

from collections.abc import Callable

import pytest

from tests.contract.api import accepted, refused, succeeded
from tests.contract.conftest import PATIENT, Local

pytestmark = pytest.mark.leaves_jobs("there is no processor")


def test_429_when_the_bytes_are_used_up(start: Callable[..., Local]) -> None:
    api = start(PARTITIONS=1, MAX_QUEUE_BYTES=100)
    large = "x" * 58  # 60 bytes with its quotes
    accepted(api.post(large, {"Async-Mode": "true"}))
    answer = api.post(large)
    assert "full" in refused(answer, 429)
    assert int(answer.headers["retry-after"]) > 0
    accepted(api.post("y" * 38, {"Async-Mode": "true"}))
    refused(api.post(1), 429)


def test_413_for_one_that_would_never_find_room(start: Callable[..., Local]) -> None:
    api = start(model=PATIENT, PARTITIONS=1, MAX_QUEUE_BYTES=100)
    sentence = refused(api.post("x" * 99), 413)
    assert (
        sentence
        == "The input has 101 bytes, and the queue takes 100 at most (MAX_QUEUE_BYTES): send a smaller one."
    )
    value = {"value": "x" * 86}
    assert succeeded(api.post(value), value) == value
