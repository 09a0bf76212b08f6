"""Two deployments on one server, each with its own KEY_PREFIX: nobody gets the other's answer."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.contract.api import succeeded
from tests.contract.conftest import Local
from tests.contract.test_again import new_id

MODEL = "def model(input): return {who!r}"


def test_two_deployments_do_not_answer_each_other(start: Callable[..., Local], tmp_path: Path) -> None:
    apis = {}
    for who, prefix in (("live", ""), ("staging", "staging:"), ("trial", "team-a/trial.")):
        (path := tmp_path / f"{who}.py").write_text(MODEL.format(who=who))
        apis[who] = start(model=f"{path}:model", KEY_PREFIX=prefix)
    ids = [new_id() for _ in range(20)]

    def ask(who: str) -> None:
        for prediction_id in ids:
            assert succeeded(apis[who].put(prediction_id, "x"), "x") == who
            assert apis[who].result(apis[who].submit("y")) == who

    with ThreadPoolExecutor(len(apis)) as pool:
        list(pool.map(ask, apis))
