"""What a model returned, as JSON text; or one sentence that names the place of what is not JSON.

orjson writes nearly all of it at once. Only what it refuses, or would write wrongly, is taken apart and made plain.
It must never import what the model did not import, and never run an iterator that it may have to run twice.
"""

import dataclasses
import datetime
import enum
import sys
from collections.abc import Awaitable, Iterator, Mapping, Sequence, Set, ValuesView
from pathlib import PurePath
from types import SimpleNamespace
from typing import Any

import orjson

from common.json_text import MAX_DEPTH, loads
from processor.model.loader import describe

PLACE_PARTS = 10  # of a longer place the beginning is shown
KEY_CHARS = 50

_TEXTS = {
    "ipaddress",
    "pydantic.networks",
}  # modules whose types are written as their text: addresses and URLs
_LEAVES = {float, bool, type(None)}

# what orjson makes of a missing time, in nanoseconds and in units from minutes to weeks
_DOUBTFUL = (b"1677-09-21T00:12:43.145224", b"1970-01-01T00:00:00")


class NotJson(TypeError):
    """`what` is wrong, and the keys and indexes that lead to it, the innermost first."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what
        self.path: list[Any] = []

    def __str__(self) -> str:
        parts = [_part(key) for key in self.path[: -PLACE_PARTS - 1 : -1]]
        more = "…" if len(self.path) > PLACE_PARTS else ""
        return f"result{''.join(parts)}{more} {self.what}".encode("utf-8", "replace").decode()


def _part(key: Any) -> str:
    if isinstance(key, int):
        return f"[{key}]"
    return f".{key}" if key.isidentifier() and len(key) <= KEY_CHARS else f"[{key[:KEY_CHARS]!r}]"


def to_json(result: Any) -> bytes:
    """Raises NotJson."""
    try:
        text = orjson.dumps(result, _step, _options())
        if "numpy" not in sys.modules or not _may_lack_a_time(text):
            return text
    except (TypeError, ValueError, RecursionError):
        pass  # the long way says what it is, and where
    try:
        return orjson.dumps(_plain(result, 0), option=_options())
    except RecursionError:
        raise _too_deep() from None
    except NotJson:
        raise
    except Exception as error:
        raise NotJson(f"cannot be written: {describe(error)}") from None


def _may_lack_a_time(text: bytes) -> bool:
    """Whether orjson may have taken a missing time for a date. Single bytes first: they are found at no cost."""
    return b"7" in text and b"T" in text and (_DOUBTFUL[0] in text or _DOUBTFUL[1] in text)


def one_each(results: Any) -> list[Any]:
    """What `predict_batch` returned, as a list: one result for each input. Raises TypeError for what has no order, or
    is a single thing that happens to have parts."""
    whole = (
        "to_dicts",
        "to_pylist",
        "detach",
    )  # tables of polars and Arrow, of which iter() gives columns; tensors
    if _is(results, "pandas", "DataFrame", "Series", "Index") or any(
        hasattr(results, name) for name in whole
    ):
        results = _step(results)
    kind = type(results)
    record = any(hasattr(kind, mark) for mark in ("_fields", "n_sequence_fields", "model_dump"))
    if record or isinstance(results, (type, str, bytes, bytearray, memoryview, set, frozenset, Mapping)):
        raise _no_list(results)
    try:
        each = iter(results)
    except TypeError:
        raise _no_list(results) from None
    return list(each)


def _no_list(results: Any) -> TypeError:
    name = type(results).__name__
    return TypeError(
        f"predict_batch returned one {name}: return a list with one result for each input, in order"
    )


def _options() -> int:
    """With the option for NumPy orjson imports NumPy as soon as it meets a type that it does not know."""
    return orjson.OPT_NON_STR_KEYS | (orjson.OPT_SERIALIZE_NUMPY if "numpy" in sys.modules else 0)


def _is(value: Any, module: str, *names: str) -> bool:
    """Whether it is an instance of these classes of a module that perhaps nobody imported."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(value, tuple(getattr(loaded, name, ()) for name in names))


