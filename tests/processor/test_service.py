"""`python -m processor`: how it starts, is probed, drains, and what it does after it was silent for a lease."""

import asyncio
import signal
import socket

import pytest

from common.store import keys
from common.store.states import Status
from tests.conftest import eventually
from tests.processor.conftest import Book, Client, WriteModel
from tests.services import Service, Services


def last_words(service: Service) -> tuple[int, list[str]]:
    """Its exit code and the only sentence it wrote, once it has ended by itself."""
    code = service.process.wait(30)
    service.kill()  # it is not running: its exit code has been looked at
    assert len(service.log.splitlines()) == 1
    return code, [service.last_sentence()]


def consumers(client: Client) -> list[str]:
    streams = [keys.jobs(p) for p in range(client.store.partitions)]
    return [c["name"] for s in streams for c in client.raw.xinfo_consumers(s, keys.GROUP)]


class TestStart:
    def test_a_model_fault_is_one_line(self, services: Services, write_model: WriteModel) -> None:
        spec = write_model("import nowhere")
        code, lines = last_words(services.processor(spec, wait=False, MODEL_PROCESSES=2))
        path = spec.removesuffix(":Model")
        assert lines == [f"{path} cannot be imported: ModuleNotFoundError: No module named 'nowhere'."]
        assert code == 1

    @pytest.mark.parametrize(
        ("name", "value", "fault"),
        [
            (
                "MAX_BATCH_SIZE",
                "many",
                "Input should be a valid integer, unable to parse string as an integer",
            ),
            ("LEASE_S", "0", "Input should be greater than or equal to 0.5"),
            ("LOG_LEVEL", "loud", "Input should be 'debug', 'info', 'warning' or 'error'"),
            ("LOG_LEVEL", "Info ", "Input should be 'debug', 'info', 'warning' or 'error'"),
        ],
    )
    def test_a_wrong_setting_is_one_line(self, services: Services, name: str, value: str, fault: str) -> None:
        code, lines = last_words(services.processor(wait=False, **{name: value}))
        assert lines == [f"{name} is wrong: {fault} (got {value!r})."]
        assert code == 1

    def test_a_taken_port_is_one_line(self, services: Services) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            code, lines = last_words(services.processor(wait=False, PROBE_PORT=port))
        assert lines == [f"PROBE_PORT {port} on 127.0.0.1 cannot be used: Address already in use."]
        assert code == 1

    def test_a_password_never_shows(self, services: Services) -> None:
        code, lines = last_words(services.processor(wait=False, REDIS_URL="http://:secret@example.org"))
        assert code == 1
        assert len(lines) == 1
        assert lines[0].startswith("REDIS_URL is wrong: ")
        assert "secret" not in lines[0]

    async def test_sigterm_while_the_model_loads_ends_it(
        self, services: Services, client: Client, write_model: WriteModel, book: Book
    ) -> None:
        service = services.processor(
            write_model("""
                from book import *
                note("loading")
                time.sleep(3600)
            """),
            wait=False,
        )
        await book.has("loading")
        await eventually(lambda: _answers(service, "/livez", 200))
        assert service.get("/readyz") == (503, b'{"error":"The model is loading."}')
        await asyncio.to_thread(service.stop)


def _answers(service: Service, path: str, code: int) -> bool:
    try:
        return service.get(path)[0] == code
    except OSError:
        return False


class TestProbes:
    async def test_they_answer_while_predictions_run(
        self, services: Services, client: Client, write_model: WriteModel, book: Book
    ) -> None:
        service = services.processor(
            write_model("""
                from book import *
                def Model(input):
                    if input == "hold": note("held"); wait_for("go")
                    if input == "bad": raise ValueError
                    return input
            """)
        )
        assert await client.results(1, 2, "bad") == [1, 2, "Prediction failed: ValueError"]
        (held,) = await client.submit("hold")
        await book.has("held")
        assert service.get("/livez") == (200, b'{"status":"alive"}')
        assert service.get("/readyz") == (200, b'{"status":"ready"}')
        found = service.metrics()
        assert found['foretell_predictions_total{status="succeeded"}'] == 2
        assert found['foretell_predictions_total{status="failed"}'] == 1
        assert found["foretell_in_hand"] == 1
        assert found["foretell_wait_seconds_count"] == 4
        assert service.get("/predict")[0] == 404
        book.allow("go")
        assert await client.result(held) == "hold"


