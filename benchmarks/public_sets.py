"""The quickstart's recipe on public sets: plain fine-tuning's best against what the joint sweep chose, on items that neither saw.

    python -m benchmarks.public_sets --data DIR [--full] [--only DOMAIN ...] [--written]

A knowledge domain from outside is fitted on the built-in reasoner; beside the built-in families, reasoning sets from outside are
protected too, as far as the backbone can do them. DIR holds the sets as benchmarks/public_tasks.py says; they are never copied.
Every admission, fit, trial and reading stays in runs/benchmarks/public_sets: a run that was killed goes on, and --written tells
of what is finished by now. Default: elementary science, three rates of plain fine-tuning and a sweep of six trials, about 45
minutes on two quiet cores; --only: the domains that are named; --full: law and medicine too, and sweeps of twelve.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from adapters.backbone import Backbone
from adapters.whole_file import write_whole
from benchmarks.public_tasks import DOMAINS, RETENTION, missing, write_tasks
from benchmarks.results import commit, commits, provenance, run_kind, write_section
from engine.profile import Profile
from engine.torch_engine import TorchEngine
from evaluation.admission import admissions
from evaluation.base_cache import BaseCache
from evaluation.evaluate import Evaluation, Planned, Row, evaluate
from evaluation.measures import MEASURES
from evaluation.retention import gate_measure
from evaluation.statistics import PairedChange, paired_change
from evaluation.task import Task
from evaluation.tasks import FAMILIES, task_named
from registry.manifest import file_digest
from registry.tracking import Tracking
from service.commands.tune import run_sweep
from tuning.isolation import available_threads, prepare, run_isolated
from tuning.plan import DOMAIN_MEASURE
from tuning.recipe import Recipe, StudyRecipe
from tuning.study import Sweep
from tuning.trial import ADAPTER, Job

RATES = (2e-4, 4e-4, 8e-4)
TRIALS, FULL_TRIALS = 6, 12
NATS_MARGIN = 0.05  # of an outside set's gold chains, as at the gate; the families' chains keep the sweep's own
SHARE_MARGIN = 0.05
DOMAIN_ITEMS, FAMILY_ITEMS, OUTSIDE_ITEMS = 276, 16, 96  # of the select split, which neither rates nor trials were chosen by
PLAIN, JOINT = "plain", "joint"
ARMS = {PLAIN: "plain fine-tuning's best", JOINT: "what the sweep chose"}


@dataclass(frozen=True)
class Place:
    """One domain's folder of rows, its recipe, and the sets that are protected beside the families."""

    folder: Path
    recipe: Recipe
    tasks: Mapping[str, Path]

    @property
    def sweep(self) -> str:
        """The row of the sweep: one of other than the default's trials is another."""
        return f"sweep{self._trials}"

    def arm(self, arm: str) -> str:
        """The row of what the arm gained and lost."""
        return f"read-{arm}{self._trials if arm == JOINT else ''}"

    @property
    def _trials(self) -> str:
        number = self.recipe.study.trials
        return "" if number == TRIALS else f"-{number}"

    @property
    def backbone(self) -> Backbone:
        return Backbone.load(self.recipe.backbone)

    def engine(self, backbone: Backbone) -> TorchEngine:
        return TorchEngine(backbone, max_rows=64, precision=self.recipe.evaluation.precision)

    def kept(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The row of that name, made where there is none yet."""
        file = self.folder / f"{name}.json"
        if not file.is_file():
            write_whole(file, json.dumps({"commit": commit()} | make(), indent=2))
        found: dict[str, Any] = json.loads(file.read_text())
        return found

    def row(self, name: str) -> dict[str, Any] | None:
        file = self.folder / f"{name}.json"
        return json.loads(file.read_text()) if file.is_file() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--only", nargs="+", choices=DOMAINS, metavar="DOMAIN", help=f"of {', '.join(DOMAINS)}")
    parser.add_argument("--written", action="store_true", help="only write the section, from what is finished")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/quickstart.toml"))
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks/public_sets"))
    args = parser.parse_args()
    if lacking := missing(args.data):
        raise SystemExit(f"--data is a folder of public sets (benchmarks/public_tasks.py), but {args.data} lacks {lacking[0]}.")
    tasks = write_tasks(args.data, args.runs / "tasks")
    trials, asked = FULL_TRIALS if args.full else TRIALS, args.only or list(DOMAINS)[: None if args.full else 1]
    recipes = {domain: recipe_of(args.recipe, tasks, one.named(), trials) for domain, one in DOMAINS.items()}
    places = [Place(args.runs / domain, recipe, tasks) for domain, recipe in recipes.items()]

    def tell() -> None:
        written(args.data, [place for place in places if place.folder.is_dir()], args.full)

    for place in places:
        if place.folder.name in asked and not args.written:
            run(place, tell)
    tell()


def recipe_of(file: Path, tasks: Mapping[str, Path], domain: str, trials: int) -> Recipe:
    """The recipe as it stands, with another domain, the outside sets beside its protected families, and trials for a time.

    All scales of a sweep are read, as on data that one does not know. Rows without a rationale are searched by answers alone.
    """
    recipe = Recipe.load(file)
    outside = [name for name in guards(tasks) if name != domain]
    bare: dict[str, object] = {}
    if not any(one.reasoned for one in DOMAINS.values() if one.named() == domain):
        start = tuple(point for point in recipe.start if "method.target" not in point)
        bare = {"ranges": {**recipe.ranges, "method.target": ("answer",)}, "start": start}
    return recipe.with_values(
        {
            **bare,
            "name": domain,
            "domain": str(tasks[domain].resolve()),
            "protected": (*FAMILIES, *(str(tasks[name].resolve()) for name in outside)),
            "evaluation.margins": {name: NATS_MARGIN for name in outside if name.endswith("-chains")},
            "evaluation.chain_items": 16,
            "study.trials": trials,
            "study.scales": StudyRecipe().scales,
            "study.time_budget_s": None,
            "study.min_trials": 0,
        }
    )


def guards(tasks: Mapping[str, Path]) -> list[str]:
    """One task a retention set: by its gold chains where it is written, since a small backbone rarely can."""
    return [one.named(one.written) for one in RETENTION.values() if one.named(one.written) in tasks]


def run(place: Place, tell: Callable[[], None]) -> None:
    """Whatever is not there yet; `tell` writes the section after each part."""
    place.folder.mkdir(parents=True, exist_ok=True)
    prepare(place.recipe.domain)
    for name in (one.named(by) for one in RETENTION.values() for by in ((False, True) if one.written else (False,))):
        place.kept(f"admission-{name}", partial(admitted, place, task_named(str(place.tasks[name]))))
    tell()
    for rate in RATES:
        place.kept(f"fit-{rate:g}", partial(fitted, place, rate))
    best = best_rate(place)
    read_arm(place, PLAIN, lambda: Profile.load(place.folder / f"fit-{best:g}" / ADAPTER))
    tell()
    joint = place.kept(place.sweep, lambda: swept(place))
    if joint["directory"] is not None:
        read_arm(place, JOINT, lambda: Profile.load(Path(joint["directory"])))
    tell()


def admitted(place: Place, task: Task) -> dict[str, Any]:
    backbone, precision = place.backbone, place.recipe.evaluation.precision
    cache = place.folder.parent / "cache"
    return asdict(admissions(place.engine(backbone), backbone, [task], cache, precision=precision)[task.name])


def fitted(place: Place, rate: float) -> dict[str, Any]:
    """Plain fine-tuning on answers at one rate; the adapter at full scale stays, and the gain of the search split is told."""
    values = {"method.learning_rate": rate, "study.scales": (1.0,), "evaluation.generated_items": 0, "protected": ("arithmetic",)}
    directory = place.folder / f"fit-{rate:g}"
    shutil.rmtree(directory, ignore_errors=True)
    margins: dict[str, object] = {"evaluation.margins": {}, "evaluation.domain_items": 250}
    recipe = place.recipe.with_values({**values, **margins})
    cache = place.folder.parent / "cache"
    outcome = run_isolated(Job(recipe, directory, cache, available_threads()), lambda phase, share: None)
    if outcome.state != "complete":
        raise SystemExit(f"The fit at {rate:g} ended as {outcome.state}: {outcome.reason}")
    return {"rate": rate, "gain": outcome.score["chosen"]["domain_gain"], "accuracy": outcome.score["chosen"]["domain_accuracy"]}


def best_rate(place: Place) -> float:
    """Of the largest accuracy on the search split; the smaller rate where two are alike."""
    rows = [row for rate in RATES if (row := place.row(f"fit-{rate:g}"))]
    return float(max(rows, key=lambda row: (row["accuracy"], -row["rate"]))["rate"])


def swept(place: Place) -> dict[str, Any]:
    """The joint sweep's first choice; no directory where no trial kept every family with a gain."""
    home = (place.folder / "home").resolve()
    known = place.folder.parent / "cache" / "admission"  # what was admitted there is not looked at again
    if known.is_dir():
        shutil.copytree(known, home / "cache" / "admission", dirs_exist_ok=True)
    tracking = Tracking.at(home)
    tracking.create()
    sweep = Sweep(place.recipe, home, tracking)
    candidates = run_sweep(sweep, resume=sweep.exists, quiet=True)
    chosen = next((one for one in candidates if one.feasible and one.domain_gain > 0), None)
    told = {"trials": len(candidates), "feasible": sum(one.feasible for one in candidates), "scales": place.recipe.study.scales}
    if chosen is None:
        return {**told, "directory": None, "params": {}}
    return {**told, "directory": str(chosen.directory), "params": chosen.params, "scale": chosen.score["chosen"]["scale"]}


def read_arm(place: Place, arm: str, load: Callable[[], Profile]) -> None:
    if place.row(place.arm(arm)) is None:
        place.kept(place.arm(arm), lambda: rows_of(read(place, arm, load())))


def read(place: Place, arm: str, profile: Profile) -> Evaluation:
    """Domain, families and outside sets on the select split; every reading is kept as it is made."""
    backbone, precision = place.backbone, place.recipe.evaluation.precision
    engine, cache = place.engine(backbone), place.folder.parent / "cache" / "base"
    engine.load(arm, profile)
    try:
        return evaluate(
            engine,
            backbone,
            arm,
            plan(place),
            BaseCache(cache, precision),
            adapted_cache=BaseCache(cache, precision, f"{place.recipe.name}/{arm}/{_digest(place, arm)}"),
        )
    finally:
        engine.close()


def _digest(place: Place, arm: str) -> str:
    """Of the rows that say which adapter the arm is."""
    files = [place.folder / f"fit-{rate:g}.json" for rate in RATES] if arm == PLAIN else [place.folder / f"{place.sweep}.json"]
    return "/".join(file_digest(file)[:12] for file in files)


def plan(place: Place) -> list[Planned]:
    """Families and sets that are written are written; what is not measurable is left out, and told as such."""
    domain = task_named(place.recipe.domain)
    planned = [Planned(MEASURES[DOMAIN_MEASURE], domain, domain.examples("select", DOMAIN_ITEMS), "domain")]
    for family in FAMILIES.values():
        planned.append(Planned(gate_measure(family), family, family.examples("select", FAMILY_ITEMS), "protected"))
    for one in RETENTION.values():
        for by_likelihood in (False, True) if one.written else (False,):
            name = one.named(by_likelihood)
            admission = place.row(f"admission-{name}")
            if admission is None or not admission["admitted"]:
                continue
            task = task_named(str(place.tasks[name]))
            planned.append(Planned(gate_measure(task), task, task.examples("select", OUTSIDE_ITEMS), "protected"))
    return planned


def rows_of(found: Evaluation) -> dict[str, Any]:
    """`pooled`: all written problems of the families as one, families being the clusters."""
    families = [row for row in found.rows if row.planned.task.name in FAMILIES]
    outside = [row for name, row in found.retention.items() if name not in FAMILIES]
    base, adapted = ([value for row in families for value in getattr(row, side).values] for side in ("base", "adapted"))
    change = paired_change(base, adapted, [row.planned.task.name for row in families for _ in row.base.values])
    pooled = told(families[0]) | {"base": sum(base) / len(base), "adapted": sum(adapted) / len(adapted), **numbers(change)}
    return {
        "domain": told(found.domain) | {"values": list(found.domain.adapted.values)},
        "pooled": pooled | {"task": "families"},
        "families": [told(row) for row in families],
        "outside": [told(row) for row in outside],
    }


def told(row: Row) -> dict[str, Any]:
    return {
        "task": row.planned.task.name,
        "measure": row.planned.measure.name,
        "unit": row.unit,
        "base": row.base.mean,
        "adapted": row.adapted.mean,
        **numbers(row.change),
    }


def numbers(change: PairedChange) -> dict[str, Any]:
    return {"change": change.mean, "low": change.low, "high": change.high, "n": change.n}


def written(data: Path, places: Sequence[Place], full: bool) -> None:
    from benchmarks.public_report import body

    rows = [row for place in places for file in sorted(place.folder.glob("*.json")) if (row := json.loads(file.read_text()))]
    told_by = f"{provenance('public_sets')} · rows of {commits(rows)}"
    title = f"The same recipe on public sets ({run_kind(full=full)})"
    write_section("public_sets", title, "\n\n".join((told_by, *body(data, places))))


if __name__ == "__main__":
    main()
