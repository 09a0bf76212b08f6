"""What is under way in model processes: which predictions run where and how often, who fails, and what a death costs."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from common.errors import ModelFault
from common.store import keys
from common.store.jobs import Submission
from common.store.states import Fault, Status
from tests.conftest import eventually
from tests.processor.conftest import Book, Client, WriteModel
from tests.processor.running import FILL_MS, Work, metric


class TestOneBadPrediction:
    async def test_every_result_goes_to_its_own_prediction(
        self, client: Client, work: Work, write_model: WriteModel
    ) -> None:
        await work(write_model("def Model(input): return {'twice': 2 * input}"))
        assert await client.results(*range(200)) == [{"twice": 2 * n} for n in range(200)]

    @pytest.mark.parametrize(
        "source",
        [
            "def Model(input): return 12 // input",
            "class Model:\n    def predict_batch(self, inputs): return [12 // i for i in inputs]",
        ],
    )
    async def test_one_that_raises_fails_alone(
        self, client: Client, work: Work, write_model: WriteModel, source: str
    ) -> None:
        await work(write_model(source), max_batch_wait_ms=FILL_MS, max_batch_size=4)
        ids = await client.submit(1, 0, 3, 4)
        assert [await client.result(i) for i in ids] == [
            12,
            "Prediction failed: ZeroDivisionError: integer division or modulo by zero",
            4,
            3,
        ]
        bad = await client.end(ids[1])
        assert (bad.status, bad.fault) == (Status.FAILED, Fault.MODEL)
        assert client.attempt(ids[1]) == 1
        assert client.dead() == []

    async def test_one_that_the_hints_refuse(
        self, client: Client, work: Work, write_model: WriteModel
    ) -> None:
        await work(write_model("def Model(input: int): return input"))
        (bad,) = await client.submit("text")
        assert (await client.end(bad)).fault == Fault.INPUT

    async def test_the_mates_of_one_that_kills_its_process_succeed(
        self,
        client: Client,
        work: Work,
        write_model: WriteModel,
        book: Book,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("processor.flights.CANCEL_GRACE_S", 0.1)
        restarts = metric("model_restarts_total")
        await work(
            write_model("""
                from book import *
                class Model:
                    def predict_batch(self, inputs):
                        for i in inputs: note(i)
                        if "bad" in inputs: os._exit(9)
                        return inputs
            """),
            max_batch_wait_ms=FILL_MS,
            max_batch_size=4,
        )
        first, bad, *more = await client.submit("first", "bad", "third", "last")
        assert [await client.result(i) for i in (first, *more)] == ["first", "third", "last"]
        end = await client.end(bad)
        sentence = "Prediction failed: the model process exited with code 9, at each of 3 attempts."
        assert (end.status, end.fault) == (Status.FAILED, Fault.CRASH)
        assert await client.result(bad) == sentence
        (dead,) = client.dead()
        assert (dead["id"], dead["input"], dead["error"]) == (bad, '"bad"', f'"{sentence}"')
        assert dead["attempts"] == "3"
        assert [client.attempt(i) for i in (first, *more)] == [1, 1, 1]  # their mate's fault is not theirs
        assert book.notes.count("bad") == 4  # once among others, then alone MAX_ATTEMPTS times
        assert await client.results("next") == ["next"]
        assert metric("model_restarts_total") == restarts + 4

    async def test_the_mates_in_a_run_of_single_predictions_succeed(
        self, client: Client, work: Work, write_model: WriteModel
    ) -> None:
        await work(
            write_model("import os\ndef Model(input): return os._exit(9) if input == 'bad' else input"),
            max_attempts=1,
        )
        await client.results(*range(50))  # quick: from now on it is given runs of inputs
        words = [f"word {n}" for n in range(20)]
        *found, bad = await client.results(*words[:10], *words[10:], "bad")
        assert found == words
        assert bad == "Prediction failed: the model process exited with code 9."

    async def test_one_that_runs_too_long_is_stopped_and_tried_again(
        self, client: Client, work: Work, write_model: WriteModel, book: Book
    ) -> None:
        await work(
            write_model("""
                from book import *
                def Model(input):
                    note(input)
                    if input == "bad": time.sleep(3600)
                    return input
            """),
            predict_timeout_s=0.3,
            max_attempts=2,
        )
        bad, good = await client.submit("bad", "good")
        assert await client.result(good) == "good"
        end = await client.end(bad)
        assert (end.status, end.fault) == (Status.FAILED, Fault.TIMEOUT)
        sentence = (
            "Prediction failed: the model ran longer than 0.3 s and was stopped, at each of 2 attempts."
        )
        assert await client.result(bad) == sentence
        assert book.notes.count("bad") == 2
        assert [job["id"] for job in client.dead()] == [bad]

    async def test_one_that_kills_its_process_once_succeeds_after_all(
        self, client: Client, work: Work, write_model: WriteModel, book: Book
    ) -> None:
        await work(
            write_model("""
                from book import *
                def Model(input):
                    if not allowed("again"):
                        allow("again")
                        os._exit(9)
                    return input
            """)
        )
        (unlucky,) = await client.submit("unlucky")
        assert await client.result(unlucky) == "unlucky"
        assert client.attempt(unlucky) == 2
        assert client.dead() == []


class TestCancellation:
    async def test_one_in_the_queue_never_runs(
        self, client: Client, work: Work, write_model: WriteModel, book: Book
    ) -> None:
        unwanted, wanted = await client.submit("unwanted", "wanted")
        assert await client.store.jobs.cancel(unwanted, "Not wanted.") == "cancelled"
        await work(write_model("from book import *\ndef Model(input): note(input); return input"))
        assert await client.result(wanted) == "wanted"
        await eventually(_empty(client))
        assert book.notes == ["wanted"]

    async def test_one_that_waits_in_the_processor_never_runs(
        self, client: Client, work: Work, write_model: WriteModel, book: Book
    ) -> None:
        await work(
            write_model("""
                from book import *
                def Model(input):
                    note(input)
                    if input == "hold": wait_for("go")
                    return input
            """)
        )
        await client.results(*range(50))
        (hold,) = await client.submit("hold")
        await book.has("hold")
        unwanted, wanted = await client.submit("unwanted", "wanted")
        await client.becomes(unwanted, "processing")  # it is claimed
        assert await client.store.jobs.cancel(unwanted, "Not wanted.") == "cancelled"
        await asyncio.sleep(0.2)  # for the processor to hear of it
        book.allow("go")
        assert await client.result(wanted) == "wanted"
        assert await client.result(hold) == "hold"
        assert (await client.end(unwanted)).status == Status.CANCELLED
        assert "unwanted" not in book.notes

    async def test_a_running_one_is_stopped_and_its_mates_succeed(
        self,
        client: Client,
        work: Work,
        write_model: WriteModel,
        book: Book,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("processor.flights.CANCEL_GRACE_S", 0.1)
        await work(
            write_model("""
                from book import *
                class Model:
                    def predict_batch(self, inputs):
                        if "hang" in inputs:
                            note(os.getpid())
                            time.sleep(3600)
                        return [os.getpid()] * len(inputs)
            """),
            max_batch_size=3,
            max_batch_wait_ms=FILL_MS,
        )
        first, hang, last = await client.submit("first", "hang", "last")
        await eventually(lambda: len(book.notes) == 1)
        assert await client.store.jobs.cancel(hang, "Not wanted.") == "cancelled"
        assert [await client.result(i) for i in (first, last)] != [int(book.notes[0])] * 2
        assert [client.attempt(i) for i in (first, last)] == [1, 1]
        assert (await client.end(hang)).status == Status.CANCELLED
        assert len(book.notes) == 1

    async def test_one_that_ends_in_its_grace_costs_no_process(
        self, client: Client, work: Work, write_model: WriteModel, book: Book
    ) -> None:
        await work(
            write_model("""
                from book import *
                def Model(input):
                    note("running")
                    wait_for("go")
                    return os.getpid()
            """)
        )
        (unwanted,) = await client.submit("unwanted")
        await book.has("running")
        await client.store.jobs.cancel(unwanted, "Not wanted.")
        restarts = metric("model_restarts_total")
        book.allow("go")
        (pid,) = await client.results("next")
        await asyncio.sleep(1.2)  # the grace is over
        assert await client.results("another") == [pid]
        assert metric("model_restarts_total") == restarts

    async def test_many_cancelled_during_a_slow_restart_cost_one_restart(
        self,
        client: Client,
        work: Work,
        write_model: WriteModel,
        book: Book,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("processor.flights.CANCEL_GRACE_S", 0.05)
        await work(
            write_model("""
                from book import *
                note("start")
                if allowed("slow"): wait_for("go")
                class Model:
                    def predict_batch(self, inputs):
                        note("call")
                        if "hang" in inputs: time.sleep(3600)
                        return inputs
            """),
            max_batch_size=4,
            max_batch_wait_ms=FILL_MS,
        )
        first, *others = await client.submit("hang", "hang", "hang", "hang")
        await book.has("call")
        book.allow("slow")
        await client.store.jobs.cancel(first, "Not wanted.")
        await book.has("start", 2)
        for prediction_id in others:
            await client.store.jobs.cancel(prediction_id, "Not wanted.")
        await asyncio.sleep(0.5)  # their grace is over
        book.allow("go")
        assert await client.results("next") == ["next"]
        assert book.notes.count("start") == 2


class TestCancellationOfAsyncModels:
    """They are asked first, and their process stays."""

    async def test_a_running_one_is_interrupted_where_it_waits(
        self, client: Client, work: Work, write_model: WriteModel, book: Book
    ) -> None:
        await work(
            write_model("""
                import asyncio
                from book import *
                async def Model(input):
                    try:
                        note(f"runs {input}")
                        if input == "hang": await asyncio.sleep(3600)
                    except asyncio.CancelledError:
                        note("interrupted")
                        raise
                    return os.getpid()
            """)
        )
        (pid,) = await client.results("before")
        restarts = metric("model_restarts_total")
        (hang,) = await client.submit("hang")
        await book.has("runs hang")
        await client.store.jobs.cancel(hang, "Not wanted.")
        await book.has("interrupted")
        assert await client.results("after") == [pid]
        assert metric("model_restarts_total") == restarts
        assert (await client.end(hang)).status == Status.CANCELLED

    async def test_the_mates_of_one_in_a_batch_run_again_in_the_same_process(
        self, client: Client, work: Work, write_model: WriteModel, book: Book
    ) -> None:
        await work(
            write_model("""
                import asyncio
                from book import *
                class Model:
                    async def predict_batch(self, inputs):
                        note(" ".join(inputs))
                        if "hang" in inputs: await asyncio.sleep(3600)
                        return [os.getpid()] * len(inputs)
            """),
            max_batch_size=3,
            max_batch_wait_ms=FILL_MS,
        )
        restarts = metric("model_restarts_total")
        first, hang, last = await client.submit("first", "hang", "last")
        await eventually(lambda: len(book.notes) == 1)
        await client.store.jobs.cancel(hang, "Not wanted.")
        pids = {await client.result(first), await client.result(last), *(await client.results("next"))}
        assert len(pids) == 1
        assert metric("model_restarts_total") == restarts
        assert book.notes[1:] == ["first", "last", "next"]
        assert (await client.end(hang)).status == Status.CANCELLED

    async def test_one_that_does_not_listen_loses_its_process(
        self,
        client: Client,
        work: Work,
        write_model: WriteModel,
        book: Book,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("processor.flights.CANCEL_GRACE_S", 0.1)
        await work(
            write_model("""
                import asyncio
                from book import *
                async def Model(input):
                    note(f"runs {input}")
                    while input == "deaf":
                        try: await asyncio.sleep(3600)
                        except asyncio.CancelledError: note("asked")
                    return os.getpid()
            """)
        )
        (pid,) = await client.results("before")
        (deaf,) = await client.submit("deaf")
        await book.has("runs deaf")
        await client.store.jobs.cancel(deaf, "Not wanted.")
        await book.has("asked")
        assert await client.results("after") != [pid]

    async def test_one_past_its_deadline_is_interrupted_too(
        self, client: Client, work: Work, write_model: WriteModel, book: Book
    ) -> None:
        await work(
            write_model("""
                import asyncio
                from book import *
                async def Model(input):
                    note("runs")
                    try: await asyncio.sleep(3600)
                    except asyncio.CancelledError: note("interrupted"); raise
            """)
        )
        late = Submission(next(keys.new_ids(client.store.partitions)), b"1", deadline_us=300_000)
        await client.store.jobs.submit(late)
        await book.has("runs")
        assert (await client.end(late.id)).status == Status.EXPIRED
        await book.has("interrupted")


class TestRetries:
    """Only a model that asks for it gets another try: by the attribute `retry_after` of its exception."""

    async def test_the_next_try_may_succeed(
        self, client: Client, work: Work, write_model: WriteModel, book: Book
    ) -> None:
        await work(
            write_model("""
                from book import *
                class Busy(Exception): retry_after = 0.05
                def Model(input):
                    note("try")
                    if not allowed("go"): allow("go"); raise Busy("come back")
                    return input
            """)
        )
        (prediction_id,) = await client.submit("patient")
        assert await client.result(prediction_id) == "patient"
        assert client.attempt(prediction_id) == 2
        assert book.notes == ["try", "try"]
        assert client.dead() == []

    async def test_the_last_one_is_final_and_kept_with_its_traceback(
        self, client: Client, work: Work, write_model: WriteModel
    ) -> None:
        await work(
            write_model("""
                class Busy(Exception):
                    def __init__(self, text): super().__init__(text); self.retry_after = 0
                def Model(input): raise Busy("never")
            """)
        )
        (prediction_id,) = await client.submit("hopeless")
        sentence = "Prediction failed: Busy: never (at each of 3 attempts)"
        end = await client.end(prediction_id)
        assert (end.status, end.fault) == (Status.FAILED, Fault.MODEL)
        assert await client.result(prediction_id) == sentence
        (dead,) = client.dead()
        assert (dead["id"], dead["attempts"], dead["error"]) == (prediction_id, "3", f'"{sentence}"')
        assert dead["traceback"].startswith("Traceback")
        assert "def Model(input): raise Busy" in dead["traceback"]

    async def test_the_mates_of_one_that_asks_for_it_need_no_retry(
        self, client: Client, work: Work, write_model: WriteModel, book: Book
    ) -> None:
        """The exception of a batch does not say whose it is: they are tried one by one, as after any other."""
        await work(
            write_model("""
                from book import *
                class Busy(Exception): retry_after = 0.0
                class Model:
                    def predict_batch(self, inputs):
                        note(" ".join(inputs))
                        if "busy" in inputs: raise Busy
                        return inputs
            """),
            max_batch_wait_ms=FILL_MS,
            max_batch_size=3,
        )
        first, busy, last = await client.submit("first", "busy", "last")
        assert [await client.result(i) for i in (first, last)] == ["first", "last"]
        assert (await client.end(busy)).status == Status.FAILED
        assert [client.attempt(i) for i in (first, busy, last)] == [1, 3, 1]

    @pytest.mark.parametrize("wish", ["None", "'soon'", "-1", "True", "float('nan')", "property(abs)"])
    async def test_what_is_no_number_of_seconds_asks_for_nothing(
        self, client: Client, work: Work, write_model: WriteModel, wish: str
    ) -> None:
        await work(
            write_model(f"""
                class Odd(Exception): retry_after = {wish}
                def Model(input): raise Odd("no")
            """)
        )
        (prediction_id,) = await client.submit("once")
        assert await client.result(prediction_id) == "Prediction failed: Odd: no"
        assert client.attempt(prediction_id) == 1
        assert client.dead() == []

    async def test_a_retry_survives_the_processor(
        self, client: Client, work: Work, write_model: WriteModel, book: Book
    ) -> None:
        spec = write_model("""
            from book import *
            class Busy(Exception): retry_after = 0.5
            def Model(input):
                if not allowed("go"): allow("go"); raise Busy
                return input
        """)
        first = await work(spec)
        (prediction_id,) = await client.submit("long")
        await eventually(
            lambda: client.raw.exists(
                *[f"{keys.tag(p)}:alarms:default" for p in range(client.store.partitions)]
            )
        )
        await first.stop()
        await work(spec)
        assert await client.result(prediction_id) == "long"


@pytest.mark.leaves_jobs("the worker dies with a prediction in hand")
async def test_a_model_that_cannot_be_loaded_any_more_ends_the_service(
    client: Client, work: Work, write_model: WriteModel, book: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("processor.flights.START_TRIES", 2)
    running = await work(
        write_model("""
            from book import *
            if allowed("broken"): raise OSError("the weights are gone")
            def Model(input):
                allow("broken")
                os.abort()
        """)
    )
    await client.submit("last")
    with pytest.raises(ExceptionGroup) as ended:
        await asyncio.wait_for(asyncio.shield(running.task), 30)
    assert ended.group_contains(ModelFault, match="the weights are gone")


def _empty(client: Client) -> Callable[[], Awaitable[bool]]:
    async def empty() -> bool:
        return (await client.store.queue.ring()).unfinished == 0

    return empty
