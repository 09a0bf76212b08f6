"""A real model process from its owner's side: what comes back, what a model may do to itself, how it ends."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from common.errors import ModelFault
from processor.model.frames import Item, Kind
from processor.model.process import ModelDied, ModelProcess, State
from tests.conftest import eventually, wait_until
from tests.processor.conftest import Book, WriteModel

Start = Callable[..., Awaitable[ModelProcess]]


@pytest.fixture
async def start(write_model: WriteModel) -> AsyncIterator[Start]:
    """`await start(source)`: a model process that has loaded `Model`."""
    started: list[ModelProcess] = []

    async def make(source: str, *, predict_timeout_s: float = 60.0) -> ModelProcess:
        started.append(ModelProcess(write_model(source), predict_timeout_s=predict_timeout_s))
        await started[-1].start()
        return started[-1]

    yield make
    for process in started:
        await process.stop()


async def outcomes(process: ModelProcess, *inputs: Any) -> list[Item]:
    texts = [orjson.dumps(value) for value in inputs]
    return [item async for items in process.predict(texts) for item in items]


async def results(process: ModelProcess, *inputs: Any) -> list[Any]:
    """What the model returned, or the sentence why not."""
    return [_result(item) for item in await outcomes(process, *inputs)]


def _result(item: Item) -> Any:
    if item.kind == Kind.REFUSED:
        return item.data.decode()
    value = orjson.loads(item.data)
    return value["error"] if item.kind == Kind.ERROR else value


async def test_a_cancellation_that_meets_a_dying_process_changes_nothing(start: Start, book: Book) -> None:
    process = await start("""
        from book import *
        async def Model(input):
            note("running")
            time.sleep(3600)
    """)
    predicting = asyncio.create_task(outcomes(process, 1))
    await book.has("running")
    process.interrupt()
    while not predicting.done():  # in every turn of the loop from here to its last
        process.cancel(0)
        await asyncio.sleep(0)
    with pytest.raises(ModelDied):
        await predicting


class Log:
    """Takes the place of the log, and keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def info(self, line: str, *, source: str, stream: str) -> None:
        assert source == "model"
        self.lines.append((stream, line))


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(stream, line) of what models print."""
    log = Log()
    monkeypatch.setattr("processor.model.process.log", log)
    return log.lines


class TestResults:
    async def test_they_come_in_the_order_of_the_inputs(self, start: Start) -> None:
        process = await start("def Model(input): return 2 * input")
        assert await results(process, *range(300)) == [2 * n for n in range(300)]
        assert await results(process, "again") == ["againagain"]

    async def test_one_is_sent_while_the_next_is_still_computed(self, start: Start, tmp_path: Path) -> None:
        flag = tmp_path / "flag"
        process = await start(f"""
            import os, time
            def Model(input):
                if input == "wait":
                    while not os.path.exists({str(flag)!r}): time.sleep(0.01)
                time.sleep(0.005)
                return input
        """)
        got = []
        async for items in process.predict([b'"first"', b'"wait"']):
            got += [item.data for item in items]
            flag.touch()
        assert got == [b'"first"', b'"wait"']

    async def test_a_result_says_how_long_its_model_took(self, start: Start) -> None:
        process = await start("import time\ndef Model(input): time.sleep(input)")
        quick, slow = await outcomes(process, 0, 0.05)
        assert slow.predict_us >= 50_000 > quick.predict_us

    async def test_what_is_json_enough(self, start: Start) -> None:
        process = await start("""
            import dataclasses, datetime, decimal, enum, uuid
            import numpy as np
            from pydantic import BaseModel

            @dataclasses.dataclass
            class Box:
                label: str
                score: np.float32

            class Review(BaseModel):
                stars: int
                when: datetime.date

            class Colour(enum.Enum):
                RED = "red"

            RESULTS = {
                "none": None,
                "scalars": [np.float32(0.5), np.float64(1.5), np.int64(-3), np.uint8(7), np.bool_(True)],
                "half": np.float16(0.5),
                "array": np.array([[1, 2], [3, 4]]),
                "strided": np.arange(6)[::2],
                "fortran": np.asfortranarray(np.array([[1, 2], [3, 4]])),
                "texts": np.array(["a", "b"]),
                "objects": np.array([1, "b", None], dtype=object),
                "no dimension": np.array(5),
                "in a dict": {"probabilities": np.array([0.25, 0.75], dtype=np.float32)},
                "dataclass": Box("cat", np.float32(0.5)),
                "pydantic": [Review(stars=5, when=datetime.date(2024, 2, 29))],
                "datetime": datetime.datetime(2024, 2, 29, 12, 30, tzinfo=datetime.timezone.utc),
                "uuid": uuid.UUID(int=1),
                "enum": Colour.RED,
                "tuple": (1, 2),
                "number keys": {7: "a", 2.5: "b", None: "c", True: "d"},
                "big integer": 2**70 + 1,
                "big integers inside": {"hash": [-(2**64)], 7: (1, 2)},
                "big integer in a dataclass": Box("hash", 2**70),
                "big integer beside others": [2**70, np.float32(0.5), np.arange(2), uuid.UUID(int=1)],
                "big integer beside nan": [2**70, float("nan")],
                "not numbers": [float("nan"), float("inf"), np.float32("nan"), np.array([np.nan, 1.0])],
                "unicode": "\\x00\\n\\u2028\\U0001f600",
            }
            def Model(input): return RESULTS[input]
        """)
        expected = {
            "none": None,
            "scalars": [0.5, 1.5, -3, 7, True],
            "half": 0.5,
            "array": [[1, 2], [3, 4]],
            "strided": [0, 2, 4],
            "fortran": [[1, 2], [3, 4]],
            "texts": ["a", "b"],
            "objects": [1, "b", None],
            "no dimension": 5,
            "in a dict": {"probabilities": [0.25, 0.75]},
            "dataclass": {"label": "cat", "score": 0.5},
            "pydantic": [{"stars": 5, "when": "2024-02-29"}],
            "datetime": "2024-02-29T12:30:00+00:00",
            "uuid": "00000000-0000-0000-0000-000000000001",
            "enum": "red",
            "tuple": [1, 2],
            "number keys": {"7": "a", "2.5": "b", "null": "c", "true": "d"},
            "big integer": 2**70 + 1,
            "big integers inside": {"hash": [-(2**64)], "7": [1, 2]},
            "big integer in a dataclass": {"label": "hash", "score": 2**70},
            "big integer beside others": [2**70, 0.5, [0, 1], "00000000-0000-0000-0000-000000000001"],
            "big integer beside nan": [2**70, None],
            "not numbers": [None, None, None, [None, 1.0]],
            "unicode": "\x00\n\u2028\U0001f600",
        }
        items = await outcomes(process, *expected)
        assert [item.data for item in items if item.kind != Kind.RESULT] == []
        # orjson would round the big integers
        assert {name: json.loads(i.data) for name, i in zip(expected, items, strict=True)} == expected

    async def test_what_is_not_json_fails_alone(self, start: Start) -> None:
        process = await start("""
            CIRCLE = []
            CIRCLE.append(CIRCLE)
            DEEP = []
            for _ in range(400): DEEP = [DEEP]
            class Loud:
                def __repr__(self): raise RuntimeError("no")
            RESULTS = {
                "object": object(), "loud": Loud(), "bytes": b"1", "complex": 1j, "type": int,
                "circle": CIRCLE, "deep": DEEP, "surrogate": "\\ud800", "key": {object(): 1},
                "big circle": [2**70, CIRCLE], "big object": [2**70, object()], "generator": (n for n in [1]),
            }
            def Model(input): return RESULTS.get(input, "fine")
        """)
        names = ["object", "loud", "bytes", "complex", "type", "circle", "deep", "surrogate", "key"]
        names += ["big circle", "big object", "generator"]
        mixed = [word for name in names for word in (name, "-")]
        found = await results(process, *mixed)
        assert found[1::2] == ["fine"] * len(names)
        for sentence in found[::2]:
            assert sentence.startswith("Prediction failed: the result is not JSON ("), sentence
            assert sentence.endswith(").")
        assert found[0] == (
            "Prediction failed: the result is not JSON "
            "(result is object, which is not JSON: return a dict, a list, a text or a number)."
        )

    async def test_a_missing_time_is_null_and_a_set_a_list(self, start: Start) -> None:
        process = await start("""
            import numpy as np
            def Model(input):
                return {"seen": np.array(["NaT", "2024-02-29"], "M8[ns]"), "labels": {"cat"}, "bad": input and b""}
        """)
        found = await results(process, 0, 1)
        assert found[0] == {"seen": [None, "2024-02-29T00:00:00"], "labels": ["cat"], "bad": 0}
        assert "result.bad is bytes" in found[1]


class TestInputs:
    async def test_the_model_gets_the_value_that_was_sent(self, start: Start) -> None:
        process = await start("def Model(input): return repr(input)")
        values = [None, True, 1, -0.5, "é\x00", [], {"a": {"b": [1]}}]
        assert await results(process, *values) == [repr(value) for value in values]

    async def test_big_integers_keep_their_digits(self, start: Start) -> None:
        process = await start("def Model(input): return input + 1")
        (items,) = [items async for items in process.predict([b"123456789012345678901234567890"])]
        assert items[0].data == b"123456789012345678901234567891"

    async def test_what_a_hint_refuses_never_reaches_the_model(self, start: Start) -> None:
        process = await start("""
            from pydantic import BaseModel
            class Point(BaseModel):
                x: int
            def Model(input: Point): return input.x
        """)
        found = await outcomes(process, {"x": 1}, {"x": "one"}, {}, {"x": 2})
        assert [Kind(item.kind) for item in found] == [Kind.RESULT, Kind.REFUSED, Kind.REFUSED, Kind.RESULT]
        assert found[1].data.decode() == (
            "The model refuses the input at input.x: "
            "Input should be a valid integer, unable to parse string as an integer."
        )
        assert found[2].data == b"The model refuses the input at input.x: Field required."

    async def test_what_a_hint_refuses_does_not_spoil_its_batch(self, start: Start) -> None:
        process = await start("""
            class Model:
                def predict_batch(self, inputs: list[int]): return [[i, len(inputs)] for i in inputs]
        """)
        found = await results(process, 1, "two", 3)
        assert [found[0], found[2]] == [[1, 2], [3, 2]]
        assert found[1].startswith("The model refuses the input at input: ")
        (only,) = await outcomes(process, "two")
        assert only.kind == Kind.REFUSED

    async def test_a_validator_of_the_model_that_breaks_fails_alone(self, start: Start) -> None:
        process = await start("""
            from typing import Annotated
            from pydantic import AfterValidator
            def check(value):
                if value == 1: raise ValueError("one is odd")
                if value == 2: raise KeyError("two")
                if value == 3: raise ValueError("\\ud800")
                return value
            def Model(input: Annotated[int, AfterValidator(check)]): return input
        """)
        found = await outcomes(process, 0, 1, 2, 3, 4)
        kinds = [Kind.RESULT, Kind.REFUSED, Kind.ERROR, Kind.ERROR, Kind.RESULT]
        assert [Kind(item.kind) for item in found] == kinds
        assert found[1].data == b"The model refuses the input at input: Value error, one is odd."
        assert _result(found[2]) == "Prediction failed: KeyError: 'two'"


class TestExceptions:
    async def test_the_words_for_the_log_say_where_and_nothing_of_the_input(self, start: Start) -> None:
        process = await start("""
            def Model(input):
                return {}[input]
        """)
        (failed,) = await outcomes(process, "secret")
        words = orjson.loads(failed.data)
        assert "secret" in words["error"]
        assert words["cause"] == "KeyError at little_model.py:3 in Model"

    async def test_each_fails_alone_with_its_own_text(self, start: Start) -> None:
        process = await start("""
            import asyncio, sys
            class Mute(Exception):
                def __str__(self): raise RuntimeError("no text")
            class Panic(BaseException): pass
            ERRORS = [
                ValueError("too long"), ValueError(), Mute(), ValueError("\\ud800é"), ValueError("a\\nb"),
                SystemExit(3), Panic("lost"), KeyboardInterrupt(), asyncio.CancelledError(), RecursionError("deep"),
                ValueError("x" * 100_000),
            ]
            def Model(input):
                if input == "stdin": input()
                if input < len(ERRORS): raise ERRORS[input]
                return "fine"
        """)
        found = await results(process, *range(12), 99)
        assert found[0] == "Prediction failed: ValueError: too long"
        assert found[1] == "Prediction failed: ValueError"
        assert found[2] == "Prediction failed: Mute: (its text cannot be shown)"
        assert found[3] == "Prediction failed: ValueError: ?é"
        assert found[4] == "Prediction failed: ValueError: a\nb"
        assert found[5:10] == [
            "Prediction failed: SystemExit: 3",
            "Prediction failed: Panic: lost",
            "Prediction failed: KeyboardInterrupt",
            "Prediction failed: CancelledError",
            "Prediction failed: RecursionError: deep",
        ]
        assert found[10].startswith("Prediction failed: ValueError: xxx")
        assert len(found[10]) < 3000
        assert found[11:] == ["fine", "fine"]

    async def test_a_real_endless_recursion(self, start: Start) -> None:
        process = await start("def Model(input): return Model(input) if input else 'fine'")
        first, second = await results(process, 1, 0)
        assert first.startswith("Prediction failed: RecursionError")
        assert second == "fine"

    async def test_nobody_can_type_into_a_model(self, start: Start) -> None:
        process = await start("import builtins\ndef Model(_): return builtins.input()")
        assert await results(process, 1) == ["Prediction failed: EOFError: EOF when reading a line"]

    async def test_an_async_model(self, start: Start) -> None:
        process = await start("""
            import asyncio
            class Model:
                async def predict(self, input):
                    if input == 1: raise ValueError("one")
                    if input == 2: asyncio.current_task().cancel()
                    await asyncio.sleep(0)
                    return input
        """)
        assert await results(process, 0, 1, 2, 3) == [
            0,
            "Prediction failed: ValueError: one",
            "Prediction failed: CancelledError",
            3,
        ]


class TestBatches:
    async def test_all_inputs_go_in_one_call(self, start: Start) -> None:
        process = await start("""
            class Model:
                async def predict_batch(self, inputs): return (len(inputs) for _ in inputs)
        """)
        assert process.batch
        assert await results(process, 1, 2, 3) == [3, 3, 3]

    async def test_a_batch_that_raises_isolates_the_bad_item(self, start: Start) -> None:
        process = await start("""
            class Model:
                def predict_batch(self, inputs): return [1 / i for i in inputs]
        """)
        assert await results(process, 1, 0, 2) == [
            1.0,
            "Prediction failed: ZeroDivisionError: division by zero",
            0.5,
        ]

    @pytest.mark.parametrize("returned", ["inputs[:-1]", "inputs + [1]", "[]"])
    async def test_a_batch_of_another_length_answers_nobody_with_a_neighbours_result(
        self, start: Start, returned: str
    ) -> None:
        process = await start(f"""
            class Model:
                def predict_batch(self, inputs): return {returned} if "bad" in inputs else inputs
        """)
        first, bad, last = await results(process, "first", "bad", "last")
        assert (first, last) == ("first", "last")
        number = {"inputs[:-1]": 0, "inputs + [1]": 2, "[]": 0}[returned]
        assert bad == f"Prediction failed: ValueError: predict_batch returned {number} results for 1 inputs"

    @pytest.mark.parametrize("returned", ["None", "5", "{1: 0.1, 2: 0.2}", "'ab'", "{1, 2}"])
    async def test_a_batch_that_is_no_list(self, start: Start, returned: str) -> None:
        process = await start(f"class Model:\n    def predict_batch(self, inputs): return {returned}")
        kind = type(eval(returned)).__name__
        for sentence in await results(process, 1, 2):
            assert sentence == (
                f"Prediction failed: TypeError: predict_batch returned one {kind}: "
                "return a list with one result for each input, in order"
            )

    async def test_an_exception_may_be_an_item(self, start: Start) -> None:
        process = await start("""
            class Model:
                calls = 0
                def predict_batch(self, inputs):
                    self.calls += 1
                    return [ValueError("odd") if i % 2 else self.calls for i in inputs]
        """)
        odd = "Prediction failed: ValueError: odd"
        assert await results(process, 0, 1, 2, 3) == [1, odd, 1, odd]

    async def test_a_result_that_is_not_json_does_not_spoil_its_batch(self, start: Start) -> None:
        process = await start("""
            class Model:
                def predict_batch(self, inputs): return [object() if i == 1 else i for i in inputs]
        """)
        first, bad, last = await results(process, 0, 1, 2)
        assert (first, last) == (0, 2)
        assert bad.startswith("Prediction failed: the result is not JSON")


class TestPrints:
    async def test_they_go_to_the_log_line_by_line(
        self, start: Start, printed: list[tuple[str, str]]
    ) -> None:
        process = await start("""
            import os, subprocess, sys
            print("at import")
            class Model:
                def setup(self): print("at setup", file=sys.stderr)
                def predict(self, input):
                    print("printed")
                    os.write(1, b"written to 1\\n")
                    os.write(2, b"not utf-8: \\xff\\n")
                    subprocess.run(["echo", "from a command"])
                    return "fine"
                def teardown(self): print("at teardown, without a newline", end="")
        """)
        assert await results(process, 1) == ["fine"]
        await process.stop()
        assert [line for stream, line in printed if stream == "stdout"] == [
            "at import", "printed", "written to 1", "from a command", "at teardown, without a newline",
        ]  # fmt: skip
        assert [line for stream, line in printed if stream == "stderr"] == ["at setup", "not utf-8: \ufffd"]

    async def test_a_huge_line_is_cut_and_loses_nothing(
        self, start: Start, printed: list[tuple[str, str]]
    ) -> None:
        process = await start("def Model(input): print('x' * 1_000_000); return 'fine'")
        assert await results(process, 1) == ["fine"]
        await process.stop()
        assert "".join(line for _, line in printed) == "x" * 1_000_000
        assert max(len(line) for _, line in printed) < 20_000

    async def test_a_flood_holds_nobody_up(self, start: Start, printed: list[tuple[str, str]]) -> None:
        process = await start("""
            import sys, threading
            def flood():
                while True: sys.stdout.write("flood " * 10 + "\\n")
            def Model(input):
                if input == 0: threading.Thread(target=flood, daemon=True).start()
                return input
        """)
        for number in range(20):
            assert await results(process, number) == [number]
        await eventually(lambda: len(printed) > 10_000)
        await process.stop()
        assert {line for _, line in printed[:-1]} == {"flood " * 10}

    async def test_a_model_may_close_its_streams(self, start: Start) -> None:
        process = await start("import os, sys\ndef Model(input): os.close(1); os.close(2); return 'fine'")
        assert await results(process, 1) == ["fine"]


class TestEnds:
    @pytest.mark.parametrize(
        ("end", "words"),
        [
            ("os._exit(3)", "the model process exited with code 3"),
            ("os._exit(0)", "the model process exited with code 0"),
            ("os.kill(os.getpid(), signal.SIGSEGV)", "the model process died of SIGSEGV"),
            ("os.abort()", "the model process died of SIGABRT"),
            (
                "os.kill(os.getpid(), signal.SIGKILL)",
                "the model process was killed (SIGKILL), perhaps out of memory",
            ),
            ("os.kill(os.getpid(), signal.SIGRTMIN + 3)", "the model process died of signal 37"),
        ],
    )
    async def test_a_death_is_told_in_words(self, start: Start, end: str, words: str) -> None:
        process = await start(f"import os, signal\ndef Model(input): {end}")
        with pytest.raises(ModelDied) as died:
            await outcomes(process, 1)
        assert str(died.value) == words
        assert not died.value.timeout
        assert process.state is State.DEAD

    async def test_what_was_answered_before_the_death_counts(self, start: Start) -> None:
        process = await start("""
            import os, time
            def Model(input):
                if input == 2: os._exit(1)
                time.sleep(0.005)
                return input
        """)
        got: list[Item] = []
        with pytest.raises(ModelDied):
            async for items in process.predict([b"0", b"1", b"2", b"3"]):
                got += items
        assert [item.data for item in got] == [b"0", b"1"]

    async def test_a_dead_one_can_be_started_again(self, start: Start) -> None:
        process = await start("import os\ndef Model(input): return input or os._exit(1)")
        with pytest.raises(ModelDied):
            await outcomes(process, 0)
        await process.start()
        assert process.state is State.IDLE
        assert await results(process, 1) == [1]

    async def test_one_that_died_idle_is_found_dead(self, start: Start) -> None:
        process = await start("""
            import os, threading
            def Model(input): threading.Timer(0.01, os._exit, [4]).start()
        """)
        await outcomes(process, 1)
        await eventually(lambda: process._process and process._process.returncode is not None)
        with pytest.raises(ModelDied, match="exited with code 4"):
            await outcomes(process, 1)

    async def test_one_that_was_killed_idle_is_found_dead(self, start: Start) -> None:
        process = await start("def Model(input): return input")
        await process.kill()
        with pytest.raises(ModelDied, match="SIGKILL"):
            await outcomes(process, 1)
        await process.start()
        assert await results(process, 1) == [1]

    @pytest.mark.parametrize("hang", ["time.sleep(3600)", "while True: pass", "open(fifo).read()"])
    async def test_one_that_hangs_is_stopped(self, start: Start, tmp_path: Path, hang: str) -> None:
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        process = await start(
            f"import time\nfifo = {str(fifo)!r}\ndef Model(input):\n    {hang}", predict_timeout_s=0.2
        )
        with pytest.raises(ModelDied, match=r"the model ran longer than 0.2 s and was stopped") as died:
            await outcomes(process, 1)
        assert died.value.timeout
        assert process.state is State.DEAD

    async def test_the_time_limit_is_for_one_call_and_not_for_a_run_of_them(self, start: Start) -> None:
        process = await start("import time\ndef Model(input): time.sleep(0.1)", predict_timeout_s=0.6)
        assert await results(process, *range(10)) == [None] * 10

    async def test_killing_it_tells_who_waits(self, start: Start) -> None:
        process = await start("import time\ndef Model(input): time.sleep(3600)")
        waiting = asyncio.create_task(outcomes(process, 1))
        await eventually(lambda: process.state is State.BUSY)
        await process.kill()
        with pytest.raises(ModelDied):
            await waiting

    async def test_stop_runs_the_teardown(self, start: Start, tmp_path: Path) -> None:
        process = await start(f"""
            class Model:
                def predict(self, input): return input
                async def teardown(self): open({str(tmp_path / "bye")!r}, "w").write("bye")
        """)
        await process.stop()
        assert process.state is State.STOPPED
        assert (tmp_path / "bye").read_text() == "bye"

    async def test_a_teardown_that_hangs_is_cut_short(
        self, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("processor.model.process.STOP_LIMIT_S", 0.2)
        process = await start("""
            import time
            class Model:
                def predict(self, input): return input
                def teardown(self): time.sleep(3600)
        """)
        async with asyncio.timeout(30):
            await process.stop()
        assert process._process
        assert process._process.returncode == -signal.SIGKILL

    async def test_a_teardown_that_raises_is_a_quiet_end(self, start: Start) -> None:
        process = await start("""
            class Model:
                def predict(self, input): return input
                def teardown(self): raise ValueError
        """)
        await process.stop()
        assert process._process
        assert process._process.returncode == 0

    async def test_signals_meant_for_its_owner_do_not_end_it(self, start: Start) -> None:
        process = await start("import os\ndef Model(input): return os.getpid()")
        (pid,) = await results(process, 1)
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
        assert await results(process, 1) == [pid]

    def test_it_does_not_outlive_a_killed_owner(self, write_model: WriteModel) -> None:
        spec = write_model("""
            import os, time
            def Model(input):
                print(os.getpid(), flush=True)
                time.sleep(3600)
        """)
        owner = subprocess.Popen(
            [sys.executable, "-c", OWNER, spec], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert owner.stdout
        with owner.stdout:
            pid = int(owner.stdout.readline())
            assert running(pid)
            owner.kill()
            owner.wait()
            wait_until(lambda: not running(pid))


#: Runs a prediction and prints what the model prints.
OWNER = """
import asyncio, sys
from processor.model import process as model_process

