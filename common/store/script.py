"""A transition's Lua page, called by its digest and sent whole to a server that does not know it.

One page is one transition, and runs behind `transitions/shared.lua`. It never lets redis-py's errors out: callers
see StoreUnavailable or StoreMisconfigured.
"""

import hashlib
from collections.abc import Sequence
from importlib import resources
from typing import Any

from redis import exceptions

from common.store import keys
from common.store.connections.dial import Command
from common.store.connections.errors import translate
from common.store.connections.link import Link


class Script:
    """`needs_memory`: refused while the server is out of memory. The others run then too: they free more than they take."""

    def __init__(self, name: str, *, needs_memory: bool = False) -> None:
        pages = resources.files("common.store") / "transitions"
        flags = "" if needs_memory else "flags=allow-oom"
        self.text = (
            f"#!lua {flags}\n{(pages / 'shared.lua').read_text()}\n{(pages / f'{name}.lua').read_text()}"
        )
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    def command(self, link: Link, *args: Any) -> Command:
        """The call of it in the partition of the link, if the server knows it already."""
        where = (link.partition, link.key_prefix)
        return "EVALSHA", self.sha, 1, keys.jobs(*where), keys.tag(*where), *args

    async def __call__(self, link: Link, *args: Any, then: Sequence[Command] = ()) -> Any:
        """Its reply; with `then`, the list of its reply and those of the commands that leave behind it."""
        try:
            replies = await link.call(self.command(link, *args), *then)
            if isinstance(replies[0], exceptions.NoScriptError):
                head = ("EVAL", self.text, *self.command(link, *args)[2:])
                replies = await link.call(head, *then)
            for reply in replies:
                if isinstance(reply, Exception):
                    raise reply
        except Exception as error:
            raise translate(error) from error
        return replies if then else replies[0]
