"""Attribution on the default backbone: do the scores find rows that were damaged on purpose, and does leaving them out help?

    python -m benchmarks.attribution [--full]

Of the training rows a tenth is damaged: half of them have the words of their trace shuffled, half have dots in its place. In one
setting they are questions of the protected families, beside as many whole ones; in another they are the domain's own; in the last
nothing is damaged, and all that is found is what plain rows do. The recipe is then fitted without the worst tenth, without random
rows and without the best, and, where those are not the worst exactly, without the damaged rows: the most that scores could reach.
Default: the first setting, a quarter of an hour on one core; --full: all three, under an hour. What was stopped goes on row by
row and fit by fit; delete runs/benchmarks/attribution to measure anew.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from adapters.backbone import Backbone
from adapters.whole_file import write_whole
from benchmarks.results import commit, provenance, table, write_section
from evaluation.task import Example, Task
from evaluation.tasks import task_named
from tuning.arms import BACKBONE, Arm, contrast, finished
from tuning.attribution import Attributed, Attribution, AttributionSpec
from tuning.ground import Ground
from tuning.isolation import use_threads
from tuning.recipe import Recipe
from tuning.removal import BEST, RANDOM, WORST
from tuning.traces import filled

DAMAGED = "without the damaged rows"
FAMILIES, DOMAIN, NOTHING = "of the families", "of the domain", "none"
SETTINGS = (FAMILIES, DOMAIN, NOTHING)
ROWS, SHARE, SEEDS = 120, 0.1, 3
SPEC = AttributionSpec(rows=ROWS, queries=50, checkpoints=2, share=SHARE, seeds=SEEDS)
RECIPE = {
    "name": "attribution",
    "protected": ("boxes", "deduction", "ordering"),
    "method.target": "rationale",
    "method.prompt": "matching",
    "method.learning_rate": 4e-4,
    "method.steps": 15,
    "method.batch_size": 8,
    "evaluation.domain_items": 40,
    "evaluation.chain_items": 32,
    "evaluation.generated_items": 0,
}


@dataclass(frozen=True)
class Mixed:
    """The rows of a fit, the ids of those that were damaged, and of whole ones of the same tasks."""

    rows: Sequence[Example]
    damaged: frozenset[str]
    whole: frozenset[str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/quickstart.toml"))
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks/attribution"))
    args = parser.parse_args()
    args.runs.mkdir(parents=True, exist_ok=True)
    use_threads()
    recipe, rows = Recipe.load(args.recipe).with_values(RECIPE), []
    for setting in SETTINGS if args.full else SETTINGS[:1]:
        file = args.runs / f"{setting.replace(' ', '-')}.json"
        if not file.is_file():
            write_whole(file, json.dumps({"setting": setting, "commit": commit()} | attributed(recipe, setting, args.runs)))
        rows.append(json.loads(file.read_text()))
        print(json.dumps(rows[-1]), flush=True)
    method, sizes = recipe.sft, recipe.evaluation
    scored = ["damaged rows", "below all others", "below whole ones of the same tasks", "among the worst tenth", "commit"]
    fitted = ["damaged rows", "fit", "against the backbone", "against random rows", "by seed", "domain, against random"]
    body = [
        provenance("attribution", f"0-{SEEDS - 1}"),
        f"{ROWS} rows of {recipe.domain}, rationale and answer, {method.steps} steps of {method.batch_size} at "
        f"{method.learning_rate:g}; {SPEC.queries} items a query of {', '.join(recipe.protected)}; {SPEC.checkpoints} "
        "checkpoints. The chance that a damaged row scores below another (AUC), with the 95 % bootstrap interval over rows; 1.00 "
        "[1.00, 1.00] is all of them apart, which bounds nothing:",
        table(scored, [shown(row) for row in rows]),
        f"What leaving a tenth out does: nats per token of the protected gold chains, {sizes.chain_items} items a family of the "
        f"select split, {SEEDS} seeds, 95 % over seeds and items; domain accuracy on {sizes.domain_items} items. Random rows are "
        "as many and as long as the worst.",
        table(fitted, [cells for row in rows for cells in removed(row)]),
        "\n".join(f"- Damaged rows {row['setting']}: {row['said']}" for row in rows),
    ]
    write_section("attribution", "Rows that cost reasoning", "\n\n".join(body))


def attributed(recipe: Recipe, setting: str, runs: Path) -> dict[str, Any]:
    plain = Ground.of(recipe, runs / "cache")
    mixed = mix(plain.backbone, plain.domain, [task_named(name) for name in recipe.protected], setting)
    attribution = Attribution(recipe, SPEC, replace(plain, examples=mixed.rows), runs)
    found = attribution.run(on_progress=told)
    assert found is not None and found.removal is not None
    return discrimination(found, mixed) | removal(attribution, found, mixed) | {"said": " ".join(found.sentences())}


def mix(backbone: Backbone, domain: Task, families: Sequence[Task], setting: str) -> Mixed:
    """As many rows in every setting; of the damaged ones, every second has its words shuffled."""
    count = round(ROWS * SHARE)
    if setting == FAMILIES:
        drawn = [task.examples("train", 2 * count) for task in families]
        asked = [example for turn in zip(*drawn, strict=True) for example in turn][: 2 * count]
        plain = domain.examples("train", ROWS - 2 * count)
        spoilt, whole = asked[::2], asked[1::2]
    else:
        rows = domain.examples("train", ROWS)
        spoilt = rows[:: round(1 / SHARE)] if setting == DOMAIN else []
        plain, whole = [row for row in rows if row not in spoilt], []
    made = [shuffled(row) if index % 2 else filled(backbone, [row])[0] for index, row in enumerate(spoilt)]
    return Mixed([*plain, *whole, *made], frozenset(row.id for row in made), frozenset(row.id for row in whole or plain))


def shuffled(row: Example) -> Example:
    """Every step with as many words as it had, from anywhere in the trace."""
    words = " ".join(row.steps).split()
    random.Random(f"shuffled/{row.id}").shuffle(words)
    drawn = iter(words)
    return replace(row, rationale="\n".join(" ".join(next(drawn) for _ in step.split()) for step in row.steps))


def discrimination(found: Attributed, mixed: Mixed) -> dict[str, Any]:
    """How well the scores tell damaged rows from all others and from whole ones, and how many are among the worst."""
    if not mixed.damaged:
        return {"auc": None, "auc_whole": None, "among_worst": None, "damaged": 0}
    damaged = [one.retention for one in found.influences if one.row in mixed.damaged]
    others = [one.retention for one in found.influences if one.row not in mixed.damaged]
    whole = [one.retention for one in found.influences if one.row in mixed.whole]
    worst = found.worst[: round(ROWS * SHARE)]
    among = sum(one.row in mixed.damaged for one in worst)
    return {"auc": area(damaged, others), "auc_whole": area(damaged, whole), "among_worst": among, "damaged": len(damaged)}


def area(lower: Sequence[float], upper: Sequence[float]) -> tuple[float, float, float]:
    def statistic(one: Sequence[float], other: Sequence[float]) -> float:
        return float(stats.mannwhitneyu(other, one).statistic) / (len(one) * len(other))

    drawn = stats.bootstrap(
        (lower, upper), statistic, n_resamples=2000, vectorized=False, method="percentile", rng=np.random.default_rng(0)
    )
    return statistic(lower, upper), float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)


def removal(attribution: Attribution, found: Attributed, mixed: Mixed) -> dict[str, Any]:
    """The experiment's own arms and, where damaged rows are not the worst exactly, the fit without them."""
    recipe, worst = attribution.recipe, {one.row for one in found.worst[: round(ROWS * SHARE)]}
    kept = [row for row in mixed.rows if row.id not in mixed.damaged]
    is_new = bool(mixed.damaged) and mixed.damaged != worst
    arms = [Arm(DAMAGED, seed, kept, recipe.sft) for seed in range(SEEDS)] if is_new else []
    read = attribution.bench.run(arms, told)
    assert finished(read, arms)
    keys = [f"chain_likelihood/{name}" for name in attribution.families]
    domain = [f"choice_accuracy/{recipe.domain}"]
    found_arms = {}
    for name in (WORST, RANDOM, BEST, *([DAMAGED] if is_new else [])):
        found_arms[name] = {
            "backbone": contrast(read, name, BACKBONE, keys).as_dict(),
            "random": contrast(read, name, RANDOM, keys).as_dict() if name != RANDOM else None,
            "domain": contrast(read, name, RANDOM, domain).as_dict() if name != RANDOM else None,
        }
    return {"arms": found_arms}


