"""Finds the user's model and says in one sentence what is wrong with it. Runs in the model process only.

`MODEL` is `package.module:Name` or `path/to/file.py:Name`; Name is a function, a class, or an instance. A class is
made without arguments. It needs `predict` or `predict_batch`; `setup` and `teardown` are optional.
"""

import importlib
import importlib.util
import inspect
import socket
import sys
import typing
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import ModelFault

# asyncio and pydantic are imported where a model needs them: they were more than half of the start of a process
if TYPE_CHECKING:
    import asyncio

_PATH = list(sys.path)  # later the model's folder comes first in it


@contextmanager
def _past_the_model() -> Iterator[None]:
    """For those imports: a file beside the model may have the name of a module that they need, such as string.py."""
    path, sys.path = sys.path, _PATH
    try:
        yield
    finally:
        sys.path = path


class Model:
    """The user's model with its methods made synchronous: `predict_batch` if `batch`, else `predict`."""

    def __init__(self, spec: str, subject: Any) -> None:
        self._runner: asyncio.Runner | None = None
        #: Set on an async model: while a call runs and the socket has something to read, the function is called, and
        #: the call gets CancelledError if it returns True.
        self.interrupts: tuple[socket.socket, Callable[[], bool]] | None = None
        if inspect.isclass(subject):
            subject = _calling(f"{spec}: making {subject.__name__}() failed", subject)
        predict = getattr(subject, "predict", None)
        predict_batch = getattr(subject, "predict_batch", None)
        form = "def predict_batch(self, inputs)" if predict_batch else "def predict(self, input)"
        if predict is None and predict_batch is None and inspect.isroutine(subject):
            predict, form = subject, f"def {subject.__name__}(input)"
        method = predict_batch or predict
        if method is None or not callable(method):
            raise ModelFault(f"{spec} has no predict: give it a method predict(self, input).")
        self._subject = subject
        self.batch = predict_batch is not None
        _check_signature(spec, method, form)
        self.validate = _validator(method, self.batch)
        self.is_async = inspect.iscoroutinefunction(method)
        self.call: Callable[[Any], Any] = self._synchronous(method)

    def setup(self) -> None:
        """Raises what the user's setup raises."""
        self._optional("setup")

    def teardown(self) -> None:
        self._optional("teardown")
        if self._runner is not None:
            self._runner.close()

    def _optional(self, name: str) -> None:
        method = getattr(self._subject, name, None)
        if method is not None:
            self._synchronous(method)()

    def _synchronous(self, method: Callable[..., Any]) -> Callable[..., Any]:
        if not inspect.iscoroutinefunction(method):
            return method
        with _past_the_model():
            import asyncio

        runner = self._runner = self._runner or asyncio.Runner()

        def run(*args: Any) -> Any:
            return runner.run(self._interruptible(method(*args)))

        return run

    async def _interruptible(self, call: Coroutine[Any, Any, Any]) -> Any:
        if self.interrupts is None:
            return await call
        import asyncio

        channel, unwanted = self.interrupts
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        loop.add_reader(channel, lambda: unwanted() and task.cancel())
        try:
            return await call
        finally:
            loop.remove_reader(channel)


def load_model(spec: str) -> Model:
    """The model named by `spec`, not yet set up. Raises ModelFault."""
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name:
        raise ModelFault(f"MODEL {spec!r} must be package.module:Name or path/to/file.py:Name.")
    module = _import_file(place) if place.endswith(".py") else _import_module(place)
    try:
        subject = getattr(module, name)
    except AttributeError:
        raise ModelFault(f"{place} has no {name!r}: check the part of MODEL after the colon.") from None
    return Model(spec, subject)


def _import_file(place: str) -> Any:
    path = Path(place).resolve()
    if not path.is_file():
        raise ModelFault(f"The model file {place} does not exist.")
    sys.path.insert(0, str(path.parent))  # so that it can import its neighbours
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses and pickles look their module up
    _calling(f"{place} cannot be imported", lambda: spec.loader.exec_module(module))  # type: ignore[union-attr]
    return module


def _import_module(place: str) -> Any:
    sys.path.insert(0, "")
    return _calling(f"{place} cannot be imported", lambda: importlib.import_module(place))


def _calling(what: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except BaseException as error:
        raise ModelFault(f"{what}: {in_one_line(error)}.") from error


def in_one_line(error: BaseException) -> str:
    return " ".join(describe(error).split())


def describe(error: BaseException) -> str:
    """`ValueError: what it says`, bounded, and safe to write as JSON."""
    try:
        text = str(error)
    except Exception:
        text = "(its text cannot be shown)"
    name = type(error).__name__
    line = f"{name}: {text}" if text else name
    return line[:2000].encode("utf-8", "replace").decode()


def _check_signature(spec: str, method: Callable[..., Any], form: str) -> None:
    try:
        inspect.signature(method).bind("input")
    except TypeError:
        raise ModelFault(f"{spec} must take one input: {form}.") from None
    except ValueError:
        pass  # a builtin without a signature


def _validator(method: Callable[..., Any], batch: bool) -> Callable[[Any], Any] | None:
    """What checks and converts one input by the method's type hint; None where there is nothing to check.

    A hint that JSON cannot be checked against (an array type, a name that cannot be found) is left to the model.
    """
    try:
        parameter = next(iter(inspect.signature(method).parameters.values()))
        hint = typing.get_type_hints(method, include_extras=True).get(parameter.name, Any)
    except Exception:  # a hint may be any expression
        return None
    if batch:
        arguments = typing.get_args(hint)
        hint = arguments[0] if len(arguments) == 1 else Any
    if hint in (Any, object):
        return None
    with _past_the_model():
        from pydantic import PydanticUserError, TypeAdapter
        from pydantic.errors import PydanticSchemaGenerationError

        importlib.import_module("importlib.metadata")  # pydantic does it with its first TypeAdapter

    try:
        adapter = TypeAdapter(hint)
    except (PydanticSchemaGenerationError, PydanticUserError):
        return None
    return adapter.validate_python if adapter.pydantic_complete else None
