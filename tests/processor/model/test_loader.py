"""What MODEL may name, which type hints are checked, and one clear sentence for each fault."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from pydantic import ValidationError

from common.errors import ModelFault
from processor.model.loader import Model, load_model

Load = Callable[..., Model]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]
    importlib.invalidate_caches()


@pytest.fixture
def load(folder: Path) -> Iterator[Load]:
    """`load(source)` loads `Model` from a file with that source."""
    loaded: list[Model] = []

    def make(source: str, *, name: str = "Model", file: str = "little.py") -> Model:
        (folder / file).write_text(dedent(source))
        loaded.append(load_model(f"{file}:{name}"))
        return loaded[-1]

    yield make
    for model in loaded:
        model.teardown()


def accepts(model: Model, value: Any) -> Any:
    """What the model is given for `value`. Raises ValidationError."""
    return model.validate(value) if model.validate else value


class TestWhatModelMayName:
    def test_a_function(self, load: Load) -> None:
        model = load("def double(input): return 2 * input", name="double")
        assert not model.batch
        assert model.call(4) == 8

    def test_an_async_function(self, load: Load) -> None:
        model = load("async def double(input): return 2 * input", name="double")
        assert model.call(4) == 8

    def test_a_decorated_function(self, load: Load) -> None:
        model = load(
            "import functools\n@functools.lru_cache\ndef double(input): return 2 * input", name="double"
        )
        assert model.call(4) == 8

    def test_a_builtin_function(self, load: Load) -> None:
        assert load("Model = len").call([1, 2]) == 2

    def test_a_class(self, load: Load) -> None:
        model = load("""
            class Model:
                def setup(self): self.factor = 3
                def predict(self, input): return self.factor * input
                def teardown(self): del self.factor
        """)
        model.setup()
        assert model.call(4) == 12

    def test_an_instance(self, load: Load) -> None:
        model = load("""
            class Times:
                def __init__(self, factor): self.factor = factor
                def predict(self, input): return self.factor * input
            Model = Times(5)
        """)
        assert model.call(4) == 20

    @pytest.mark.parametrize("kind", ["staticmethod", "classmethod"])
    def test_a_class_with_a_method_of_another_kind(self, load: Load, kind: str) -> None:
        first = "cls, " if kind == "classmethod" else ""
        model = load(f"class Model:\n    @{kind}\n    def predict({first}input): return 2 * input")
        assert model.call(4) == 8

    def test_predict_batch_goes_before_predict(self, load: Load) -> None:
        model = load("""
            class Model:
                def predict(self, input): raise AssertionError
                def predict_batch(self, inputs): return [2 * i for i in inputs]
        """)
        assert model.batch
        assert model.call([1, 2]) == [2, 4]

    def test_every_method_may_be_async_and_they_share_a_loop(self, load: Load) -> None:
        model = load("""
            import asyncio
            class Model:
                async def setup(self): self.queue, self.loop = asyncio.Queue(), asyncio.get_running_loop()
                async def predict_batch(self, inputs):
                    assert self.loop is asyncio.get_running_loop()
                    for i in inputs: await self.queue.put(2 * i)
                    return [await self.queue.get() for _ in inputs]
                async def teardown(self): self.loop = None
        """)
        model.setup()
        assert model.call([1, 2]) == [2, 4]

    def test_a_module(self, folder: Path) -> None:
        (folder / "little_package").mkdir()
        (folder / "little_package/inner.py").write_text("def double(input): return 2 * input")
        model = load_model("little_package.inner:double")
        assert model.call(4) == 8
        model.teardown()

    def test_a_file_imports_its_neighbours(self, folder: Path, load: Load) -> None:
        (folder / "deep").mkdir()
        (folder / "deep/neighbour_of_little.py").write_text("FACTOR = 7")
        model = load(
            "from neighbour_of_little import FACTOR\ndef Model(input): return FACTOR * input",
            file="deep/little.py",
        )
        assert model.call(2) == 14

    def test_a_file_with_any_name(self, load: Load) -> None:
        assert load("def Model(input): return input", file="my model-2.final.py").call(1) == 1

    def test_a_file_may_define_what_looks_its_module_up(self, load: Load) -> None:
        model = load("""
            from __future__ import annotations
            import dataclasses, pickle
            @dataclasses.dataclass
            class Answer:
                text: str
                more: list[Answer] = dataclasses.field(default_factory=list)
            def Model(input: str): return pickle.loads(pickle.dumps(Answer(input)))
        """)
        assert model.call("yes").text == "yes"


class TestTypeHints:
    @pytest.mark.parametrize(
        ("hint", "good", "bad"),
        [
            ("str", "text", 1),
            ("int", 1, "text"),
            ("float", 1.5, None),
            ("bool", True, "text"),
            ("dict", {"a": 1}, [1]),
            ("list[int]", [1, 2], [1, "text"]),
            ("dict[str, float]", {"a": 1.0}, {"a": "text"}),
            ("int | None", None, "text"),
            ("Literal['a', 'b']", "a", "c"),
            ("Annotated[int, Field(gt=0)]", 1, 0),
            ("Point", {"x": 1, "y": 2}, {"x": 1}),
            ("'Point'", {"x": 1, "y": 2}, {"x": 1}),
        ],
    )
    @pytest.mark.parametrize("batch", [False, True])
    def test_what_a_hint_refuses(self, load: Load, hint: str, good: Any, bad: Any, batch: bool) -> None:
        method = f"predict_batch(self, inputs: list[{hint}])" if batch else f"predict(self, input: {hint})"
        model = load(f"""
            from typing import Annotated, Literal
            from pydantic import Field
            from typing_extensions import TypedDict
            class Point(TypedDict):
                x: int
                y: int
            class Model:
                def {method}: return None
        """)
        assert accepts(model, good) == good
        with pytest.raises(ValidationError):
            accepts(model, bad)

    def test_a_pydantic_model_is_made(self, load: Load) -> None:
        model = load("""
            from pydantic import BaseModel
            class Review(BaseModel):
                text: str
                stars: int = 5
            def Model(input: Review): return input.text * input.stars
        """)
        assert model.call(accepts(model, {"text": "a"})) == "aaaaa"
        with pytest.raises(ValidationError):
            accepts(model, {"stars": 1})

    def test_a_dataclass_is_made(self, load: Load) -> None:
        model = load("""
            from dataclasses import dataclass
            @dataclass
            class Review:
                text: str
            def Model(input: Review): return input.text
        """)
        assert model.call(accepts(model, {"text": "a"})) == "a"

    def test_the_hint_of_an_async_method(self, load: Load) -> None:
        model = load("class Model:\n    async def predict(self, input: int): return input")
        with pytest.raises(ValidationError):
            accepts(model, "text")

    @pytest.mark.parametrize(
        "method",
        [
            "predict(self, input)",
            "predict(self, input: Any)",
            "predict(self, input: object)",
            "predict(self, input: np.ndarray)",
            "predict(self, input: npt.NDArray[np.float64])",
            "predict(self, input: Opaque)",
            "predict(self, input: 'Nowhere')",
            "predict(self, input: 'np.nowhere')",
            "predict(self, input: 'not a type')",
            "predict(self, input: HalfKnown)",
            "predict(self, *inputs)",
            "predict_batch(self, inputs)",
            "predict_batch(self, inputs: list)",
            "predict_batch(self, inputs: 'list[Nowhere]')",
            "predict_batch(self, inputs: list[np.ndarray])",
            "predict_batch(self, inputs: np.ndarray)",
            "predict_batch(self, inputs: npt.NDArray[np.float64])",
            "predict_batch(self, inputs: list[HalfKnown])",
        ],
    )
    def test_a_hint_that_says_nothing_about_json_is_left_to_the_model(self, load: Load, method: str) -> None:
        model = load(f"""
            from typing import Any
            from typing_extensions import TypedDict
            import numpy as np
            import numpy.typing as npt
            class Opaque: pass
            class HalfKnown(TypedDict):
                x: "Nowhere"
            class Model:
                def {method}: return None
        """)
        assert accepts(model, {"any": "thing"}) == {"any": "thing"}


class TestFaults:
    @pytest.mark.parametrize("spec", ["little.py", "little", "", ":", ":Model", "little.py:"])
    def test_a_spec_without_a_file_and_a_name(self, folder: Path, spec: str) -> None:
        with pytest.raises(ModelFault) as caught:
            load_model(spec)
        assert str(caught.value) == (f"MODEL {spec!r} must be package.module:Name or path/to/file.py:Name.")

    def test_a_file_that_is_not_there(self, folder: Path) -> None:
        with pytest.raises(ModelFault) as caught:
            load_model("nowhere/little.py:Model")
        assert str(caught.value) == "The model file nowhere/little.py does not exist."

    def test_a_module_that_is_not_there(self, folder: Path) -> None:
        with pytest.raises(ModelFault) as caught:
            load_model("nowhere.little:Model")
        assert str(caught.value) == (
            "nowhere.little cannot be imported: ModuleNotFoundError: No module named 'nowhere'."
        )

    @pytest.mark.parametrize(
        ("source", "sentence"),
        [
            (
                "import nowhere",
                "little.py cannot be imported: ModuleNotFoundError: No module named 'nowhere'.",
            ),
            ("1 / 0", "little.py cannot be imported: ZeroDivisionError: division by zero."),
            ("import sys; sys.exit(2)", "little.py cannot be imported: SystemExit: 2."),
            ("raise ValueError", "little.py cannot be imported: ValueError."),
            ("", "little.py has no 'Model': check the part of MODEL after the colon."),
            ("Model = 3", "little.py:Model has no predict: give it a method predict(self, input)."),
            ("class Model: pass", "little.py:Model has no predict: give it a method predict(self, input)."),
            (
                "class Model:\n    predict = 3",
                "little.py:Model has no predict: give it a method predict(self, input).",
            ),
            (
                "class Model:\n    def __init__(self, path): ...\n    def predict(self, input): ...",
                "little.py:Model: making Model() failed: TypeError: "
                "Model.__init__() missing 1 required positional argument: 'path'.",
            ),
            (
                "class Model:\n    def __init__(self): raise OSError('no weights')",
                "little.py:Model: making Model() failed: OSError: no weights.",
            ),
            (
                "class Model:\n    def predict(self): ...",
                "little.py:Model must take one input: def predict(self, input).",
            ),
            (
                "class Model:\n    def predict(self, text, language): ...",
                "little.py:Model must take one input: def predict(self, input).",
            ),
            (
                "class Model:\n    def predict(self, *, input): ...",
                "little.py:Model must take one input: def predict(self, input).",
            ),
            (
                "class Model:\n    def predict_batch(self): ...",
                "little.py:Model must take one input: def predict_batch(self, inputs).",
            ),
            ("def Model(): ...", "little.py:Model must take one input: def Model(input)."),
        ],
    )
    def test_a_wrong_file(self, load: Load, source: str, sentence: str) -> None:
        with pytest.raises(ModelFault) as caught:
            load(source)
        assert str(caught.value) == sentence

    def test_a_syntax_error_names_its_line(self, load: Load) -> None:
        with pytest.raises(ModelFault) as caught:
            load("class Model:\n    def predict(self, input) return input\n")
        assert (
            str(caught.value)
            == "little.py cannot be imported: SyntaxError: expected ':' (little.py, line 2)."
        )

    def test_a_partial_without_an_input(self, load: Load) -> None:
        with pytest.raises(ModelFault, match="Model must take one input"):
            load("""
                import functools
                class Model:
                    predict = functools.partial(lambda: None)
            """)

    def test_a_text_of_many_lines_becomes_one(self, load: Load) -> None:
        with pytest.raises(ModelFault) as caught:
            load("raise ValueError('first\\nsecond')")
        assert "\n" not in str(caught.value)
