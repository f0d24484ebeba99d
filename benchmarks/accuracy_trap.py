"""The accuracy trap on the default backbone: what plain supervised fine-tuning gains on ICD-10 and what it does to reasoning.

    python -m benchmarks.accuracy_trap [--full]

Fits plain LoRA at three learning rates on two data forms (answers only; rationale and answer), both asked under the reasoning
instruction, at full scale, and reads each fit beside the backbone: domain accuracy, and on the reasoning families step validity,
whole traces, Information Gain, dependence on the trace, robustness under shift, negative flips. The forms are then compared at
the same domain gain. Each seed reads 8 items a family of its own. Default: one seed, about half an hour on two cores; --full:
three seeds, an hour and a half. A row that is in runs/benchmarks/accuracy_trap is not made again.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from adapters.backbone import Backbone
from adapters.whole_file import write_whole, written_whole
from benchmarks.results import RESULTS, commit, provenance, table, write_section
from engine.profile import Profile
from engine.torch_engine import TorchEngine
from evaluation.base_cache import BaseCache
from evaluation.evaluate import Evaluation, Planned, evaluate
from evaluation.measures import MEASURES
from evaluation.measures.shift import ShiftRobustness
from evaluation.statistics import flips, paired_change
from evaluation.tasks import FAMILIES, task_named
from tuning.isolation import available_threads, prepare, run_isolated
from tuning.plan import DOMAIN_MEASURE
from tuning.recipe import Recipe
from tuning.trial import ADAPTER, Job

RATES, FORMS = (2e-4, 4e-4, 8e-4), ("answer", "rationale")
DOMAIN_ITEMS, ITEMS = 300, 8  # of the select split, which no sweep reads; a family and a seed
SHIFTS = ("wording", "casing", "distractor")
READ = {  # column: (measure, part or None for its value)
    "traces right": ("generation", None),
    "step validity": ("generation", "step_validity"),
    "IG, its traces": ("information_gain_external", None),
    "IG, gold traces": ("information_gain_self", None),
    "l_0": ("information_gain_self", "l_0"),
    "l_t": ("information_gain_self", "l_t"),
    "dependence": ("faithfulness", None),
    "shift": ("shift_robustness", None),
}
CLAIMS = {  # what the papers saw fall: column -> where
    "IG, its traces": "arXiv 2506.02126",
    "IG, gold traces": "arXiv 2506.02126",
    "dependence": "arXiv 2411.15382",
    "shift": "arXiv 2508.01191",
}
PAPERS = (
    "What the papers report: Information Gain falls by 37-39 % on medical and mathematical questions after supervised "
    "fine-tuning while accuracy rises (arXiv 2506.02126, where its own tables give 37.2 %); answers depend less on their chains, "
    "more so in small models (arXiv 2411.15382); chains break outside the training distribution (arXiv 2508.01191, models "
    "trained from scratch). None of them is this backbone or this domain: signs may be compared, sizes may not."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/quickstart.toml"))
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks/accuracy_trap"))
    args = parser.parse_args()
    recipe, seeds = Recipe.load(args.recipe), 3 if args.full else 1
    args.runs.mkdir(parents=True, exist_ok=True)
    rows = []
    prepare(recipe.domain)
    for seed in range(seeds):
        for form in FORMS:
            for rate in RATES:
                file = args.runs / f"{form}-{rate:g}-{seed}.json"
                if not file.is_file():
                    fitted = fit(recipe, form, rate, seed, args.runs)
                    row = {"form": form, "rate": rate, "seed": seed, "commit": commit()} | read(recipe, fitted, seed, args.runs)
                    write_whole(file, json.dumps(row))
                rows.append(json.loads(file.read_text()))
                print(*shown(rows[-1]), flush=True)
    headings = ["data", "learning rate", "seed", "domain gain (95 %)", *READ, "right to wrong", "commit"]
    picture = plot(rows)
    body = [
        f"{provenance('accuracy_trap', '0-2' if args.full else '0')}",
        f"Changes against the backbone with 95 % intervals over {ITEMS} items of each of {len(FAMILIES)} families, other items "
        f"for each seed; the domain's over {DOMAIN_ITEMS} items. IG in nats per answer token; l_0 and l_t: the gold answer "
        "before and after the gold steps. In brackets: on how many items, where not on all; n.m.: not measurable (too few "
        "traces are right to say). Intervals are those of each row's commit.",
        table(headings, [shown(row) for row in rows]),
        f"At the same domain gain, interpolated between the learning rates of each seed:\n\n{matched(rows)}",
        PAPERS,
        f"What of that is seen here, by the fits whose interval is clear of 0:\n\n{reproduced(rows)}",
        "IG over gold traces is l_t - l_0: it rises where l_0 falls by more than l_t, that is where a model knows less without "
        "steps and still reads those that it is given. Dependence and shift can be read only where enough traces are right; what "
        "is lost before that stands under traces right.",
        f"![domain gain against the change of each measure]({picture.name})",
    ]
    write_section("accuracy_trap", "The accuracy trap", "\n\n".join(body))


def fit(recipe: Recipe, form: str, rate: float, seed: int, runs: Path) -> Path:
    """The adapter's directory, fitted in a process of its own. The last fit is written over."""
    values = {"method.target": form, "method.learning_rate": rate, "method.seed": seed, "study.scales": (1.0,)}
    values |= {"evaluation.generated_items": 0, "evaluation.domain_items": 8, "evaluation.chain_items": 8}
    shutil.rmtree(runs / "trial", ignore_errors=True)
    outcome = run_isolated(
        Job(recipe.with_values(values), runs / "trial", runs / "cache", threads=available_threads()), lambda phase, share: None
    )
    if outcome.state != "complete":
        raise SystemExit(f"The fit of {form} at {rate:g} ended as {outcome.state}: {outcome.reason}")
    return runs / "trial" / ADAPTER


