"""JSON in and out: the value that comes back is the value that was sent."""

import dataclasses
import json
import math
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.json_text import MAX_DEPTH, NoInput, NotJson, dumps, input_of, loads, value_digest

numbers = st.integers(-(2**200), 2**200) | st.floats(allow_nan=False, allow_infinity=False)
# without lone surrogates, which are not Unicode text
texts = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts, inner, max_size=5),
    max_leaves=20,
)
spaces = st.text(" \t\r\n", max_size=3)


def same(one: Any, other: Any) -> bool:
    """Equal, and 1 is not 1.0 and not True."""
    return repr(one) == repr(other)


@given(values)
def test_round_trip(value: Any) -> None:
    assert same(loads(dumps(value)), value)


@given(values)
def test_any_writer_is_read(value: Any) -> None:
    assert same(loads(json.dumps(value).encode()), value)
    assert same(json.loads(dumps(value)), value)


@pytest.mark.parametrize("number", [2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**300])
def test_integers_keep_all_their_digits(number: int) -> None:
    assert dumps(number) == str(number).encode()
    assert same(loads(str(number).encode()), number)
    assert same(loads(dumps({"deep": [number]})), {"deep": [number]})


@pytest.mark.parametrize(
    "text", [b"[%d]", b'{"a":%d}', b" %d", b"[0.5,-%d]", b"[%d.5]", b'["%d"]', b"[1,\n%d]"]
)
def test_a_long_integer_is_found_wherever_it_stands(text: bytes) -> None:
    for number in (10**18, 10**19 - 1, 2**64, 10**300):
        body = text % number
        assert same(loads(body), json.loads(body))


