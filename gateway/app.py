"""The gateway's table of contents: every URL, and what becomes of every error. Nothing else lives here."""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp

from common.errors import StoreError, StoreFull
from common.http.probes import probe_routes
from common.json_text import NoInput, NotJson
from common.settings import entries
from gateway.compression import encoded
from gateway.endpoints.dead import DeadPrediction, DeadPredictions, DeadRetry
from gateway.endpoints.predict import Prediction, Predictions
from gateway.endpoints.queue import Queues, Waiting
from gateway.endpoints.websocket import PredictionSocket
from gateway.errors import (
    HttpError,
    http_error,
    no_input,
    not_json,
    routing_error,
    store_full,
    store_unavailable,
    unexpected_error,
)
from gateway.gateway import Gateway
from gateway.observed import Observed
from gateway.paths import OtherPaths
from gateway.proxies import Proxies
from gateway.security import guarded


def make_app(gateway: Gateway) -> ASGIApp:
    predictions = Predictions(gateway)
    app = Starlette(
        routes=[
            Route("/predict", predictions, methods=["POST"]),
            Route(
                "/predict/{prediction_id}",
                Prediction(gateway, predictions),
                methods=["GET", "PUT", "DELETE"],
            ),
            Route("/queue", Queues(gateway), methods=["GET", "DELETE"]),
            Route("/queue/waiting", Waiting(gateway), methods=["GET"]),
            Route("/dead", DeadPredictions(gateway), methods=["GET"]),
            Route("/dead/{prediction_id}", DeadPrediction(gateway), methods=["DELETE"]),
            Route("/dead/{prediction_id}/retry", DeadRetry(gateway), methods=["POST"]),
            WebSocketRoute("/ws/predict/{prediction_id}", PredictionSocket(gateway)),
            *probe_routes(gateway.readiness, gateway.measure, gateway.notice, encoded),
        ],
        exception_handlers={
            HttpError: http_error,
            NotJson: not_json,
            NoInput: no_input,
            StoreFull: store_full,
            StoreError: store_unavailable,
            HTTPException: routing_error,
            Exception: unexpected_error,
        },
    )
    app.state.compress = gateway.settings.compress
    app.router.redirect_slashes = False  # an unknown path is a 404 in JSON, not a redirect
    app.router.default = OtherPaths(app.router)
    settings = gateway.settings
    inside = guarded(app, api_keys=gateway.client_keys, origins=entries(settings.allowed_origins))
    observed = Observed(inside, gateway.tracing, access_log=settings.access_log)
    return Proxies(observed, trusted=entries(settings.trusted_proxies), root_path=settings.root_path)
