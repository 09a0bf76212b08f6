"""What docker-compose.yml promises, without an engine: that nothing of it stands open, that it agrees with the services'
settings and with the server of `make run`, and that it refuses to start without a password. `make compose-test` starts it.
"""

import re
import shutil
import string
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from redis import Redis
from redis.exceptions import AuthenticationError, ConnectionError

from common.errors import StartFault
from common.settings import CommonSettings, GatewaySettings, read_settings
from common.store.connections.redis_url import parse_url
from tests.conftest import wait_until
from tools import embedded_server
from tools.child_process import start_child
from tools.embedded_server import EmbeddedServer
from tools.ports import free_port

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("gateway", "processor")
COMPOSE_S = 60
#: What belongs to the disk or the place of one server, not to how it must behave.
ONE_SERVERS = {"port", "bind", "unixsocket", "unixsocketperm", "dir", "daemonize"}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_may_do_and_use_no_more_than_it_needs(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["deploy"]["resources"]["limits"]["memory"]
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    assert "container_name" not in service, "it could not be scaled, nor run twice on one machine"
    if "build" not in service:
        assert re.search(r":v?\d", service["image"]), f"{service['image']} has no version"


def test_only_the_gateway_can_be_reached_from_other_machines() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published.pop("gateway") == ["${PORT:-8080}:8080"]
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)
    assert SERVICES["redis"]["networks"] == ["inside"]
    assert COMPOSE["networks"]["inside"]["internal"]


@pytest.mark.parametrize("name", OURS)
def test_no_password_of_the_env_file_reaches_a_service_as_such(name: str) -> None:
    passwords = re.findall(r"^(\w*PASSWORD)=", (ROOT / ".env.example").read_text(), re.MULTILINE)
    assert passwords
    environment = SERVICES[name]["environment"]
    assert {password: environment.get(password) for password in passwords} == dict.fromkeys(passwords, "")


@pytest.mark.parametrize("name", OURS)
def test_the_engine_waits_longer_than_a_drain(name: str) -> None:
    found = re.fullmatch(r"(\d+)s\$\{DRAIN_S:-(\d+)\}s", SERVICES[name]["stop_grace_period"])
    assert found, "it must grow with DRAIN_S"
    assert int(found[1]) >= 5
    assert float(found[2]) == CommonSettings.model_fields["drain_s"].default


def test_the_server_is_set_as_that_of_make_run(tmp_path: Path) -> None:
    words = EmbeddedServer(tmp_path)._options()
    wanted = {
        name.removeprefix("--"): value
        for name, value in zip(words[::2], words[1::2], strict=True)
        if name.removeprefix("--") not in ONE_SERVERS
    }
    script = SERVICES["redis"]["command"][-1]
    given = {name: value.strip("'") for name, value in re.findall(r" --([\w-]+) ('[^']*'|\S+)", script)}
    assert {name: given.get(name) for name in wanted} == wanted


def test_the_gateway_installs_nothing_of_a_model() -> None:
    packages = {
        name: set(re.findall(r"^([\w.-]+)==", (ROOT / f"requirements/{name}.txt").read_text(), re.MULTILINE))
        for name in OURS
    }
    assert packages["gateway"] < packages["processor"]
    assert {"py3langid", "numpy"} <= packages["processor"] - packages["gateway"]


def compose_config(folder: Path, env: str | None) -> "subprocess.CompletedProcess[str]":
    """`docker compose config` in a folder that has the file and this `.env`; it asks no engine."""
    command = _compose()
    shutil.copy(ROOT / "docker-compose.yml", folder)
    if env is not None:
        (folder / ".env").write_text(env)
    return subprocess.run(
        [*command, "--profile", "*", "config"],
        cwd=folder,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=COMPOSE_S,
        check=False,
    )


def _compose() -> list[str]:
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            version = subprocess.run(
                [*command, "version"], capture_output=True, timeout=COMPOSE_S, check=False
            )
            if version.returncode == 0:
                return command
    pytest.skip("docker compose is not installed")