def _plain(value: Any, depth: int) -> Any:
    """The same value, of nothing but what orjson writes rightly. Raises NotJson."""
    if value is None or isinstance(value, (bool, orjson.Fragment)):
        return value
    if depth > MAX_DEPTH:
        raise _too_deep()
    if isinstance(value, enum.Enum):
        return _plain(value.value, depth + 1)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int):
        return _integer(value)
    if type(value) is float:
        return value
    if isinstance(value, dict):
        return _object(value, depth)
    if isinstance(value, list) or type(value) is tuple:
        return _list(value, depth)
    try:
        known = _step(value)
    except NotJson:
        raise
    except BaseException as error:  # from the model's own code: a property, a serializer
        raise NotJson(f"is {_named(value)} and cannot be read: {describe(error)}") from None
    if _is_numbers(known):
        return known
    return _plain(known, depth)


def _object(value: dict[Any, Any], depth: int) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for key, inner in value.items():
        name = _key(key)
        if name in plain:
            raise NotJson(f"has two keys that are both {name[:KEY_CHARS]!r} in JSON: rename one")
        try:
            plain[name] = _plain(inner, depth + 1)
        except NotJson as refused:
            refused.path.append(name)
            raise
    return plain


def _list(value: Sequence[Any], depth: int) -> list[Any]:
    if _LEAVES.issuperset(map(type, value)):
        return list(value)
    plain = []
    for index, inner in enumerate(value):
        try:
            plain.append(_plain(inner, depth + 1))
        except NotJson as refused:
            refused.path.append(index)
            raise
    return plain


def _key(key: Any) -> str:
    if type(key) is str:
        return _text(key)
    try:
        plain = _plain(key, MAX_DEPTH - 5)
    except NotJson:
        plain = []
    if isinstance(plain, (list, dict)) or getattr(plain, "ndim", None):
        raise NotJson(f"has a key that is {_named(key)}: make it a text")
    return str(plain) if isinstance(plain, str) else orjson.dumps(plain, option=_options()).decode()


def _text(value: str) -> str:
    try:
        value.isascii() or value.encode()
    except UnicodeEncodeError:
        raise NotJson(
            'is a text with half a character: return text.encode("utf-8", "replace").decode()'
        ) from None
    return value


def _integer(value: int) -> Any:
    if value.bit_length() <= 63:
        return value
    try:
        return orjson.Fragment(int.__repr__(value))
    except ValueError:  # Python's own limit
        raise NotJson("is an integer of thousands of digits: return it as a text, such as hex(n)") from None


def _step(value: Any) -> Any:
    """What stands in JSON for a value that orjson does not know; its parts may need a step of their own."""
    kind = type(value)
    if hasattr(kind, "model_dump"):
        return _from_model(value)
    if isinstance(value, (type, bytes, bytearray, memoryview)):
        raise _refusal(value)
    if _is(value, "numpy", "ndarray", "generic"):
        return _from_numpy(value)
    if dataclasses.is_dataclass(value):
        return _attributes(value, [field.name for field in dataclasses.fields(value)])
    if kind.__name__ in ("NaTType", "NAType") and kind.__module__.startswith("pandas"):
        return None
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, float) or _is(value, "fractions", "Fraction"):
        return float(value)
    if _is(value, "decimal", "Decimal"):
        if value.is_nan():
            return None
        whole = value.is_finite() and value.as_tuple().exponent >= 0 and value.adjusted() <= 308
        return int(value) if whole else float(value)
    if isinstance(value, PurePath) or _is(value, "uuid", "UUID") or kind.__module__ in _TEXTS:
        return str(value)
    if _is(value, "pandas", "DataFrame"):
        return _rows(value)
    if _is(value, "pandas", "Series", "Index"):
        return value.to_numpy()
    if hasattr(value, "detach") and hasattr(value, "cpu"):
        return _from_tensor(value.detach().cpu())
    for method in (
        "numpy",
        "tolist",
        "to_list",
        "to_dicts",
        "to_pylist",
    ):  # of TensorFlow, JAX, polars, Arrow
        if hasattr(value, method):
            return getattr(value, method)()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (Sequence, Set, ValuesView)):
        return list(value)
    if isinstance(value, SimpleNamespace):
        return vars(value)
    if hasattr(kind, "__attrs_attrs__"):
        return _attributes(value, [attribute.name for attribute in kind.__attrs_attrs__])
    raise _refusal(value)


