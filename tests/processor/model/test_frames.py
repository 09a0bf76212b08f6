"""What is packed comes out again, whatever the bytes."""

from hypothesis import given
from hypothesis import strategies as st

from processor.model.frames import HEADER, LARGE_BYTES, Item, Kind, pack, unpack

data = st.binary(max_size=300) | st.integers(0, LARGE_BYTES + 1).map(bytes)
items = st.builds(Item, st.sampled_from(list(Kind)), st.integers(0, 2**32 - 1), data)


@given(st.lists(items, max_size=20))
def test_round_trip(sent: list[Item]) -> None:
    frame = b"".join(pack(sent))
    size, count = HEADER.unpack(frame[: HEADER.size])
    assert size == len(frame) - HEADER.size  # what the reader must fetch, to the byte
    assert count == len(sent)
    assert unpack(count, frame[HEADER.size :]) == sent


def test_a_time_above_an_hour_is_cut_and_not_an_error() -> None:
    (item,) = unpack(1, b"".join(pack([Item(Kind.RESULT, 2**40, b"1")]))[HEADER.size :])
    assert item == Item(Kind.RESULT, 2**32 - 1, b"1")


def test_many_large_items_are_one_frame_however_large() -> None:
    large = bytes(1 << 24)
    head = pack([Item(Kind.INPUT, 0, large)] * 300)[0]
    size, count = HEADER.unpack(head)
    assert count == 300
    assert size > 300 * len(large) > 1 << 32