class TestDrain:
    #: quick, so that more is claimed while one is held
    HOLD = """
        from book import *
        def Model(input):
            if input == "hold": note("held"); wait_for("go")
            return input
    """

    async def test_what_runs_is_finished_and_what_waits_is_given_back(
        self, services: Services, client: Client, write_model: WriteModel, book: Book
    ) -> None:
        spec = write_model(self.HOLD)
        service = services.processor(spec, DRAIN_S=60)
        await client.results(*range(50))
        (held,) = await client.submit("hold")
        await book.has("held")
        waiting = await client.submit("a", "b", "c")
        for prediction_id in waiting:
            await client.becomes(prediction_id, "processing")
        service.send_signal(signal.SIGTERM)
        for prediction_id in waiting:
            await client.becomes(prediction_id, "queued")
        assert [client.attempt(i) for i in waiting] == [0, 0, 0]
        assert service.process.poll() is None
        code, body = service.get("/readyz")
        assert (code, body) == (503, b'{"error":"This processor is stopping."}')
        book.allow("go")
        await asyncio.to_thread(service.stopped)  # with exit code 0
        assert await client.result(held) == "hold"
        assert consumers(client) == []
        await asyncio.to_thread(services.processor, spec)
        assert [await client.result(i) for i in waiting] == ["a", "b", "c"]
        assert [client.attempt(i) for i in waiting] == [1, 1, 1]

    async def test_what_does_not_end_in_time_is_given_back(
        self, services: Services, client: Client, write_model: WriteModel, book: Book
    ) -> None:
        spec = write_model(self.HOLD)
        service = services.processor(spec, DRAIN_S=1)
        (held,) = await client.submit("hold")
        await book.has("held")
        await asyncio.to_thread(service.stop)
        assert await client.status(held) == Status.QUEUED
        assert client.attempt(held) == 0
        assert consumers(client) == []
        book.allow("go")
        await asyncio.to_thread(services.processor, spec)
        assert await client.result(held) == "hold"

    async def test_the_teardown_runs_in_every_model_process(
        self, services: Services, client: Client, write_model: WriteModel, book: Book
    ) -> None:
        service = services.processor(
            write_model("""
                from book import *
                class Model:
                    def predict(self, input): return input
                    def teardown(self): note("bye")
            """),
            MODEL_PROCESSES=2,
        )
        await asyncio.to_thread(service.stop)
        assert book.notes == ["bye", "bye"]


class TestSilence:
    async def test_a_processor_that_was_stopped_too_long_loses_its_prediction_and_works_on(
        self, services: Services, client: Client, write_model: WriteModel, book: Book
    ) -> None:
        spec = write_model("""
            from book import *
            def Model(input):
                if input == "contested":
                    note(os.getppid())
                    wait_for(os.getppid())
                return os.getppid()
        """)
        first = services.processor(spec, LEASE_S=1)
        (contested,) = await client.submit("contested")
        await book.has(str(first.pid))
        first.send_signal(signal.SIGSTOP)
        second = await asyncio.to_thread(services.processor, spec, LEASE_S=1)
        await book.has(str(second.pid))  # taken over
        assert client.attempt(contested) == 2
        book.allow(str(first.pid))  # the first's model ends its work, and nobody hears it
        first.send_signal(signal.SIGCONT)
        await eventually(lambda: _refused(first) >= 1)
        assert await client.status(contested) == Status.PROCESSING
        book.allow(str(second.pid))
        assert await client.result(contested) == second.pid
        await asyncio.to_thread(second.stop)
        assert await client.results(1, 2, 3) == [first.pid] * 3

    async def test_predictions_of_a_killed_processor_are_taken_over(
        self, services: Services, client: Client, write_model: WriteModel, book: Book
    ) -> None:
        spec = write_model("""
            from book import *
            def Model(input):
                note(os.getpid())
                wait_for("go")
                return input
        """)
        first = services.processor(spec, LEASE_S=1)
        ids = await client.submit("only")
        await eventually(lambda: len(book.notes) == 1)
        first.kill()
        second = await asyncio.to_thread(services.processor, spec, LEASE_S=1)
        await eventually(lambda: len(book.notes) == 2, 30)
        book.allow("go")
        assert [await client.result(i) for i in ids] == ["only"]
        assert client.attempt(ids[0]) == 2
        await asyncio.to_thread(second.stop)
        _forget_the_dead(client)


def _refused(service: Service) -> float:
    """Late results, or leases found lost before there was a result."""
    found = service.metrics()
    refused = found.get('foretell_predictions_total{status="refused"}', 0.0)
    return refused + found["foretell_leases_lost_total"]


def _forget_the_dead(client: Client) -> None:
    """Living processors remove the consumers of dead ones, after a minute."""
    for partition in range(client.store.partitions):
        for name in consumers(client):
            client.raw.xgroup_delconsumer(keys.jobs(partition), keys.GROUP, name)
