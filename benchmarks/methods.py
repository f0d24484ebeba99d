"""Every training method beside its controls, on the default backbone and ICD-10: what it gains, what it costs in reasoning.

    python -m benchmarks.methods [--full] [--only ARM ...] [--thoughts] [--workers N]

Each row is one trial: fitted within the same budget of tokens (written and learnt together), its scale swept, read on the search
split. One learning rate an arm: what a method could gain under its own best is the sweep's to find (benchmarks.method_sweeps).

Default: every method beside its control, the curriculum, a warm start, a merge and the reduction of intruder dimensions (MAIN in
benchmarks.method_arms), one seed, the short budget; about an hour on two quiet cores with 16 GB, a row on each. --full: all arms,
three seeds, four times the budget. A row that is in runs/benchmarks/methods is not made again, and one that was killed goes on.
What an arm needs of another is fitted first, once, and stays in the runs folder.

--thoughts: LoRA, SoftCoT, both and their static arms alone, three seeds and the short budget (--full: four times it), in a
section of their own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from adapters.merge import IntruderSpec
from adapters.whole_file import write_whole
from benchmarks.kept_adapters import Kept
from benchmarks.method_arms import ARMS, KEPT, LONG, MAIN, SHORT, THOUGHTS, expected_minutes, with_earlier
from benchmarks.results import commit, provenance, run_kind, table, write_section
from registry.manifest import verify
from tuning.isolation import available_threads, prepare, run_isolated
from tuning.recipe import Recipe
from tuning.trial import ADAPTER, Job, Outcome

DECIDING = {"backbone", "domain", "protected", "adapter", "method", "evaluation"}
HEADINGS = [
    *("arm", "seed", "gain", "scale", "retention", "feasible"),
    *("all traces", "forward KL", "tokens", "seconds", "MiB", "commit"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--only", nargs="+", choices=ARMS, metavar="ARM")
    parser.add_argument("--thoughts", action="store_true", help="LoRA, SoftCoT and both, three seeds, in a section of their own")
    parser.add_argument("--workers", type=int, default=available_threads(), help="rows at a time, which share the cores")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/quickstart.toml"))
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks/methods"))
    args = parser.parse_args()
    if not 1 <= args.workers <= available_threads():
        parser.error(f"--workers is 1 to {available_threads()}, the cores that there are, but got {args.workers}.")
    if args.thoughts and args.only:
        parser.error("--thoughts names its arms, and so does --only: give one of them.")
    recipe, seeds = Recipe.load(args.recipe), 3 if args.full or args.thoughts else 1
    budget = LONG if args.full else SHORT
    arms = with_earlier(args.only or (THOUGHTS if args.thoughts else tuple(ARMS if args.full else MAIN)))
    print(f"{len(arms)} of {len(ARMS)} arms, about {seeds * expected_minutes(arms, budget):.0f} minutes on two cores", flush=True)
    prepare(recipe.domain)
    benches = [Bench(recipe, seed, budget, args.runs, available_threads() // args.workers) for seed in range(seeds)]
    with ThreadPoolExecutor(args.workers) as pool:
        rows = [row for bench in benches for row in bench.rows(arms, pool)]
    if args.thoughts:
        title = f"LoRA, SoftCoT and both ({run_kind(full=args.full)})"
        write_section("thoughts", title, "\n\n".join([provenance("methods", "0-2"), *thoughts(rows, budget)]))
    else:
        write_section("methods", "Training methods", "\n\n".join(body(rows, budget)))


@dataclass(frozen=True)
class Bench:
    """The rows of one seed."""

    recipe: Recipe
    seed: int
    budget: int
    runs: Path
    threads: int  # of a row

    @property
    def kept(self) -> Kept:
        return Kept(self.runs / "adapters", self.recipe.backbone, self.key)

    def key(self, arm: str) -> str:
        """Of its row and its adapter: with a digest of all that decides them, so that an arm that was changed is made anew."""
        recipe = self._recipe(arm)
        fields = [recipe.model_dump(mode="json", include=DECIDING), recipe.study.scales]
        deciding = [fields, repr(ARMS[arm].made), *map(self.key, ARMS[arm].first)]
        digest = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()
        return f"{arm.replace(' ', '_').replace(',', '')}-{self.seed}-{self.budget}-{digest[:8]}"

    def _recipe(self, arm: str) -> Recipe:
        """Without the adapters that it needs."""
        seeds = {"method.seed": self.seed, "adapter.lora.seed": self.seed, "adapter.softcot.seed": self.seed}
        return self.recipe.with_values({**ARMS[arm].under(self.budget), **seeds})

    def rows(self, arms: Sequence[str], pool: Executor) -> list[dict[str, Any]]:
        """In the order of the arms, where those that another needs come before it; several are made at a time."""
        made = dict[str, Future[dict[str, Any]]]()

        def after_those_it_needs(arm: str) -> dict[str, Any]:
            wait(made[first] for first in ARMS[arm].first)
            return self.row(arm)

        for arm in arms:
            made[arm] = pool.submit(after_those_it_needs, arm)
        return [row.result() for row in made.values()]

    def row(self, arm: str) -> dict[str, Any]:
        """The stored row, or one that is made now; a trial that failed is a row with its reason."""
        file = self.runs / f"{self.key(arm)}.json"
        if not self._is_whole(arm, file):
            self.runs.mkdir(parents=True, exist_ok=True)
            begun = self.runs / "begun" / file.stem  # a row that was killed goes on there
            outcome = self._outcome(arm, begun)
            if arm in KEPT and outcome.state == "complete":
                self.kept.take(arm, begun / ADAPTER)
            made = {"arm": arm, "seed": self.seed, "commit": commit(), "outcome": outcome.model_dump(mode="json")}
            made |= {"intruders": self._num_intruders(arm)}
            write_whole(file, json.dumps(made))
            shutil.rmtree(begun, ignore_errors=True)
        row: dict[str, Any] = json.loads(file.read_text())
        print(*shown(row), flush=True)
        return row

    def _num_intruders(self, arm: str) -> int | None:
        """That were reduced; None where an arm reduces none."""
        made = ARMS[arm].made
        if made is None or not isinstance(made.how, IntruderSpec) or not self.kept.of(made.of[0]).is_dir():
            return None
        found = verify(self.kept.made(made)).derived.get("intruders", {})
        assert isinstance(found, dict)
        return sum(int(str(count)) for count in found.values())

    def _is_whole(self, arm: str, file: Path) -> bool:
        """Stored, with the adapter that others need."""
        if not file.is_file():
            return False
        is_complete = json.loads(file.read_text())["outcome"]["state"] == "complete"
        return arm not in KEPT or not is_complete or self.kept.of(arm).is_dir()

    def _outcome(self, arm: str, begun: Path) -> Outcome:
        spec = ARMS[arm]
        for first in spec.first:
            if not self.kept.of(first).is_dir() and self.row(first)["outcome"]["state"] != "complete":
                return Outcome(state="failed", reason=f"the arm {first!r}, whose adapter it needs, was not fitted")
        recipe = self._recipe(arm).with_values(self.kept.fields(spec))
        given = self.kept.made(spec.made) if spec.made else None
        job = Job(recipe, begun, self.runs / "cache", self.threads, reference=True, keep_as_fitted=True, given=given)
        return run_isolated(job, lambda phase, share: None)


def body(rows: list[dict[str, Any]], budget: int) -> list[str]:
    families = sorted({family for row in done(rows) for family in row["outcome"]["score"]["generated_changes"]})
    minutes = sum(sum(row["outcome"]["seconds"].values()) for row in rows) / 60
    names = {row["arm"] for row in rows}
    return [
        provenance("methods", "0-2" if len({row["seed"] for row in rows}) > 1 else "0"),
        f"{len(names)} of {len(ARMS)} arms, {minutes:.0f} minutes of work shared by the cores (`--full` runs all, under three "
        f"seeds and {LONG:,} tokens). "
        f"{budget:,} tokens an arm, written and learnt together; an earlier adapter's come on top, and what is made of fitted "
        "adapters is read without being fitted. What is gone on from or combined is taken as it was fitted, whatever scale was "
        "chosen. Gain: accuracy of ICD-10 (for the curriculum and on the graph, of the graph's "
        "held-out paths) minus the backbone's at the chosen scale, 200 items. Retention: mean over the families of min(0, change "
        "/ margin) of the chain's likelihood. All traces: change of the share of written traces that are right in every step, "
        "at the chosen scale and, in brackets, as fitted.",
        table(HEADINGS, [shown(row) for row in rows]),
        "Gain minus the better control's, both at their chosen scales. The intervals are those of two samples, though both "
        f"are read on the same items: wider than need be. Credited: the interval is above 0.\n\n{credited(done(rows))}",
        f"Change of the written traces by family, as fitted:\n\n{by_family(done(rows), families)}",
        "At the same domain gain, interpolated between the scales of each fit: the change of the chain's likelihood in nats per "
        "token, mean over the families, the forward KL of both, and of each family the arm's change minus the control's:\n\n"
        f"{matched(done(rows))}",
        f"At the same scale, without its intruder dimensions and with them:\n\n{at_scales(done(rows))}",
    ]


def thoughts(rows: list[dict[str, Any]], budget: int) -> list[str]:
    """The arms by seed and over the seeds, and what each gains above its controls."""
    return [
        f"Run with `--thoughts`: {budget:,} tokens an arm, three seeds. Gain: accuracy of ICD-10 minus the backbone's at the "
        "chosen scale, the same 200 items for all. Retention: mean over the families of min(0, change / margin) of the chain's "
        "likelihood. Traces: change of the share of written traces that are right in every step, at the chosen scale. The "
        "interval over seeds is Student's t of the fits: it holds their spread, not the items'. Static: thoughts that do not "
        "read the question; nothing learnt: the places with their unused tokens.",
        over_seeds(done(rows)),
        table(HEADINGS, [shown(row) for row in rows]),
        f"Gain minus the better control's, both at their chosen scales, with the items' interval:\n\n{credited(done(rows))}",
    ]


def over_seeds(rows: list[dict[str, Any]]) -> str:
    """Means of the gain, the retention and the traces over the seeds of each arm."""
    lines = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        scores = [row["outcome"]["score"] for row in rows if row["arm"] == arm]
        gains = [score["chosen"]["domain_gain"] for score in scores]
        traces = [float(np.mean(list(score["generated_changes"].values()))) for score in scores]
        retention = [score["retention"] for score in scores]
        feasible = f"{sum(score['feasible'] for score in scores)} of {len(scores)}"
        lines.append([arm, str(len(scores)), *map(spread, (gains, retention, traces)), feasible])
    return table(["arm", "seeds", "gain", "retention", "traces", "feasible"], lines)


def spread(values: list[float]) -> str:
    """Mean and its 95 % interval under Student's t; without one of a single value."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:+.3f}"
    half = float(stats.t.ppf(0.975, len(values) - 1)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return f"{mean:+.3f} ± {half:.3f}"


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
    """Each arm and its control at the largest gain that both reach: chains (mean and by family) and forward KL."""
    curves = {(row["arm"], row["seed"]): row["outcome"]["score"]["scales"] for row in rows}
    families = sorted({family for curve in curves.values() for one in curve for family in one["chain_changes"]})
    lines = []
    for (arm, seed), curve in curves.items():
        control = better(arm, seed, curves)
        if control is None:
            continue
        pair = (curve, curves[control, seed])
        gain = min(map(largest_gain, pair))
        if gain > 0:
            own, other = (at_gain(one, gain) for one in pair)
            means = [f"{np.mean(list(changes.values())):+.4f}" for changes in (own, other)]
            distances = [f"{kl_at_gain(one, gain):.4f}" for one in pair]
            apart = [f"{own[family] - other[family]:+.4f}" for family in families]
            lines.append([arm, control, str(seed), f"{gain:+.3f}", *means, *distances, *apart])
    both = [f"{what} of the {whose}" for what in ("chains", "forward KL") for whose in ("arm", "control")]
    return table(["arm", "control", "seed", "gain", *both, *families], lines)


def credited(rows: list[dict[str, Any]]) -> str:
    """What each arm gains above its control at the scales that a sweep would publish, and whether that is clear of 0."""
    chosen = {(row["arm"], row["seed"]): row["outcome"]["score"]["chosen"] for row in rows}
    lines = []
    for (arm, seed), own in chosen.items():
        read = {control: chosen[control, seed] for control in ARMS[arm].controls if (control, seed) in chosen}
        if read:
            name, other = max(read.items(), key=lambda one: float(one[1]["domain_gain"]))
            above, wide = own["domain_gain"] - other["domain_gain"], 1.96 * math.hypot(own["gain_stderr"], other["gain_stderr"])
            lines.append([arm, name, str(seed), f"{above:+.3f} ± {wide:.3f}", "yes" if above > wide else "no"])
    return table(["arm", "control", "seed", "above the control", "credited"], lines)


def better(arm: str, seed: int, curves: dict[tuple[str, int], list[dict[str, Any]]]) -> str | None:
    """Of the arm's controls that were read, the one that gains most."""
    found = [control for control in ARMS[arm].controls if (control, seed) in curves]
    return max(found, key=lambda control: largest_gain(curves[control, seed]), default=None)


def at_scales(rows: list[dict[str, Any]]) -> str:
    """What an adapter gains and does to the chains before and after its intruder dimensions are reduced, scale by scale."""
    curves = {(row["arm"], row["seed"]): row["outcome"]["score"]["scales"] for row in rows}
    numbers = {(row["arm"], row["seed"]): row.get("intruders") for row in rows}
    lines = []
    for (arm, seed), curve in curves.items():
        made = ARMS[arm].made
        control = better(arm, seed, curves)
        if made is None or not isinstance(made.how, IntruderSpec) or control is None:
            continue
        for one, other in zip(curve, curves[control, seed], strict=True):
            chains = [f"{np.mean(list(read['chain_changes'].values())):+.4f}" for read in (one, other)]
            gains = [f"{read['domain_gain']:+.3f}" for read in (one, other)]
            lines.append([arm, str(seed), f"{one['scale']:g}", str(numbers[arm, seed]), *gains, *chains])
    return table(["arm", "seed", "scale", "intruders", "gain", "gain with them", "chains", "chains with them"], lines)


def largest_gain(scales: Sequence[dict[str, Any]]) -> float:
    return max(float(one["domain_gain"]) for one in scales)


def at_gain(scales: Sequence[dict[str, Any]], gain: float) -> dict[str, float]:
    """By family, the change of its chains at that gain: from none at no gain, linear between the scales."""
    families = scales[0]["chain_changes"]
    return {family: interpolated(scales, gain, [one["chain_changes"][family] for one in scales]) for family in families}


def kl_at_gain(scales: Sequence[dict[str, Any]], gain: float) -> float:
    """In the same way."""
    return interpolated(scales, gain, [one["forward_kl"] for one in scales])


def interpolated(scales: Sequence[dict[str, Any]], gain: float, values: Sequence[float]) -> float:
    points = sorted([(0.0, 0.0), *zip([one["domain_gain"] for one in scales], values, strict=True)], key=lambda point: point[0])
    return float(np.interp(gain, [at for at, _ in points], [value for _, value in points]))


if __name__ == "__main__":
    main()
