"""What can go wrong, one function each: it does harm for a moment and leaves nothing broken that does not mend itself.

The schedule is drawn from the seed alone: kinds, victims and durations are the same in every run of a seed; what they
hit is up to the machine.
"""

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from redis.exceptions import RedisError

from tests.chaos.journal import Journal
from tests.chaos.stage import LEASE_S, Member, Stage, administrator

NONSENSE = (
    b"-DENIED Redis is running in protected mode\r\n",
    b"HTTP/1.1 400 Bad Request\r\n\r\n",
    b"+OK\r\n",
    b"*0\r\n",
    b"\x15\x03\x01\x00\x02\x02",
)
#: Without the last five a transition is broken off half done.
RIGHTS = ("evalsha", "info", "ssubscribe", "xreadgroup", "expire", "hincrby", "xadd", "zadd", "zrem")

Fault = Callable[[Stage, random.Random, Journal], Awaitable[None]]


async def kill_gateway(stage: Stage, rng: random.Random, journal: Journal) -> None:
    await _kill(rng.choice(stage.gateways), rng)


async def kill_processor(stage: Stage, rng: random.Random, journal: Journal) -> None:
    await _kill(rng.choice(stage.processors), rng)


async def _kill(member: Member, rng: random.Random) -> None:
    pause = rng.uniform(0, 1)
    async with member.in_hands:
        member.send(signal.SIGKILL)
        await member.ended()
        await asyncio.sleep(pause)
        member.start()


async def restart_gateway(stage: Stage, rng: random.Random, journal: Journal) -> None:
    await _restart(rng.choice(stage.gateways), journal)


async def restart_processor(stage: Stage, rng: random.Random, journal: Journal) -> None:
    await _restart(rng.choice(stage.processors), journal)


async def _restart(member: Member, journal: Journal) -> None:
    """SIGTERM, as a rolling restart does: it must end in order."""
    async with member.in_hands:
        if not member.running:
            return
        with suppress(TimeoutError):
            await member.ready()  # before that there is nothing to drain, nor a handler for the signal
        member.send(signal.SIGTERM)
        try:
            code = await member.ended()
        except TimeoutError:
            journal.wrong.append(f"{member.kind} {member.number} did not end after SIGTERM")
            member.send(signal.SIGKILL)
            await member.ended()
        else:
            if code:
                journal.wrong.append(f"{member.kind} {member.number} ended with {code} after SIGTERM")
        member.start()


async def freeze_gateway(stage: Stage, rng: random.Random, journal: Journal) -> None:
    await _freeze(rng.choice(stage.gateways), rng.uniform(0.5, 3))


async def freeze_processor(stage: Stage, rng: random.Random, journal: Journal) -> None:
    await _freeze(rng.choice(stage.processors), rng.uniform(1.2, 2) * LEASE_S)


async def _freeze(member: Member, seconds: float) -> None:
    member.send(signal.SIGSTOP)
    await asyncio.sleep(seconds)
    member.send(signal.SIGCONT)


async def kill_model(stage: Stage, rng: random.Random, journal: Journal) -> None:
    for pid in rng.choice(stage.processors).children():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


async def kill_server(stage: Stage, rng: random.Random, journal: Journal) -> None:
    server = rng.choice(stage.servers)
    pause = rng.uniform(0.2, 1.5 * LEASE_S)
    server.kill()
    await asyncio.sleep(pause)
    server.start()
    await stage.whole()  # what is replicated survives the loss of one, not of two


async def pause_clients(stage: Stage, rng: random.Random, journal: Journal) -> None:
    await _ask(rng.choice(stage.servers).url, "CLIENT", "PAUSE", rng.randint(300, 3000), "ALL")


