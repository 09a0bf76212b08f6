"""The model under chaos. Its answer is a function of the input alone, so anybody can check a result; what is poisonous
says so.

    {"n": 7, "ms": 5, "poison": null}  ->  {"n": 7, "answer": "<sha256 of 7>"}

Poisons: crash, hang, raise, rubbish fail every time; busy asks for a retry half of the times; large has a long answer.
"""

import asyncio
import hashlib
import os
import random
import time

LARGE = 30_000


class Busy(Exception):
    retry_after = 0.1


def answer(n: int, poison: str | None) -> dict[str, object]:
    """What the result for an input must be."""
    result: dict[str, object] = {"n": n, "answer": hashlib.sha256(str(n).encode()).hexdigest()}
    return result | {"padding": "x" * LARGE} if poison == "large" else result


def run(n: int, poison: str | None) -> object:
    if poison == "crash":
        os._exit(7)
    if poison == "hang":
        time.sleep(3600)
    if poison == "raise":
        raise ValueError(f"{n} is not to my taste")
    if poison == "rubbish":
        return object()
    if poison == "busy" and random.random() < 0.5:
        raise Busy("come back")
    return answer(n, poison)


class Single:
    def predict(self, input: dict):
        time.sleep(input["ms"] / 1000)
        return run(input["n"], input["poison"])


class Batch:
    async def predict_batch(self, inputs: list[dict]):
        await asyncio.sleep(max(input["ms"] for input in inputs) / 1000)
        return [self.one(input) for input in inputs]

    @staticmethod
    def one(input: dict):
        try:
            return run(input["n"], input["poison"])
        except ValueError as error:
            return error
