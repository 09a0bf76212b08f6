"""Names that somebody may have meant for a setting: in `.env`, and in the environment, which belongs to others too.

It must never show a value.
"""

import os

from dotenv import dotenv_values

from common.settings import ENCODING, ENV_FILE, CommonSettings, GatewaySettings, ProcessorSettings

#: What only docker compose reads, see docs/deploy.md.
COMPOSE = frozenset(
    ("REDIS_PASSWORD", "GRAFANA_PASSWORD", "PROCESSORS", "PROCESSOR_MEMORY", "REDIS_MAXMEMORY", "REDIS_MEMORY", "GRAFANA_PORT")
)  # fmt: skip
SHORT = 5  # letters; below, a name that is one letter from ours may well be another program's
LONG = 8
MOST = 2  # letters that may be wrong in a name of at least LONG, one in a shorter one


def misspelt(kind: type[CommonSettings]) -> dict[str, str]:
    """The names, and the setting of `kind` that each may stand for."""
    ours = [name.upper() for name in kind.model_fields]
    others = {name.upper() for other in (GatewaySettings, ProcessorSettings) for name in other.model_fields}
    found = {}
    in_file = dotenv_values(ENV_FILE, encoding=ENCODING, interpolate=False)
    for name in (*in_file, *os.environ):
        asked = name.upper()
        if asked in others | COMPOSE:
            continue
        if name not in in_file and len(name) < SHORT:
            continue
        # a pod has hundreds of names: most are too long or too short to be one of ours
        distances = {k: _distance(asked, k) for k in ours if abs(len(k) - len(asked)) <= MOST}
        if not distances:
            continue
        near = min(distances, key=lambda known: distances[known])
        if (name in in_file or len(near) >= SHORT) and distances[near] <= (MOST if len(near) >= LONG else 1):
            found[name] = near
    return found


def _distance(one: str, other: str) -> int:
    """How many letters are missing, too many, wrong, or exchanged with their neighbour."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        before, last, row = row, before, [i]
        for j, wanted in enumerate(other, 1):
            cost = min(before[j] + 1, row[-1] + 1, before[j - 1] + (letter != wanted))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == wanted:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
    return row[-1]
