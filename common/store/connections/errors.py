"""What the server's errors mean: which refuse us, which are transient, which say that this is the wrong server or that
a slot is migrating, and which error of ours each becomes.

It must never act on an error: who meets one waits, connects anew or gives up. Nor may it pass off as the server's an
error that it does not know: that is a fault of ours.
"""

from redis import exceptions

from common.errors import StoreMisconfigured, StoreUnavailable

_REFUSED = (exceptions.AuthenticationError, exceptions.AuthorizationError, exceptions.NoPermissionError)
_TRANSIENT = (
    exceptions.ConnectionError,  # BusyLoadingError too
    exceptions.TimeoutError,
    exceptions.ReadOnlyError,
    exceptions.OutOfMemoryError,
    exceptions.ClusterDownError,
    exceptions.TryAgainError,
    exceptions.AskError,  # MovedError too
    OSError,  # TimeoutError too
)
# errors that redis-py has no class for, or not in every place they come from (a script prefixes its own)
_TRANSIENT_WORDS = (
    "OOM ", "READONLY ", "LOADING ", "MISCONF ", "MASTERDOWN ", "NOREPLICAS ", "CLUSTERDOWN ", "TRYAGAIN ",
    "UNBLOCKED ", "BUSY ", "NOGROUP ", "non local key", "cluster is down",
)  # fmt: skip
_WRONG_SERVER = (exceptions.ReadOnlyError, exceptions.ClusterDownError)  # MASTERDOWN too
_WRONG_SERVER_WORDS = ("READONLY ", "UNBLOCKED ", "cluster is down")
_SLOT_MIGRATING = (exceptions.AskError, exceptions.TryAgainError, exceptions.ClusterDownError)
_SLOT_MIGRATING_WORDS = ("non local key", "cluster is down")


def translate(error: Exception) -> Exception:
    """Our error for one of redis-py's; what is neither transient nor refused is a fault of ours and stays as it is."""
    if refused(error):
        return StoreMisconfigured(f"Redis refuses us ({error}): check the user and password in REDIS_URL.")
    if is_transient(error):
        return StoreUnavailable(f"Redis is not available ({type(error).__name__}: {error}).")
    return error


def refused(error: BaseException) -> bool:
    """Whether the server refuses our user or password."""
    # while it connects, redis-py wraps a refusal in a ConnectionError
    return isinstance(error, _REFUSED) or isinstance(error.__cause__, _REFUSED)


def in_words(error: Exception) -> str:
    return str(error) or type(error).__name__


def is_transient(error: Exception) -> bool:
    """Whether a later try may succeed."""
    return _is(error, _TRANSIENT, _TRANSIENT_WORDS)


def is_wrong_server(error: Exception) -> bool:
    """Whether this server is no use, or not for this: the next try asks anew which one is."""
    return _is(error, _WRONG_SERVER, _WRONG_SERVER_WORDS)


def is_slot_migrating(error: Exception) -> bool:
    """Whether the slot is going to another server, key by key: this one refuses what needs a key that is not there.

    We wait and never follow to the other one (ASK), because there a key that has yet to come looks as if it did not
    exist.
    """
    return _is(error, _SLOT_MIGRATING, _SLOT_MIGRATING_WORDS)


def _is(error: Exception, kinds: tuple[type[Exception], ...], words: tuple[str, ...]) -> bool:
    return isinstance(error, kinds) or any(word in str(error) for word in words)
