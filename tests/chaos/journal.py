"""What every client was told, by prediction: the evidence that the invariants are checked against."""

import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

FINAL = ("succeeded", "failed", "cancelled", "expired")


class Told(NamedTuple):
    """`answer` is the result, or the error's sentence."""

    status: str
    answer: Any


@dataclass
class Record:
    """One accepted prediction."""

    input: dict[str, Any]
    wishes: set[str] = field(default_factory=set)  # "cancelled" or "expired": somebody asked for that
    told: list[Told] = field(default_factory=list)
    history: list[str] = field(default_factory=list)


class Journal:
    """Written by all clients, in one event loop."""

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        self.outcomes: defaultdict[str, Counter[str]] = defaultdict(Counter)  # by kind of client
        self.wrong: list[str] = []  # broken promises that a client saw by itself: sentences
        self.untold: list[str] = []
        self.faults: list[str] = []
        self._started = time.monotonic()

    def accepted(self, prediction_id: str, input_: dict[str, Any], who: str) -> None:
        record = self.records.setdefault(prediction_id, Record(input_))
        if record.input != input_:
            self.wrong.append(f"{prediction_id} is the answer to two inputs: {record.input} and {input_}")
        self.note(prediction_id, f"{who}: accepted")

    def wished(self, prediction_id: str, end: str) -> None:
        self.records[prediction_id].wishes.add(end)

    def ended(self, prediction_id: str) -> bool:
        """Whether anybody has been told its end: from now on nobody may hear that it is not final."""
        return bool(self.records[prediction_id].told)

    def told(self, prediction_id: str, told: Told, who: str) -> None:
        """Somebody was told a final state."""
        record = self.records[prediction_id]
        if told not in record.told:
            record.told.append(told)
        self.note(prediction_id, f"{who}: {told.status} {str(told.answer)[:80]}")

    def note(self, prediction_id: str, line: str) -> None:
        if prediction_id in self.records:
            self.records[prediction_id].history.append(f"{time.monotonic() - self._started:7.2f} {line}")

    def count(self, kind: str, outcome: str) -> None:
        self.outcomes[kind][outcome] += 1
