"""Models that take their time, to watch a queue fill and clients wait.

`Slow` sleeps as many seconds as its input says: 1.5, or {"seconds": 1.5, "note": "anything"}.
`SlowBatch` works like a model on an accelerator: a call costs 5 ms, each input in it only 0.05 ms more.
"""

import time


class Slow:
    def predict(self, input: float | dict) -> dict:
        seconds = input["seconds"] if isinstance(input, dict) else input
        time.sleep(seconds)
        return {"slept": seconds}


class SlowBatch:
    def predict_batch(self, inputs: list) -> list:
        time.sleep(0.005 + 0.00005 * len(inputs))
        return inputs
