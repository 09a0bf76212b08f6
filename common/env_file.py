"""Secrets in `.env` that docker compose and Foretell would read differently, or that compose cannot carry to the server.

It must never show a value.
"""

import os
import re
from collections.abc import Set
from pathlib import Path

from dotenv import dotenv_values

from common.errors import StartFault

#: What a URL takes as it is, so that the server and its clients get the same. docker-compose.yml refuses the rest too, but
#: does not see what compose has put in place of a $.
_LETTERS = r"A-Za-z0-9._~!&()*+,;=-"
CARRIED = "letters, digits and - . _ ~ ! & ( ) * + , ; = only"
_LINE = re.compile(r"^[ \t]*(?:export[ \t]+)?REDIS_PASSWORD[ \t]*=(.*)$", re.MULTILINE)
_PASSWORD = re.compile(rf"[ \t]*([\"']?)[{_LETTERS}]*\1[ \t]*(?: #.*)?")


def check_env_file(path: Path, encoding: str, secrets: Set[str]) -> None:
    """Raises StartFault, which names the file and the first such secret. Those that the environment overrides are not
    looked at."""
    if not path.is_file():
        return
    overridden = {name.upper() for name, value in os.environ.items() if value}
    if "REDIS_PASSWORD" not in overridden:
        for line in _LINE.findall(path.read_text(encoding)):
            if not _PASSWORD.fullmatch(line):
                raise StartFault(f"REDIS_PASSWORD in {path.absolute()} is wrong: it may have {CARRIED}.")
    for name, value in dotenv_values(path, encoding=encoding, interpolate=False).items():
        if name.upper() in secrets - overridden and "$" in (value or ""):
            raise StartFault(
                f"{name.upper()} in {path.absolute()} has a $, which begins the name of a variable there: write %24 for "
                "it in a URL, and choose keys without it."
            )
