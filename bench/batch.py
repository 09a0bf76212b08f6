"""A model that profits from batches: 5 ms for a call and 0.05 ms for each input in it, as an accelerator works.

No server can do more with it than full batches without a pause: that is the limit the figure is compared to.
"""

import re
from statistics import median

from bench.load import need_wrk, run_load
from bench.report import Row, Section, Target
from bench.stage import Service, Stage

BATCH = 64
LIMIT_PER_S = BATCH / (0.005 + 0.00005 * BATCH)  # 7,805
CONNECTIONS = 256
ROUNDS = 3
SECONDS = 3


def measure() -> Section:
    need_wrk()
    with Stage() as stage, stage.processor("slow.py:SlowBatch", MAX_BATCH_SIZE=str(BATCH)) as processor:
        gateway = stage.gateway()
        url, parts = gateway.url("/predict"), [gateway, processor, stage.server]
        run_load(url, parts, connections=CONNECTIONS, seconds=1)
        loads = [run_load(url, parts, connections=CONNECTIONS, seconds=SECONDS) for _ in range(ROUNDS)]
        filled = _mean_batch(processor)
    per_s = median(load.per_s for load in loads)
    row: Row = {
        "connections": CONNECTIONS,
        "predictions/s": per_s,
        "limit/s": LIMIT_PER_S,
        "mean batch": filled,
        "p50 ms": median(load.p50_ms for load in loads),
        "p99 ms": median(load.p99_ms for load in loads),
        "CPU µs": median(load.total_us for load in loads),
    }
    target = Target(
        "predictions/s of a batching model ÷ its arithmetic limit", per_s / LIMIT_PER_S, 0.5, least=True
    )
    return Section(f"A model of 5 ms per call + 0.05 ms per input, batches of {BATCH}", [row], [target])


def _mean_batch(processor: Service) -> float:
    """Inputs in one call, on average since the processor's start."""
    metrics = processor.get("/metrics")[1].decode()
    total, calls = (
        float(re.findall(rf"^foretell_batch_size_{word} (\S+)$", metrics, re.MULTILINE)[0])
        for word in ("sum", "count")
    )
    return total / calls
