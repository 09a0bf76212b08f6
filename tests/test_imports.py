"""What a process does not import when it starts. Nearly all of a start is imports, so a name that comes back is a start
that takes longer. No time is measured here.
"""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def modules_after(code: str) -> set[str]:
    """What a new process has in `sys.modules` after this code."""
    command = [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"]
    return set(
        subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True).stdout.split()
    )


@pytest.mark.parametrize(
    ("model", "needed"),
    [
        ("def predict(input): ...", set()),
        ("def predict(input: int): ...", {"pydantic"}),
        ("async def predict(input): ...", {"asyncio"}),
    ],
)
def test_a_model_process_imports_what_its_model_needs(tmp_path: Path, model: str, needed: set[str]) -> None:
    file = tmp_path / "little.py"
    file.write_text(model)
    found = modules_after(f"from processor.model.child import load_model\nload_model('{file}:predict')")
    assert found & {"asyncio", "pydantic", "redis", "structlog"} == needed
