"""`python -m bench`: every measurement in turn, then Markdown on stdout and both forms in .data/bench/.

All of it takes three minutes and wants the machine for itself. A missed target is reported, not an error; an answer that
is no success is one. How to read the figures: docs/benchmarks.md.
"""

import argparse
import sys
import time
from pathlib import Path

from bench import batch, bodies, drain, frames, memory, sockets, submit, sync, trip
from bench.machine import Watch, describe
from bench.report import Report
from common.errors import ForetellError

MEASUREMENTS = {
    "sync": sync.measure,
    "batch": batch.measure,
    "submit": submit.measure,
    "drain": drain.measure,
    "trip": trip.measure,
    "memory": memory.measure,
    "frames": frames.measure,
    "sockets": sockets.measure,
    "bodies": bodies.measure,
}
FOLDER = Path(".data/bench")


def main() -> int:
    options = _options()
    try:
        report = _measure(options.only)
    except ForetellError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    for path, text in ((options.json, report.json()), (options.markdown, report.markdown())):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    print(report.markdown(), end="")
    return 0


def _measure(names: list[str]) -> Report:
    report = Report(describe())
    watch = Watch()
    for name in names:
        print(f"{name} ...", end=" ", flush=True, file=sys.stderr)
        began = time.monotonic()
        report.sections[name] = MEASUREMENTS[name]()
        print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    report.warnings.extend(watch.warnings())
    return report


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure the numbers in the README.")
    names = ",".join(MEASUREMENTS)
    parser.add_argument(
        "--only", type=_names, default=list(MEASUREMENTS), metavar="NAMES", help=f"of {names}"
    )
    for form, file in (("json", "results.json"), ("markdown", "results.md")):
        parser.add_argument(
            f"--{form}", type=Path, default=FOLDER / file, metavar="FILE", help=f"not {FOLDER / file}"
        )
    return parser.parse_args()


def _names(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in MEASUREMENTS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(MEASUREMENTS)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
