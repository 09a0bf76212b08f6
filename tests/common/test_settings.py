"""How values may be written."""

from pathlib import Path
from typing import Any

import pytest

from common.errors import StartFault
from common.http.listener import bind
from common.misspelt import misspelt
from common.settings import (
    CommonSettings,
    GatewaySettings,
    ProcessorSettings,
    read_settings,
    settings_of_logs,
)

EXAMPLE = Path(__file__).resolve().parents[2] / ".env.example"


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


def test_a_blank_in_the_host_is_shown() -> None:
    with pytest.raises(StartFault, match=r"^PORT 0 on '127\.0\.0\.1 ' cannot be used: "):
        bind("127.0.0.1 ", 0, variable="PORT")


@pytest.mark.parametrize("first", ["", "\ufeff"], ids=["plain", "with a mark before it"])
def test_a_file(tmp_path: Path, first: str) -> None:
    (tmp_path / ".env").write_text(f"{first}PORT=7\nLOG_LEVEL=debug\n", encoding="utf-8")
    settings = read_settings(GatewaySettings)
    assert (settings.port, settings.log_level) == (7, "debug")
    assert misspelt(GatewaySettings) == {}


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_file_that_is_not_utf_8(tmp_path: Path, encoding: str) -> None:
    (tmp_path / ".env").write_bytes("MODEL=modèle.py:Model\n".encode(encoding))
    with pytest.raises(StartFault, match=rf"{tmp_path}/\.env is not UTF-8: save it"):
        read_settings(ProcessorSettings)
    assert settings_of_logs().log_format is None


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("SYNC_WAITS", "SYNC_WAIT_S"),
        ("sync_wait", "SYNC_WAIT_S"),
        ("LOGLEVEL", "LOG_LEVEL"),
        ("REDIS_URI", "REDIS_URL"),
        ("API_KEY", "API_KEYS"),
        ("MAX_BODY_BYTSE", "MAX_BODY_BYTES"),
    ],
)
@pytest.mark.parametrize("where", ["file", "environment"])
def test_a_name_near_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, name: str, meant: str
) -> None:
    if where == "file":
        (tmp_path / ".env").write_text(f"export {name}=secret\n")
    else:
        monkeypatch.setenv(name, "secret")
    assert misspelt(GatewaySettings) == {name: meant}


def test_short_names_only_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROT", "1")
    assert misspelt(GatewaySettings) == {}
    (tmp_path / ".env").write_text("PROT=1\n")
    assert misspelt(GatewaySettings) == {"PROT": "PORT"}


@pytest.mark.parametrize("kind", [GatewaySettings, ProcessorSettings])
def test_what_belongs_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[CommonSettings]
) -> None:
    """The other service's settings, what compose reads, and what is in the environment of every process."""
    (tmp_path / ".env").write_text(
        "".join(line.removeprefix("# ") + "\n" for line in EXAMPLE.read_text().splitlines() if "=" in line)
    )
    for name in (
        "HOME",
        "PATH",
        "HOSTNAME",
        "POST",
        "MODE",
        "REDIS_PORT",
        "REDIS_HOST",
        "GATEWAY_PORT",
        "PORTS",
    ):
        monkeypatch.setenv(name, "x")
    assert misspelt(kind) == {}
