"""What docker-compose.yml promises, without an engine: that nothing of it stands open, that it agrees with the services'
settings and with the server of `make run`, and that it refuses to start without a password. `make compose-test` starts it.
"""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.settings import CommonSettings
from tools.embedded_server import EmbeddedServer

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
        assert (environment["HOST"], environment["PORT"]) == ("0.0.0.0", "8080"), "PORT is the published one"
        assert services[name]["stop_grace_period"] in ("1m10s", "70s", "10s60s")
    assert [port["published"] for port in services["gateway"]["ports"]] == ["9000"]
