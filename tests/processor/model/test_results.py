"""What a model may return, and what its client gets for it."""

import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import ipaddress
import json
import subprocess
import sys
import types
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pydantic
import pytest

from processor.model import results
from processor.model.results import NotJson, one_each, to_json

UNITS = ["Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "fs", "as"]
Point = collections.namedtuple("Point", "x y")


def sent(value: Any) -> Any:
    return json.loads(to_json(value))


def refusal(value: Any) -> str:
    with pytest.raises(NotJson) as refused:
        to_json(value)
    return str(refused.value)


@dataclasses.dataclass
class Box:
    content: Any
    _secret: int = 1


class Model(pydantic.BaseModel, arbitrary_types_allowed=True):
    content: Any
    array: np.ndarray | None = None


class Moment(datetime.datetime):
    pass


class Table(np.ndarray):
    pass


class Rate(float):
    pass


class Colour(enum.Enum):
    RED = "red"
    WHEN = np.datetime64("2024-02-29")


class Huge(enum.IntEnum):
    NUMBER = 2**70


DAY = "2024-02-29T00:00:00"
UTC = datetime.UTC

CASES: dict[str, tuple[Any, Any]] = {
    "set": ({1}, [1]),
    "frozenset": (frozenset(["a"]), ["a"]),
    "deque": (collections.deque([1, 2], maxlen=5), [1, 2]),
    "range": (range(3), [0, 1, 2]),
    "views": ([{1: 2}.keys(), {1: 2}.values(), {1: 2}.items()], [[1], [2], [[1, 2]]]),
    "mapping": (types.MappingProxyType({"a": {1}}), {"a": [1]}),
    "user list": (collections.UserList([1]), [1]),
    "namespace": (types.SimpleNamespace(a=1), {"a": 1}),
    "named tuple": (Point(1, {2}), [1, [2]]),
    "decimals": ([decimal.Decimal(text) for text in ("1.5", "2", "1E+3", "NaN", "Infinity", "sNaN")], [1.5, 2, 1000, None, None, None]),
    "fraction": (fractions.Fraction(1, 2), 0.5),
    "url": (pydantic.AnyUrl("http://localhost/"), "http://localhost/"),
    "path": (Path("/a/b"), "/a/b"),
    "address": (ipaddress.ip_address("127.0.0.1"), "127.0.0.1"),
    "timedelta": (datetime.timedelta(minutes=1, milliseconds=500), 60.5),
    "datetime": (Moment(2024, 2, 29, tzinfo=UTC), DAY + "+00:00"),
    "time with a zone": (datetime.time(1, 2, tzinfo=UTC), "01:02:00+00:00"),
    "uuid": ([uuid.UUID(int=1), {1}], [str(uuid.UUID(int=1)), [1]]),
    "enum": ([Colour.RED, Colour.WHEN, Huge.NUMBER], ["red", DAY, 2**70]),
    "float subclass": (Rate(0.5), 0.5),
    "dataclass": (Box({Box(1).content}), {"content": [1]}),
    "big integers in anything": ([Box(2**70), Model(content=2**70), {2**70}], [{"content": 2**70}, {"content": 2**70, "array": None}, [2**70]]),
    "pydantic": (Model(content={1}), {"content": [1], "array": None}),
    "pydantic with an array": (Model(content=1, array=np.arange(2)), {"content": 1, "array": [0, 1]}),
    "the fields beside an array": (
        Model(content=decimal.Decimal("0.5"), array=np.array([0.1], "f4")),
        {"content": sent(Model(content=decimal.Decimal("0.5")))["content"], "array": [0.1]},
    ),
    "keys of NumPy": (dict(zip(*np.unique(["a", "b", "a"], return_counts=True), strict=True)), {"a": 2, "b": 1}),
    "number keys of NumPy": (dict(zip(*np.unique([3, 1, 3], return_counts=True), strict=True)), {"1": 1, "3": 2}),
    "float keys of NumPy": ({np.float32(0.5): 1, np.float64(1.5): 2, np.bool_(True): 3}, {"0.5": 1, "1.5": 2, "true": 3}),
    "other keys": ({decimal.Decimal(2): 2, Path("a"): 3, 2**70: 4, Colour.RED: 5, Moment(2024, 2, 29): 6}, {DAY: 6, "2": 2, "a": 3, str(2**70): 4, "red": 5}),
    "missing times": (np.array(["NaT", "2024-02-29"], "M8[ns]"), [None, DAY]),
    "missing times in two dimensions": ({"a": [np.array([["NaT", "1970-01-01"]], "M8[D]")]}, {"a": [[[None, "1970-01-01T00:00:00"]]]}),
    "a date long ago": ([np.datetime64("1970-01-01"), "1970-01-01T00:00:00"], ["1970-01-01T00:00:00"] * 2),
    "years that Python lacks": (np.array(["20000-01-01", "NaT"], "M8[s]"), ["20000-01-01T00:00:00.000000", None]),
    "times and their distances": (np.array([1500, "NaT"], "m8[ms]"), [1.5, None]),
    "one distance": (np.timedelta64(2, "m"), 120.0),
    "masked": (np.ma.array([1, 2], mask=[0, 1]), [1, None]),
    "masked itself": ([np.ma.masked], [None]),
    "masked times": (np.ma.array(["2024-02-29", "2024-02-29"], "M8[D]", mask=[1, 0]), [None, DAY]),
    "other byte order": ([np.array([1, 2], ">i4"), np.array([0.1], ">f4")], [[1, 2], [0.1]]),
    "strided floats keep their digits": (np.array([0.1, 0.2, 0.3], "f4")[::2], [0.1, 0.3]),
    "half": (np.array([0.5, np.nan], "f2")[::-1], [None, 0.5]),
    "longdouble": ([np.longdouble(0.5), np.array([0.5], np.longdouble)], [0.5, [0.5]]),
    "subclass": (np.array([[1, 2]]).view(Table), [[1, 2]]),
    "bool array": (np.array([[True], [False]]), [[True], [False]]),
    "no dimension": ([np.array(1.5), np.array("a"), np.array(None, object)], [1.5, "a", None]),
    "objects": (np.array([{1}, decimal.Decimal("0.5"), np.datetime64("NaT", "ns")], object), [[1], 0.5, None]),
    "structured": (np.array([(1, 0.5), (2, np.nan)], [("a", "i4"), ("b", "f8")]), [{"a": 1, "b": 0.5}, {"a": 2, "b": None}]),
    "records": (np.rec.array([(1, "x")], names="a,b")[0], {"a": 1, "b": "x"}),
    "beside what takes the long way": ({"n": np.arange(3, dtype="u1"), 2**70: np.float32(0.1), "s": {0.5}}, {"n": [0, 1, 2], str(2**70): 0.1, "s": [0.5]}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_is_made_json(name: str) -> None:
    value, expected = CASES[name]
    assert sent(value) == expected
    assert sent([2**70, {"deep": value}]) == [2**70, {"deep": expected}]


def test_attrs() -> None:
    crate = pytest.importorskip("attrs").make_class("Crate", ["content", "_secret"])
    assert sent({"crate": crate(2**70, 1)}) == {"crate": {"content": 2**70}}


@pytest.mark.parametrize("unit", UNITS)
def test_a_missing_time_is_null_in_every_unit(unit: str) -> None:
    assert sent(np.datetime64("NaT", unit)) is None
    assert sent([np.array(["NaT"], f"M8[{unit}]")]) == [[None]]
    assert sent({np.datetime64("NaT", unit): np.timedelta64("NaT", unit)}) == {"null": None}


@pytest.mark.parametrize("unit", UNITS)
def test_which_missing_times_orjson_takes_for_dates(unit: str) -> None:
    """Should this change with a release of orjson, `_DOUBTFUL` must too."""
    try:
        text = orjson.dumps(np.array(["NaT"], f"M8[{unit}]"), option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError:
        return
    assert any(date in text for date in results._DOUBTFUL)


class Loud:
    def __repr__(self) -> str:
        raise RuntimeError

    @property
    def tolist(self) -> None:
        raise RuntimeError("no list today")


CIRCLE: list[Any] = []
CIRCLE.append(CIRCLE)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (b"1", "result is bytes, which is not JSON: return base64.b64encode(data).decode()"),
        ({"rows": [{"when": memoryview(b"")}]}, "result.rows[0].when is memoryview, which is"),
        ({"a b": {7: bytearray()}}, "result['a b']['7'] is bytearray"),
        (Box([1, {b""}]), "result.content[1][0] is bytes"),
        (Model(content=1, array=np.array([1j])), "result.array is complex, which is not JSON: return [z.real, z.imag]"),
        (np.array([b"a"]), "result[0] is bytes"),
        ({"t": {(1, 2): 3}}, "result.t has a key that is tuple: make it a text"),
        ({Loud(): 3}, "result has a key that is tests.processor.model.test_results.Loud: make it a text"),
        ({np.int64(1): 3, "1": 4}, "result has two keys that are both '1' in JSON: rename one"),
        ([Loud()], "and cannot be read: RuntimeError: no list today"),
        ([int], "result[0] is type, which is not JSON: return a dict, a list, a text or a number"),
        ({"x": map(str, [1])}, "result.x is map, which is not JSON: return list(…) of it"),
        ({"x": "\ud800"}, "result.x is a text with half a character: return text.encode"),
        ({"\ud800": [object()]}, "half a character"),
        ([10**5000], "result[0] is an integer of thousands of digits"),
        (CIRCLE, "result[0][0][0][0][0][0][0][0][0][0]… is nested deeper than 250 levels, or contains itself"),
    ],
)  # fmt: skip
def test_what_is_not_json_is_named_with_its_place_and_its_cure(value: Any, sentence: str) -> None:
    found = refusal(value)
    assert found.startswith(sentence) or (not sentence.startswith("result") and sentence in found), found


class Endless:
    def model_dump(self, **_: Any) -> "Endless":
        return Endless()


def test_what_never_becomes_plain() -> None:
    assert refusal({"a": Endless()}).startswith("result")


async def test_what_was_not_awaited() -> None:
    waiting = test_what_was_not_awaited()
    assert refusal([waiting]) == "result[0] is coroutine, which is not JSON: await it"
    waiting.close()


def test_an_image() -> None:
    image = pytest.importorskip("PIL.Image").new("RGB", (1, 1))
    assert refusal({"image": image}).startswith(
        "result.image is PIL.Image.Image, which is not JSON: save it to"
    )


def test_an_iterator_is_left_as_it_was() -> None:
    numbers = iter([1, 2])
    refusal({"a": numbers, "b": object()})
    assert list(numbers) == [1, 2]


def test_only_what_orjson_refuses_takes_the_long_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(results, "_plain")
    usual = [{"label": "The cat", "when": datetime.datetime(2024, 2, 29)}, np.ones(3), {1}, Model(content=1)]
    assert sent(usual)[1] == [1, 1, 1]


def test_nothing_is_imported_that_the_model_did_not_import() -> None:
    code = """
import sys
from processor.model import child
before = set(sys.modules)
child.to_json([{1}, {"a": range(2), 2**70: None}])
try: child.to_json([object(), b""])
except TypeError: pass
from processor.model.results import one_each; one_each((1, 2))
assert not {"numpy", "pandas", "decimal", "pydantic"} & set(sys.modules), set(sys.modules) - before
"""
    subprocess.run([sys.executable, "-c", code], check=True)


class Tensor:
    """As PyTorch's, on another device."""

    def __init__(self, values: Any, numpy: bool = True) -> None:
        self.values, self.known_to_numpy, self.here = values, numpy, False

    def detach(self) -> "Tensor":
        return Tensor(self.values, self.known_to_numpy)

    def cpu(self) -> "Tensor":
        self.here = True
        return self

    def numpy(self) -> Any:
        if not self.known_to_numpy or not self.here:
            raise TypeError
        return np.array(self.values, "f4")

    def tolist(self) -> Any:
        assert self.here
        return self.values


@pytest.mark.parametrize("numpy", [True, False])
def test_tensors(numpy: bool) -> None:
    assert sent({"p": Tensor([0.1, 0.2], numpy)}) == {"p": [0.1, 0.2]}
    assert [sent(result) for result in one_each(Tensor([[0.1], [0.2]], numpy))] == [[0.1], [0.2]]


class TestBatches:
    @pytest.mark.parametrize(
        "make",
        [list, tuple, iter, np.array, collections.deque, lambda v: (n for n in v), lambda v: dict.fromkeys(v, 1).keys()],
    )  # fmt: skip
    def test_what_has_an_order(self, make: Callable[[list[float]], Any]) -> None:
        assert [sent(result) for result in one_each(make([0.5, 1.5]))] == [0.5, 1.5]

    @pytest.mark.parametrize(
        "value",
        [
            *({"predictions": [0.1]}, types.MappingProxyType({}), "a", b"a", bytearray(), {1}, frozenset()),
            *(None, 5, np.array(1), Point(1, 2), Model(content=1), Box(1), np.ndarray, object()),
        ],
    )
    def test_what_is_no_list_of_results(self, value: Any) -> None:
        words = f"^predict_batch returned one {type(value).__name__}: return a list with one result for each"
        with pytest.raises(TypeError, match=words):
            one_each(value)

    def test_an_error_of_a_generator_is_its_own(self) -> None:
        with pytest.raises(TypeError, match="mine"):
            one_each(iter(lambda: exec('raise TypeError("mine")'), None))


class TestPandas:
    """Skipped where there is no pandas."""

    @pytest.fixture
    def pd(self) -> Any:
        return pytest.importorskip("pandas")

    def test_values(self, pd: Any) -> None:
        stamp = pd.Timestamp("2024-02-29")
        record = {"when": stamp, "never": pd.NaT, "none": pd.NA, "for": pd.Timedelta(seconds=2)}
        assert sent([record]) == [{"when": DAY, "never": None, "none": None, "for": 2.0}]
        assert sent({stamp: 1, pd.NaT: 2}) == {DAY: 1, "null": 2}

    def test_series(self, pd: Any) -> None:
        assert sent(pd.Series([0.1, None], dtype="f4")) == [0.1, None]
        assert sent(pd.Series([1, None], dtype="Int64")) == [1, None]
        assert sent(pd.Series(["a", None])) == ["a", None]
        assert sent(pd.Series(["a", "b"], dtype="category")) == ["a", "b"]
        times = pd.to_datetime(pd.Series(["2024-02-29", None]))
        assert sent(times) == [DAY, None]
        assert sent(times.dt.tz_localize("UTC")) == [DAY + "+00:00", None]
        assert sent(times.to_dict()) == {"0": DAY, "1": None}
        assert sent(pd.Index([1, 2])) == [1, 2]
        assert sent(pd.Series(["a", "a"]).value_counts().to_dict()) == {"a": 2}

    def test_frames(self, pd: Any) -> None:
        frame = pd.DataFrame({"x": [1, 2], "when": [pd.Timestamp("2024-02-29"), pd.NaT], 3: [0.5, np.nan]})
        rows = [{"x": 1, "when": DAY, "3": 0.5}, {"x": 2, "when": None, "3": None}]
        assert sent({"frame": frame}) == {"frame": rows}
        assert sent(frame.to_dict("records")) == rows
        twice = pd.DataFrame([[1, 2]], columns=["a", "a"])
        assert refusal([twice]) == "result[0] is a table with two columns of one name: rename one"

    def test_batches(self, pd: Any) -> None:
        frame = pd.DataFrame({"x": [1, 2], "y": ["a", None]})
        assert [sent(row) for row in one_each(frame)] == [{"x": 1, "y": "a"}, {"x": 2, "y": None}]
        assert [sent(row) for row in one_each(frame["x"])] == [1, 2]
        with pytest.raises(TypeError, match="two columns"):
            one_each(pd.DataFrame([[1, 2]], columns=["a", "a"]))
