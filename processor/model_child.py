"""A model process: loads the user's model, then answers frames of inputs with frames of outcomes, in order.

It knows nothing of Redis. It must never let the model's prints, exceptions or exits reach the protocol: the socket
is its own, stdout and stderr are read by the processor and go to the log.
"""

import contextlib
import ctypes
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, BinaryIO

import orjson
from pydantic import ValidationError

from common import json_text
from common.errors import ModelFault
from processor.frames import HEADER, Item, Kind, pack, unpack
from processor.model_loader import Model, describe, in_one_line, load_model

FLUSH_S = 0.001  # outcomes are sent at the latest before the next call that starts this much after the first of them

_JSON = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
_PR_SET_PDEATHSIG = 1


def main(descriptor: int, spec: str) -> int:
    _die_with_parent()
    _ignore_signals()
    with socket.socket(fileno=descriptor) as channel, channel.makefile("rb") as incoming:
        _keep_from_children(channel)
        try:
            model = load_model(spec)
            try:
                model.setup()
            except BaseException as error:
                raise ModelFault(f"{spec}: setup failed: {in_one_line(error)}.") from error
        except ModelFault as fault:
            channel.sendall(pack([Item(Kind.FAULT, 0, str(fault).encode())]))
            return 1
        channel.sendall(pack([Item(Kind.READY, 0, orjson.dumps({"batch": model.batch}))]))
        serve(model, incoming, channel.sendall)
        with contextlib.suppress(BaseException):
            model.teardown()
    return 0


def _ignore_signals() -> None:
    """The parent decides when we end, whoever else sends a signal to all. Not SIG_IGN: what the model starts would
    inherit it, and could not be ended by a signal either."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
        signal.siginterrupt(number, False)


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


def serve(model: Model, incoming: BinaryIO, send: Callable[[bytes], None]) -> None:
    """Answer frames until the parent closes its end."""
    answer = _answer_batch if model.batch else _answer_each
    while header := incoming.read(HEADER.size):
        size, count = HEADER.unpack(header)
        inputs = [item.data for item in unpack(count, incoming.read(size))]
        answer(model, inputs, send)


def _answer_each(model: Model, inputs: list[bytes], send: Callable[[bytes], None]) -> None:
    outcomes: list[Item] = []
    flushed = time.perf_counter()
    for text in inputs:
        if outcomes and time.perf_counter() - flushed > FLUSH_S:
            send(pack(outcomes))
            outcomes = []
            flushed = time.perf_counter()
        outcomes.append(_answer_one(model, text))
    send(pack(outcomes))


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


def _answer_batch(model: Model, texts: list[bytes], send: Callable[[bytes], None]) -> None:
    """One call for all inputs that the hints accept; if it raises, one call each, so that the bad one fails alone."""
    started = time.perf_counter_ns()
    values = [_input(model, text) for text in texts]
    good = [value for value in values if not isinstance(value, Item)]
    try:
        results = iter(_checked(model.call(good), len(good)) if good else [])
    except BaseException as error:
        if len(texts) == 1:
            send(pack([_failed(error, started)]))
        else:
            _answer_each(model, texts, send)
        return
    send(pack([v if isinstance(v, Item) else _outcome(next(results), started) for v in values]))


def _checked(results: Any, expected: int) -> list[Any]:
    listed = list(results)
    if len(listed) != expected:
        raise ValueError(f"predict_batch returned {len(listed)} results for {expected} inputs")
    return listed


def _input(model: Model, text: bytes) -> Any:
    value = json_text.loads(text)
    if model.validate is None:
        return value
    try:
        return model.validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in ("input", *first["loc"]))
        return Item(Kind.REFUSED, 0, f"The model refuses the input at {place}: {first['msg']}.".encode())
    except BaseException as error:  # from a validator of the user's
        return _failed(error, time.perf_counter_ns())


def _outcome(result: Any, started: int) -> Item:
    if isinstance(result, BaseException):
        return _failed(result, started)
    spent = (time.perf_counter_ns() - started) // 1000
    try:
        return Item(Kind.RESULT, spent, json_text.dumps(result, option=_JSON, default=_default))
    except (TypeError, ValueError, RecursionError) as error:
        sentence = f"Prediction failed: the result is not JSON ({describe(error)})."
        return Item(Kind.ERROR, spent, sentence.encode())


def _failed(error: BaseException, started: int) -> Item:
    spent = (time.perf_counter_ns() - started) // 1000
    return Item(Kind.ERROR, spent, f"Prediction failed: {describe(error)}".encode())


def _default(value: Any) -> Any:
    """What orjson does not know: arrays it cannot read in place, and pydantic models."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON")


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2]))
