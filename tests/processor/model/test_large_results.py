"""A batch of large results is read one by one: the loop is held as long as by one of them."""

import asyncio
import time

from processor.model.frames import Item, Kind
from processor.model.process import ModelProcess
from tests.processor.conftest import WriteModel

BYTES = 8 << 20
COUNT = 16
TRIES = 3

MODEL = f"""
    class Model:
        def predict_batch(self, inputs):
            return [str(i % 10) * {BYTES} for i in inputs]
"""


async def test_the_loop_turns_between_the_results_of_a_batch(write_model: WriteModel) -> None:
    process = ModelProcess(write_model(MODEL), predict_timeout_s=60.0)
    await process.start()
    try:
        one = max([await longest_turn(process, 1) for _ in range(TRIES)])
        many = min([await longest_turn(process, COUNT) for _ in range(TRIES)])
    finally:
        await process.stop()
    assert many < one * COUNT / 2


async def longest_turn(process: ModelProcess, count: int) -> float:
    """The most CPU time that this thread spent without letting another task run. Checks what came."""
    predicting = asyncio.create_task(outcomes(process, count))
    longest, before = 0.0, time.thread_time()
    while not predicting.done():
        await asyncio.sleep(0)
        now = time.thread_time()
        longest, before = max(longest, now - before), now
    items = await predicting
    assert [item.kind for item in items] == [Kind.RESULT] * count
    for place, item in enumerate(items):
        assert item.data == b'"%b"' % (str(place % 10).encode() * BYTES)
    return longest


async def outcomes(process: ModelProcess, count: int) -> list[Item]:
    inputs = [b"%d" % place for place in range(count)]
    return [item async for items in process.predict(inputs) for item in items]
