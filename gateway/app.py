"""The gateway's table of contents: every URL, and what becomes of every error. Nothing else lives here."""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route, WebSocketRoute

from common.errors import StoreMisconfigured, StoreUnavailable
from common.json_text import NoInput, NotJson
from common.probes import probe_routes
from gateway.errors import (
    HttpError,
    http_error,
    no_input,
    not_json,
    routing_error,
    store_unavailable,
    unexpected_error,
)
from gateway.gateway import Gateway
from gateway.predict import Prediction, Predictions
from gateway.websocket import PredictionSocket


def make_app(gateway: Gateway) -> Starlette:
    app = Starlette(
        routes=[
            Route("/predict", Predictions(gateway), methods=["POST"]),
            Route("/predict/{prediction_id}", Prediction(gateway), methods=["GET", "DELETE"]),
            WebSocketRoute("/ws/predict/{prediction_id}", PredictionSocket(gateway)),
            *probe_routes(gateway.readiness),
        ],
        exception_handlers={
            HttpError: http_error,
            NotJson: not_json,
            NoInput: no_input,
            StoreUnavailable: store_unavailable,
            StoreMisconfigured: store_unavailable,
            HTTPException: routing_error,
            Exception: unexpected_error,
        },
    )
    app.router.redirect_slashes = False  # an unknown path is a 404 in JSON, not a redirect
    return app
