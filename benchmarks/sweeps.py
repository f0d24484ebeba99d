"""Five quickstarts with five seeds of sweep and fit: how often each end occurred, with the numbers, whatever they are.

    python -m benchmarks.sweeps [--full]

Each seed is a whole `graftline quickstart` in a home of its own under runs/benchmarks/sweeps; a seed with a summary is not run
again. One quickstart takes about 12 minutes on two cores. Default: the seeds that are there and one more; --full: all five.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from adapters.whole_file import write_whole
from benchmarks.results import commit, provenance, table, write_section

SEEDS = range(5)
NUM_FAMILIES = 7
COMMIT = "commit.txt"
PHASES = ("backbone and registry", "sweep", "gate", "comparison", "service")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/quickstart.toml"))
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks/sweeps"))
    args = parser.parse_args()
    rows, summaries, left = [], [], len(SEEDS) if args.full else 1
    for seed in SEEDS:
        home = args.runs / str(seed)
        summary = home / "quickstart.json"
        if not summary.is_file():
            if not left:
                continue
            left -= 1
            run(args.recipe, seed, home)
        summaries.append((seed, json.loads(summary.read_text())))
        made_by = home / COMMIT
        rows.append([*row(*summaries[-1]), made_by.read_text() if made_by.is_file() else "unknown"])
    headings = [
        "seed",
        "end",
        "trials",
        "plain recipe lost",
        "plain gain",
        "promoted gain",
        "share of the plain gain",
        "gain at the gate",
        "worst family at the gate",
        "promoted",
        "minutes",
        "commit",
    ]
    phases = table(["seed", *PHASES, "in all"], [phase_row(seed, summary) for seed, summary in summaries])
    promoted = sum(row[1] == "promoted" for row in rows)
    ends = f"{len(rows)} of {len(SEEDS)} seeds were run; {promoted} promoted an adapter, {len(rows) - promoted} promoted nothing."
    text = f"{provenance('sweeps', '0-4')}\n\n{ends}\n\n{table(headings, rows)}"
    write_section("sweeps", "Quickstarts by sweep seed", f"{text}\n\nWall time by phase:\n\n{phases}")
    print(table(headings, rows))


def run(recipe: Path, seed: int, home: Path) -> None:
    """One quickstart with its own seed; exit code 3 (nothing passed) is an end like any other."""
    home.mkdir(parents=True, exist_ok=True)
    seeded = home / "recipe.toml"
    text = recipe.read_text()
    for part in ("study", "method"):
        text = text.replace(f"[{part}]\n", f"[{part}]\nseed = {seed}\n")
    write_whole(seeded, text)
    write_whole(home / COMMIT, commit())
    command = [sys.executable, "-m", "service.cli", "quickstart", "--recipe", str(seeded), "--home", str(home)]
    with (home / "log.txt").open("w") as log:
        code = subprocess.run(command, stdout=log, stderr=log).returncode
    if code not in (0, 3):
        raise SystemExit(f"The quickstart of seed {seed} ended with {code}; its log is {home / 'log.txt'}.")


def row(seed: int, found: dict[str, Any]) -> list[str]:
    """Gains of both are on the same fresh items of the select split, with 95 % intervals."""
    lost, compared, kept = found["plain_lost"], found["comparison"], found["gate_retention"]
    params = {name.rsplit(".", 1)[-1]: value for name, value in (found["promoted_params"] or {}).items()}
    worst = min(kept.items(), key=lambda entry: entry[1]) if kept else None
    return [
        str(seed),
        "promoted" if found["promoted"] else "nothing passed",
        str(found["trials"]),
        f"{len(lost)} of {NUM_FAMILIES}" if lost is not None else "-",
        interval(compared["first"]) if compared else "-",
        interval(compared["second"]) if compared else "-",
        f"{compared['share']:.0%} [{compared['share_low']:.0%}, {compared['share_high']:.0%}]"
        if compared and compared["share"] is not None
        else "-",
        f"{found['gate_gain']:+.3f} (at least {found['gate_gain_at_least']:+.3f})" if found["gate_gain"] is not None else "-",
        f"{worst[0]} {worst[1]:+.3f}" if worst else "-",
        ", ".join(f"{name} {value:.2g}" if isinstance(value, float) else str(value) for name, value in params.items()) or "-",
        f"{sum(found['seconds'].values()) / 60:.1f}",
    ]


def phase_row(seed: int, found: dict[str, Any]) -> list[str]:
    seconds = found["seconds"]
    return [
        str(seed),
        *(f"{seconds[name]:.0f} s" if name in seconds else "-" for name in PHASES),
        f"{sum(seconds.values()):.0f} s",
    ]


def interval(gain: dict[str, float]) -> str:
    return f"{gain['change']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"


if __name__ == "__main__":
    main()
