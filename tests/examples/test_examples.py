"""Every model in examples/ does what its first lines say, as plain Python."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from examples.echo import echo
from examples.language import Language
from examples.moody import Moody, MoodyBatch
from examples.slow import Slow, SlowBatch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def language() -> Language:
    model = Language()
    model.setup()
    return model


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Bonjour tout le monde", "fr"),
        ("The quick brown fox jumps over the lazy dog", "en"),
        ("Der schnelle braune Fuchs springt über den faulen Hund", "de"),
        ("El rápido zorro marrón salta sobre el perro perezoso", "es"),
        ("すばしこい茶色の狐がのろまな犬を飛び越える", "ja"),
    ],
)
def test_language(language: Language, text: str, code: str) -> None:
    result = language.predict(text)
    assert result["language"] == code
    assert type(result["probability"]) is float
    assert 0.5 < result["probability"] <= 1


def test_language_of_nothing_is_still_an_answer(language: Language) -> None:
    assert set(language.predict("")) == {"language", "probability"}


def test_echo() -> None:
    assert echo({"a": [1, None]}) == {"a": [1, None]}


@pytest.mark.parametrize("input", [0.05, {"seconds": 0.05, "note": "any"}])
def test_slow(input: Any) -> None:
    began = time.perf_counter()
    assert Slow().predict(input) == {"slept": 0.05}
    assert time.perf_counter() - began >= 0.05


def test_slow_batch() -> None:
    began = time.perf_counter()
    assert SlowBatch().predict_batch([1, "two", None]) == [1, "two", None]
    assert time.perf_counter() - began >= 0.005


def test_moody_in_good_mood() -> None:
    assert Moody().predict({"value": [1]}) == {"value": [1]}
    assert Moody().predict({"mood": "slow", "seconds": 0, "value": 2}) == {"value": 2}
    assert Moody().predict({"mood": "hang", "seconds": 0}) == {"value": None}


def test_moody_prints(capfd: pytest.CaptureFixture[str]) -> None:
    assert Moody().predict({"mood": "print", "value": 1}) == {"value": 1}
    assert capfd.readouterr() == ("noise on stdout\n", "noise on stderr\n")


@pytest.mark.parametrize("mood", ["raise", "no such mood"])
def test_moody_raises(mood: str) -> None:
    with pytest.raises(ValueError, match=r"mood|taste"):
        Moody().predict({"mood": mood})


def test_moody_returns_rubbish() -> None:
    assert type(Moody().predict({"mood": "rubbish"})) is object


@pytest.mark.parametrize(
    ("mood", "status"), [("exit", 3), ("segfault", -signal.SIGSEGV), ("oom-kill", -signal.SIGKILL)]
)
def test_moody_dies(mood: str, status: int) -> None:
    script = "import sys; from examples.moody import Moody; Moody().predict({'mood': sys.argv[1]})"
    assert subprocess.run([sys.executable, "-c", script, mood], cwd=ROOT, timeout=20).returncode == status


def test_moody_batch_fails_one_item_or_the_call() -> None:
    first, second = MoodyBatch().predict_batch([{"mood": "refuse"}, {"value": 2}])
    assert isinstance(first, ValueError)
    assert second == {"value": 2}
    with pytest.raises(ValueError, match="taste"):
        MoodyBatch().predict_batch([{"value": 1}, {"mood": "raise"}])
