"""A service that is stopping goes on doing so, and ends with exit code 0, whoever else is told to stop and how often."""

import os
import signal
from pathlib import Path

import pytest

from tests.conftest import wait_until
from tests.services import Service, Services, services

__all__ = ["services"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("name", ["gateway", "processor"])
def test_more_signals_change_nothing(services: Services, name: str, number: int) -> None:
    """To the very end, and the last moments of Python are part of it."""
    service: Service = getattr(services, name)()
    while service.process.poll() is None:
        service.send_signal(number)
    assert service.process.returncode == 0
    assert f"{name} stopped" in service.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_while_the_model_process_starts(services: Services, number: int) -> None:
    """As systemd stops a unit: the model process does not ignore signals yet."""
    for _ in range(5):
        processor = services.processor(wait=False)
        children = Path(f"/proc/{processor.pid}/task/{processor.pid}/children")
        child = int(wait_until(lambda: children.read_text().split())[0])  # noqa: B023
        os.kill(processor.pid, signal.SIGSTOP)  # both are told before it hears of either
        os.kill(child, number)
        os.kill(processor.pid, number)
        wait_until(lambda: has_ended(child) or is_deaf(child, number))  # noqa: B023
        os.kill(processor.pid, signal.SIGCONT)
        processor.stopped()


def has_ended(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def is_deaf(pid: int, number: int) -> bool:
    caught = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "SigCgt" in line)
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)