def read(recipe: Recipe, adapter: Path, seed: int, runs: Path) -> dict[str, Any]:
    """Every column as (mean, low, high), or None where it is not measurable."""
    backbone = Backbone.load(recipe.backbone)
    engine = TorchEngine(backbone, max_rows=64, precision="bfloat16")
    engine.load("fit", Profile.load(adapter))
    cache = BaseCache(runs / "cache" / "base", "bfloat16")
    domain = task_named(recipe.domain)
    plan = [Planned(MEASURES[DOMAIN_MEASURE], domain, domain.examples("select", DOMAIN_ITEMS), "domain")]
    measures = dict.fromkeys(name for name, _ in READ.values())
    for family in FAMILIES.values():
        examples = family.examples("select", ITEMS * (seed + 1))[ITEMS * seed :]
        for name in measures:
            measure = ShiftRobustness(SHIFTS) if name == "shift_robustness" else MEASURES[name]
            plan.append(Planned(measure, family, examples, "report"))
    found = evaluate(engine, backbone, "fit", plan, cache)
    engine.close()
    gain = found.domain.change
    columns = {column: change(found, measure, part) for column, (measure, part) in READ.items()}
    written = [row for row in found.rows if row.planned.measure.name == "generation"]
    lost = flips([v for row in written for v in row.base.values], [v for row in written for v in row.adapted.values])
    return {"gain": (gain.mean, gain.low, gain.high), "columns": columns, "negative_flips": lost.negative}


def change(found: Evaluation, measure: str, part: str | None) -> tuple[float, float, float, str] | None:
    """The change over all items of all families that are measurable on both sides, families being the clusters."""
    base: list[float] = []
    adapted: list[float] = []
    clusters: list[str] = []
    asked = 0
    for row in found.rows:
        if not row.planned.measure.name.startswith(measure) or row.planned.role != "report":
            continue
        asked += len(row.planned.examples)
        if row.not_measurable:
            continue
        pairs = zip(
            row.base.values if part is None else row.base.parts[part],
            row.adapted.values if part is None else row.adapted.parts[part],
            strict=True,
        )
        known = [pair for pair in pairs if not np.isnan(pair).any()]
        base += [before for before, _ in known]
        adapted += [after for _, after in known]
        clusters += [row.planned.task.name] * len(known)
    if not base:
        return None
    paired = paired_change(base, adapted, clusters)
    return paired.mean, paired.low, paired.high, "" if len(base) == asked else f" ({len(base)})"


