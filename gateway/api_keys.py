"""API keys: those that are known, as digests, and those that a request shows."""

import base64
import binascii
import hashlib
import hmac

from starlette.types import Scope

#: What a browser, which cannot set headers on a WebSocket, offers as a subprotocol: this and its key.
KEY_SUBPROTOCOL = "base64url.bearer.authorization.foretell."

HOW_TO_SEND = "send the header 'Authorization: Bearer <key>'"
CHALLENGE = ("WWW-Authenticate", "Bearer")


class ApiKeys:
    """Only digests are kept."""

    def __init__(self, keys: list[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def shown_by(self, scope: Scope) -> bool:
        """Whether the request shows one of them."""
        return any(self._knows(key) for key in _shown(scope))

    def _knows(self, key: bytes) -> bool:
        """Takes equally long whichever key it is, if any."""
        digest = _digest(key)
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _shown(scope: Scope) -> list[bytes]:
    found = []
    for name, value in scope["headers"]:
        if name == b"x-api-key":
            found.append(value.strip())
        elif name == b"authorization" and value[:7].lower() == b"bearer ":
            found.append(value[7:].strip())
    for offered in scope.get("subprotocols", ()):
        if offered.startswith(KEY_SUBPROTOCOL):
            text = offered.removeprefix(KEY_SUBPROTOCOL)
            try:
                found.append(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
            except (binascii.Error, ValueError):
                continue
    return found[:4]
