"""Five quickstarts with five sweep seeds: how often each end occurred, with the numbers, whatever they are.

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

from benchmarks.results import provenance, table, write_section

SEEDS = range(5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/quickstart.toml"))
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks/sweeps"))
    args = parser.parse_args()
    rows, left = [], len(SEEDS) if args.full else 1
    for seed in SEEDS:
        home = args.runs / str(seed)
        summary = home / "quickstart.json"
        if not summary.is_file():
            if not left:
                continue
            left -= 1
            run(args.recipe, seed, home)
        rows.append(row(seed, json.loads(summary.read_text())))
    headings = [
        "seed",
        "end",
        "trials",
        "plain gain",
        "plain lost",
        "promoted",
        "its gain at the gate",
        "share of the plain gain",
        "minutes",
    ]
    text = f"{provenance('python -m benchmarks.sweeps', '0-4')}\n\n{len(rows)} of {len(SEEDS)} seeds.\n\n{table(headings, rows)}"
    write_section("sweeps", "Quickstarts by sweep seed", text)
    print(table(headings, rows))


def run(recipe: Path, seed: int, home: Path) -> None:
    """One quickstart with its own seed; exit code 3 (nothing passed) is an end like any other."""
    home.mkdir(parents=True, exist_ok=True)
    seeded = home / "recipe.toml"
    seeded.write_text(recipe.read_text().replace("[study]\n", f"[study]\nseed = {seed}\n"))
    command = [sys.executable, "-m", "service.cli", "quickstart", "--recipe", str(seeded), "--home", str(home)]
    with (home / "log.txt").open("w") as log:
        code = subprocess.run(command, stdout=log, stderr=log).returncode
    if code not in (0, 3):
        raise SystemExit(f"The quickstart of seed {seed} ended with {code}; its log is {home / 'log.txt'}.")


def row(seed: int, found: dict[str, object]) -> list[str]:
    def shown(key: str, form: str) -> str:
        value = found.get(key)
        return "-" if value is None else format(value, form)

    lost = found.get("plain_lost")
    seconds = found["seconds"]
    assert isinstance(seconds, dict)
    return [
        str(seed),
        "promoted" if found["promoted"] else "nothing passed",
        shown("trials", "d"),
        shown("plain_gain", "+.3f"),
        ", ".join(lost) if isinstance(lost, list) and lost else "nothing",
        str(found["promoted"] or "-"),
        shown("gate_gain", "+.3f"),
        shown("share_of_plain", ".0%"),
        f"{sum(seconds.values()) / 60:.1f}",
    ]


if __name__ == "__main__":
    main()
