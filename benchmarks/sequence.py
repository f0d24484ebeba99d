"""Three domains one after another in two orders, under four policies: what each forgets, and what it costs in reasoning.

    python -m benchmarks.sequence [--full] [--written]

Diagnoses (ICD-10-CM), goods (the customs tariff) and places (their countries), each fitted by the values of recipes/customs.toml
on the built-in reasoner: the given order and its reverse. Every adapter, reading and stage is kept in runs/benchmarks/sequence: a
benchmark that was killed goes on where it stopped, and --written tells of what is finished by now. Default: one training seed,
80 items a domain and 16 a family, about 45 minutes on two cores; --full: three seeds, 240 and 48 items, some hours.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from adapters.backbone import Backbone
from benchmarks.results import commit, commits, provenance, run_kind, table, write_section
from service.commands.sequence import AGAINST, COMPARED, differences, shown, shown_change
from service.pace import Pace
from tuning.allocator import keep_freed_memory
from tuning.isolation import use_threads
from tuning.journal import Journal
from tuning.recipe import Recipe
from tuning.router_fit import RouterSpec
from tuning.sequence import Sequenced, SequenceSpec, SequenceStudy, fits_in, study_of
from tuning.sequence_matrix import PolicyMatrix

DOMAINS = ("icd10", "customs", "geography")
NUMBERS = ("average_accuracy", "average_gain", "learning_accuracy", "forgetting", "forward_transfer", "reasoning")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/customs.toml"))
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks/sequence"))
    parser.add_argument("--written", action="store_true", help="only write the section, from what is finished")
    args = parser.parse_args()
    items, family_items, seeds = (240, 48, 3) if args.full else (80, 16, 1)
    spec = SequenceSpec(
        orders=2,
        items=items,
        family_items=family_items,
        router=RouterSpec(items=240 if args.full else 60, max_astray=0.03 if args.full else 0.08),
    )
    use_threads()
    keep_freed_memory()
    args.runs.mkdir(parents=True, exist_ok=True)
    recipe, journal = Recipe.load(args.recipe), Journal(args.runs / "commits.jsonl")
    fits = fits_in(args.runs, Backbone.load(recipe.backbone), Pace())
    for orders in (1, 2):  # the section stands after each
        found = []
        for seed in range(seeds):
            recipes = [recipe.with_values({"name": name, "domain": name, **of_seed(seed)}) for name in DOMAINS]
            study = study_of(recipes, spec.model_copy(update={"orders": orders}), args.runs, fits)
            if study.left and not args.written:
                journal.append({"commit": commit(), "seed": seed})
            found.append(Seeded(seed, study, study.finished() if args.written else study.run(Pace())))
        told = f"{provenance('sequence', ', '.join(map(str, range(seeds))))} · rows of {commits(journal.entries())}"
        title = f"Three domains one after another ({run_kind(full=args.full)})"
        write_section("sequence", title, "\n\n".join((told, *body(found, spec))))


def of_seed(seed: int) -> dict[str, object]:
    return {"method.seed": seed, "adapter.lora.seed": seed}


@dataclass(frozen=True)
class Seeded:
    seed: int
    study: SequenceStudy
    found: Sequenced


def body(found: Sequence[Seeded], spec: SequenceSpec) -> Iterator[str]:
    families = ", ".join(family.name for family in found[0].study.families)
    yield (
        f"{spec.items} items a domain and {spec.family_items} a family ({families}) of the select split, paired with the "
        "backbone; intervals are 95 % over items, not over fits. With own adapters forgetting across domains is 0 by "
        "construction; what is measured is what routing, continuing and merging (the sum, every weight 1) cost. `reasoning` is "
        "the mean change over the families after the last stage; under own adapters, of each adapter so far."
    )
    yield table(
        ["order", "seed", "policy", *(name.replace("_", " ") for name in NUMBERS)],
        [
            [arrows(order), str(one.seed), policy, *(shown(matrix.numbers.interval(name), name) for name in NUMBERS)]
            for one in found
            for order in one.found.orders
            for policy, matrix in one.found.of(order).items()
        ],
    )
    yield "Against the continued adapter, on the same items:"
    yield table(
        ["order", "seed", "less the continued adapter", *(name.replace("_", " ") for name in COMPARED)],
        [
            [arrows(row["order"]), str(one.seed), row["one"], *(shown_change(**row[name]) for name in COMPARED)]
            for one in found
            for order in one.found.orders
            for row in differences(one.found, order)
            if row["other"] == AGAINST
        ],
    )
    if left := sum(len(one.study.left) for one in found):
        yield f"{left} stages are not read yet: what is whole of the rest is above, and the same command goes on."
    yield "After every stage (seed 0):"
    yield table(["order", "policy", "stage", "reasoning", *DOMAINS], list(_stages(found[0].found)))
    yield "\n".join(_routers(found))


def arrows(order: Sequence[str]) -> str:
    return " → ".join(order)


def _stages(found: Sequenced) -> Iterator[list[str]]:
    for order in found.orders:
        for policy, matrix in found.of(order).items():
            yield from ([arrows(order), policy, *row] for row in _scores(matrix))


def _scores(matrix: PolicyMatrix) -> Iterator[list[str]]:
    columns = {column.task: place for place, column in enumerate(matrix.matrix.domains)}
    for stage, (reasoning, scores) in enumerate(zip(matrix.reasoning, matrix.matrix.scores, strict=True)):
        mean = "-" if reasoning is None else f"{reasoning:.3f}"
        yield [str(stage), mean, *(f"{scores[columns[name]]:.3f}" for name in DOMAINS)]


def _routers(found: Sequence[Seeded]) -> Iterator[str]:
    """Of the last stage, on prompts that no router was fitted on."""
    for one in found:
        if not one.found.orders or (routed := one.found.of(one.found.orders[0]).get("routed")) is None:
            continue
        last = routed.routing[-1]
        yield (
            f"Seed {one.seed}: the router between three adapters sends {last['right']:.3f} [{last['right_low']:.3f}, "
            f"{last['right_high']:.3f}] of unseen prompts where they belong; {last['astray']:.3f} of the backbone's go astray, "
            f"{last['missed']:.3f} of the adapters' stay with the backbone, {last['mistaken']:.3f} go to another adapter."
        )


if __name__ == "__main__":
    main()
