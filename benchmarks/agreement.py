"""How the search's score and what the gate measures rank together: likelihood of gold chains against written traces.

    python -m benchmarks.agreement

Reads the trials that `python -m benchmarks.sweeps` left: every scale at which traces were written, each protected family a
pair (change in nats a token of the gold chain; change in the share of traces right in every step). Seconds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from benchmarks.results import provenance, table, write_section

Pairs = list[tuple[float, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks/sweeps"))
    args = parser.parse_args()
    fits = [fit for file in sorted(args.runs.glob("*/studies/*/trials/*/result.json")) for fit in written(file)]
    if not fits:
        raise SystemExit(f"Agreement is read from sweeps, but {args.runs} holds none. Run: python -m benchmarks.sweeps")
    mild = [fit for fit in fits if np.mean([change for _, change in fit]) > -0.5]
    rows = [row("all families of all fits", fits), row("of fits that lost less than half of their traces", mild)]
    rows.append(row("means over families, all fits", [[tuple(np.mean(fit, axis=0))] for fit in fits]))
    text = table(["what is ranked", "fits", "pairs", "Spearman's rho", "95 % (bootstrap over fits)"], rows)
    note = "A fit is a trial at one scale; the same fit under another seed of the sweep counts again only if it was fitted again."
    write_section(
        "agreement",
        "Search score and written traces",
        f"{provenance('agreement', '0-4')}\n\n{text}\n\n{note}",
    )
    print(text)


def written(file: Path) -> list[Pairs]:
    """The chosen scale, and full scale where that was written from as well."""
    score = json.loads(file.read_text()).get("score") or {}
    if not score:
        return []
    found = [(score["chosen"]["chain_changes"], score["generated_changes"])]
    full = score.get("as_fitted")
    if full and full["scale"]["scale"] != score["chosen"]["scale"]:
        found.append((full["scale"]["chain_changes"], full["written"]))
    return [[(chains[family], traces[family]) for family in traces] for chains, traces in found]


def row(what: str, fits: Sequence[Pairs]) -> list[str]:
    rng = np.random.default_rng(0)
    drawn = [spearman([fits[index] for index in rng.integers(0, len(fits), len(fits))]) for _ in range(2000)]
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    pairs = sum(map(len, fits))
    return [what, str(len(fits)), str(pairs), f"{spearman(fits):+.2f}", f"[{low:+.2f}, {high:+.2f}]"]


def spearman(fits: Sequence[Pairs]) -> float:
    """NaN where one side does not vary."""
    pairs = np.array([pair for fit in fits for pair in fit])
    if not len(pairs) or np.ptp(pairs, axis=0).min() == 0:
        return float("nan")
    return float(spearmanr(pairs).statistic)


if __name__ == "__main__":
    main()
