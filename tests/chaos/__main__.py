"""`python -m tests.chaos --seed 7 --seconds 60`: exit code 1 if a promise was broken."""

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
from pathlib import Path

from tests.chaos.run import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--topology", choices=["single", "sentinel", "cluster"], default="single")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="foretell-chaos-"))
    report = asyncio.run(run(folder, seed=options.seed, seconds=options.seconds, topology=options.topology))
    print(report.text())
    print(report.summary())
    if report.good:
        shutil.rmtree(folder)
    return 0 if report.good else 1


if __name__ == "__main__":
    sys.exit(main())
