"""Every error of ours, one sentence each. HTTP numbers live in the gateway alone.

ForetellError
├── StoreError              the job store did not do what was asked
│   ├── StoreUnavailable    Redis is away, loading, out of memory or read-only, or answered what nobody can use
│   │   ├── StoreFull       its memory is full: it takes no new job, and does all else
│   │   └── ClockJumped     its clock stepped forward: nobody can say whose leases have run out
│   └── StoreMisconfigured  only a person can mend it: the password, a right, the server's version or settings
├── ModelFault              the user's model cannot be served; the sentence names the file and the fault
└── StartFault              this process cannot start (a wrong setting, a taken port)
"""


class ForetellError(Exception):
    """The base of all; its text is one sentence for a person."""


class StoreError(ForetellError):
    """The server did not do what was asked. A process that has worked with it goes on and tries again."""


class StoreUnavailable(StoreError):
    """Try again: every transition may be repeated."""


class StoreFull(StoreUnavailable):
    """Nothing was accepted. What was accepted before runs, and its end is recorded."""


class ClockJumped(StoreUnavailable):
    """Nothing was taken over. The living need the time to renew their leases by the new clock."""


class StoreMisconfigured(StoreError):
    """The server will not serve us until somebody changes it. It ends a start, and nothing else."""


class ModelFault(ForetellError):
    """The model cannot be imported, has no predict, or its setup raises."""


class StartFault(ForetellError):
    """One line for the terminal, then exit code 1."""
