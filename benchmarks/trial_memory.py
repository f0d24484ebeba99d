"""Peak resident memory of a trial by batch size: the quickstart's recipe with rationales, fit and measurement in its own process.

    python -m benchmarks.trial_memory [--steps 4]

About 5 minutes on two cores. Goal: under 4 GB at batch 32.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from benchmarks.results import provenance, table, write_section
from tuning.isolation import prepare, run_isolated
from tuning.recipe import Recipe
from tuning.trial import Job

SHAPES = ((32, "lora"), (12, "lora"), (32, "softcot"), (32, "lora+softcot"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/quickstart.toml"))
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks/trial_memory"))
    parser.add_argument("--first", type=int, default=len(SHAPES), help="Only the first so many shapes.")
    args = parser.parse_args()
    prepare()
    rows = []
    for batch, kind in SHAPES[: args.first]:
        recipe = Recipe.load(args.recipe).with_values(
            {"adapter.kind": kind, "method.target": "rationale", "method.batch_size": batch, "method.steps": args.steps}
        )
        directory = args.runs / f"{kind}-{batch}"
        shutil.rmtree(directory, ignore_errors=True)
        outcome = run_isolated(Job(recipe, directory, args.runs / "cache", threads=2), lambda phase, share: None)
        fit = outcome.fit["tokens_per_s"]
        rows.append([kind, str(batch), f"{outcome.peak_memory_mib / 1024:.2f}", f"{fit:.0f}"])
        print(*rows[-1], flush=True)
    text = table(["adapter", "batch", "peak resident memory, GiB", "tokens/s of the fit"], rows)
    text += "\n\nThe goal is under 4 GiB at batch 32."
    write_section("trial_memory", "Peak memory of a trial", f"{provenance('trial_memory')}\n\n{text}")


if __name__ == "__main__":
    main()