class Log:
    def info(self, line, **more): print(line, flush=True)

async def main():
    model_process.log = Log()
    process = model_process.ModelProcess(sys.argv[1], predict_timeout_s=3600)
    await process.start()
    async for items in process.predict([b"1"]): pass

asyncio.run(main())
"""


def running(pid: int) -> bool:
    """Whether there is such a process, and it has not ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


class TestChildrenAndThreads:
    async def test_a_pool_of_forked_workers(self, start: Start) -> None:
        process = await start(
            """
            import multiprocessing
            def double(n): return 2 * n
            def Model(input):
                with multiprocessing.get_context("fork").Pool(2) as pool:  # ends it by SIGTERM
                    return pool.map(double, input)
            """,
            predict_timeout_s=30,
        )
        assert await results(process, [1, 2, 3]) == [[2, 4, 6]]

    async def test_a_command_that_is_ended_by_a_signal(self, start: Start) -> None:
        process = await start(
            """
            import subprocess
            def Model(input):
                with subprocess.Popen(["sleep", "60"]) as command:
                    command.terminate()
                    return command.wait()
            """,
            predict_timeout_s=30,
        )
        assert await results(process, 1) == [-signal.SIGTERM]

    async def test_threads(self, start: Start) -> None:
        process = await start("""
            from concurrent.futures import ThreadPoolExecutor
            def Model(input):
                with ThreadPoolExecutor(4) as pool: return list(pool.map(lambda n: 2 * n, input))
        """)
        assert await results(process, [1, 2, 3]) == [[2, 4, 6]]

    async def test_a_fork_that_returns_by_mistake_answers_nobody(self, start: Start) -> None:
        process = await start("""
            import os
            def Model(input):
                if input == "fork" and os.fork() == 0: return "from the fork"
                return "from the model"
        """)
        assert await results(process, "fork") == ["from the model"]
        assert await results(process, *range(5)) == ["from the model"] * 5

    @pytest.mark.parametrize(
        "leave_behind",
        [
            "(pid := os.fork()) or time.sleep(60)",
            "pid = subprocess.Popen(['sleep', '60'], close_fds=False).pid",
        ],
    )
    async def test_its_death_is_seen_although_its_children_live(
        self, start: Start, tmp_path: Path, leave_behind: str
    ) -> None:
        process = await start(f"""
            import os, subprocess, time
            def Model(input):
                {leave_behind}
                open({str(tmp_path / "pid")!r}, "w").write(str(pid))
                os._exit(3)
        """)
        with pytest.raises(ModelDied, match="exited with code 3"):
            await outcomes(process, 1)
        pid = int((tmp_path / "pid").read_text())
        wait_until(lambda: not running(pid))


