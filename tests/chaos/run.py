"""One chaos run: clients and faults together, then peace, then the bill."""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.clients import WAIT_S, Clients
from tests.chaos.faults import Fault, mend, wreak_havoc
from tests.chaos.invariants import Broken, check, history, measure
from tests.chaos.journal import Journal
from tests.chaos.stage import Stage, open_stage

WARM_UP_S = 3.0
END_S = 30.0


@dataclass
class Report:
    seed: int
    seconds: float
    topology: str
    faults: Counter[str]
    journal: Journal
    broken: Broken
    history: str
    folder: Path

    @property
    def good(self) -> bool:
        return not any(self.broken.values())

    def summary(self) -> str:
        """One line, the same for every run."""
        bill = " ".join(f"{name}={len(found)}" for name, found in self.broken.items())
        accepted, faults = len(self.journal.records), sum(self.faults.values())
        return f"seed={self.seed} seconds={self.seconds:g} topology={self.topology} faults={faults} accepted={accepted} {bill}"

    def text(self) -> str:
        lines = [
            "",
            "fault                 times",
            *[f"{n:20} {c:6}" for n, c in sorted(self.faults.items())],
        ]
        lines += ["", "client        what it was told"]
        for kind, outcomes in sorted(self.journal.outcomes.items()):
            told = ", ".join(f"{outcome} {count}" for outcome, count in sorted(outcomes.items()))
            lines.append(f"{kind:12}  {told}")
        lines += ["", "invariant   broken", *[f"{n:10} {len(found):7}" for n, found in self.broken.items()]]
        for name, found in self.broken.items():
            lines += [f"{name}: {sentence}" for sentence in found[:20]]
        if not self.good:
            lines += [*self.journal.faults, self.history, f"logs and data: {self.folder}"]
        return "\n".join(lines)


async def run(
    folder: Path,
    *,
    seed: int,
    seconds: float,
    topology: str = "single",
    clients: int = 27,
    planted: Sequence[str] = (),
    poison: float = 0.04,
    wait_s: float = WAIT_S,
    kinds: Sequence[Fault] = (),
) -> Report:
    """Everything in one event loop, logs and data in `folder`; `planted` names faults of `tests.chaos.planted` to run the services with,
    `kinds` are the faults to choose from (all, if empty)."""
    journal = Journal()
    stop = asyncio.Event()
    async with open_stage(folder, topology=topology, planted=planted) as stage:
        urls = [gateway.url for gateway in stage.gateways]
        crowd = Clients(
            journal,
            urls,
            random.Random(f"clients {seed}"),
            forgetful=topology == "sentinel",
            poison=poison,
            wait_s=wait_s,
        )
        asking = asyncio.create_task(crowd.run(stop, clients))
        await asyncio.wait({asking}, timeout=WARM_UP_S)
        baseline = await measure(stage)
        faults = await wreak_havoc(stage, random.Random(f"faults {seed}"), journal, seconds, kinds)
        await _peace(stage)
        stop.set()
        _, unfinished = await asyncio.wait({asking}, timeout=wait_s + END_S)
        if unfinished:
            asking.cancel()
            journal.untold.append(f"clients were still waiting {wait_s + END_S:g} s after the end")
        else:
            asking.result()
            await crowd.in_peace()
        broken = await check(stage, journal, baseline)
        everything = [sentence for found in broken.values() for sentence in found]
        past = await history(stage, journal, everything)
    return Report(seed, seconds, topology, faults, journal, broken, past, folder)


async def _peace(stage: Stage) -> None:
    """Every fault is over and everything runs."""
    stage.heal()
    for server in stage.servers:
        await mend(server.url)
    await asyncio.gather(*[member.ready() for member in stage.members])
