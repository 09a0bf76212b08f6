"""A model process: loads the user's model, then answers frames of inputs with frames of outcomes, in order.

It knows nothing of Redis. It must never let the model's prints, exceptions or exits reach the protocol: the socket
is its own, stdout and stderr are read by the processor and go to the log.
"""

import contextlib
import ctypes
import io
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterable
from typing import Any

import orjson

from common import json_text
from common.errors import ModelFault
from processor.model.frames import HEADER, Item, Kind, pack, unpack
from processor.model.loader import Model, describe, in_one_line, load_model
from processor.model.results import NotJson, one_each, to_json

FLUSH_S = 0.001  # outcomes are sent at the latest before the next call that starts this much after the first of them

READ_BYTES = 1 << 16
RETRY_MAX_S = 86400.0  # what asks for more gets this
TRACEBACK_CHARS = 8192  # its end: the last calls

UNWANTED = Item(Kind.ERROR, 0, b"")  # in the place of an answer that nobody reads

_PR_SET_PDEATHSIG = 1


def main(descriptor: int, spec: str) -> int:
    _die_with_parent()
    _ignore_signals()
    _take_any_text()
    with socket.socket(fileno=descriptor) as channel:
        _keep_from_children(channel)
        try:
            model = load_model(spec)
            try:
                model.setup()
            except BaseException as error:
                raise ModelFault(f"{spec}: setup failed: {in_one_line(error)}.") from error
        except ModelFault as fault:
            _send(channel, [Item(Kind.FAULT, 0, str(fault).encode())])
            return 1
        ready = {"batch": model.batch, "cancels": model.is_async}
        _send(channel, [Item(Kind.READY, 0, orjson.dumps(ready))])
        Child(model, channel).serve()
        with contextlib.suppress(BaseException):
            model.teardown()
    return 0


def _send(channel: socket.socket, items: list[Item]) -> None:
    for piece in pack(items):
        channel.sendall(piece)


def _ignore_signals() -> None:
    """The parent decides when we end, whoever else sends a signal to all. Not SIG_IGN: what the model starts would
    inherit it, and could not be ended by a signal either."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
        signal.siginterrupt(number, False)


def _take_any_text() -> None:
    """What the model prints must not fail its prediction, whatever the characters and PYTHONIOENCODING."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def _keep_from_children(channel: socket.socket) -> None:
    """What the model forks or starts neither holds the channel open after our death, nor writes to it."""
    channel.set_inheritable(False)
    descriptor = channel.fileno()

    def in_fork() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, descriptor, inheritable=False)
        os.close(nowhere)

    os.register_at_fork(after_in_child=in_fork)


