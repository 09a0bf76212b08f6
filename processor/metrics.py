"""The processor's Prometheus metrics. One process is one scrape target; docs/api.md says what each means."""

from prometheus_client import Counter, Gauge, Histogram

PREDICTIONS = Counter(
    "foretell_predictions", "Predictions that this processor brought to a final state.", ["status"]
)
QUEUE_SECONDS = Histogram("foretell_queue_seconds", "From acceptance to start.")
PREDICT_SECONDS = Histogram("foretell_predict_seconds", "One hand-over to a model process.")
BATCH_SIZE = Histogram(
    "foretell_batch_size", "Predictions in one hand-over.", buckets=[2**power for power in range(11)]
)
IN_HAND = Gauge("foretell_in_hand", "Predictions this processor holds: claimed and not yet recorded.")
MODEL_RESTARTS = Counter("foretell_model_restarts", "Model processes started again after they died.")
LEASES_LOST = Counter("foretell_leases_lost", "Predictions that another processor took over from this one.")
