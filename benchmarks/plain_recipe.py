"""How the quickstart's plain recipe got its learning rate: the best for the domain alone, on the search split.

    python -m benchmarks.plain_recipe [--full]

Fits the quickstart's recipe as written at each learning rate and shows the domain's accuracy on 400 items, and beside it what
that did to the protected families, which played no part in the choice. Fits whose result is in runs/benchmarks are not made
again. Default: one seed, about 8 minutes on two cores; --full: three.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from adapters.whole_file import write_whole
from benchmarks.results import commit, commits, provenance, table, write_section
from tuning.isolation import prepare, run_isolated
from tuning.recipe import Recipe
from tuning.trial import Job

RATES = (1e-4, 2e-4, 3e-4, 5e-4, 8e-4, 1.2e-3, 2e-3)
DOMAIN_ITEMS = 400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/quickstart.toml"))
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks/plain_recipe"))
    args = parser.parse_args()
    recipe = Recipe.load(args.recipe)
    args.runs.mkdir(parents=True, exist_ok=True)
    prepare(recipe.domain)
    rows, kept = list[list[str]](), list[dict[str, Any]]()
    for seed in range(3 if args.full else 1):
        for rate in RATES:
            changed = recipe.with_values(
                {
                    "method.learning_rate": rate,
                    "method.seed": seed,
                    "study.scales": (1.0,),
                    "evaluation.domain_items": DOMAIN_ITEMS,
                }
            )
            file = args.runs / f"{changed.digest()}.json"
            if not file.is_file():
                job = Job(changed, args.runs / "trial", args.runs / "cache", threads=2)
                outcome = run_isolated(job, lambda phase, share: None)
                write_whole(file, json.dumps({**outcome.model_dump(mode="json"), "commit": commit()}))
            kept.append(json.loads(file.read_text()))
            score = kept[-1]["score"]
            written = ", ".join(f"{family} {change:+.2f}" for family, change in score["generated_changes"].items() if change)
            chosen = score["chosen"]
            row = [
                f"{rate:g}",
                str(seed),
                f"{chosen['domain_accuracy']:.3f}",
                f"{chosen['domain_gain']:+.3f} ± {1.96 * chosen['gain_stderr']:.3f}",
                written or "none",
            ]
            rows.append(row)
            print(*row, flush=True)
    headings = ["learning rate", "seed", "domain accuracy", "gain (95 %)", "change in traces right in every step"]
    text, told = table(headings, rows), f"{provenance('plain_recipe')} · rows of {commits(kept)}"
    write_section("plain_recipe", "The plain recipe's learning rate", f"{told}\n\n{text}")


if __name__ == "__main__":
    main()
