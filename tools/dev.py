"""`make run`: an embedded Valkey, a gateway and a processor on this machine, until Ctrl-C.

Stops in the order that lets everything accepted end well: the gateway answers who still waits, the processor ends
what it has begun, the server writes it down. It must never leave a process behind; when it is killed itself, the
kernel tells the three (on Linux; elsewhere they go on running). A fault is one sentence on stderr, exit status 1.
"""

import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Protocol

from common.begin import begin
from common.lean_imports import lean_imports

if __name__ == "__main__":
    begin()

with lean_imports():
    from common.addresses import host_port
    from common.errors import ForetellError, StartFault
    from common.http.listener import bind, local
    from common.settings import GatewaySettings, ProcessorSettings, read_settings
    from tools.child_process import ending, start_child
    from tools.embedded_server import EmbeddedServer, free_port
    from tools.http_probe import why_not_ready

DATA = Path(".data")
READY_S = 600.0  # a model may load for long
NEWS_S = 10.0
POLL_S = 0.1
KILL_AFTER_S = 5.0  # past DRAIN_S: who is still there then has broken its word
EXAMPLE = '{"input": "Bonjour tout le monde"}'


class Stop(Exception):
    """Somebody asked for the end."""


class StopSignals:
    """Ctrl-C, `kill`, a closed terminal. Counted: the first asks for a stop in order, the second hurries it."""

    def __init__(self) -> None:
        self.count = 0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._heard)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        self.count += 1


class Part(Protocol):
    """One of the three processes."""

    name: str

    def why_not_ready(self) -> str | None:
        """None when it can do its work, else one sentence. Raises StartFault when it has ended."""

    def check(self) -> None:
        """Raises StartFault when it has ended."""


class Service:
    """`python -m <name>`, which tells at `port` of one of `hosts` whether it is ready."""

    def __init__(
        self,
        name: str,
        hosts: Sequence[str],
        port: int,
        *,
        env: dict[str, str],
        drain_s: float,
        signals: StopSignals,
    ) -> None:
        self.name = name
        self._hosts = hosts
        self._port = port
        self._drain_s = drain_s
        self._signals = signals
        self._was_ready = False
        self._process = start_child([sys.executable, "-m", name], env=env)

    def check(self) -> None:
        status = self._process.poll()
        if status == 1 and not self._was_ready:
            sys.exit(1)  # it could not start, and has said why in its own sentence
        if status is not None:
            raise StartFault(
                f"The {self.name} {ending(status)} without being asked to; the rest is stopped too."
            )

    def why_not_ready(self) -> str | None:
        self.check()
        reasons = [why_not_ready(host, self._port) for host in self._hosts]
        self._was_ready = None in reasons
        return None if self._was_ready else reasons[0]

    def stop(self) -> None:
        """Ask, wait as long as it may drain, then insist. Raises StartFault when it did not end well."""
        if self._process.poll() is not None:
            return
        self._process.terminate()
        until = time.monotonic() + self._drain_s + KILL_AFTER_S
        while self._process.poll() is None:
            if self._signals.count > 1 or time.monotonic() > until:
                os.killpg(self._process.pid, signal.SIGKILL)  # its model processes too
                self._process.wait()
            else:
                time.sleep(POLL_S)
        # SIGTERM itself ends a child that was too young to have a handler
        if self._process.returncode not in (0, -signal.SIGTERM) and self._signals.count < 2:
            raise StartFault(f"The {self.name} did not stop in order: it {ending(self._process.returncode)}.")


def run(signals: StopSignals) -> None:
    """Start all, wait for Stop. The stack ends the parts in the reverse order of their start."""
    gateway, processor = read_settings(GatewaySettings), read_settings(ProcessorSettings)
    port, probe_port = choose_ports(gateway, processor)
    env = {**os.environ, "PORT": str(port), "PROBE_PORT": str(probe_port)}
    parts: list[Part] = []
    with ExitStack() as stack:
        if "redis_url" not in gateway.model_fields_set:
            server = EmbeddedServer(DATA)
            stack.callback(server.stop)
            server.launch()
            parts.append(server)
            wait_until_ready(server, parts, signals)
            env["REDIS_URL"] = server.url
        hosts = local(gateway.host)
        for name, its_port in (("processor", probe_port), ("gateway", port)):
            service = Service(name, hosts, its_port, env=env, drain_s=gateway.drain_s, signals=signals)
            stack.callback(service.stop)
            parts.append(service)
        for part in list(parts):
            wait_until_ready(part, parts, signals)
        announce(gateway.host, port, processor.model)
        try:
            while True:
                pause(parts, signals)
        except Stop:
            say("Stopping in order; Ctrl-C again does not wait for what is still running.")
            raise


def choose_ports(gateway: GatewaySettings, processor: ProcessorSettings) -> tuple[int, int]:
    """PORT and PROBE_PORT, free at this moment. Raises StartFault for one that somebody asked for and has not."""
    with bind(gateway.host, gateway.port, variable="PORT") as listener:
        listener.listen()  # one that is only bound would not keep the next from binding the same
        port = listener.getsockname()[1]
        try:
            with bind(processor.host, processor.probe_port, variable="PROBE_PORT") as probe:
                return port, probe.getsockname()[1]
        except StartFault:
            if "probe_port" in processor.model_fields_set:
                raise
            return port, free_port()


def wait_until_ready(part: Part, parts: Sequence[Part], signals: StopSignals) -> None:
    """Raises Stop, or StartFault when any of `parts` ends or `part` takes more than READY_S."""
    began = told = time.monotonic()
    while why := part.why_not_ready():
        now = time.monotonic()
        if now - began > READY_S:
            raise StartFault(f"The {part.name} was not ready after {READY_S:g} s: {why}")
        if now - told > NEWS_S:
            told = now
            say(f"Waiting for the {part.name} ({now - began:.0f} s): {why}")
        pause(parts, signals)


def pause(parts: Sequence[Part], signals: StopSignals) -> None:
    """A moment's rest. Raises Stop, or StartFault when a part has ended."""
    if signals.count:
        raise Stop
    for part in parts:
        part.check()
    time.sleep(POLL_S)


def announce(host: str, port: int, model: str) -> None:
    url = f"http://{host_port(host if local(host) == (host,) else 'localhost', port)}"
    say(f"\nForetell serves {model} at {url}\n")
    say(f"  curl {url}/predict -H 'Content-Type: application/json' -d '{EXAMPLE}'\n\nCtrl-C stops it.\n")


def say(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    try:
        run(StopSignals())
    except Stop:
        return 0
    except ForetellError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
