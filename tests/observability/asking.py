"""What the tests here send and look for."""

from typing import Any

import httpx2

from tests.services import Service

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
SECRET = "nobody-may-read-this"


def post(gateway: Service, value: Any, **headers: str) -> httpx2.Response:
    sent = {name.replace("_", "-"): text for name, text in headers.items()}
    return httpx2.post(
        f"{gateway.url}/predict", json={"input": value}, headers=sent, timeout=60, trust_env=False
    )
