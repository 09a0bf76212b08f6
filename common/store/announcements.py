"""What is announced to one process: that jobs have changed. A hint; the truth is the job's hash."""

from collections.abc import Iterable

from common.store.states import STATUS_OF, JobState


def parse_announcement(payload: bytes) -> Iterable[tuple[str, JobState]]:
    """(id, state) for each line of a message; the form of a line is in `transitions/shared.lua`. What has not that form
    was published by somebody else, and is skipped.

    The payload is JSON made by orjson, which has no newline outside its escapes, so lines can be split blindly.
    """
    for line in payload.split(b"\n"):
        words = line.split(b" ", 5)
        try:
            status = STATUS_OF[words[1]]
            if len(words) == 6:
                state = JobState(status, None, words[2].decode(), words[5], int(words[3]), int(words[4]))
            else:
                state = JobState(status)
            prediction_id = words[0].decode()
        except (LookupError, ValueError):
            continue
        yield prediction_id, state
