"""Models that a test holds in its hand: no call ends before the test says so, and each leaves a trace.

Beside the moods of examples/moody.py an input may have
    "ran": a file that gets the process ID when the model sees the input
    "after": a file whose making the call waits for
    "calls": a file that gets a line with each call
    "busy": a number of seconds after which to try again, unless "after" has come into being
"""

import asyncio
import os
import time
from pathlib import Path

from examples.moody import Moody


class Busy(Exception):
    def __init__(self, seconds: float):
        super().__init__("come back")
        self.retry_after = seconds


class Patient(Moody):
    def predict(self, input: dict):
        if "calls" in input:
            with open(input["calls"], "a") as calls:
                calls.write("call\n")
        if "busy" in input and not Path(input.get("after", "")).is_file():
            raise Busy(input["busy"])
        if "ran" in input:
            Path(input["ran"]).write_text(str(os.getpid()))
        while "after" in input and not Path(input["after"]).exists():
            time.sleep(0.005)
        return super().predict(input)


class PatientBatch(Patient):
    def predict_batch(self, inputs: list[dict]) -> list:
        return [self.predict(input) for input in inputs]


class PatientAsync:
    async def predict(self, input: dict):
        if "ran" in input:
            Path(input["ran"]).write_text(str(os.getpid()))
        while "after" in input and not Path(input["after"]).exists():
            await asyncio.sleep(0.005)
        return {"value": input.get("value")}
