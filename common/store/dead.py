"""Dead letters: jobs that were given up, kept for the people who run the service."""

from typing import NamedTuple

from common.store import keys
from common.store.connections.errors import translate, understood
from common.store.script import Script
from common.store.session import Session

PAGE_BYTES = 1 << 20

_REVIVE = Script("revive")


class DeadLetter(NamedTuple):
    """A job that was given up, `given_up_ms` after the epoch. `cursor` is its place among the dead letters; `input`
    and `error` are JSON texts, `processor` is the last that had it."""

    cursor: str
    given_up_ms: int
    id: str
    input: bytes
    error: bytes
    attempts: int
    processor: str
    traceback: str


class DeadLetters:
    def __init__(self, session: Session) -> None:
        self._session = session

    async def list(self, count: int, *, after: str = "") -> list[DeadLetter]:
        """At most `count` of them and about PAGE_BYTES, newest first in each partition, from behind the `cursor` of
        the last one that is known."""
        found: list[DeadLetter] = []
        first, _, last = after.partition("-")
        size = 0
        for p in range(int(first or 0), self._session.partitions):
            while True:
                command = (
                    "XREVRANGE",
                    keys.dead(p, self._session.key_prefix),
                    f"({last}" if last else "+",
                    "-",
                    "COUNT",
                    1,
                )
                try:
                    entries = await self._session.link("control", p).command(*command)
                except Exception as error:
                    raise translate(error) from error
                if not entries:
                    break
                with understood():
                    found.append(_dead_letter(p, *entries[0]))
                last = found[-1].cursor.partition("-")[2]
                size += len(found[-1].input)
                if len(found) == count or size > PAGE_BYTES:
                    return found
            last = ""
        return found

    async def revive(self, prediction_id: str) -> str:
        """Queue its job again; "queued", "unknown", "known" (it is not failed: somebody submitted it again) or "full"."""
        p = self._session.partition_of(prediction_id)
        limits = self._session.queue_limit(p), self._session.byte_limit(p)
        reply = await _REVIVE(self._session.link("control", p), prediction_id, *limits)
        with understood():
            return str(reply.decode())

    async def forget(self, prediction_id: str) -> bool:
        """Delete a dead letter; False if there is none."""
        p = self._session.partition_of(prediction_id)
        reply: bytes = await _REVIVE(self._session.link("control", p), prediction_id, "", "")
        return reply == b"forgotten"


def _dead_letter(partition: int, entry: bytes, fields: list[bytes]) -> DeadLetter:
    _, id_, _, input_, _, error, _, attempts, _, processor, _, traceback = fields
    ms = int(entry.partition(b"-")[0])
    cursor = f"{partition}-{entry.decode()}"
    return DeadLetter(
        cursor, ms, id_.decode(), input_, error, int(attempts), processor.decode(), traceback.decode()
    )
