"""`/livez`, `/readyz` and `/metrics`, the same on both services."""

from collections.abc import Awaitable, Callable

from prometheus_client import CONTENT_TYPE_LATEST, disable_created_metrics, generate_latest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

disable_created_metrics()  # type: ignore[no-untyped-call]

#: None when this process can take work, else one sentence why not.
Readiness = Callable[[], Awaitable[str | None]]


def probe_routes(readiness: Readiness) -> list[Route]:
    async def livez(request: Request) -> Response:
        """This process turns: that it answers is the proof."""
        return JSONResponse({"status": "alive"})

    async def readyz(request: Request) -> Response:
        reason = await readiness()
        if reason:
            return JSONResponse({"error": reason}, status_code=503, headers={"Retry-After": "1"})
        return JSONResponse({"status": "ready"})

    async def metrics(request: Request) -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return [Route("/livez", livez), Route("/readyz", readyz), Route("/metrics", metrics)]
