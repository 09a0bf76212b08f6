"""Batch sizes, the order of jobs, and what is prefetched: pure, with a clock that is an argument."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.store.claims import Job
from processor.batcher import PREFETCH_LIMIT_S, RUN_MAX, RUN_S, Batcher, BatchPolicy


def job(number: int = 0) -> Job:
    return Job(str(number), 0, b"", 1, b"", 0)


def batch_pace(size: int) -> BatchPolicy:
    return BatchPolicy(batch=True, max_batch_size=size)


def settled(policy: BatchPolicy, seconds: float, count: int) -> BatchPolicy:
    """After many batches that took the same."""
    for _ in range(200):
        policy.record(seconds, count)
    return policy


class TestPace:
    def test_a_batch_model_gets_full_batches_from_the_start(self) -> None:
        assert batch_pace(7).size == 7

    def test_a_single_model_gets_one_until_its_pace_is_known(self) -> None:
        assert BatchPolicy(batch=False, max_batch_size=32).size == 1

    @pytest.mark.parametrize("batch", [True, False])
    def test_nothing_is_prefetched_until_the_speed_is_known(self, batch: bool) -> None:
        assert BatchPolicy(batch=batch, max_batch_size=32).prefetch == 0

    @pytest.mark.parametrize(
        ("call_s", "size"),
        [(1e-9, RUN_MAX), (RUN_S / 10.5, 10), (RUN_S / 1.5, 1), (RUN_S * 2, 1), (60.0, 1), (0.0, RUN_MAX)],
    )
    def test_a_run_lasts_about_run_s(self, call_s: float, size: int) -> None:
        policy = settled(BatchPolicy(batch=False, max_batch_size=32), call_s * 4, 4)
        assert policy.size == size

    @pytest.mark.parametrize("batch", [True, False])
    def test_only_for_a_quick_model_is_anything_prefetched(self, batch: bool) -> None:
        quick = settled(BatchPolicy(batch=batch, max_batch_size=32), PREFETCH_LIMIT_S * 0.9, 1)
        slow = settled(BatchPolicy(batch=batch, max_batch_size=32), PREFETCH_LIMIT_S * 1.1, 1)
        assert quick.prefetch == quick.size
        assert slow.prefetch == 0

    def test_a_model_that_becomes_slow_is_noticed(self) -> None:
        policy = settled(BatchPolicy(batch=False, max_batch_size=32), 0.0001, 1)
        assert policy.size > 1
        settled(policy, 1.0, 1)
        assert (policy.size, policy.prefetch) == (1, 0)

    def test_one_slow_call_among_quick_ones_soon_is_forgotten(self) -> None:
        policy = settled(BatchPolicy(batch=True, max_batch_size=32), 0.001, 32)
        policy.record(10.0, 32)
        assert policy.prefetch == 0
        settled(policy, 0.001, 32)
        assert policy.prefetch == 32

    @given(st.booleans(), st.lists(st.tuples(st.floats(0, 1e6), st.integers(1, 1024)), max_size=20))
    def test_a_size_is_always_possible(self, batch: bool, measured: list[tuple[float, int]]) -> None:
        policy = BatchPolicy(batch=batch, max_batch_size=32)
        for seconds, count in measured:
            policy.record(seconds, count)
            assert 1 <= policy.size <= (32 if batch else RUN_MAX)
            assert policy.prefetch in (0, policy.size)


class TestBatcher:
    def test_nothing_waits_and_nothing_is_due(self) -> None:
        batcher = Batcher(batch_pace(2), max_wait_s=0)
        assert batcher.wait_s(0.0) is None
        assert batcher.take() == []

    def test_without_a_wait_a_lone_job_is_due_at_once(self) -> None:
        batcher = Batcher(batch_pace(32), max_wait_s=0)
        batcher.add([job()], now=5.0)
        assert batcher.wait_s(5.0) == 0

    def test_an_incomplete_batch_waits_for_its_oldest_job(self) -> None:
        batcher = Batcher(batch_pace(3), max_wait_s=2.0)
        batcher.add([job()], now=10.0)
        batcher.add([job()], now=11.0)
        assert batcher.wait_s(11.0) == 1.0
        assert batcher.wait_s(12.0) == 0
        assert batcher.wait_s(99.0) == 0

    def test_a_full_batch_does_not_wait(self) -> None:
        batcher = Batcher(batch_pace(3), max_wait_s=2.0)
        batcher.add([job(), job(), job()], now=10.0)
        assert batcher.wait_s(10.0) == 0

    def test_what_stays_behind_waits_from_its_own_arrival(self) -> None:
        batcher = Batcher(batch_pace(2), max_wait_s=2.0)
        batcher.add([job(1), job(2)], now=0.0)
        batcher.add([job(3)], now=1.0)
        assert [j.id for j in batcher.take()] == ["1", "2"]
        assert batcher.wait_s(1.0) == 2.0

    def test_a_discarded_job_is_not_taken(self) -> None:
        batcher = Batcher(batch_pace(8), max_wait_s=0)
        jobs = [job(1), job(2), job(3)]
        batcher.add(jobs, now=0.0)
        assert batcher.discard(jobs[1])
        assert not batcher.discard(jobs[1])
        assert batcher.take() == [jobs[0], jobs[2]]

    def test_another_attempt_of_the_same_prediction_is_another_job(self) -> None:
        batcher = Batcher(batch_pace(8), max_wait_s=0)
        old, new = job(1), job(1)
        batcher.add([new], now=0.0)
        assert not batcher.discard(old)
        assert batcher.take() == [new]

    @given(
        st.integers(1, 5),
        st.lists(
            st.one_of(
                st.tuples(st.just("add"), st.integers(0, 7)),
                st.tuples(st.just("take"), st.just(0)),
                st.tuples(st.just("discard"), st.integers(0, 100)),
            ),
            max_size=40,
        ),
    )
    def test_every_job_leaves_once_and_in_order(self, size: int, steps: list[tuple[str, int]]) -> None:
        batcher = Batcher(batch_pace(size), max_wait_s=1.0)
        added: list[Job] = []
        taken: list[Job] = []
        discarded: list[Job] = []
        for now, (step, number) in enumerate(steps):
            if step == "add":
                new = [job(len(added) + n) for n in range(number)]
                batcher.add(new, float(now))
                added += new
            elif step == "take":
                due = len(batcher)
                batch = batcher.take()
                assert len(batch) == min(size, due)
                taken += batch
            elif added:
                chosen = added[number % len(added)]
                gone = any(chosen is j for j in taken + discarded)
                assert batcher.discard(chosen) is not gone
                if not gone:
                    discarded.append(chosen)
            assert len(batcher) == len(added) - len(taken) - len(discarded)
        taken += batcher.clear()
        assert len(batcher) == 0
        kept = [j for j in added if not any(j is d for d in discarded)]
        assert [id(j) for j in taken] == [id(j) for j in kept]
