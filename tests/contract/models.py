"""Models that a test holds in its hand: no call ends before the test says so, and each leaves a trace.

Beside the moods of examples/moody.py an input may have
    "ran": a file to make when the model sees the input
    "after": a file whose making the call waits for
"""

import time
from pathlib import Path

from examples.moody import Moody


class Patient(Moody):
    def predict(self, input: dict):
        if "ran" in input:
            Path(input["ran"]).touch()
        while "after" in input and not Path(input["after"]).exists():
            time.sleep(0.005)
        return super().predict(input)


class PatientBatch(Patient):
    def predict_batch(self, inputs: list[dict]) -> list:
        return [self.predict(input) for input in inputs]