def _die_with_parent() -> None:
    """A hung model does not see its socket close. Linux only; elsewhere the closed socket must do."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


class Child:
    """Answers the batches that the parent sends, one after the other.

    An async model can be interrupted: while it waits, its event loop reads the channel for cancellations.
    """

    def __init__(self, model: Model, channel: socket.socket) -> None:
        self._model = model
        self._channel = channel
        self._buffer = bytearray()
        self._batch_number = 0
        self._running = range(0)  # places, in the batch, of what the present call works on
        self._unwanted: set[int] = set()
        if model.is_async:
            model.interrupts = (channel, self._hear_cancellations)

    def serve(self) -> None:
        """Until the parent closes its end."""
        while items := self._receive():
            if items[0].kind == Kind.INPUT:  # else a cancellation that came too late
                self._batch_number += 1
                self._unwanted.clear()
                texts = [item.data for item in items]
                if self._model.batch:
                    self._answer_batch(texts)
                else:
                    self._answer_each(texts)

    def _receive(self, flags: int = 0) -> list[Item]:
        """The next frame; empty at the end of the channel, or if `flags` say not to wait for more."""
        buffer = self._buffer
        wanted = HEADER.size
        while True:
            if len(buffer) >= HEADER.size:
                size, count = HEADER.unpack_from(buffer)
                wanted = HEADER.size + size
                if len(buffer) >= wanted:
                    frame = bytes(memoryview(buffer)[HEADER.size : wanted])
                    del buffer[:wanted]
                    return unpack(count, frame)
            try:
                data = self._channel.recv(max(READ_BYTES, wanted - len(buffer)), flags)
            except BlockingIOError:
                return []
            if not data:
                return []
            buffer += data

    def _send(self, items: list[Item]) -> None:
        _send(self._channel, items)

    def _hear_cancellations(self) -> bool:
        """Whether the call that runs has an input that nobody wants."""
        interrupt = False
        while items := self._receive(socket.MSG_DONTWAIT):
            number, place = map(int, items[0].data.split())
            if number == self._batch_number:
                self._unwanted.add(place)
                if place in self._running:
                    interrupt = True
                else:
                    self._send_cancelled([place])
        return interrupt

    def _send_cancelled(self, places: Iterable[int]) -> None:
        self._send([Item(Kind.CANCELLED, 0, b"%d %d" % (self._batch_number, place)) for place in places])

    def _answer_each(self, texts: list[bytes]) -> None:
        outcomes: list[Item] = []
        flushed = time.perf_counter()
        for place, text in enumerate(texts):
            if outcomes and time.perf_counter() - flushed > FLUSH_S:
                self._send(outcomes)
                outcomes = []
                flushed = time.perf_counter()
            self._running = range(place, place + 1)
            unwanted = place in self._unwanted
            outcomes.append(UNWANTED if unwanted else _answer_one(self._model, text))
        self._send(outcomes)

    def _answer_batch(self, texts: list[bytes]) -> None:
        """One call for all inputs that the hints accept; if it raises, one call each, so that the bad one fails alone,
        or is the only one tried again later."""
        model = self._model
        self._running = range(len(texts))
        started = time.perf_counter_ns()
        values = [_input(model, text) for text in texts]
        good = [value for value in values if not isinstance(value, Item)]
        try:
            results = iter(_checked(model.call(good), len(good)) if good else [])
        except BaseException as error:
            if self._unwanted:
                self._send_cancelled(self._unwanted)
            if len(texts) == 1:
                self._send([_failed(error, started)])
            else:
                self._answer_each(texts)
            return
        self._send([v if isinstance(v, Item) else _outcome(next(results), started) for v in values])


def _answer_one(model: Model, text: bytes) -> Item:
    started = time.perf_counter_ns()
    value = _input(model, text)
    if isinstance(value, Item):
        return value
    try:
        result = _checked(model.call([value]), 1)[0] if model.batch else model.call(value)
    except BaseException as error:  # some libraries' are no Exceptions
        return _failed(error, started)
    return _outcome(result, started)


def _checked(results: Any, expected: int) -> list[Any]:
    listed = one_each(results)
    if len(listed) != expected:
        raise ValueError(f"predict_batch returned {len(listed)} results for {expected} inputs")
    return listed


def _input(model: Model, text: bytes) -> Any:
    value = json_text.loads(text)
    if model.validate is None:
        return value
    try:
        return model.validate(value)
    except BaseException as error:
        from pydantic import ValidationError  # here, because a model without hints has no use for pydantic

        if not isinstance(error, ValidationError):  # from a validator of the user's
            return _failed(error, time.perf_counter_ns())
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in ("input", *first["loc"]))
        return Item(Kind.REFUSED, 0, f"The model refuses the input at {place}: {first['msg']}.".encode())


def _outcome(result: Any, started: int) -> Item:
    if isinstance(result, BaseException):
        return _failed(result, started)
    spent = (time.perf_counter_ns() - started) // 1000
    try:
        return Item(Kind.RESULT, spent, to_json(result))
    except NotJson as refused:
        sentence = f"Prediction failed: the result is not JSON ({refused})."
        return Item(Kind.ERROR, spent, orjson.dumps({"error": sentence, "cause": "the result is not JSON"}))


def _failed(error: BaseException, started: int) -> Item:
    spent = (time.perf_counter_ns() - started) // 1000
    words: dict[str, Any] = {"error": f"Prediction failed: {describe(error)}", "cause": _cause(error)}
    after = _retry_after(error)
    if after is None:
        return Item(Kind.ERROR, spent, orjson.dumps(words))
    words |= {"after": after, "traceback": _traceback(error)}
    return Item(Kind.RETRY, spent, orjson.dumps(words))


def _cause(error: BaseException) -> str:
    """Its type and where it was raised. Not its text, which may quote the input."""
    frames = traceback.extract_tb(error.__traceback__)
    where = (
        f" at {os.path.basename(frames[-1].filename)}:{frames[-1].lineno} in {frames[-1].name}"
        if frames
        else ""
    )
    return f"{type(error).__name__}{where}".encode("utf-8", "replace").decode()


def _retry_after(error: BaseException) -> float | None:
    """The seconds after which the model wants another try: a number in the exception's attribute `retry_after`."""
    try:
        after = getattr(error, "retry_after", None)
    except Exception:  # it may be a property
        return None
    if isinstance(after, (int, float)) and not isinstance(after, bool) and after >= 0:
        return float(min(after, RETRY_MAX_S))
    return None


def _traceback(error: BaseException) -> str:
    try:
        text = "".join(traceback.format_exception(error))
    except Exception:  # it shows the exception's own text
        text = "".join(traceback.format_tb(error.__traceback__))
    return text[-TRACEBACK_CHARS:].encode("utf-8", "replace").decode()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2]))
