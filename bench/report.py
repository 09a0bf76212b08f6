"""What a measurement gives, and how it is written: Markdown for people, JSON for machines, in the same words."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field

Cell = str | int | float
#: column → cell; a column's name says the unit, and a row may leave columns out
Row = dict[str, Cell]


@dataclass(frozen=True, slots=True)
class Target:
    """One figure we hold ourselves to: `limit` is its ceiling, or with `least` its floor."""

    figure: str
    value: float
    limit: float
    least: bool = False

    @property
    def met(self) -> bool:
        return self.value >= self.limit if self.least else self.value <= self.limit


@dataclass(frozen=True, slots=True)
class Section:
    """One measurement."""

    title: str
    rows: Sequence[Row]
    targets: Sequence[Target] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """A whole run. `machine` says on what, `warnings` why to trust it less; sections by their name for `--only`."""

    machine: dict[str, str]
    warnings: list[str] = field(default_factory=list)
    sections: dict[str, Section] = field(default_factory=dict)

    def markdown(self) -> str:
        lines = [
            "# Benchmarks",
            "",
            ", ".join(f"{name} {value}" for name, value in self.machine.items()) + ".",
        ]
        for warning in self.warnings:
            lines += ["", f"**{warning}**"]
        targets = [_target_row(target) for section in self.sections.values() for target in section.targets]
        if targets:
            lines += ["", *_table(targets)]
        for section in self.sections.values():
            lines += ["", f"## {section.title}", "", *_table(section.rows)]
        return "\n".join(lines) + "\n"

    def json(self) -> str:
        sections = {
            name: {
                "title": section.title,
                "rows": section.rows,
                "targets": [asdict(target) | {"met": target.met} for target in section.targets],
            }
            for name, section in self.sections.items()
        }
        whole = {"machine": self.machine, "warnings": self.warnings, "sections": sections}
        return json.dumps(whole, ensure_ascii=False, indent=1) + "\n"


def _target_row(target: Target) -> Row:
    limit = f"{'≥' if target.least else '≤'} {_text(target.limit)}"
    met = "pass" if target.met else "**miss**"
    return {"figure": target.figure, "target": limit, "measured": target.value, "": met}


def _table(rows: Iterable[Row]) -> list[str]:
    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, ["---", *["---:"] * (len(names) - 1)]]
    cells += [[_text(row.get(name, "")) for name in names] for row in rows]
    return [f"| {' | '.join(line)} |" for line in cells]


def _text(value: Cell) -> str:
    """Of a float, the three digits that mean something."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else value
