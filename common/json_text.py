"""JSON in and out. orjson does the work; the standard library helps where orjson would change a value.

Inputs travel as the text the client sent, so the value that comes back is the value that was sent.
"""

import dataclasses
import gc
import hashlib
import json
import re
from typing import Any

import orjson

#: orjson writes at most 254 levels; what we accept, every later step must be able to write.
MAX_DEPTH = 250
LARGE_BYTES = 1 << 16

_PREFIX = re.compile(rb'[ \t\r\n]*\{[ \t\r\n]*"input"[ \t\r\n]*:[ \t\r\n]*')
_SPACE = b" \t\r\n"
# a text with only its numbers left: digits as 0, points as they are, a space for all else
_NUMBERS = bytes(ord("0" if chr(c) in "0123456789" else "." if chr(c) == "." else " ") for c in range(256))
_LONG = b"0" * 19  # the shortest integer that may not fit into 64 bits
_LONG_INSIDE = b" " + _LONG  # not after a point


class NotJson(ValueError):
    """One sentence about what is wrong with the text."""


class NoInput(ValueError):
    """The body is a JSON object without `input`."""


def loads(text: bytes) -> Any:
    """The value of a JSON text. Integers keep all their digits (orjson alone turns those past 64 bits into floats)."""
    try:
        value = _parse(text)
        if _has_long_integer(text):
            value = json.loads(text)
    except (orjson.JSONDecodeError, RecursionError) as error:
        raise NotJson(_fault(text, error)) from None
    return value


def _parse(text: bytes) -> Any:
    """The garbage collector rests during a large one: it finds nothing, and would take up to nine tenths of the time."""
    if len(text) < LARGE_BYTES or not gc.isenabled():
        return orjson.loads(text)
    gc.disable()
    try:
        return orjson.loads(text)
    finally:
        gc.enable()


def _has_long_integer(text: bytes) -> bool:
    """Or a string that looks like one. Translating first costs less than parsing; a regular expression, far more."""
    numbers = text.translate(_NUMBERS)
    return _LONG_INSIDE in numbers or numbers.startswith(_LONG)


def _fault(text: bytes, error: Exception) -> str:
    """One sentence. orjson's own about bytes that are not text helps nobody."""
    if text.startswith(b"\x1f\x8b"):
        return "The body is gzip, not JSON: send the header 'Content-Encoding: gzip', or unpack it."
    if text.startswith(b"\xef\xbb\xbf"):
        return "The body is not valid JSON: it begins with a byte order mark; send UTF-8 without one."
    try:
        text.decode()
    except UnicodeDecodeError as fault:
        return f"The body is not valid JSON: byte {fault.start} is not UTF-8; encode it as UTF-8."
    return f"The body is not valid JSON: {error}."


def dumps(value: Any, **options: Any) -> bytes:
    """Compact JSON. Raises TypeError for what is not JSON."""
    try:
        return orjson.dumps(value, **options)
    except TypeError as error:
        if "64-bit" not in str(error):
            raise
    return orjson.dumps(_with_big_integers(value), **options)


def _with_big_integers(value: Any) -> Any:
    """The same value, with each integer past 64 bits as the digits to write."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 63:
        return orjson.Fragment(str(value))
    if isinstance(value, dict):
        return {
            str(key) if isinstance(key, int) and not isinstance(key, bool) else key: _with_big_integers(inner)
            for key, inner in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_with_big_integers(inner) for inner in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _with_big_integers(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return value


def value_digest(text: bytes) -> str:
    """The same for two texts that mean the same: spaces and the order of keys aside, 1 is not 1.0 and not true."""
    canonical = dumps(loads(text), option=orjson.OPT_SORT_KEYS)
    return hashlib.blake2b(canonical, digest_size=16).hexdigest()


def input_of(body: bytes) -> bytes:
    """The JSON text of `input` in a request body.

    The usual body, `{"input": …}` and nothing else, is cut, not parsed and written again: if the cut is valid JSON
    the body was exactly that, so one parse checks everything. Any other body is parsed as a whole.
    Raises NotJson and NoInput.
    """
    start, end = _PREFIX.match(body), body.rstrip(_SPACE)
    if start and end.endswith(b"}"):
        text = end[start.end() : -1].rstrip(_SPACE)
        try:
            _parse(text)
        except orjson.JSONDecodeError:
            pass  # more keys follow, or it is no JSON at all: the whole body tells
        else:
            _check_depth(text)
            return text
    request = loads(body)
    if not isinstance(request, dict):
        raise NotJson('The body must be a JSON object such as {"input": …}.')
    if "input" not in request:
        raise NoInput('The body has no "input": send {"input": …}.')
    _check_depth(body)
    return dumps(request["input"])


def _check_depth(text: bytes) -> None:
    """Raises NotJson for what could not be written again. Counting brackets first spares nearly all the second look."""
    if text.count(b"[") + text.count(b"{") <= MAX_DEPTH:
        return
    try:
        orjson.dumps(_parse(text))
    except TypeError:
        raise NotJson(f"The input is nested deeper than {MAX_DEPTH} levels: flatten it.") from None
