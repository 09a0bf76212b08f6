"""What is meant by a path that the router does not know: the same without a slash at its end, or a WebSocket's without
its upgrade.

It must never send a redirect, and never cost a request that has its route.
"""

from collections.abc import Sequence

from starlette.routing import BaseRoute, Match, Router
from starlette.types import Receive, Scope, Send

from gateway.errors import HttpError


def meant(routes: Sequence[BaseRoute], scope: Scope) -> Scope:
    """What the router would add to the scope: the endpoint, and the parameters of the path; empty: no route is meant."""
    asked = {**scope, "path": _without_slash(scope["path"])}
    for kind in dict.fromkeys((scope["type"], "websocket")):
        for route in routes:
            match, found = route.matches({**asked, "type": kind})
            if match is not Match.NONE:
                return found
    return {}


def _without_slash(path: str) -> str:
    return path[:-1] if len(path) > 1 and path[-1] == "/" and path[-2] != "/" else path


class OtherPaths:
    """What the router calls when it has no route."""

    def __init__(self, router: Router) -> None:
        self._router = router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = _without_slash(scope["path"])
        if path != scope["path"]:
            scope["path"] = path
            return await self._router(scope, receive, send)
        if scope["type"] == "http" and (found := meant(self._router.routes, scope)):
            scope.update(found)
            sentence = "This is a WebSocket: connect to it with a WebSocket client, at ws:// or wss://."
            raise HttpError(426, sentence, headers={"Upgrade": "websocket", "Connection": "Upgrade"})
        await self._router.not_found(scope, receive, send)
