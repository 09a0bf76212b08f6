"""How a service's `__main__` imports: without what libraries load for features of theirs that we do not use.

It must leave no trace: whoever wants one of these packages later gets it.
"""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

#: Libraries try to import these, and do without them where they are not installed: structlog would show tracebacks with
#: rich, redis-py would measure itself with opentelemetry. That is a fifth of the CPU of a start. Our own traces import
#: opentelemetry when they are switched on, which is later.
UNUSED = ("rich", "opentelemetry")


@contextmanager
def lean_imports() -> Iterator[None]:
    """What is imported inside finds none of UNUSED, unless it is there already. The garbage collector rests meanwhile,
    which is another twentieth: nearly all that an import makes stays."""
    hidden = [name for name in UNUSED if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # `import` raises ModuleNotFoundError
    gc.disable()
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
        gc.freeze()  # or the first thing it did would be to walk through all of it
        gc.enable()
