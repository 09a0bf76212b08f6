"""Load over HTTP, from wrk: one thread of it, because it shares the machine with what it measures.

A run in which one answer was an error is no measurement: it raises instead of giving figures.
"""

import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.stage import Part
from common.errors import ForetellError

SCRIPT = Path(__file__).with_name("predict.lua")


class LoadFailed(ForetellError):
    """wrk is missing, or not every answer was a success."""


@dataclass(frozen=True, slots=True)
class Load:
    """One run of wrk. `cpu_us` is µs of CPU per request, by part."""

    per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us: dict[str, float]

    @property
    def total_us(self) -> float:
        return sum(self.cpu_us.values())


def need_wrk() -> None:
    """Raises LoadFailed."""
    if shutil.which("wrk") is None:
        raise LoadFailed("wrk is missing: install the package wrk (apt-get install wrk) and try again.")


def run_load(
    url: str, parts: Sequence[Part], *, connections: int, seconds: int, headers: Sequence[str] = ()
) -> Load:
    """POST to `url` for `seconds` over so many connections; the CPU of `parts` is measured meanwhile."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "--timeout", "10s"]
    for header in headers:
        command += ["-H", header]
    before = {part.name: part.cpu_s() for part in parts}
    ran = subprocess.run([*command, "-s", str(SCRIPT), url], capture_output=True, text=True, check=False)
    after = {part.name: part.cpu_s() for part in parts}
    if ran.returncode or not ran.stdout.rstrip().endswith("}"):
        raise LoadFailed(f"wrk could not load {url}: {ran.stderr.strip() or ran.stdout.strip()}")
    told = json.loads(ran.stdout.rstrip().rpartition("\n")[2])
    requests = told["requests"]
    if told["refused"] or told["broken"] or not requests:
        raise LoadFailed(
            f"{url} at {connections} connections: of {requests} answers {told['refused']} were errors, "
            f"and {told['broken']} requests got none; that is no measurement."
        )
    return Load(
        per_s=requests / told["duration_us"] * 1e6,
        p50_ms=told["p50_us"] / 1000,
        p99_ms=told["p99_us"] / 1000,
        cpu_us={name: (after[name] - before[name]) / requests * 1e6 for name in before},
    )
