"""Synchronous predictions beside a bare Starlette echo, at four numbers of connections.

Echo and prediction take turns in short rounds, and a ratio is the median of the rounds' own ratios: what else the
machine does meanwhile hits both sides of it.
"""

from statistics import median

from bench.load import Load, need_wrk, run_load
from bench.report import Row, Section, Target
from bench.stage import Stage

#: connections → (rounds, seconds of each side of a round)
LEVELS = {1: (3, 2), 16: (2, 2), 64: (3, 3), 256: (2, 2)}
WARM_UP_S = 2

Rounds = list[tuple[Load, Load]]


def measure() -> Section:
    need_wrk()
    with Stage() as stage, stage.processor("echo.py:echo") as processor:
        echo, gateway = stage.echo(), stage.gateway()
        parts = [gateway, processor, stage.server]

        def one_round(connections: int, seconds: int) -> tuple[Load, Load]:
            return (
                run_load(echo.url("/echo"), [echo], connections=connections, seconds=seconds),
                run_load(gateway.url("/predict"), parts, connections=connections, seconds=seconds),
            )

        one_round(64, WARM_UP_S)
        levels = {
            c: [one_round(c, seconds) for _ in range(rounds)] for c, (rounds, seconds) in LEVELS.items()
        }
    rows = [row for connections, rounds in levels.items() for row in _rows(connections, rounds)]
    return Section("Synchronous predictions and a bare Starlette echo", rows, _targets(levels))


def _rows(connections: int, rounds: Rounds) -> list[Row]:
    echoes, predictions = [echo for echo, _ in rounds], [prediction for _, prediction in rounds]
    return [
        _row(connections, "echo", echoes),
        _row(connections, "predict", predictions),
        {
            "connections": connections,
            "endpoint": "predict ÷ echo",
            "requests/s": median(p.per_s / e.per_s for e, p in rounds),
            "p50 ms": median(p.p50_ms / e.p50_ms for e, p in rounds),
            "p99 ms": median(p.p99_ms / e.p99_ms for e, p in rounds),
            "CPU µs": median(p.total_us / e.total_us for e, p in rounds),
        },
    ]


def _row(connections: int, name: str, loads: list[Load]) -> Row:
    row: Row = {
        "connections": connections,
        "endpoint": name,
        "requests/s": median(load.per_s for load in loads),
        "p50 ms": median(load.p50_ms for load in loads),
        "p99 ms": median(load.p99_ms for load in loads),
        "CPU µs": median(load.total_us for load in loads),
    }
    if len(loads[0].cpu_us) > 1:
        row |= {f"{part} µs": median(load.cpu_us[part] for load in loads) for part in loads[0].cpu_us}
    return row


def _targets(levels: dict[int, Rounds]) -> list[Target]:
    at_64, at_1 = levels[64], levels[1]
    return [
        Target(
            "CPU of a sync prediction (gateway + processor + server) ÷ of an echo, 64 connections",
            median(p.total_us / e.total_us for e, p in at_64),
            2.2,
        ),
        Target(
            "sync predictions/s ÷ echoes/s, 64 connections",
            median(p.per_s / e.per_s for e, p in at_64),
            0.5,
            least=True,
        ),
        Target(
            "p50 of a sync prediction ÷ of an echo, 1 connection",
            median(p.p50_ms / e.p50_ms for e, p in at_1),
            6.0,
        ),
    ]
