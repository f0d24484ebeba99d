"""The policy that `graftline tune-decoding` finds, against its nulls: the policy off, every cap, a plain request to be concise.

    python -m benchmarks.tune_decoding [--items 80] [--trials 16] [--full] [--results]

On the default backbone without an adapter, so that what is seen is the policy's: word problems, whose answers the chain computes,
and ICD-10, whose answers it may not need. The search reads the select split as the command does. What it chose is then read on
items of the search split, which chose nothing here, beside caps that were not searched for. A trial of which the confirming items
did not show what was claimed stands in the table as "chosen, not shown"; where nothing was claimed of any, none does.

Studies and readings are kept in runs/benchmarks/tune_decoding and are not made again. About 30 minutes on two free cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from adapters.backbone import REASONER, Backbone
from benchmarks.results import provenance, table, write_section
from engine.decoding.budget import Budget
from engine.profile import DecodingPolicy, Profile
from engine.torch_engine import TorchEngine
from evaluation.base_cache import BaseCache
from evaluation.evaluate import Planned, read_plan
from evaluation.measure import Readings
from evaluation.pairs import BE_CONCISE
from evaluation.statistics import paired_change
from evaluation.task import Example, Task
from evaluation.tasks import TASKS
from evaluation.tasks.generated import draws_groups
from evaluation.written_answer import WrittenAnswer
from registry.tracking import Tracking
from service.policy_view import shown
from tuning.decoding.choice import PolicyScore
from tuning.decoding.items import halves
from tuning.decoding.reading import READ, Bench
from tuning.decoding.settings import DecodingSearch
from tuning.decoding.space import searchable
from tuning.decoding.study import Found, PolicyStudy
from tuning.isolation import use_threads

CASES = {"word_problem": ("arithmetic", "boxes"), "icd10": ("word_problem", "boxes")}  # domain: what is guarded
CAPS = (4, 8, 16, 24, 32, 48, 64, 88)
PRECISION: Final = "bfloat16"
OFF, CONCISE = "off", "asked to be concise"


@dataclass(frozen=True)
class Arm:
    """A name, the policy, and words at the end of the prompt."""

    name: str
    policy: DecodingPolicy
    also: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=80, help="of the domain, in each half and again in the table")
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--full", action="store_true", help="200 items and 40 trials")
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks/tune_decoding"))
    parser.add_argument("--results", action="store_true", help="write the section into docs/results.md too")
    args = parser.parse_args()
    settings = DecodingSearch(trials=40 if args.full else args.trials, items=200 if args.full else args.items, family_items=16)
    use_threads()
    backbone = Backbone.load(REASONER)
    engine = TorchEngine(backbone, max_rows=64, precision=PRECISION)
    told = [case(name, settings, engine, backbone, args.runs) for name in args.cases]
    about = (
        f"{backbone.name} without an adapter; {settings.trials} trials, {settings.items} items choose, as many confirm, as many "
        f"others are in the table; at most {settings.max_new_tokens} tokens; tolerance {settings.tolerance:g}; 95 % intervals."
    )
    body = "\n\n".join((provenance("tune_decoding"), about, *told))
    print(body)
    if args.results:
        write_section("tune_decoding", "A searched decoding policy against its nulls", body)


def case(name: str, settings: DecodingSearch, engine: TorchEngine, backbone: Backbone, runs: Path) -> str:
    """One domain: the search, then the table on items that it did not read."""
    study = study_of(name, settings, engine, backbone, runs)
    found = study.run(lambda trial: print(name, trial.number, shown(trial.values), _score(trial.score), flush=True))
    domain = TASKS[name]
    examples = domain.examples("search", settings.items, seed=1)
    read = {arm.name: reading(arm, domain, examples, engine, backbone, settings, runs) for arm in arms(found)}
    off = read[OFF]
    rows = [[arm, f"{one.mean:.3f}", f"{one.part_mean('tokens'):.1f}", *_changes(domain, off, one)] for arm, one in read.items()]
    headings = ["policy", "right", "tokens", "right, less off", "tokens, less off"]
    return f"**{name}**, {len(examples)} items. {verdict(study, found)}\n\n{table(headings, rows)}"


def study_of(name: str, settings: DecodingSearch, engine: TorchEngine, backbone: Backbone, runs: Path) -> PolicyStudy:
    released = Profile()
    items = halves(settings, TASKS[name], CASES[name], (), with_likelihood=False)
    space = searchable(settings, released, engine, backbone, items.domain_items, name)
    identity = settings.digest(name, backbone.fingerprint)
    bench = Bench(engine, backbone, items, runs / "cache", PRECISION, identity)
    place = runs / f"{name}-{identity[:12]}"
    return PolicyStudy(name, settings, space, bench, {}, place, Tracking.at(runs), None, print)


def arms(found: Found) -> Iterator[Arm]:
    yield Arm(OFF, DecodingPolicy())
    yield Arm(CONCISE, DecodingPolicy(), BE_CONCISE)
    if found.confirmed is not None:
        name = "found" if found.confirmed.better else "chosen, not shown"
        yield Arm(f"{name}: {shown(found.confirmed.trial.values)}", found.confirmed.profile.policy)
    for cap in CAPS:
        yield Arm(f"cap {cap}", DecodingPolicy(budget=Budget(max_trace_tokens=cap)))


def reading(
    arm: Arm,
    domain: Task,
    examples: Sequence[Example],
    engine: TorchEngine,
    backbone: Backbone,
    settings: DecodingSearch,
    runs: Path,
) -> Readings:
    planned = Planned(WrittenAnswer(settings.max_new_tokens, arm.also), domain, examples, "domain")
    engine.load(READ, Profile((), arm.policy))
    try:
        kept = BaseCache(runs / "cache" / "arms", PRECISION, arm.policy.model_dump_json())
        (found,) = read_plan(engine, backbone, READ, [planned], kept)
    finally:
        engine.unload(READ)
    print(domain.name, arm.name, f"{found.mean:.3f} right", f"{found.part_mean('tokens'):.1f} tokens", flush=True)
    return found


def verdict(study: PolicyStudy, found: Found) -> str:
    left_out = "; ".join(f"{what}: {why.rstrip('.')}" for what, why in study.space.left_out.items())
    chosen = found.confirmed
    if chosen is None:
        said = "Nothing was shown to be better than no policy on the items that choose."
    else:
        change = chosen.score.changes[OFF]
        held = "held" if chosen.better else "was not shown"
        said = (
            f"Chosen: {shown(chosen.trial.values)}, for {chosen.claims[OFF]}; on the confirming items that {held} "
            f"({_told(change.right, 3)} right, {_told(change.tokens, 1)} tokens)."
        )
    return f"{said} Not searched: {left_out}."


def _changes(domain: Task, off: Readings, one: Readings) -> list[str]:
    drawn = draws_groups(domain, off.clusters)
    pairs = (off.values, one.values), (off.parts["tokens"], one.parts["tokens"])
    found = [paired_change(*pair, off.clusters, drawn_clusters=drawn) for pair in pairs]
    return [_told((change.mean, change.low, change.high), digits) for change, digits in zip(found, (3, 1), strict=True)]


def _told(ends: tuple[float, float, float], digits: int) -> str:
    mean, low, high = (f"{value:+.{digits}f}" for value in ends)
    return f"{mean} [{low}, {high}]"


def _score(score: PolicyScore | None) -> str:
    return "failed" if score is None else f"{score.accuracy:.3f} right, {score.tokens:.1f} tokens"


if __name__ == "__main__":
    main()