def told(what: str, done: int, of: int) -> None:
    if done == of or done % 20 == 0 or "arms" in what:
        print(f"{what}: {done} of {of}", flush=True)


def shown(row: dict[str, Any]) -> list[str]:
    among = "-" if row["among_worst"] is None else f"{row['among_worst']} of {row['damaged']}"
    return [row["setting"], *(interval(row[key], "{:.2f}") for key in ("auc", "auc_whole")), among, row["commit"]]


def removed(row: dict[str, Any]) -> list[list[str]]:
    made = []
    for name, found in row["arms"].items():
        against = [interval(bounds(found[other]), "{:+.4f}") for other in ("backbone", "random")]
        by_seed = " ".join(f"{mean:+.4f}" for mean in found["random"]["by_seed"]) if found["random"] else "-"
        made.append([row["setting"], name, *against, by_seed, interval(bounds(found["domain"]), "{:+.3f}")])
    return made


def bounds(found: dict[str, Any] | None) -> list[float] | None:
    return None if found is None or found["change"] is None else [found[key] for key in ("change", "low", "high")]


def interval(found: Sequence[float] | None, form: str) -> str:
    if found is None:
        return "-"
    mean, low, high = map(form.format, found)
    return f"{mean} [{low}, {high}]"


if __name__ == "__main__":
    main()
