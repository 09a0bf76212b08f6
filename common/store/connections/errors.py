"""What the server's errors mean: which of them only a person can mend, which say that this is the wrong server or that a
slot is migrating, and which error of ours each becomes.

It must never act on an error: who meets one waits, connects anew or gives up. Whatever it does not know is an outage: a
proxy in between may say anything, and a process that ends helps nobody. Only the failure of a script is a fault of ours.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from redis import exceptions

from common.errors import StoreError, StoreFull, StoreMisconfigured, StoreUnavailable

_REFUSED = (exceptions.AuthenticationError, exceptions.AuthorizationError, exceptions.NoPermissionError)
# inside a script a missing right has no code of its own: as Redis words it, and as Valkey does
_NO_RIGHT = ("The user executing the script can't", "ACL failure in script")
_NO_DATABASE = ("DB index", "Invalid Database", "SELECT is not allowed", "invalid DB")
# errors inside a script that are no fault of the script
_OUTAGES_IN_SCRIPTS = (
    "OOM ", "READONLY ", "LOADING ", "MISCONF ", "MASTERDOWN ", "NOREPLICAS ", "CLUSTERDOWN ", "TRYAGAIN ",
    "UNBLOCKED ", "BUSY ", "NOGROUP ", "non local key", "cluster is down",
)  # fmt: skip
_WRONG_SERVER = (exceptions.ReadOnlyError, exceptions.ClusterDownError)  # MASTERDOWN too
_WRONG_SERVER_WORDS = ("READONLY ", "UNBLOCKED ", "cluster is down")
_SLOT_MIGRATING = (exceptions.AskError, exceptions.TryAgainError, exceptions.ClusterDownError)
_SLOT_MIGRATING_WORDS = ("non local key", "cluster is down")


def translate(error: Exception) -> Exception:
    """Our error for whatever happened between us and the server; the failure of a script of ours stays as it is."""
    if isinstance(error, StoreError) or is_script_fault(error):
        return error
    if _lacks_right(error):
        return StoreMisconfigured(
            f"Redis refuses us a right ({error}): give the user in REDIS_URL those of docs/operations.md."
        )
    if refused(error):
        return StoreMisconfigured(f"Redis refuses us ({error}): check the user and password in REDIS_URL.")
    if any(words in str(error) for words in _NO_DATABASE):
        return StoreMisconfigured(
            f"Redis has no such database ({error}): check the number at the end of REDIS_URL."
        )
    if _is(error, (exceptions.OutOfMemoryError,), ("OOM ",)):
        return StoreFull(
            f"Redis' memory is full ({error}): give it more, or lower MAX_QUEUE or RESULT_TTL_S."
        )
    return StoreUnavailable(f"Redis is not available ({type(error).__name__}: {in_words(error)}).")


@contextmanager
def understood() -> Iterator[None]:
    """Around the reading of a reply: one that no script of ours gives comes from somebody else, and is an outage."""
    try:
        yield
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise StoreUnavailable(
            f"Redis answers what nobody asked ({type(error).__name__}: {error})."
        ) from error


def refused(error: BaseException) -> bool:
    """Whether the server refuses our user or password, or a right."""
    # while it connects, redis-py wraps a refusal in a ConnectionError
    return isinstance(error, _REFUSED) or isinstance(error.__cause__, _REFUSED)


def is_script_fault(error: BaseException) -> bool:
    """Whether a script of ours failed: by a fault of its own, or because a key is not what it must be."""
    text = str(error)
    return (
        isinstance(error, exceptions.ResponseError)
        and "user_script" in text
        and not _lacks_right(error)
        and not any(words in text for words in _OUTAGES_IN_SCRIPTS)
    )


def _lacks_right(error: BaseException) -> bool:
    return _is(error, (exceptions.NoPermissionError,), _NO_RIGHT)


def in_words(error: BaseException) -> str:
    """Never empty. A time limit's own error says nothing; the cancellation behind it may say where it struck."""
    if isinstance(error, TimeoutError) and not str(error):
        return str(error.__cause__ or "") or "no answer in time"
    return str(error) or type(error).__name__


def is_wrong_server(error: Exception) -> bool:
    """Whether this server is no use, or not for this: the next try asks anew which one is."""
    return _is(error, _WRONG_SERVER, _WRONG_SERVER_WORDS)


def is_slot_migrating(error: Exception) -> bool:
    """Whether the slot is going to another server, key by key: this one refuses what needs a key that is not there.

    We wait and never follow to the other one (ASK), because there a key that has yet to come looks as if it did not
    exist.
    """
    return _is(error, _SLOT_MIGRATING, _SLOT_MIGRATING_WORDS)


def _is(error: BaseException, kinds: tuple[type[Exception], ...], words: tuple[str, ...]) -> bool:
    return isinstance(error, kinds) or any(word in str(error) for word in words)
