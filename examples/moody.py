"""Models that fail on request, to see what a client and the neighbours of a bad input get.

    {"mood": "ok", "value": 1}  ->  {"value": 1}

Moods: ok, slow (needs "seconds"), print, raise, rubbish (a result that is not JSON), hang, exit, segfault, oom-kill.
Without "seconds" a slow one takes 1 and a hanging one an hour.
"""

import os
import signal
import sys
import time


class Moody:
    def predict(self, input: dict):
        mood = input.get("mood", "ok")
        if mood == "slow":
            time.sleep(input.get("seconds", 1))
        elif mood == "print":
            print("noise on stdout")
            print("noise on stderr", file=sys.stderr)
        elif mood == "raise":
            raise ValueError("This input is not to my taste.")
        elif mood == "rubbish":
            return object()
        elif mood == "hang":
            time.sleep(input.get("seconds", 3600))
        elif mood == "exit":
            sys.exit(3)
        elif mood == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif mood == "oom-kill":  # what the kernel does to a process that takes too much memory
            os.kill(os.getpid(), signal.SIGKILL)
        elif mood != "ok":
            raise ValueError(f"There is no mood {mood!r}.")
        return {"value": input.get("value")}


class MoodyBatch(Moody):
    """The same for many inputs at once. Moods "refuse" and "rubbish" fail that one item; the other failures hit the whole call."""

    def predict_batch(self, inputs: list[dict]) -> list:
        return [self.one(input) for input in inputs]

    def one(self, input: dict):
        if input.get("mood") == "refuse":
            return ValueError("This input is not to my taste.")
        return self.predict(input)
