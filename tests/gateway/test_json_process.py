"""JSON texts that are looked through in another process: with the same outcome as here, and its death costs one request."""

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from common.json_text import NoInput, NotJson, input_of, value_digest
from gateway.errors import HttpError
from gateway.json_process import FEW_VALUES_BYTES, LIGHT_BYTES, JsonProcess

MANY = b"[" + b"[1,2.5,null]," * (LIGHT_BYTES // 10) + b"1]"
LONG = b'"' + b"a" * (FEW_VALUES_BYTES + 1) + b'"'
DEEP = b"[" * 251 + b"]" * 251

#: Each so large that the other process looks through it.
BODIES = {
    "only an input": b'{"input":' + MANY + b"}",
    "with blanks": b' { "input" : ' + MANY + b" } ",
    "a long text": b'{"input":' + LONG + b"}",
    "more keys": b'{"a":1,"input":' + MANY + b',"z":[]}',
    "a long number": b'{"input":[' + MANY + b",123456789012345678901234567890]}",
    "a long number and more keys": b'{"z":1,"input":[' + MANY + b",123456789012345678901234567890]}",
    "the input twice": b'{"input":' + MANY + b',"input":1}',
    "no input": b'{"output":' + MANY + b"}",
    "no object": MANY,
    "cut": b'{"input":' + MANY,
    "not JSON at its end": b'{"input":' + MANY + b"}x",
    "not UTF-8": b'{"input":[' + MANY + b',"\xff"]}',
    "too deep": b'{"input":[' + MANY + b"," + DEEP + b"]}",
    "a number too large": b'{"input":[' + MANY + b",1e400]}",
    "half a pair": rb'{"input":[' + MANY + rb',"\ud800"]}',
}


@pytest.fixture
async def process() -> AsyncIterator[JsonProcess]:
    process = JsonProcess()
    yield process
    await process.aclose()


def children() -> list[int]:
    """Of this process, those that look through texts."""
    pid = os.getpid()
    pids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(one) for one in pids if b"gateway.json_child" in Path(f"/proc/{one}/cmdline").read_bytes()]


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
async def test_the_outcome_is_the_same(process: JsonProcess, body: bytes) -> None:
    try:
        expected = input_of(body)
    except (NotJson, NoInput) as error:
        with pytest.raises(type(error), match=f"^{re.escape(str(error))}$"):
            await process.input_of(body)
    else:
        assert await process.input_of(body) == expected
    assert len(children()) == 1


async def test_a_small_text_starts_no_process(process: JsonProcess) -> None:
    assert await process.input_of(b'{"input": 1}') == b"1"
    text = b'"' + b"a" * (1 << 20) + b'"'
    assert await process.input_of(b'{"input":' + text + b"}") == text
    assert children() == []


async def test_values_are_compared(process: JsonProcess) -> None:
    spaced = json.dumps(json.loads(MANY), indent=1).encode()
    other = MANY[:-2] + b"2]"
    digest = await process.value_digest(MANY)
    assert digest == value_digest(MANY) == await process.value_digest(spaced)
    assert digest != await process.value_digest(other)


async def test_many_at_the_same_time_do_not_mix(process: JsonProcess) -> None:
    bodies = [b'{"input":[%d,%b]}' % (number, MANY) for number in range(8)]
    found = await asyncio.gather(*map(process.input_of, bodies))
    assert found == [input_of(body) for body in bodies]
    assert len(children()) == 1


async def test_one_that_is_killed_costs_one_request(process: JsonProcess) -> None:
    body = BODIES["only an input"]
    await process.input_of(body)
    (child,) = children()
    os.kill(child, signal.SIGSTOP)
    asked = asyncio.ensure_future(process.input_of(body))
    await asyncio.sleep(0)
    os.kill(child, signal.SIGKILL)
    with pytest.raises(HttpError) as raised:
        await asked
    assert raised.value.code == 503
    assert await process.input_of(body) == MANY


async def test_who_gives_up_leaves_nothing_half_done(process: JsonProcess) -> None:
    body = BODIES["only an input"]
    await process.input_of(body)
    os.kill(children()[0], signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await process.input_of(body)
    assert await process.input_of(BODIES["more keys"]) == MANY


async def test_none_is_left_behind(process: JsonProcess) -> None:
    await process.input_of(BODIES["only an input"])
    await process.aclose()
    assert children() == []
