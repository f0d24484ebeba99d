"""Every training method beside its controls, on the default backbone and ICD-10: what it gains, what it costs in reasoning.

    python -m benchmarks.methods [--full] [--only ARM ...]

Each row is one trial: fitted within the same budget of tokens (written and learnt together), its scale swept, read on the search
split. One learning rate an arm: what a method could gain under its own best is the sweep's to find (benchmarks.method_sweeps).
Default: one seed and the short budget, two minutes an arm on two cores; --full: three seeds and four times the budget. A row that
is in runs/benchmarks/methods is not made again, and one that was killed goes on.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from adapters.whole_file import write_whole
from benchmarks.results import commit, provenance, table, write_section
from tuning.isolation import available_threads, prepare, run_isolated
from tuning.recipe import Recipe
from tuning.trial import Job

SHORT, LONG = 20_000, 80_000  # tokens
SHARED: dict[str, object] = {
    "search": ("method.learning_rate",),  # nothing is searched; what the recipe searches, not every method has
    "ranges": {},
    "start": (),
    "method.steps": 1000,  # the budget ends the fit
    "method.batch_size": 8,
    "method.learning_rate": 4e-4,
    "study.scales": (0.25, 0.5, 1.0),
    "evaluation.domain_items": 200,
    "evaluation.chain_items": 16,
    "evaluation.generated_items": 12,
}
RATIONALE: dict[str, object] = {"method.target": "rationale"}
SOFT: dict[str, object] = {"adapter.kind": "softcot", "method.name": "softcot", "method.learning_rate": 1e-3}
STATIC: dict[str, object] = {**SOFT, "adapter.softcot.static": True}
UNLEARNT: dict[str, object] = {**STATIC, "method.learning_rate": 1e-12}  # the places with their unused tokens
ROLLOUTS: dict[str, object] = {"method.group_size": 4, "method.learning_rate": 1e-4}
RLVR: dict[str, object] = {**ROLLOUTS, "method.name": "rlvr"}
ONE: dict[str, object] = {**RLVR, "method.examples": "one", "method.candidates": 4, "method.history_epochs": 2}
RLAG: dict[str, object] = {"method.name": "rlag", "method.learning_rate": 1e-4}
RLAG_GRPO: dict[str, object] = {**ROLLOUTS, "method.name": "rlag_grpo"}
RLSF: dict[str, object] = {"method.name": "rlsf", "method.learning_rate": 3e-5}
NULL_SPACE: dict[str, object] = {"adapter.lora.init": "null_space", "adapter.lora.freeze_a": True}
BRANCHED = {"method.num_questions": 1250, "method.num_labelled": 1000}  # so that half of the budget is left to learn


@dataclass(frozen=True)
class Arm:
    """`control` names the arm that this one must beat before a gain is credited to what is particular about it.

    `per_tokens`: numbers that grow with the budget, one for so many of its tokens.
    """

    control: str | None
    values: Mapping[str, object]
    per_tokens: Mapping[str, int] = field(default_factory=dict)

    def under(self, budget: int) -> dict[str, object]:
        grown = {name: max(1, budget // tokens) for name, tokens in self.per_tokens.items()}
        return {**SHARED, **self.values, **grown, "method.token_budget": budget}


ARMS = {
    "sft, answer": Arm(None, {}),
    "sft, rationale": Arm("sft, answer", RATIONALE),
    "sft, dft": Arm("sft, rationale", {**RATIONALE, "method.loss": "dft"}),
    "sft, weight decay": Arm("sft, rationale", {**RATIONALE, "method.weight_decay": 0.3}),
    "sft, KL on completions": Arm("sft, rationale", {**RATIONALE, "method.kl_weight": 0.2}),
    "sft, KL on replay": Arm("sft, rationale", {**RATIONALE, "method.kl_weight": 0.2, "method.kl_on": "replay"}),
    "sft, replay": Arm("sft, rationale", {**RATIONALE, "method.replay_share": 0.25}),
    "sft, MLP alone": Arm("sft, rationale", {**RATIONALE, "adapter.lora.target_modules": "mlp"}),
    "sft, lower third": Arm("sft, rationale", {**RATIONALE, "adapter.lora.band": "lower"}),
    "sft, rank 4": Arm("sft, rationale", {**RATIONALE, "adapter.lora.rank": 4, "adapter.lora.alpha": 8}),
    "sft, null space": Arm("sft, rationale", {**RATIONALE, **NULL_SPACE}),
    "softcot": Arm("softcot, static", SOFT),
    "softcot, static": Arm("softcot, nothing learnt", STATIC),
    "softcot, nothing learnt": Arm(None, UNLEARNT),
    "softcot++": Arm("softcot", {**SOFT, "adapter.softcot.num_chains": 4}),
    "rewrite": Arm("sft, rationale", {**RATIONALE, "method.name": "rewrite"}),
    "rewrite, any": Arm(None, {**RATIONALE, "method.name": "rewrite", "method.keep": "any"}),
    "star": Arm("star, any", {"method.name": "star"}),
    "star, any": Arm(None, {"method.name": "star", "method.keep": "any"}),
    "critique": Arm("critique, shuffled", {**RATIONALE, "method.name": "critique", "method.problems": "both"}),
    "critique, shuffled": Arm(None, {**RATIONALE, "method.name": "critique", "method.problems": "both", "method.shuffled": True}),
    "criteria": Arm("criteria, plain labels", {"method.name": "criteria", "method.problems": "both"}),
    "criteria, plain labels": Arm(None, {"method.name": "criteria", "method.problems": "both", "method.guided": False}),
    "sdft": Arm("sdft, another's context", {"method.name": "sdft", "method.learning_rate": 1e-4}),
    "sdft, another's context": Arm(None, {"method.name": "sdft", "method.learning_rate": 1e-4, "method.context": "other"}),
    "rlvr": Arm("rlvr, coin", RLVR),
    "rlvr, format": Arm(None, {**RLVR, "method.reward": "format"}),
    "rlvr, coin": Arm(None, {**RLVR, "method.reward": "random"}),
    "rlvr, one example": Arm("rlvr, one example, format", ONE),
    "rlvr, one example, format": Arm(None, {**ONE, "method.reward": "format"}),
    "rlag": Arm("rlag, any texts", RLAG),
    "rlag, any texts": Arm(None, {**RLAG, "method.retrieval": "random"}),
    "rlag_grpo": Arm("rlag_grpo, accuracy alone", RLAG_GRPO),
    "rlag_grpo, no literature": Arm(None, {**RLAG_GRPO, "method.literature": "never"}),
    "rlag_grpo, accuracy alone": Arm(None, {**RLAG_GRPO, "method.rationality_weight": 0.0}),
    "rlsf": Arm("rlsf, coin", RLSF, BRANCHED),
    "rlsf, coin": Arm(None, {**RLSF, "method.preferences": "random"}, BRANCHED),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--only", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/quickstart.toml"))
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks/methods"))
    args = parser.parse_args()
    recipe, seeds, budget = Recipe.load(args.recipe), 3 if args.full else 1, LONG if args.full else SHORT
    args.runs.mkdir(parents=True, exist_ok=True)
    prepare()
    rows = [row_of(recipe, arm, seed, budget, args.runs) for seed in range(seeds) for arm in args.only]
    write_section("methods", "Training methods", "\n\n".join(body(rows, budget)))


def row_of(recipe: Recipe, arm: str, seed: int, budget: int, runs: Path) -> dict[str, Any]:
    """The stored row, or one that is made now; a trial that failed is a row with its reason."""
    file = runs / f"{arm.replace(' ', '_').replace(',', '')}-{seed}-{budget}.json"
    if not file.is_file():
        values = {**ARMS[arm].under(budget), "method.seed": seed, "adapter.lora.seed": seed, "adapter.softcot.seed": seed}
        begun = runs / "begun" / file.stem  # a row that was killed goes on there
        job = Job(recipe.with_values(values), begun, runs / "cache", available_threads(), reference=True)
        outcome = run_isolated(job, lambda phase, share: None)
        made = {"arm": arm, "seed": seed, "commit": commit(), "outcome": outcome.model_dump(mode="json")}
        write_whole(file, json.dumps(made))
        shutil.rmtree(begun)
    row: dict[str, Any] = json.loads(file.read_text())
    print(*shown(row), flush=True)
    return row


def body(rows: list[dict[str, Any]], budget: int) -> list[str]:
    families = sorted({family for row in done(rows) for family in row["outcome"]["score"]["generated_changes"]})
    headings = [
        "arm",
        "seed",
        "gain",
        "scale",
        "retention",
        "feasible",
        "all traces",
        "forward KL",
        "tokens",
        "seconds",
        "MiB",
        "commit",
    ]
    return [
        provenance("methods", "0-2" if len({row["seed"] for row in rows}) > 1 else "0"),
        f"{budget:,} tokens an arm, written and learnt together. Gain: accuracy of ICD-10 minus the backbone's at the chosen "
        "scale, 200 items; retention: mean over the families of min(0, change / margin) of the chain's likelihood; all traces: "
        "change of the share of written traces that are right in every step, at the chosen scale and, in brackets, as fitted.",
        table(headings, [shown(row) for row in rows]),
        f"Change of the written traces by family, as fitted:\n\n{by_family(done(rows), families)}",
        "At the same domain gain, interpolated between the scales of each fit: the change of the chain's likelihood in nats per "
        f"token, mean over the families, and of each family the arm's minus the control's:\n\n{matched(done(rows))}",
    ]


def done(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["outcome"]["state"] == "complete"]


def shown(row: dict[str, Any]) -> list[str]:
    outcome = row["outcome"]
    if outcome["state"] != "complete":
        return [row["arm"], str(row["seed"]), f"{outcome['state']}: {outcome['reason']}", *[""] * 8, row["commit"]]
    score, fit = outcome["score"], outcome["fit"]
    chosen = score["chosen"]
    whole = score["as_fitted"]
    traces = f"{np.mean(list(score['generated_changes'].values())):+.2f} ({np.mean(list(whole['written'].values())):+.2f})"
    return [
        row["arm"],
        str(row["seed"]),
        f"{chosen['domain_gain']:+.3f} ± {1.96 * chosen['gain_stderr']:.3f}",
        f"{chosen['scale']:g}",
        f"{score['retention']:+.2f}",
        "yes" if score["feasible"] else "no",
        traces,
        f"{score['forward_kl']:.3f}",
        f"{fit['num_tokens']:,} + {fit['num_generated']:,}",
        f"{outcome['seconds']['fit']:.0f}",
        f"{outcome['peak_memory_mib']:.0f}",
        row["commit"],
    ]


def by_family(rows: list[dict[str, Any]], families: list[str]) -> str:
    cells = [
        [
            row["arm"],
            str(row["seed"]),
            *(f"{row['outcome']['score']['as_fitted']['written'][family]:+.2f}" for family in families),
        ]
        for row in rows
    ]
    return table(["arm", "seed", *families], cells)


def matched(rows: list[dict[str, Any]]) -> str:
    """Each arm and its control at the largest gain that both reach: the change of the chain's likelihood, mean and by family."""
    curves = {(row["arm"], row["seed"]): row["outcome"]["score"]["scales"] for row in rows}
    families = sorted({family for curve in curves.values() for one in curve for family in one["chain_changes"]})
    lines = []
    for (arm, seed), curve in curves.items():
        control = ARMS[arm].control
        if control is None or (control, seed) not in curves:
            continue
        pair = (curve, curves[control, seed])
        gain = min(max(score["domain_gain"] for score in one) for one in pair)
        if gain > 0:
            own, other = (at_gain(one, gain) for one in pair)
            means = [float(np.mean(list(changes.values()))) for changes in (own, other)]
            apart = [f"{own[family] - other[family]:+.4f}" for family in families]
            lines.append([arm, control, str(seed), f"{gain:+.3f}", *(f"{mean:+.4f}" for mean in means), *apart])
    return table(["arm", "control", "seed", "gain", "chains of the arm", "chains of the control", *families], lines)


def at_gain(scales: list[dict[str, Any]], gain: float) -> dict[str, float]:
    """By family, the change of its chains at that gain: from none at no gain, linear between the scales."""
    changes = {family: 0.0 for family in scales[0]["chain_changes"]}
    points = sorted([(0.0, changes), *((one["domain_gain"], one["chain_changes"]) for one in scales)], key=lambda point: point[0])
    gains = [point[0] for point in points]
    return {family: float(np.interp(gain, gains, [point[1][family] for point in points])) for family in changes}


if __name__ == "__main__":
    main()