@pytest.mark.parametrize("env", [None, "", "REDIS_PASSWORD=\n"])
def test_compose_refuses_to_start_without_a_password_and_says_what_to_do(
    tmp_path: Path, env: str | None
) -> None:
    refused = compose_config(tmp_path, env)
    assert refused.returncode != 0
    assert "copy .env.example to .env and set REDIS_PASSWORD in it" in refused.stderr


def test_the_example_of_an_env_file_is_enough_and_settings_in_it_reach_the_services(tmp_path: Path) -> None:
    env = (ROOT / ".env.example").read_text() + "DRAIN_S=60\nHOST=127.0.0.1\nPORT=9000\nLEASE_S=7\n"
    done = compose_config(tmp_path, env)
    assert done.returncode == 0, done.stderr
    assert "variable is not set" not in done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    assert services.keys() == SERVICES.keys()
    for name in OURS:
        environment = services[name]["environment"]
        assert environment["LEASE_S"] == "7"
        assert (environment["HOST"], environment["PORT"]) == ("::", "8080"), "PORT is the published one"
        assert services[name]["stop_grace_period"] in ("1m10s", "70s", "10s60s")
    assert [port["published"] for port in services["gateway"]["ports"]] == ["9000"]


# -- the password

REFUSED = "REDIS_PASSWORD in .env is wrong: it may have letters, digits and - . _ ~ ! & ( ) * + , ; = only."
CARRIED = string.ascii_letters + string.digits + "-._~!&()*+,;="


def composed(folder: Path, line: str) -> tuple[str, str, str] | None:
    """What compose makes of a line of `.env`: the password, REDIS_URL and the server's script. None: it refuses."""
    done = compose_config(folder, f"REDIS_PASSWORD={line}\n")
    if done.returncode:
        assert ".env" in done.stderr
        return None
    services = yaml.safe_load(done.stdout.replace("$$", "$"))["services"]
    redis = services["redis"]
    return (
        redis["environment"]["REDISCLI_AUTH"],
        services["gateway"]["environment"]["REDIS_URL"],
        redis["command"][-1],
    )


def script_here(folder: Path, script: str, port: int = 0) -> str:
    """The script with this machine's folders."""
    ours = script.replace("/tmp/password.conf", str(folder / "password.conf")).replace("/data", str(folder))
    assert ours != script
    return f"{ours.rstrip()} --port {port}"


def served(folder: Path, line: str) -> str | None:
    """The password that the server and its clients get, or None where one of them is told that it is wrong."""
    folder.mkdir()
    if not (found := composed(folder, line)):
        return None
    password, url, script = found
    server = folder / "valkey-server"
    server.write_text("#!/bin/sh\nexec cat $1\n")
    server.chmod(0o755)
    done = subprocess.run(
        ["sh", "-ec", script_here(folder, script)],
        env={"PATH": f"{folder}:/usr/bin:/bin", "REDISCLI_AUTH": password},
        capture_output=True,
        text=True,
        timeout=COMPOSE_S,
        check=False,
    )
    if done.returncode:
        assert (done.stdout, done.stderr) == ("", f"{REFUSED}\n")
        return None
    assert done.stdout == f"requirepass {password}\n"
    assert unquote(urlsplit(parse_url(url).plain).password or "") == password
    return password