class TestStarts:
    async def test_a_setup_that_takes_its_time(self, write_model: WriteModel, tmp_path: Path) -> None:
        flag = tmp_path / "flag"
        process = ModelProcess(
            write_model(f"""
                import os, time
                class Model:
                    def setup(self):
                        while not os.path.exists({str(flag)!r}): time.sleep(0.01)
                    def predict(self, input): return input
            """),
            predict_timeout_s=0.1,  # is not for setup
        )
        starting = asyncio.create_task(process.start())
        await asyncio.wait({starting}, timeout=0.3)
        assert process.state is State.STARTING
        flag.touch()
        await starting
        assert process.state is State.IDLE
        await process.stop()

    @pytest.mark.parametrize(
        ("setup", "sentence"),
        [
            ("raise OSError('no weights\\nhere')", "setup failed: OSError: no weights here."),
            ("sys.exit('enough')", "setup failed: SystemExit: enough."),
            ("raise KeyboardInterrupt", "setup failed: KeyboardInterrupt."),
            ("os._exit(5)", "the model process exited with code 5 while it was loading."),
        ],
    )
    async def test_a_setup_that_fails(
        self, write_model: WriteModel, tmp_path: Path, setup: str, sentence: str
    ) -> None:
        spec = write_model(f"""
            import os, sys
            class Model:
                def setup(self): {setup}
                def predict(self, input): return input
        """)
        process = ModelProcess(spec, predict_timeout_s=60)
        with pytest.raises(ModelFault) as fault:
            await process.start()
        assert str(fault.value) == f"{spec}: {sentence}"
        assert process.state is State.DEAD

    async def test_a_setup_that_never_ends(
        self, write_model: WriteModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("processor.model.process.SETUP_LIMIT_S", 0.2)
        spec = write_model("import time\ntime.sleep(3600)\ndef Model(input): ...")
        process = ModelProcess(spec, predict_timeout_s=60)
        with pytest.raises(ModelFault, match=r"setup took longer than 0\.2 s\."):
            await process.start()
        assert process.state is State.DEAD

    async def test_a_model_that_cannot_be_loaded_names_the_file_and_the_fault(
        self, write_model: WriteModel
    ) -> None:
        spec = write_model("import nowhere")
        process = ModelProcess(spec, predict_timeout_s=60)
        with pytest.raises(ModelFault) as fault:
            await process.start()
        path = spec.removesuffix(":Model")
        assert str(fault.value) == (
            f"{path} cannot be imported: ModuleNotFoundError: No module named 'nowhere'."
        )

    async def test_one_that_was_never_started_can_be_stopped(self) -> None:
        process = ModelProcess("little.py:Model", predict_timeout_s=60)
        await process.stop()
        assert process.state is State.STOPPED
