"""One GET to a service of ours: for whoever waits until it is ready."""

import http.client
import json
from contextlib import suppress


def get(host: str, port: int, path: str, *, timeout_s: float = 10.0) -> tuple[int, bytes]:
    """Code and body. Raises OSError while nobody answers, or answers in HTTP."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except http.client.HTTPException as error:
        raise ConnectionError(repr(error)) from error
    finally:
        connection.close()


def why_not_ready(host: str, port: int) -> str | None:
    """None once /readyz is 200, else one sentence."""
    try:
        code, body = get(host, port, "/readyz", timeout_s=1.0)
    except OSError:
        return "it does not answer yet."
    if code == 200:
        return None
    with suppress(ValueError, TypeError, KeyError):
        return str(json.loads(body)["error"])
    return f"its /readyz answers {code}."
