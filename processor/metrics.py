"""The processor's Prometheus metrics, all of this one process; docs/operations.md says what each means."""

from prometheus_client import Counter, Gauge

from common.metrics import Histogram

WAIT_SECONDS = Histogram("foretell_wait_seconds", "Time from acceptance to claim.")
PREDICT_SECONDS = Histogram(
    "foretell_predict_seconds", "Time for one batch sent to a model process, failed ones included."
)
END_TO_END_SECONDS = Histogram("foretell_end_to_end_seconds", "Time from acceptance to the recorded end.")
BATCH_SIZE = Histogram(
    "foretell_batch_size",
    "Predictions in one batch sent to a model process.",
    buckets=[2**power for power in range(11)],
)
PREDICTIONS = Counter(
    "foretell_predictions",
    "Outcomes that this processor sent to Redis; refused: another attempt had it, or it had ended.",
    ["status"],
)
ATTEMPTS = Counter(
    "foretell_attempts",
    "Predictions claimed here; reclaim: taken over from a processor that fell silent.",
    ["reason"],
)
IN_HAND = Gauge("foretell_in_hand", "Predictions claimed here and not yet recorded.")
MODEL_PROCESSES = Gauge("foretell_model_processes", "Model processes of this processor.")
MODEL_RESTARTS = Counter("foretell_model_restarts", "Restarts of model processes.")
LEASE_LATENESS_SECONDS = Histogram(
    "foretell_lease_lateness_seconds", "How much later than planned leases were renewed."
)
LEASES_LOST = Counter(
    "foretell_leases_lost", "Predictions that another processor took over from this one while it was alive."
)
PLACES_LOST = Counter(
    "foretell_places_lost", "Predictions queued again because their place in the queue was gone."
)

# there from the start: of a series that begins at 1, a query for its growth misses the first
for status in ("succeeded", "failed", "refused"):
    PREDICTIONS.labels(status)
for reason in ("first", "retry", "reclaim"):
    ATTEMPTS.labels(reason)
