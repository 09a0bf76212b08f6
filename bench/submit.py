"""How fast asynchronous predictions are accepted: POST with `Async-Mode: true`, nobody working on them meanwhile."""

from statistics import median

from bench.load import need_wrk, run_load
from bench.report import Row, Section
from bench.stage import Stage

CONNECTIONS = 64
ROUNDS = 3
SECONDS = 2


def measure() -> Section:
    need_wrk()
    with Stage() as stage:
        gateway = stage.gateway()
        loads = [
            run_load(
                gateway.url("/predict"),
                [gateway, stage.server],
                connections=CONNECTIONS,
                seconds=SECONDS,
                headers=["Async-Mode: true"],
            )
            for _ in range(ROUNDS)
        ]
    row: Row = {
        "connections": CONNECTIONS,
        "accepted/s": median(load.per_s for load in loads),
        "p50 ms": median(load.p50_ms for load in loads),
        "p99 ms": median(load.p99_ms for load in loads),
        "CPU µs": median(load.total_us for load in loads),
        "gateway µs": median(load.cpu_us["gateway"] for load in loads),
        "server µs": median(load.cpu_us["server"] for load in loads),
    }
    return Section("Asynchronous submits", [row])
