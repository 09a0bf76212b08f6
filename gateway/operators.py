"""What reaches beyond one's own prediction is the operators': who is one.

Without any keys these are the people at this very machine. A proxy in front makes everybody look like one of them, and a
web page can make a browser ask from there under a name of its own: so no header of a proxy, and no other Host or Origin.
"""

from urllib.parse import urlsplit

from starlette.types import Scope

from common.addresses import parse_address
from gateway.api_keys import CHALLENGE, HOW_TO_SEND, ApiKeys
from gateway.errors import HttpError

FORWARDING = frozenset({b"forwarded", b"via", b"x-real-ip"})

NO_KEY = f"This is for operators: {HOW_TO_SEND}, with one of ADMIN_API_KEYS."
CLIENTS_KEY = "This key may predict, but this is for operators: use one of ADMIN_API_KEYS."
ELSEWHERE = "This is for operators, and without keys only from the machine itself: set ADMIN_API_KEYS."


class Operators:
    """Those with an admin key; while there is none, all with a client's; while there is neither, this machine."""

    def __init__(self, admin_keys: ApiKeys, client_keys: ApiKeys) -> None:
        self._keys = admin_keys or client_keys
        self._client_keys = client_keys

    def check(self, scope: Scope) -> None:
        """Raises HttpError 401 and 403 for everybody else."""
        if not self._keys:
            if not _from_this_machine(scope):
                raise HttpError(403, ELSEWHERE)
        elif not self._keys.shown_by(scope):
            if self._client_keys.shown_by(scope):
                raise HttpError(403, CLIENTS_KEY)
            raise HttpError(401, NO_KEY, headers=dict([CHALLENGE]))


def _from_this_machine(scope: Scope) -> bool:
    if not scope["client"] or not _is_loopback(scope["client"][0]):
        return False
    hosts = 0
    for name, value in scope["headers"]:
        if name in FORWARDING or name.startswith(b"x-forwarded-"):
            return False
        if name in (b"host", b"origin"):
            if not _names_loopback(value.decode("latin-1"), scheme=name == b"origin"):
                return False
            hosts += name == b"host"
    return hosts == 1


def _names_loopback(text: str, *, scheme: bool) -> bool:
    try:
        return _is_loopback(urlsplit(text if scheme else f"//{text}").hostname or "")
    except ValueError:
        return False


def _is_loopback(host: str) -> bool:
    address = parse_address(host)
    return host == "localhost" or (address is not None and address.is_loopback)
