"""Reads the tables of docs/operations.md, for the tests that compare them with what they speak of."""

import re
from collections.abc import Iterator
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs/operations.md"


def rows(title: str) -> Iterator[tuple[str, list[str]]]:
    """Of the tables in one section: the heading above, and the cells of each row but the head."""
    match = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert match, f"docs/operations.md has no section {title!r}"
    heading = ""
    lines = match[1].splitlines()
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("### "):
            heading = line
        elif line.startswith("|") and not line.startswith("|---") and not below.startswith("|---"):
            yield heading, [cell.strip() for cell in line.strip("|").split("|")]
