"""What the service's layers cost: sixteen streams of the engine alone, and the same sixteen over HTTP behind BentoML.

    python -m benchmarks.layer [--full]

Each side has a process of its own, one after the other in every round, and writes the same prompts under the same eight adapters.
The clock's ratio holds on a machine that does nothing else; clients are in it, since a stream is for somebody. Default: 8 rounds;
--full: 24. A round that is there is not run again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from adapters.whole_file import write_whole
from benchmarks.arrival_ground import Ground, name_of
from benchmarks.arrivals import NUM_ADAPTERS, Arrival, arrivals, read, send
from benchmarks.ratios import told_ratio
from benchmarks.results import commit, commits, provenance, run_kind, table, write_section

STREAMS, TOKENS, PROMPT = 16, 128, 64
ROUNDS, FULL_ROUNDS = 8, 24


def asked(ground: Ground, seed: int) -> list[Arrival]:
    drawn = arrivals(STREAMS, math.inf, ground.vocabulary, seed)
    return [Arrival(0.0, index % NUM_ADAPTERS, (one.prompt_ids * PROMPT)[:PROMPT], TOKENS) for index, one in enumerate(drawn)]


def alone(ground: Ground, seed: int, threads: int) -> float:
    """Tokens a second of the engine, whose streams are read in its own process."""
    from adapters.backbone import Backbone
    from engine.engine import GenerationRequest
    from engine.own_thread import in_own_thread
    from engine.profile import Profile
    from engine.torch_engine import TorchEngine

    torch.set_num_threads(threads)

    def made() -> TorchEngine:
        engine = TorchEngine(Backbone.load(ground.backbone, device="cpu"), max_rows=STREAMS, precision="bfloat16")
        for index in range(NUM_ADAPTERS):
            engine.load(name_of(index), Profile.load(ground.adapter(index)))
        return engine

    engine = in_own_thread(made)  # as the service starts

    async def stream(one: Arrival) -> int:
        request = GenerationRequest(
            one.prompt_ids, name_of(one.adapter), max_new_tokens=one.max_tokens, temperature=0, ignore_end=True
        )
        return sum([1 async for delta in engine.generate(request) if delta.token_id is not None])

    async def streams(all_of_them: Sequence[Arrival]) -> float:
        began = time.perf_counter()
        tokens = sum(await asyncio.gather(*map(stream, all_of_them)))
        return tokens / (time.perf_counter() - began)

    asyncio.run(streams(asked(ground, seed=999)[:4]))  # warm
    found = asyncio.run(streams(asked(ground, seed)))
    engine.close()
    return found


def behind(ground: Ground, seed: int) -> float:
    """Tokens a second over HTTP, from the first request to the last token."""
    from benchmarks.arrival_systems import ours

    with ours(ground) as system:
        asyncio.run(send(system.url, system.fields, asked(ground, seed=999)[:4]))  # warm
        sent = asked(ground, seed)
        return read(sent, asyncio.run(send(system.url, system.fields, sent))).tokens_per_s


def main() -> None:
    from benchmarks.arrival_systems import THREADS

    parser = argparse.ArgumentParser(prog="python -m benchmarks.layer", description=__doc__)
    parser.add_argument("--full", action="store_true", help=f"{FULL_ROUNDS} rounds")
    parser.add_argument("--rounds", type=int, help=f"[default: {ROUNDS}]")
    parser.add_argument("--backbone", default="smollm2-135m-reasoner")
    parser.add_argument("--rows", type=Path, default=Path("runs/benchmarks/layer"))
    parser.add_argument("--alone", type=int, metavar="SEED", help="only read the engine alone, and print it")
    parser.add_argument("--no-table", action="store_true", help="leave docs/results.md as it is")
    given = parser.parse_args()
    ground = Ground.made(given.backbone, given.rows / "ground")
    if given.alone is not None:
        print(json.dumps(alone(ground, given.alone, THREADS)))
        return
    found = []
    for seed in range(given.rounds or (FULL_ROUNDS if given.full else ROUNDS)):
        file = given.rows / f"{seed}.json"
        if not file.is_file():
            command = [sys.executable, "-m", "benchmarks.layer", "--alone", str(seed), "--rows", str(given.rows)]

            def in_a_process(command: Sequence[str] = (*command, "--backbone", given.backbone)) -> float:
                return float(json.loads(subprocess.run(command, capture_output=True, check=True).stdout.splitlines()[-1]))

            sides: dict[str, Callable[[], float]] = {"alone": in_a_process, "behind": partial(behind, ground, seed)}
            # In turn first: what warms up or wears off in a round favours neither.
            pair = {name: sides[name]() for name in sorted(sides, reverse=bool(seed % 2))}
            write_whole(file, json.dumps({**pair, "commit": commit()}))
        found.append(json.loads(file.read_text()))
        print(seed, found[-1], flush=True)
    if not given.no_table:
        write_section("layer", f"What the service's layers cost ({run_kind(given.rounds, full=given.full)})", section(found))


def section(found: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [str(seed), f"{one['alone']:.0f}", f"{one['behind']:.0f}", f"{one['behind'] / one['alone']:.3f}", commits([one])]
        for seed, one in enumerate(found)
    ]
    body = table(["round", "the engine alone, tokens/s", "behind BentoML, over HTTP, tokens/s", "ratio", "commit"], rows)
    mean = told_ratio([one["behind"] / one["alone"] for one in found], digits=3)
    said = f"{STREAMS} streams of {TOKENS} tokens over {NUM_ADAPTERS} adapters, behind prompts of {PROMPT}. Reading them is in"
    said += f" the time, and over HTTP what the clients do. The ratio's geometric mean over {len(found)} rounds is {mean}."
    return f"{provenance('layer')}\n\n{said}\n\n{body}"


if __name__ == "__main__":
    main()