async def cut_commands(stage: Stage, rng: random.Random, journal: Journal) -> None:
    await _ask(rng.choice(stage.servers).url, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


async def cut_subscriptions(stage: Stage, rng: random.Random, journal: Journal) -> None:
    await _ask(rng.choice(stage.servers).url, "CLIENT", "KILL", "TYPE", "pubsub")


async def forget_scripts(stage: Stage, rng: random.Random, journal: Journal) -> None:
    await _ask(rng.choice(stage.servers).url, "SCRIPT", "FLUSH")


async def squeeze_memory(stage: Stage, rng: random.Random, journal: Journal) -> None:
    """Less than it uses: every new submission is refused, all else must go on."""
    url = rng.choice(stage.servers).url
    seconds = rng.uniform(0.5, 2)
    await _ask(url, "CONFIG", "SET", "maxmemory", "1mb")
    await asyncio.sleep(seconds)
    await _ask(url, "CONFIG", "SET", "maxmemory", "0")


async def mend(url: str) -> None:
    """Take back what a fault could not, because another one was in its way."""
    await _ask(url, "CONFIG", "SET", "maxmemory", "0")
    await _ask(url, "CLIENT", "UNPAUSE")
    await _ask(url, "ACL", "SETUSER", "default", "+@all")


async def _ask(url: str, *command: str | int) -> None:
    """A fault of its own may be in the way: then there is one fault less."""
    async with administrator(url) as server:
        with suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(10):
                await server.execute_command(*command)


async def delay_network(stage: Stage, rng: random.Random, journal: Journal) -> None:
    proxy = rng.choice(stage.proxies)
    proxy.delay_s = rng.uniform(0.05, 0.3)
    await asyncio.sleep(rng.uniform(0.5, 2))
    proxy.heal()


async def cut_network(stage: Stage, rng: random.Random, journal: Journal) -> None:
    rng.choice(stage.proxies).cut()


async def mute_network(stage: Stage, rng: random.Random, journal: Journal) -> None:
    proxy = rng.choice(stage.proxies)
    proxy.mute()
    await asyncio.sleep(rng.uniform(1, 4 * LEASE_S))
    proxy.heal()


async def talk_nonsense(stage: Stage, rng: random.Random, journal: Journal) -> None:
    proxy = rng.choice(stage.proxies)
    proxy.nonsense = rng.choice(NONSENSE)
    proxy.cut()
    await asyncio.sleep(rng.uniform(0.5, 3))
    proxy.heal()
    proxy.cut()


async def take_a_right(stage: Stage, rng: random.Random, journal: Journal) -> None:
    url, right = rng.choice(stage.servers).url, rng.choice(RIGHTS)
    await _ask(url, "ACL", "SETUSER", "default", f"-{right}")
    await asyncio.sleep(rng.uniform(0.5, 3))
    await _ask(url, "ACL", "SETUSER", "default", "+@all")


async def empty_the_queue(stage: Stage, rng: random.Random, journal: Journal) -> None:
    """As by hand; not at all where another fault is in the way."""
    async with administrator(rng.choice(stage.servers).url) as client:
        with suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(10):
                for stream in [key async for key in client.scan_iter("*:jobs:*")]:
                    await client.xtrim(stream, maxlen=0, approximate=False)


ANYWHERE: list[Fault] = [
    take_a_right,
    empty_the_queue,
    kill_gateway,
    kill_processor,
    restart_gateway,
    restart_processor,
    freeze_gateway,
    freeze_processor,
    kill_model,
    kill_server,
    pause_clients,
    cut_commands,
    cut_subscriptions,
    forget_scripts,
    squeeze_memory,
]
THROUGH_PROXY: list[Fault] = [delay_network, cut_network, mute_network, talk_nonsense]


async def wreak_havoc(
    stage: Stage, rng: random.Random, journal: Journal, seconds: float, kinds: Sequence[Fault] = ()
) -> Counter[str]:
    """Faults, one or two at a time, for so long; returns how many of each kind. Every kind comes once before any
    comes again, give or take one."""
    kinds = kinds or ANYWHERE + (THROUGH_PROXY if stage.proxies else [])
    done: Counter[str] = Counter()
    deck: list[Fault] = []
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    while loop.time() < until:
        pair = []
        for _ in range(rng.choice((1, 1, 2))):
            deck = deck if len(deck) > 1 else rng.sample(kinds, len(kinds))
            pair.append(deck.pop())
        generators = [random.Random(rng.random()) for _ in pair]
        for fault in pair:
            done[fault.__name__.replace("_", " ")] += 1
            journal.faults.append(f"{loop.time() - (until - seconds):6.2f} s {fault.__name__}")
        await asyncio.gather(*[f(stage, g, journal) for f, g in zip(pair, generators, strict=True)])
        await asyncio.sleep(rng.uniform(0.1, 1.0))
    return done
