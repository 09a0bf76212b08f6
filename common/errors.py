"""Every error of ours, one sentence each. HTTP numbers live in the gateway alone.

ForetellError
├── StoreUnavailable    Redis is away, loading, out of memory or read-only, or a reply was lost
├── StoreMisconfigured  Redis answers, but is one we cannot keep promises on (or refuses our password)
├── ModelFault          the user's model cannot be served; the sentence names the file and the fault
└── StartFault          this process cannot start (a wrong setting, a taken port)
"""


class ForetellError(Exception):
    """The base of all; its text is one sentence for a person."""


class StoreUnavailable(ForetellError):
    """The server did not do what was asked. Try again: every transition may be repeated."""


class StoreMisconfigured(ForetellError):
    """The server will not serve us until somebody changes it."""


class ModelFault(ForetellError):
    """The model cannot be imported, has no predict, or its setup raises."""


class StartFault(ForetellError):
    """One line for the terminal, then exit code 1."""
