"""Both services as they run everywhere, and a model that fails in two ways."""

from pathlib import Path
from textwrap import dedent

import pytest

from tests.services import services, start_gateway, start_processor

__all__ = ["services", "start_gateway", "start_processor"]


@pytest.fixture
def model(tmp_path: Path) -> str:
    """Fails on the input that has no "value", asks for another try while `go` is not there."""
    (tmp_path / "model.py").write_text(
        dedent(f"""
            from pathlib import Path

            class Later(Exception):
                retry_after = 0.1

            def predict(input):
                if input.get("wait") and not Path({str(tmp_path / "go")!r}).exists():
                    raise Later(input)
                return input["value"]
        """)
    )
    return f"{tmp_path}/model.py:predict"
