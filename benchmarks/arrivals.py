"""Requests as they come: Poisson arrivals over eight adapters, sent alike to one server after another.

    python -m benchmarks.arrivals [--full]

Prompts and replies have 16 to 256 tokens (log-uniform), temperature 0, no end before the asked length. Every system gets the
same requests at the same moments; a round starts each system once, in turn, and ratios are within a round. Rows are kept as they
are made. Default: two rounds of 32 requests at each rate, about an hour on two cores; --full: six of 64, some six hours.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from adapters.whole_file import write_whole

NUM_ADAPTERS = 8
COUNT, ROUNDS = 32, 2
FULL_COUNT, FULL_ROUNDS = 64, 6


@dataclass(frozen=True)
class Arrival:
    at_s: float
    adapter: int
    prompt_ids: tuple[int, ...]
    max_tokens: int


@dataclass(frozen=True)
class Served:
    """One request as its client saw it."""

    first_s: float  # from its sending to its first token
    seconds: float
    tokens: int
    error: str = ""


@dataclass(frozen=True)
class Reading:
    """A system over one list of arrivals."""

    tokens_per_s: float  # from the first request's sending to the last token
    p50_first_s: float
    p95_first_s: float
    p50_token_s: float
    failed: int
    errors: tuple[str, ...] = ()


def arrivals(count: int, per_s: float, vocabulary: Sequence[int], seed: int) -> list[Arrival]:
    """`per_s` infinite: all at once. `vocabulary` are tokens that plain text has."""
    draw = random.Random(f"arrivals/{seed}")
    at_s, found = 0.0, []
    for _ in range(count):
        lengths = [round(math.exp(draw.uniform(math.log(16), math.log(256)))) for _ in range(2)]
        prompt = tuple(draw.choice(vocabulary) for _ in range(lengths[0]))
        found.append(Arrival(at_s, draw.randrange(NUM_ADAPTERS), prompt, lengths[1]))
        at_s += draw.expovariate(per_s) if math.isfinite(per_s) else 0.0
    return found


async def send(
    url: str, fields: Sequence[Mapping[str, object]], asked: Sequence[Arrival], texts: Sequence[str] | None = None
) -> list[Served]:
    """All of them to an OpenAI completions endpoint, each at its moment, as streams.

    `fields` by adapter, with what keeps a reply from ending early there; `texts` instead of token ids, where a server takes none.
    """
    # Its parser is in C: what the client takes of the processor is taken from the server here.
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(900), connector=aiohttp.TCPConnector(limit=0)) as client:
        began = time.perf_counter()

        async def one(index: int, arrival: Arrival) -> Served:
            await asyncio.sleep(max(0.0, arrival.at_s - (time.perf_counter() - began)))
            prompt = list(arrival.prompt_ids) if texts is None else texts[index]
            return await _stream(client, url, {**fields[arrival.adapter], "prompt": prompt}, arrival.max_tokens)

        return list(await asyncio.gather(*(one(*pair) for pair in enumerate(asked))))


async def _stream(client: aiohttp.ClientSession, url: str, asked: Mapping[str, object], max_tokens: int) -> Served:
    body = {
        **asked,
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    sent, first, tokens = time.perf_counter(), math.nan, 0
    try:
        async with client.post(f"{url}/completions", json=body) as reply:
            if reply.status != 200:
                return Served(math.nan, math.nan, 0, (await reply.text())[:200])
            async for line in reply.content:
                if not line.startswith(b"data: {"):
                    continue
                chunk = json.loads(line.removeprefix(b"data: "))
                if chunk.get("error"):
                    return Served(math.nan, math.nan, 0, str(chunk["error"])[:200])
                if math.isnan(first) and chunk.get("choices"):
                    first = time.perf_counter() - sent
                if chunk.get("usage"):
                    tokens = int(chunk["usage"]["completion_tokens"])
    except (aiohttp.ClientError, TimeoutError) as error:
        return Served(math.nan, math.nan, 0, f"{type(error).__name__}: {error}")
    if not tokens:
        return Served(math.nan, math.nan, 0, "a stream that ended without its usage")
    return Served(first, time.perf_counter() - sent, tokens)


def read(asked: Sequence[Arrival], served: Sequence[Served]) -> Reading:
    """A request that failed counts no token; where none succeeded all numbers are NaN."""
    done = [(arrival, one) for arrival, one in zip(asked, served, strict=True) if not one.error]
    if not done:
        return Reading(math.nan, math.nan, math.nan, math.nan, len(served), tuple(one.error for one in served)[:3])
    ends = max(arrival.at_s + one.seconds for arrival, one in done)
    first = np.array([one.first_s for _, one in done])
    token = np.array([(one.seconds - one.first_s) / (one.tokens - 1) for _, one in done if one.tokens > 1])
    return Reading(
        tokens_per_s=sum(one.tokens for _, one in done) / (ends - min(arrival.at_s for arrival in asked)),
        p50_first_s=float(np.median(first)),
        p95_first_s=float(np.quantile(first, 0.95)),
        p50_token_s=float(np.median(token)) if len(token) else math.nan,
        failed=len(served) - len(done),
        errors=tuple(sorted({one.error for one in served if one.error}))[:3],
    )


def main() -> None:
    from transformers import AutoTokenizer

    from benchmarks.arrival_ground import Ground
    from benchmarks.arrival_systems import SYSTEMS, Started, System
    from benchmarks.arrival_table import write
    from benchmarks.results import commit, run_kind

    parser = argparse.ArgumentParser(prog="python -m benchmarks.arrivals", description=__doc__)
    parser.add_argument("--system", action="append", choices=list(SYSTEMS), help="these alone")
    parser.add_argument("--full", action="store_true", help=f"{FULL_ROUNDS} rounds of {FULL_COUNT} requests")
    parser.add_argument("--count", type=int, help=f"requests a reading [default: {COUNT}]")
    parser.add_argument("--rate", type=float, action="append", help="arrivals a second; inf: all at once [default: 0.5, inf]")
    parser.add_argument("--rounds", type=int, help=f"[default: {ROUNDS}]")
    parser.add_argument("--backbone", default="smollm2-135m-reasoner")
    parser.add_argument("--rows", type=Path, default=Path("runs/benchmarks/arrivals"))
    parser.add_argument("--no-table", action="store_true", help="leave docs/results.md as it is")
    given = parser.parse_args()
    rates = given.rate or [0.5, math.inf]
    count = given.count or (FULL_COUNT if given.full else COUNT)
    rounds = given.rounds or (FULL_ROUNDS if given.full else ROUNDS)
    ground = Ground.made(given.backbone, given.rows / "ground")

    def served(system: Started, asked: Sequence[Arrival]) -> list[Served]:
        if not isinstance(system, System):
            return system.served(asked)
        texts = None if system.takes_ids else [str(tokenizer.decode(list(arrival.prompt_ids))) for arrival in asked]
        return asyncio.run(send(system.url, system.fields, asked, texts))

    tokenizer = AutoTokenizer.from_pretrained(ground.model)
    for number in range(rounds):
        for name in given.system or SYSTEMS:
            file = given.rows / f"{name}-{count}-{number}.json"
            if file.is_file():
                continue
            found = dict[str, Any]()
            try:
                with SYSTEMS[name](ground) as system:
                    served(system, arrivals(8, math.inf, ground.vocabulary, seed=999))  # warm
                    for rate in rates:
                        asked = arrivals(count, rate, ground.vocabulary, seed=number)
                        found[str(rate)] = asdict(read(asked, served(system, asked)))
            except Exception as error:  # a peer that does not run is a row too
                found = {"not run": f"{type(error).__name__}: {error}"}
            write_whole(file, json.dumps({**found, "commit": commit()}, indent=2))
            print(name, number, json.dumps(found), flush=True)
    if not given.no_table:
        write(given.rows, count, rounds, run_kind(given.count, given.rounds, given.rate, full=given.full))


if __name__ == "__main__":
    main()