def shown(row: dict[str, Any]) -> list[str]:
    columns = [interval(row["columns"][name]) for name in READ]
    flipped = f"{row['negative_flips']:.0%}"
    return [row["form"], f"{row['rate']:g}", str(row["seed"]), interval(row["gain"]), *columns, flipped, row["commit"]]


def interval(found: list[Any] | None) -> str:
    return "n.m." if found is None else f"{found[0]:+.2f} [{found[1]:+.2f}, {found[2]:+.2f}]{''.join(found[3:])}"


def matched(rows: list[dict[str, Any]]) -> str:
    """Each form's change at the largest gain that both reach, by seed: linear between the learning rates on either side.

    Last the mean over the seeds where the column is measurable, with their number.
    """
    by_fit: dict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_fit[row["seed"], row["form"]].append(row)
    lines: list[list[str]] = []
    means: dict[str, list[list[float | None]]] = defaultdict(list)
    for seed in sorted({row["seed"] for row in rows}):
        curves = {form: sorted(by_fit[seed, form], key=lambda row: row["gain"][0]) for form in FORMS}
        gain = min(curve[-1]["gain"][0] for curve in curves.values())
        for form, curve in curves.items():
            cells = [at_gain(curve, gain, name) for name in READ]
            means[form].append([gain, *cells])
            lines.append([form, str(seed), f"{gain:+.3f}", *("n.m." if cell is None else f"{cell:+.2f}" for cell in cells)])
    for form, found in means.items():
        known = [[cell for cell in column if cell is not None] for column in zip(*found, strict=True)]
        shares = [f"{np.mean(column):+.2f} ({len(column)})" if column else "n.m." for column in known[1:]]
        lines.append([form, "mean", f"{np.mean(known[0]):+.3f}", *shares])
    return table(["data", "seed", "domain gain", *READ], lines)


def at_gain(curve: list[dict[str, Any]], gain: float, name: str) -> float | None:
    """None where a fit that is needed is not measurable; below the smallest gain, from no change at no gain."""
    points = [(0.0, 0.0), *((row["gain"][0], row["columns"][name][0]) for row in curve if row["columns"][name] is not None)]
    points = [point for point in sorted(points) if point[0] >= 0]
    if points[-1][0] < gain:
        return None
    gains, changes = zip(*points, strict=True)
    return float(np.interp(gain, gains, changes))


def reproduced(rows: list[dict[str, Any]]) -> str:
    """By claim and form: in how many fits the column fell, rose, did neither, or could not be measured."""
    lines = []
    for column, source in CLAIMS.items():
        for form in FORMS:
            cells = [row["columns"][column] for row in rows if row["form"] == form]
            known = [cell for cell in cells if cell is not None]
            fell, rose = sum(cell[2] < 0 for cell in known), sum(cell[1] > 0 for cell in known)
            counts = [str(count) for count in (fell, rose, len(known) - fell - rose, len(cells) - len(known))]
            said = "not measurable" if not known else "yes" if 2 * fell > len(known) else "in some" if fell else "no"
            lines.append([f"{column} falls", source, form, *counts, said])
    return table(["claim", "where", "data", "fell", "rose", "neither", "not measurable", "reproduces"], lines)


def plot(rows: list[dict[str, Any]]) -> Path:
    """Beside the results: a panel a column, the two forms by their marks."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 4, sharex=True).flat
    for axes, name in zip(panels, READ, strict=True):
        for form, mark in zip(FORMS, "ox", strict=True):
            points = [(row["gain"][0], *row["columns"][name][:3]) for row in rows if row["form"] == form and row["columns"][name]]
            if points:
                gains, means, lows, highs = np.array(points).T
                axes.errorbar(gains, means, yerr=(means - lows, highs - means), fmt=mark, label=form, capsize=2)
        axes.axhline(0, linewidth=0.8, linestyle=":", color="grey")
        axes.set_title(name, fontsize=9)
    figure.supxlabel("domain gain (accuracy, adapted minus backbone)")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower right")
    file = RESULTS.parent / "accuracy_trap.png"
    with written_whole(file) as part:
        figure.savefig(part, format="png", dpi=90)
    return file


if __name__ == "__main__":
    main()