def _from_model(value: Any) -> Any:
    """A pydantic model may have fields of types that pydantic cannot write, such as arrays. They are written by us, as
    JSON, so that its other fields become the same with and without them."""
    try:
        return value.model_dump(mode="json")
    except Exception:
        try:
            return value.model_dump(mode="json", fallback=lambda part: loads(to_json(part)))
        except (
            Exception
        ):  # not JSON, or a pydantic without `fallback`: the way through the parts finds the place
            return value.model_dump()


def _from_numpy(value: Any) -> Any:
    """An array that orjson reads in place, or lists. Missing and masked values become None."""
    dtype = value.dtype
    if dtype.names is not None:
        return [*value] if value.ndim else {name: value[name] for name in dtype.names}
    if dtype.kind == "c":
        raise _refusal(1j)
    if dtype.kind == "M":
        return _dates(value.astype("M8[us]").tolist(), dtype.type)
    if dtype.kind == "m":
        return value.astype("m8[us]") / dtype.type(1, "s")
    if dtype.kind in "biuf" and not _is(value, "numpy.ma", "MaskedArray"):
        native = dtype.newbyteorder("=") if dtype.itemsize <= 8 else "f8"
        return value.astype(native, order="C", subok=False)[()]
    return value.tolist()


def _dates(value: Any, datetime64: Any) -> Any:
    """Years that Python has no date for come as integers."""
    if isinstance(value, list):
        return [_dates(inner, datetime64) for inner in value]
    return str(datetime64(value, "us")) if isinstance(value, int) else value


def _is_numbers(value: Any) -> bool:
    """Whether orjson writes it as it is: a NumPy scalar or array that `_from_numpy` made."""
    numbers = _is(value, "numpy", "ndarray", "generic") and value.dtype.kind in "biuf"
    return (
        numbers and value.dtype.itemsize <= 8 and value.dtype.isnative and type(value).__module__ == "numpy"
    )


def _from_tensor(value: Any) -> Any:
    try:
        return value.numpy()
    except Exception:  # a type that NumPy does not have, such as bfloat16
        return value.tolist()


def _rows(frame: Any) -> list[Any]:
    if not frame.columns.is_unique:
        raise NotJson("is a table with two columns of one name: rename one")
    return list(frame.to_dict("records"))


def _attributes(value: Any, names: list[str]) -> dict[str, Any]:
    """As orjson writes dataclasses: without the private ones."""
    return {name: getattr(value, name) for name in names if not name.startswith("_")}


def _named(value: Any) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _too_deep() -> NotJson:
    return NotJson(f"is nested deeper than {MAX_DEPTH} levels, or contains itself: flatten it")


def _refusal(value: Any) -> NotJson:
    """With the cure."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        cure = "return base64.b64encode(data).decode()"
    elif _is(value, "PIL.Image", "Image"):
        cure = "save it to an io.BytesIO and return base64.b64encode(file.getvalue()).decode()"
    elif isinstance(value, complex):
        cure = "return [z.real, z.imag]"
    elif isinstance(value, Awaitable):
        cure = "await it"
    elif isinstance(value, Iterator):
        cure = "return list(…) of it"
    else:
        cure = "return a dict, a list, a text or a number"
    return NotJson(f"is {_named(value)}, which is not JSON: {cure}")
