"""How much the removal experiment can see: fits of the test-bed on its own task, with and without damaged rows.

    python -m benchmarks.removal_power

The test-bed solves alchemy; a tenth of the rows that it is fitted on have the words of their traces shuffled. By learning rate,
steps and seeds: what leaving out the worst tenth keeps against random rows, and what leaving out exactly the damaged rows keeps,
which no scores could better. About three minutes on one core. A row that is in runs/benchmarks/removal_power is not made again.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.backbone import TESTBED, Backbone
from adapters.whole_file import write_whole
from benchmarks.attribution import DAMAGED, Mixed, area, bounds, interval, shuffled
from benchmarks.results import commit, provenance, table, write_section
from evaluation.tasks.alchemy import ALCHEMY
from tuning.arms import BACKBONE, Arm, contrast
from tuning.attribution import Attribution, AttributionSpec
from tuning.ground import Ground
from tuning.isolation import use_threads
from tuning.recipe import Recipe
from tuning.removal import CONFIRMED, RANDOM, REFUTED, WORST

ROWS, SHARE, CHAINS = 120, 0.1, ["chain_likelihood/alchemy"]
VERDICTS = {CONFIRMED: "confirmed", REFUTED: "refuted"}


@dataclass(frozen=True)
class Setting:
    learning_rate: float
    steps: int
    seeds: int
    is_damaged: bool = True

    @property
    def name(self) -> str:
        return f"{self.learning_rate:g}-{self.steps}-{self.seeds}-{'damaged' if self.is_damaged else 'whole'}"


SETTINGS = (
    Setting(3e-4, 15, 3),
    Setting(1e-3, 15, 3),
    Setting(3e-3, 15, 3),
    Setting(3e-3, 15, 8),
    Setting(3e-3, 30, 3),
    Setting(3e-3, 15, 3, False),
    Setting(3e-3, 15, 8, False),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks/removal_power"))
    args = parser.parse_args()
    args.runs.mkdir(parents=True, exist_ok=True)
    use_threads()
    backbone, rows = Backbone.load(str(TESTBED)), []
    for setting in SETTINGS:
        file = args.runs / f"{setting.name}.json"
        if not file.is_file():
            write_whole(file, json.dumps({"commit": commit()} | read(backbone, setting, args.runs)))
        rows.append(shown(setting, json.loads(file.read_text())))
        print(*rows[-1], flush=True)
    headings = ["damaged", "learning rate", "steps", "seeds", "AUC of the scores", "the fit's cost"]
    headings += ["without the worst, against random rows", "without the damaged rows, against random rows", "verdict", "commit"]
    body = [
        provenance("removal_power", "0-7"),
        f"{ROWS} rows of alchemy; nats per token of its gold chains, 32 items of the select split, 95 % over seeds and items. "
        "The fit's cost: without random rows, against the backbone.",
        table(headings, rows),
    ]
    write_section("removal_power", "What the removal experiment can see", "\n\n".join(body))


def read(backbone: Backbone, setting: Setting, runs: Path) -> dict[str, Any]:
    mixed = mix(setting.is_damaged)
    values: dict[str, object] = {
        "name": "power",
        "backbone": str(TESTBED),
        "domain": "arithmetic",  # of the ground below, not of the recipe: a recipe protects no task that it fits
        "protected": ("alchemy",),
        "adapter": {"lora": {"rank": 8, "alpha": 16}},
        "method": {"steps": setting.steps, "batch_size": 8, "learning_rate": setting.learning_rate, "target": "rationale"},
        "evaluation": {"domain_items": 8, "chain_items": 32, "generated_items": 0},
    }
    recipe = Recipe.model_validate(values)
    spec = AttributionSpec(rows=ROWS, queries=50, checkpoints=3, share=SHARE, seeds=setting.seeds)
    attribution = Attribution(recipe, spec, Ground(backbone, ALCHEMY, mixed.rows, {}), runs)
    found = attribution.run()
    assert found is not None and found.removal is not None
    kept = [row for row in mixed.rows if row.id not in mixed.damaged]
    arms = [Arm(DAMAGED, seed, kept, recipe.sft) for seed in range(setting.seeds)] if mixed.damaged else []
    stored = [one for one in attribution.bench.run(arms) if one.name == BACKBONE or one.seed < setting.seeds]
    scores = [[one.retention for one in found.influences if (one.row in mixed.damaged) == is_in] for is_in in (True, False)]
    return {
        "auc": area(*scores) if mixed.damaged else None,
        "cost": contrast(stored, RANDOM, BACKBONE, CHAINS).as_dict(),
        "worst": contrast(stored, WORST, RANDOM, CHAINS).as_dict(),
        "damaged": contrast(stored, DAMAGED, RANDOM, CHAINS).as_dict() if mixed.damaged else None,
        "verdict": VERDICTS.get(found.evidence, "undecided"),
    }


def mix(is_damaged: bool) -> Mixed:
    rows = ALCHEMY.examples("train", ROWS, seed=3)
    damaged = frozenset(row.id for row in rows[:: round(1 / SHARE)]) if is_damaged else frozenset()
    made = [shuffled(row) if row.id in damaged else row for row in rows]
    return Mixed(made, damaged, frozenset(row.id for row in rows) - damaged)


def shown(setting: Setting, row: dict[str, Any]) -> list[str]:
    cells = ["a tenth" if setting.is_damaged else "none", f"{setting.learning_rate:g}", str(setting.steps), str(setting.seeds)]
    cells.append(interval(row["auc"], "{:.2f}"))
    return [
        *cells,
        *(interval(bounds(row[key]), "{:+.4f}") for key in ("cost", "worst", "damaged")),
        row["verdict"],
        row["commit"],
    ]


if __name__ == "__main__":
    main()
