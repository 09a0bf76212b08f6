"""Group commit: who leaves together, in which order, and who is told of an error."""

import asyncio
from collections.abc import Sequence

import pytest

from common.store.group_commit import GroupCommit


class Sends:
    """A `send` that keeps each group until `let_go`, and answers an item with its double."""

    def __init__(self, *, error: Exception | None = None) -> None:
        self.groups: list[list[int]] = []
        self.under_way = 0
        self.error = error
        self._open = asyncio.Event()

    async def __call__(self, items: list[int]) -> Sequence[int]:
        self.groups.append(items)
        self.under_way += 1
        assert self.under_way == 1, "one group at a time"
        await self._open.wait()
        self.under_way -= 1
        if self.error and len(self.groups) == 1:
            raise self.error
        return [2 * item for item in items]

    def let_go(self) -> None:
        self._open.set()


async def turn() -> None:
    """Let everything run that can."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_callers_of_one_turn_leave_together_and_get_their_own_reply() -> None:
    send = Sends()
    commit = GroupCommit(send)
    calls = [commit.call(item) for item in range(5)]
    send.let_go()
    assert await asyncio.gather(*calls) == [0, 2, 4, 6, 8]
    assert send.groups == [[0, 1, 2, 3, 4]]


async def test_who_comes_meanwhile_leaves_with_the_next() -> None:
    send = Sends()
    commit = GroupCommit(send)
    calls = [commit.call(0)]
    await turn()
    calls += [commit.call(1)]
    await turn()
    calls += [commit.call(2)]
    await turn()
    assert send.groups == [[0]]
    send.let_go()
    assert await asyncio.gather(*calls) == [0, 2, 4]
    assert send.groups == [[0], [1, 2]]


async def test_it_works_again_after_it_was_idle() -> None:
    send = Sends()
    send.let_go()
    commit = GroupCommit(send)
    assert await commit.call(1) == 2
    await turn()
    assert await commit.call(2) == 4
    assert send.groups == [[1], [2]]


async def test_a_group_has_a_limit_of_items() -> None:
    send = Sends()
    send.let_go()
    commit = GroupCommit(send, max_items=3)
    await asyncio.gather(*[commit.call(item) for item in range(8)])
    assert send.groups == [[0, 1, 2], [3, 4, 5], [6, 7]]


async def test_a_group_has_a_limit_of_bytes_but_takes_one_item_of_any_size() -> None:
    send = Sends()
    send.let_go()
    commit = GroupCommit(send, size=lambda item: item, max_bytes=100)
    await asyncio.gather(*[commit.call(item) for item in (1000, 60, 40, 30, 1)])
    assert send.groups == [[1000], [60, 40], [30, 1]]


async def test_an_error_reaches_all_of_its_group_and_nobody_else() -> None:
    send = Sends(error=RuntimeError("away"))
    commit = GroupCommit(send)
    first = [commit.call(0), commit.call(1)]
    await turn()
    second = commit.call(2)
    send.let_go()
    for call in first:
        with pytest.raises(RuntimeError, match="away"):
            await call
    assert await second == 4


async def test_a_caller_who_gave_up_before_the_group_left_is_not_in_it() -> None:
    send = Sends()
    commit = GroupCommit(send)
    calls = [commit.call(item) for item in range(3)]
    await turn()
    late = [commit.call(item) for item in (10, 11)]
    late[0].cancel()
    calls[1].cancel()  # too late: it is under way
    send.let_go()
    assert [await calls[0], await calls[2], await late[1]] == [0, 4, 22]
    assert send.groups == [[0, 1, 2], [11]]


async def test_nothing_is_sent_when_everybody_gave_up() -> None:
    send = Sends()
    commit = GroupCommit(send)
    commit.call(1).cancel()
    await turn()
    assert send.groups == []
    send.let_go()
    assert await commit.call(2) == 4
