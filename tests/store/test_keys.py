"""Ids and the partitions they name."""

import uuid
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.store import keys

PARTITIONS = st.integers(1, 256)


@given(PARTITIONS)
def test_ids_are_random_uuids_of_every_partition(partitions: int) -> None:
    ids = list(islice(keys.new_ids(partitions), 600))  # more than one pool of randomness
    assert len(set(ids)) == len(ids)
    for text in ids:
        parsed = uuid.UUID(text)
        assert (parsed.version, parsed.variant, str(parsed)) == (4, uuid.RFC_4122, text)
        assert keys.parse_id(text) == text
    found = {keys.partition_of(text, partitions) for text in ids}
    assert found <= set(range(partitions))
    assert len(found) > 0.7 * partitions


@given(PARTITIONS, PARTITIONS)
def test_a_deployment_that_grows_finds_its_ids(one: int, other: int) -> None:
    few, many = sorted((one, other))
    for text in islice(keys.new_ids(few), 20):
        assert keys.partition_of(text, few) == keys.partition_of(text, many)


@given(st.uuids(), PARTITIONS)
def test_a_clients_own_uuid_has_a_partition(own: uuid.UUID, partitions: int) -> None:
    assert 0 <= keys.partition_of(str(own), partitions) < partitions


@given(st.uuids())
def test_an_id_in_capitals_is_the_same_id(own: uuid.UUID) -> None:
    assert keys.parse_id(str(own).upper()) == str(own)


GOOD = "0f8fad5b-d9cb-469f-a165-70867728950e"


@pytest.mark.parametrize(
    "text",
    [
        "",
        GOOD[:-1],
        GOOD + "0",
        GOOD + "\n",
        " " + GOOD,
        GOOD.replace("-", ""),
        f"{{{GOOD}}}",
        "g" + GOOD[1:],
    ],
)
def test_what_is_not_an_id(text: str) -> None:
    assert keys.parse_id(text) is None


def test_all_keys_of_a_partition_share_a_slot() -> None:
    tag = "{f3}"
    text = GOOD[:-2] + "03"
    for key in (keys.jobs(3), keys.dead(3), keys.job(text, 256), keys.relay(3, "gate")):
        assert key.startswith(tag)
