"""A log line has whatever it is given, and is written whatever that is."""

import json
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.slow

PROGRAM = """
import structlog
from common.logs import setup_logs
from common.settings import CommonSettings
class Shout(Exception):
    def __str__(self): raise RuntimeError("no")
setup_logs(CommonSettings(_env_file=None, log_format="{format}"), "service")
log = structlog.get_logger("foretell")
{line}
log.info("the next one")
"""


@pytest.mark.parametrize("format", ["json", "console"])
@pytest.mark.parametrize(
    "line",
    [
        r"log.info('half a pair: \ud800')",
        r"log.info('odd', value='\udfff', number=2**70)",
        "log.info('odd', value=b'\\xff')",
        "log.info('odd', value={1: {2, 3}})",
        "try: raise Shout\nexcept Exception as error: log.error('shout', exc_info=error)",
        r"import logging; logging.getLogger('library').error('half a pair: %s', '\ud800')",
        "import logging; logging.getLogger('library').error('%d', 'no number')",
    ],
)
def test_any_value_can_be_logged(format: str, line: str) -> None:
    program = PROGRAM.format(format=format, line=line)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert ended.returncode == 0, ended.stderr.decode()
    lines = ended.stderr.decode("utf-8", "backslashreplace").splitlines()
    assert "the next one" in lines[-1]
    if format == "json":
        last: dict[str, Any] = json.loads(lines[-1])
        assert last["event"] == "the next one"
