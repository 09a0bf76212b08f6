"""Prometheus metrics of both services. One process is one scrape target; the names are documented in docs/api.md."""

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter(
    "foretell_http_requests", "Answers by route, method and code.", ["route", "method", "code"]
)
WAITERS = Gauge(
    "foretell_waiters", "Clients waiting for a final state: sync requests, long polls, WebSockets."
)
RELAY_CONNECTED = Gauge("foretell_relay_connected", "1 while the gateway hears announcements.")
PREDICTIONS = Counter(
    "foretell_predictions", "Predictions that this processor brought to a final state.", ["status"]
)
QUEUE_SECONDS = Histogram("foretell_queue_seconds", "From acceptance to start.")
PREDICT_SECONDS = Histogram("foretell_predict_seconds", "One call of the model.")
BATCH_SIZE = Histogram(
    "foretell_batch_size", "Predictions in one call.", buckets=[1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
)
IN_HAND = Gauge("foretell_in_hand", "Predictions this processor holds: claimed and not yet recorded.")
MODEL_RESTARTS = Counter("foretell_model_restarts", "Model processes started again after they died.")
LEASES_LOST = Counter("foretell_leases_lost", "Predictions that another processor took over from this one.")
