"""Real services for tests: `python -m gateway` and `python -m processor` as child processes on free ports.

`start_gateway(**settings)` and `start_processor(model, **settings)` are the fixtures; import them into a conftest.
What a test starts is stopped with SIGTERM after it and must end with exit code 0; what a test kills itself is not
looked at again. Each test that fails shows what its services logged.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pytest

from tools import http_probe
from tools.child_process import ending, start_child
from tools.ports import free_port

ROOT = Path(__file__).resolve().parents[1]
ECHO = f"{ROOT}/examples/echo.py:echo"
LANGUAGE = f"{ROOT}/examples/language.py:Language"
MOODY = f"{ROOT}/examples/moody.py:Moody"
MOODY_BATCH = f"{ROOT}/examples/moody.py:MoodyBatch"

START_S = 30.0
STOP_S = 30.0
POLL_S = 0.02


class Service:
    """One running service."""

    def __init__(
        self, name: str, port: int, env: dict[str, str], log: Path, *, command: Sequence[str] = ()
    ) -> None:
        self.name = name
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._log = log
        self._shown = 0
        self._killed = False
        with log.open("wb") as file:
            self.process = start_child(
                [sys.executable, *(command or ("-m", name))],
                env=env,
                cwd=log.parent,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def last_sentence(self) -> str:
        """Why it could not start or go on: the one line of a process that has ended by itself, as its logs are."""
        line = json.loads(self.log.splitlines()[-1])
        assert {line[name] for name in ("level", "service")} == {"critical", self.name}
        assert line["timestamp"]
        return str(line["event"])

    def new_log(self) -> str:
        """What it logged since the last call."""
        text = self.log
        new, self._shown = text[self._shown :], len(text)
        return new

    def get(self, path: str) -> tuple[int, bytes]:
        """Code and body. Raises OSError while nobody answers."""
        return http_probe.get("127.0.0.1", self.port, path)

    def metrics(self) -> dict[str, float]:
        """Its samples, by name with labels as scraped. Raises OSError while nobody answers."""
        code, body = self.get("/metrics")
        assert code == 200
        lines = [line for line in body.decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def ready(self) -> Self:
        """Wait until /readyz says so; fails at once if the process ends."""
        until = time.monotonic() + START_S
        while not self.is_ready():
            status = self.process.poll()
            assert status is None, f"the {self.name} {ending(status or 0)}:\n{self.log}"
            assert time.monotonic() < until, f"the {self.name} was not ready in {START_S:g} s:\n{self.log}"
            time.sleep(POLL_S)
        return self

    def is_ready(self) -> bool:
        return self.answers("/readyz") == 200

    def answers(self, path: str) -> int | None:
        """The code, None while nobody answers."""
        try:
            return self.get(path)[0]
        except OSError:
            return None

    def send_signal(self, number: int) -> None:
        """SIGSTOP, SIGCONT, or SIGTERM without waiting for its end."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, to it alone: its model processes must notice by themselves."""
        self._killed = True
        self.process.kill()
        self.process.wait(STOP_S)

    def stopped(self) -> None:
        """Wait for its end after a SIGTERM; it must be a good one."""
        if self._killed:
            return
        try:
            status = self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the {self.name} did not stop in {STOP_S:g} s:\n{self.log}") from None
        assert status == 0, f"the {self.name} {ending(status)}:\n{self.log}"

    def stop(self) -> None:
        """SIGTERM, and exit code 0."""
        if self.process.poll() is None:
            self.process.terminate()
        self.stopped()


class Services:
    """Starts services on one Redis server."""

    def __init__(self, redis_url: str, folder: Path, *, partitions: int) -> None:
        self.redis_url = redis_url
        self._folder = folder
        self.started: list[Service] = []
        passed_on = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE")}
        # the working directory is `folder`: a developer's .env is not read
        self._env = passed_on | {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "REDIS_URL": redis_url,
            "PARTITIONS": str(partitions),
            "HOST": "127.0.0.1",
            "DRAIN_S": "5",
            "SHUTDOWN_DELAY_S": "0.1",
        }

    def gateway(self, *, wait: bool = True, **settings: Any) -> Service:
        """A gateway; `settings` are environment variables."""
        return self._start("gateway", "PORT", settings, wait=wait)

    def processor(self, model: str = ECHO, *, wait: bool = True, **settings: Any) -> Service:
        """A processor; its url is that of its probes."""
        return self._start("processor", "PROBE_PORT", {"MODEL": model} | settings, wait=wait)

    def _start(self, name: str, port_name: str, settings: dict[str, Any], *, wait: bool) -> Service:
        port = free_port()
        env = self._env | {port_name: str(port)} | {key: str(value) for key, value in settings.items()}
        log = self._folder / f"{name}-{len(self.started)}.log"
        service = Service(name, port, env, log)
        self.started.append(service)
        return service.ready() if wait else service

    def show_logs(self) -> list[tuple[str, str]]:
        """Print what was logged since the last call: pytest shows it if the test failed. Returns (service, log)."""
        logs = []
        for service in self.started:
            if new := service.new_log():
                logs.append((service.name, new))
                print(f"--- {service.name} at {service.url}\n{new}")
        return logs

    def forget_logs(self) -> None:
        """What was logged so far is nobody's business now."""
        for service in self.started:
            service.new_log()

    def stop(self) -> None:
        """Stop all that still run, at the same time; each must end with exit code 0."""
        for service in self.started:
            if service.process.poll() is None:
                service.send_signal(signal.SIGCONT)
                service.send_signal(signal.SIGTERM)
        faults = []
        for service in self.started:
            try:
                service.stopped()
            except AssertionError as error:
                faults.append(str(error))
        assert not faults, "\n".join(faults)


@contextmanager
def running_services(redis_url: str, folder: Path, *, partitions: int) -> Iterator[Services]:
    """For fixtures of a wider scope than a test, which cannot use `redis_url`: give them a server of their own."""
    services = Services(redis_url, folder, partitions=partitions)
    try:
        yield services
    finally:
        try:
            services.stop()
        finally:
            services.show_logs()


@pytest.fixture
def services(redis_url: str, partitions: int, tmp_path: Path) -> Iterator[Services]:
    """On the session's server, which the test finds empty."""
    with running_services(redis_url, tmp_path, partitions=partitions) as started:
        yield started


@pytest.fixture
def start_gateway(services: Services) -> Callable[..., Service]:
    """`start_gateway(SYNC_WAIT_S=1)`: one more gateway, ready."""
    return services.gateway


@pytest.fixture
def start_processor(services: Services) -> Callable[..., Service]:
    """`start_processor(MOODY, PREDICT_TIMEOUT_S=1)`: one more processor, its model loaded."""
    return services.processor