@pytest.mark.parametrize(
    "text", [b"[0.00012345678901234567]", b"-0.1234567890123456789012", b"[1.5e300,123456789]"]
)
def test_long_fractions_need_no_second_parse(text: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most lists of floats have a fraction of 19 digits, and the other parser is ten times slower."""
    monkeypatch.delattr(json, "loads")
    assert loads(text) == orjson.loads(text)


def test_big_integers_keep_the_options_of_what_stands_beside_them() -> None:
    @dataclasses.dataclass
    class Box:
        number: int

    value = [2**70, {1: Box(2**70)}, math.nan, {3}]
    written = dumps(value, option=orjson.OPT_NON_STR_KEYS, default=list)
    assert json.loads(written) == [2**70, {"1": {"number": 2**70}}, None, [3]]


@pytest.mark.parametrize("value", [object(), [2**70, object()], {2**70: 1, "a": {1}}, b"1"])
def test_what_is_not_json_is_a_type_error(value: Any) -> None:
    with pytest.raises(TypeError):
        dumps(value)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b" ",
        b"{",
        b"nul",
        b"NaN",
        b"Infinity",
        b"1e999",
        b'"\xff"',
        b'"\\ud800"',
        b"[1,]",
        b"'a'",
        b"1 2",
    ],
)
def test_what_is_not_json(text: bytes) -> None:
    with pytest.raises(NotJson, match=r"^The body is not valid JSON: .*\.$"):
        loads(text)
    with pytest.raises(NotJson):
        input_of(b'{"input":' + text + b"}")


class TestInputOf:
    @given(values, st.lists(spaces, min_size=5, max_size=5))
    def test_the_usual_body(self, value: Any, gaps: list[str]) -> None:
        parts = zip(gaps, ["{", '"input"', ":", json.dumps(value), "}"], strict=True)
        body = "".join(word for pair in parts for word in pair).encode()
        assert same(loads(input_of(body)), value)

    @given(st.lists(st.tuples(st.sampled_from(["input", "other", "inputs", ""]), values), max_size=4), spaces)
    def test_any_object_has_the_input_that_a_parser_finds(
        self, members: list[tuple[str, Any]], gap: str
    ) -> None:
        written = ",".join(f"{json.dumps(key)}:{gap}{json.dumps(value)}" for key, value in members)
        body = f"{gap}{{{gap}{written}{gap}}}{gap}".encode()
        expected = json.loads(body)
        if "input" in expected:
            assert same(loads(input_of(body)), expected["input"])
        else:
            with pytest.raises(NoInput):
                input_of(body)

    @given(st.binary(max_size=40))
    def test_bytes_of_any_kind(self, noise: bytes) -> None:
        for body in (noise, b'{"input":' + noise, b'{"input":' + noise + b"}", noise + b'"input":1}'):
            try:
                reference = orjson.loads(body)
            except orjson.JSONDecodeError:
                with pytest.raises(NotJson):
                    input_of(body)
                continue
            if isinstance(reference, dict) and "input" in reference:
                assert orjson.loads(input_of(body)) == reference["input"]
            else:
                with pytest.raises((NotJson, NoInput)):
                    input_of(body)

    def test_the_usual_input_is_cut_and_not_written_again(self) -> None:
        assert input_of(b'{"input": {"a" : 1.50 , "b":123456789012345678901} }') == (
            b'{"a" : 1.50 , "b":123456789012345678901}'
        )

    @pytest.mark.parametrize(
        ("body", "value"),
        [
            (b'{"input":1,"input":2}', 2),  # the last one counts, as in every parser
            (b'{"input":{"input":1}}', {"input": 1}),
            (b'{"input":1,"more":{"input":2}}', 1),
            (b'{"\\u0069nput":3}', 3),
            (b'{"input":1,"\\u0069nput":3}', 3),
            (b'{"input":"}","x":"{"}', "}"),
            (b'{"a":1,"input":123456789012345678901234567890}', 123456789012345678901234567890),
        ],
    )
    def test_unusual_bodies(self, body: bytes, value: Any) -> None:
        assert same(loads(input_of(body)), value)

    @pytest.mark.parametrize("body", [b"[]", b"1", b"null", b'"input"', b'["input"]'])
    def test_not_an_object(self, body: bytes) -> None:
        with pytest.raises(NotJson, match="must be a JSON object"):
            input_of(body)

    @pytest.mark.parametrize("body", [b"{}", b'{"Input":1}', b'{"more":{"input":1}}'])
    def test_no_input(self, body: bytes) -> None:
        with pytest.raises(NoInput, match='has no "input"'):
            input_of(body)

    @pytest.mark.parametrize("body", [b'{"input":%b}', b'{"more":1,"input":%b}', b'{"input":1,"more":%b}'])
    @pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
    def test_depth(self, body: bytes, opening: bytes, closing: bytes) -> None:
        def nested(levels: int) -> bytes:
            return body % (opening * levels + b"1" + closing * levels)

        text = input_of(nested(MAX_DEPTH))
        assert orjson.loads(dumps(loads(text))) == orjson.loads(text)
        for levels in (255, 500, 5_000, 100_000):
            with pytest.raises(NotJson):
                input_of(nested(levels))

    def test_many_brackets_are_not_depth(self) -> None:
        assert input_of(b'{"input":[' + b"[]," * 1000 + b"[]]}")
        assert input_of(b'{"input":"' + b"[" * 1000 + b'"}')

    def test_a_deep_body_of_digits(self) -> None:
        """Long numbers are read by another parser: it must not run out of stack."""
        deep = b"[" * 240 + b"1234567890123456789012" + b"]" * 240
        assert input_of(b'{"input":' + deep + b"}") == deep
        assert input_of(b'{"more":1,"input":' + deep + b"}") == deep


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (b'{"a":1,"b":2}', b'{ "b" : 2, "a": 1 }', True),
        (b"[1,2]", b"[2,1]", False),
        (b"1", b"1.0", False),
        (b"1", b"true", False),
        (b'""', b"null", False),
        (b'"\\u00e9"', '"é"'.encode(), True),
        (b"123456789012345678901", b"123456789012345678902", False),
        (b"123456789012345678901", b" 123456789012345678901", True),
    ],
)
def test_the_same_value_in_other_bytes(one: bytes, other: bytes, same: bool) -> None:
    assert (value_digest(one) == value_digest(other)) is same
