"""`/livez`, `/readyz` and `/metrics`, the same on both services."""

from collections.abc import Awaitable, Callable

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, disable_created_metrics, generate_latest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from common.errors import ForetellError

log = structlog.get_logger("foretell")

disable_created_metrics()  # type: ignore[no-untyped-call]

#: None when this process can take work, else one sentence why not; or a ForetellError, whose text only the log gets:
#: it may name hosts, and anybody may ask.
Readiness = Callable[[], Awaitable[str | None]]

NO_REDIS = "Redis is not available, or refuses us: the log says why."


#: Called before a scrape is answered.
Measuring = Callable[[], Awaitable[None]]


#: None, or a sentence that goes with readiness.
Notice = Callable[[], str | None]


#: Called with each page of metrics, gives what is sent.
Encoding = Callable[[Request, Response], Awaitable[Response]]


async def _nothing() -> None:
    pass


async def _as_it_is(request: Request, response: Response) -> Response:
    return response


def probe_routes(
    readiness: Readiness,
    measure: Measuring = _nothing,
    notice: Notice = lambda: None,
    encoded: Encoding = _as_it_is,
) -> list[Route]:
    logged: str | None = None

    async def livez(request: Request) -> Response:
        """This process turns: that it answers is the proof."""
        return JSONResponse({"status": "alive"})

    async def readyz(request: Request) -> Response:
        nonlocal logged
        fault = None
        try:
            reason = await readiness()
        except ForetellError as error:
            reason, fault = NO_REDIS, str(error)
        if fault and fault != logged:  # not once per probe
            log.warning("not ready", error=fault)
        logged = fault
        if reason:
            return JSONResponse({"error": reason}, status_code=503, headers={"Retry-After": "1"})
        warning = notice()
        return JSONResponse({"status": "ready"} | ({"warning": warning} if warning else {}))

    async def metrics(request: Request) -> Response:
        await measure()
        return await encoded(request, Response(generate_latest(), media_type=CONTENT_TYPE_LATEST))

    return [Route("/livez", livez), Route("/readyz", readyz), Route("/metrics", metrics)]