def told(folder: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> str | None:
    """The sentence with which our own services refuse to start beside such a line, or None where they start."""
    (folder / ".env").write_text(f"REDIS_PASSWORD={line}\n")
    monkeypatch.chdir(folder)
    monkeypatch.delenv("REDIS_PASSWORD", raising=False)
    try:
        read_settings(GatewaySettings)
    except StartFault as fault:
        return str(fault).replace(str(folder / ".env"), ".env")
    return None


def test_a_password_is_carried_letter_by_letter_or_refused_by_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a password of all letters that can be carried, then each other one between two of them
    assert served(tmp_path / "all", CARRIED) == CARRIED
    assert told(tmp_path, monkeypatch, CARRIED) is None
    for letter in sorted({*string.printable, "é", "\u00a0"} - {*CARRIED, *"\n\r\v\f"}):
        line = f"'ab{letter}cd'" if letter != "'" else '"ab\'cd"'
        assert served(tmp_path / f"{ord(letter)}", line) is None, letter
        assert told(tmp_path, monkeypatch, line) == REFUSED, letter


@pytest.mark.parametrize(
    "line",
    [
        "ab cd", "'ab '", "ab#cd", "#abcd", "ab'cd", 'ab"cd', "ab\\cd", '"ab\\ncd"', "'ab\ncd'", '"ab', "ab@cd", "ab%41cd",
        "ab$$cd", "'ab$cd'", "'ab${cd}'", '"ab\\$cd"', "ab\t#cd", "é",
    ],
)  # fmt: skip
def test_a_line_that_cannot_be_carried_is_refused_by_compose_and_by_us(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    assert served(tmp_path / "compose", line) is None
    assert told(tmp_path, monkeypatch, line) == REFUSED


@pytest.mark.parametrize(
    "line", ["abcd", "  abcd ", "'abcd'", '"abcd"', "abcd # a note", "'abcd' # a note", "abcd\r"]
)
def test_a_line_that_can_be_carried_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    assert served(tmp_path / "compose", line) == "abcd"
    assert told(tmp_path, monkeypatch, line) is None


@pytest.mark.parametrize("line", ["ab$cd", '"ab$cd"', "ab${cd}ef", "'ab'cd", '"ab\\0101cd"'])
def test_a_line_that_compose_changes_before_anybody_can_see_it_is_refused_by_us(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    assert told(tmp_path, monkeypatch, line) == REFUSED


@pytest.mark.parametrize(
    "password", ["pa$word", "pa${word}", "pa$$word", "pa word", 'pa"word', "pa#word", "pa word #1"]
)
def test_between_the_quotes_of_the_example_no_password_is_changed_unseen(
    tmp_path: Path, password: str
) -> None:
    [line] = re.findall(r"^REDIS_PASSWORD=(.*)", (ROOT / ".env.example").read_text(), re.MULTILINE)
    assert served(tmp_path / "example", line) == "change-me"
    assert served(tmp_path / "changed", line.replace("change-me", password)) is None


def test_the_server_and_its_clients_agree_on_a_password_with_every_letter(tmp_path: Path) -> None:
    found = composed(tmp_path, CARRIED)
    assert found
    password, url, script = found
    (tmp_path / "valkey-server").symlink_to(embedded_server.binary_of_the_wheel())
    port = free_port()
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "REDISCLI_AUTH": password}
    with (tmp_path / "server.log").open("wb") as log:
        server = start_child(
            ["sh", "-ec", script_here(tmp_path, script, port)],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        with closing(Redis.from_url(url.replace("@redis:6379", f"@127.0.0.1:{port}"))) as client:

            def answers() -> bool:
                assert server.poll() is None, (tmp_path / "server.log").read_text()
                try:
                    return bool(client.ping())
                except ConnectionError:
                    return False

            wait_until(answers)
        with closing(Redis(port=port)) as stranger, pytest.raises(AuthenticationError):
            stranger.ping()
    finally:
        server.terminate()
        server.wait(30)


@pytest.mark.parametrize("name", ["REDIS_URL", "API_KEYS", "ADMIN_API_KEYS"])
def test_a_secret_in_the_file_that_would_be_changed_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for line in ("redis://:ab${cd}ef@host/0", "'redis://:ab$cd@host/0'"):
        (tmp_path / ".env").write_text(f"{name}={line}\n")
        with pytest.raises(StartFault, match=rf"^{name} in {tmp_path}/\.env has a \$, ") as caught:
            read_settings(GatewaySettings)
        assert "ab" not in str(caught.value).replace(str(tmp_path), "").replace("variable", "")
    # what the environment has instead is not changed, and the file's is not read
    monkeypatch.setenv(name, "redis://:ab$cd@host/0")
    assert getattr(read_settings(GatewaySettings), name.lower()) == "redis://:ab$cd@host/0"
