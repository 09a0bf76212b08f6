"""Who may ask: API keys, and the origins of browsers.

A browser sends what any page tells it to, with the user's place in the network. So what changes something, and every
WebSocket, is refused when its Origin is a foreign one: not only where a preflight would stop it, because a POST
without a Content-Type needs none. Clients that are not browsers send no Origin.
"""

from urllib.parse import urlsplit

import orjson
from starlette.applications import Starlette
from starlette.datastructures import Headers as RequestHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.answers import Headers
from gateway.api_keys import CHALLENGE, HOW_TO_SEND, ApiKeys
from gateway.paths import meant
from gateway.proxies import host_header

#: Selected wherever it is offered, also without keys: a browser, which offers its key beside it, ends a WebSocket whose
#: offer was not taken up.
SUBPROTOCOL = "foretell"

PROTECTED = ("/predict", "/queue", "/dead", "/ws")  # the probes and metrics stay open
#: Not OPTIONS: a developer whose preflight is refused must learn why.
SAFE_METHODS = frozenset({"GET", "HEAD"})
EXPOSED = [
    "Location",
    "Prediction-Id",
    "Prediction-Status",
    "Preference-Applied",
    "Retry-After",
    "Server-Timing",
]

WRONG_KEY = f"An API key is needed: {HOW_TO_SEND}."


def guarded(routing: Starlette, *, api_keys: ApiKeys, origins: list[str]) -> ASGIApp:
    """`routing` behind these keys (none: open) and origins (none: only its own; `*`: all)."""
    refusal = Refusal(routing.routes)
    app: ASGIApp = routing
    if api_keys:
        app = KeyCheck(app, refusal, api_keys)
    if origins:  # around the keys: a page must be able to read a refusal, and a preflight carries no key
        methods = ["GET", "POST", "PUT", "DELETE"]
        app = Preflights(app, origins, methods, allow_headers=["*"], expose_headers=EXPOSED)
    return OriginCheck(app, refusal, origins)


class Preflights(CORSMiddleware):
    """Starlette's, which refuses in plain text."""

    def preflight_response(self, request_headers: RequestHeaders) -> Response:
        answer = super().preflight_response(request_headers)
        if answer.status_code < 400:
            return answer
        asked = bytes(answer.body).decode().removeprefix("Disallowed CORS ")
        sentence = (
            f"This preflight asks for what is not allowed here ({asked}): "
            "ask for GET, POST, PUT or DELETE, from an origin in ALLOWED_ORIGINS."
        )
        kept = {name: text for name, text in answer.headers.items() if not name.startswith("content-")}
        headers = {**kept, "Cache-Control": "no-store"}
        return JSONResponse({"error": sentence}, answer.status_code, headers)


class Refusal:
    """Answers instead of the app, and is counted under the route that was asked for."""

    def __init__(self, routes: list[BaseRoute]) -> None:
        self._routes = routes

    async def __call__(
        self, scope: Scope, receive: Receive, send: Send, code: int, sentence: str, headers: Headers
    ) -> None:
        scope.update(meant(self._routes, scope))
        scope["observation"].code = code
        body = orjson.dumps({"error": sentence})
        kind = "http.response"
        if scope["type"] == "websocket":
            await receive()  # that it connects
            kind = "websocket.http.response"
        headers = [
            (b"content-type", b"application/json"),
            (b"cache-control", b"no-store"),
            (b"content-length", str(len(body)).encode()),
            *headers,
        ]
        await send({"type": f"{kind}.start", "status": code, "headers": headers})
        await send({"type": f"{kind}.body", "body": body})


class OriginCheck:
    """403 for a foreign Origin on a WebSocket, or on a request that is not just reading."""

    def __init__(self, app: ASGIApp, refusal: Refusal, origins: list[str]) -> None:
        self._app = app
        self._refuse = refusal
        self._allowed = frozenset(origin.encode() for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        for name, value in scope["headers"]:
            if name == b"origin" and not self._may(scope, value):
                return await self._refuse(scope, receive, send, 403, _foreign(scope, value), [])
        await self._app(scope, receive, send)

    def _may(self, scope: Scope, origin: bytes) -> bool:
        if scope["type"] == "http" and scope["method"] in SAFE_METHODS:
            return True
        return b"*" in self._allowed or origin in self._allowed or _same_origin(scope, origin)


def _foreign(scope: Scope, origin: bytes) -> str:
    page = _quoted(origin.decode("latin-1"))
    asked = " or ".join(_quoted(host) for host in _asked_hosts(scope))
    return (
        f"The page's Origin {page} is not the Host that was asked, {asked}: add the origin to ALLOWED_ORIGINS, or "
        "let the proxy pass on the Host with its port (nginx: proxy_set_header Host $http_host)."
    )


def _quoted(value: str) -> str:
    return f"'{value[:200]}'"


def _same_origin(scope: Scope, origin: bytes) -> bool:
    """By host and port alone: behind a proxy that ends TLS nobody here knows the scheme."""
    if (b"sec-fetch-site", b"same-origin") in scope["headers"]:
        return True  # the browser's own word, which no page can change, whatever a proxy has made of Host
    scheme, _, page = origin.decode("latin-1").lower().partition("://")
    default = {"http": 80, "https": 443}.get(scheme)
    place = _place(page, default)
    return place is not None and any(_place(host, default) == place for host in _asked_hosts(scope))


def _place(authority: str, default: int | None) -> tuple[str, int] | None:
    """Host and port. None: it is no authority, or of no scheme that pages have."""
    try:
        parts = urlsplit("//" + authority.lower())
        host, port = parts.hostname, parts.port or default
    except ValueError:
        return None
    return (host, port) if host and port and default else None


def _asked_hosts(scope: Scope) -> list[str]:
    """Every name under which the client may have asked: a proxy may have changed one."""
    return [host_header(scope), *scope["asked"].hosts]


class KeyCheck:
    """401 for what is protected, without one of the keys."""

    def __init__(self, app: ASGIApp, refusal: Refusal, api_keys: ApiKeys) -> None:
        self._app = app
        self._refuse = refusal
        self._keys = api_keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not _protected(scope["path"]):
            return await self._app(scope, receive, send)
        if not self._keys.shown_by(scope):
            name, scheme = CHALLENGE
            challenge = (name.lower().encode(), scheme.encode())
            return await self._refuse(scope, receive, send, 401, WRONG_KEY, [challenge])
        await self._app(scope, receive, send)


def _protected(path: str) -> bool:
    return any(path == root or path.startswith(root + "/") for root in PROTECTED)
