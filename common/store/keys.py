"""The key map. Every key of a partition carries its hash tag, so a transition never leaves its slot.

| key                  | type   | holds                                                                  |
|----------------------|--------|------------------------------------------------------------------------|
| {fP}:jobs:<model>    | stream | one entry per unfinished job, field `id`; consumer group `processors`  |
| {fP}:job:<id>        | hash   | the job: input, status, created, attempt, owner, entry, started, …     |
| {fP}:dead:<model>    | stream | dead letters: jobs given up; at most DEAD_LIMIT and 64 MiB            |
| {fP}:graves:<model>  | hash   | the entry in it of each id                                             |
| {fP}:alarms:<model>  | sorted set | jobs with a deadline or a delayed retry, by that time              |
| {fP}:unfinished:<model> | sorted set | jobs that wait or run, by the time when they were accepted  |
| {fP}:counts:<model>  | hash   | how many ever: each final status, given_up; unfinished bytes           |
| {fP}:key:<digest>    | string | the id of the job that came with this Idempotency-Key; lives as long   |
| {fP}:relay:<name>    | shard channel | announcements for one gateway or one processor                  |

In front of each key and channel, and of the name of the consumer group, stands KEY_PREFIX: several deployments share a server,
and on a cluster a hash tag is the first pair of braces wherever it stands.

P is the partition. The last byte of an id, modulo PARTITIONS, names it; ids made here have a last byte below
PARTITIONS, so a deployment that grows PARTITIONS still finds the jobs it took before.
"""

import os
import re
from collections.abc import Iterator

GROUP = "processors"
DEAD_LIMIT = 1000

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def tag(partition: int, prefix: str = "") -> str:
    """What all keys of a partition begin with."""
    return f"{prefix}{{f{partition}}}"


def group(prefix: str) -> str:
    """The consumer group of all processors."""
    return prefix + GROUP


def jobs(partition: int, prefix: str = "", model: str = "default") -> str:
    return f"{tag(partition, prefix)}:jobs:{model}"


def unfinished(partition: int, prefix: str = "", model: str = "default") -> str:
    return f"{tag(partition, prefix)}:unfinished:{model}"


def dead(partition: int, prefix: str = "", model: str = "default") -> str:
    return f"{tag(partition, prefix)}:dead:{model}"


def job(prediction_id: str, partitions: int, prefix: str = "") -> str:
    return f"{tag(partition_of(prediction_id, partitions), prefix)}:job:{prediction_id}"


def relay(partition: int, name: str, prefix: str = "") -> str:
    return f"{tag(partition, prefix)}:relay:{name}"


def partition_of(prediction_id: str, partitions: int) -> int:
    return int(prediction_id[-2:], 16) % partitions


def partition_of_key(digest: str, partitions: int) -> int:
    """The partition of an Idempotency-Key, by its hex digest."""
    return int(digest[:8], 16) % partitions


def moved(prediction_id: str, partition: int) -> str:
    """A new id moved into a partition."""
    return f"{prediction_id[:-2]}{partition:02x}"


def new_ids(partitions: int) -> Iterator[str]:
    """Random UUIDs, version 4 (RFC 9562), whose last byte is below `partitions`; endless.

    122 random bits less the 8 of the last byte leave 114: not to be guessed. The randomness is fetched for
    256 ids at once, because one system call per id costs more than all the rest.
    """
    while True:
        pool = os.urandom(256 * 16)
        text = pool.hex()
        for at in range(0, len(text), 32):
            variant = "89ab"[pool[at // 2 + 8] & 3]
            last = pool[at // 2 + 15] % partitions
            yield (
                f"{text[at : at + 8]}-{text[at + 8 : at + 12]}-4{text[at + 13 : at + 16]}-"
                f"{variant}{text[at + 17 : at + 20]}-{text[at + 20 : at + 30]}{last:02x}"
            )


def parse_id(text: str) -> str | None:
    """The canonical form of a UUID, or None if `text` is not one."""
    lowered = text.lower()
    return lowered if _UUID.fullmatch(lowered) else None
