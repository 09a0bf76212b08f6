"""The processor's Prometheus metrics, all of this one process; docs/operations.md says what each means."""

from prometheus_client import Counter, Gauge

from common.metrics import Histogram

WAIT_SECONDS = Histogram("foretell_wait_seconds", "From acceptance to start.")
PREDICT_SECONDS = Histogram(
    "foretell_predict_seconds", "One hand-over to a model process, those that failed too."
)
END_TO_END_SECONDS = Histogram("foretell_end_to_end_seconds", "From acceptance to the recorded end.")
BATCH_SIZE = Histogram(
    "foretell_batch_size", "Predictions in one hand-over.", buckets=[2**power for power in range(11)]
)
PREDICTIONS = Counter(
    "foretell_predictions",
    "Outcomes that this processor brought to the job store; refused: another attempt had it.",
    ["status"],
)
ATTEMPTS = Counter(
    "foretell_attempts",
    "Predictions started here; reclaim: taken over from a processor that fell silent.",
    ["reason"],
)
IN_HAND = Gauge("foretell_in_hand", "Predictions this processor holds: claimed and not yet recorded.")
MODEL_PROCESSES = Gauge("foretell_model_processes", "Model processes of this processor.")
MODEL_RESTARTS = Counter("foretell_model_restarts", "Model processes started again after they died.")
LEASE_LATENESS_SECONDS = Histogram(
    "foretell_lease_lateness_seconds", "How much later than planned leases were renewed."
)
LEASES_LOST = Counter("foretell_leases_lost", "Predictions that another processor took over from this one.")

# there from the start: of a series that begins at 1, a query for its growth misses the first
for status in ("succeeded", "failed", "refused"):
    PREDICTIONS.labels(status)
for reason in ("first", "retry", "reclaim"):
    ATTEMPTS.labels(reason)
