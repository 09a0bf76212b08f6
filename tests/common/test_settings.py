"""How values may be written."""

from pathlib import Path
from typing import Any

import pytest

from common.errors import StartFault
from common.settings import GatewaySettings, ProcessorSettings, read_settings


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no developer's .env is read."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("log_level", "INFO", "info"),
        ("log_level", "Warning", "warning"),
        ("log_level", "WARN", "warning"),
        ("log_format", "JSON", "json"),
        ("log_format", "Console", "console"),
        ("durability", "FSYNC", "fsync"),
        ("access_log", "TRUE", True),
    ],
)
def test_words_in_any_case(monkeypatch: pytest.MonkeyPatch, name: str, text: str, value: Any) -> None:
    monkeypatch.setenv(name.upper(), text)
    assert getattr(read_settings(GatewaySettings), name) == value


@pytest.mark.parametrize("name", ["LOG_LEVEL", "LOG_FORMAT", "DURABILITY", "ACCESS_LOG", "PORT"])
def test_a_wrong_value_is_shown_as_it_was_given(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "Loud ")
    with pytest.raises(StartFault, match=rf"^{name} is wrong: .* \(got 'Loud '\)\.$"):
        read_settings(GatewaySettings)


def test_a_blank_at_the_end_of_the_url_is_told_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://:secret@host/0 ")
    with pytest.raises(StartFault, match="ends with a blank") as caught:
        read_settings(ProcessorSettings)
    assert "secret" not in str(caught.value)
