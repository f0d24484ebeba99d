"""Hybrid routing on the default backbone: what few vectors, routed by an ICD-10 adapter, recover of its gain, with the controls.

    python -m benchmarks.hybrid [--items 60] [--full] [--results]

Fits the quickstart's plain recipe, once, then one routing of five categories and one of a single one, on the adapter's own
answers to items of the search split; recovery is read on items of the select split, in right answers and in nats per token of the
adapter's texts. What the adapter writes names codes that the backbone does not know; how much of that few vectors give back
is the question. tests/test_hybrid.py holds both ends: an adapter that is a vector comes back, a random update in no answer.

The fit and each reading are kept in runs/benchmarks/hybrid and are not made again. About 15 minutes on two cores; --full takes
200 items.
"""

from __future__ import annotations

import argparse
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from adapters.backbone import Backbone
from benchmarks.compression import kept
from benchmarks.results import commit, provenance, table, write_section
from engine.profile import Profile
from engine.torch_engine import TorchEngine
from evaluation.hybrid import greedy_texts, hybrid
from evaluation.task import direct_prompt
from evaluation.tasks.icd10 import ICD10
from tuning.isolation import available_threads, prepare, run_isolated, use_threads
from tuning.recipe import Recipe
from tuning.routing_fit import RoutingFitSpec, fit_routing
from tuning.trial import ADAPTER, Job

CATEGORIES = 5
MAX_NEW_TOKENS = 64
_ADAPTED = "adapted"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=60, help="to fit the vectors on, and as many to judge them on")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/quickstart.toml"))
    parser.add_argument("--full", action="store_true", help="200 items")
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks/hybrid"))
    parser.add_argument("--results", action="store_true", help="write the section into docs/results.md too")
    args = parser.parse_args()
    recipe, count = Recipe.load(args.recipe).with_values({"study.scales": (1.0,)}), 200 if args.full else args.items
    adapter = fitted(recipe, args.runs)
    found = kept(args.runs / f"{recipe.digest()}-{count}.json", partial(reading, recipe.backbone, adapter, count))
    about = (
        f"{recipe.backbone}; the quickstart's plain recipe, asked for the answer alone; {count} items fit, {count} judge; "
        f"{CATEGORIES} categories; at most {MAX_NEW_TOKENS} tokens; commit of the reading {found['commit']}; 95 % intervals."
    )
    fit, bias = found["fit"], found["bias"]
    places = (
        f"Adapter and backbone differ at {fit['places'] / fit['of_tokens']:.0%} of {fit['of_tokens']} tokens of the adapter's "
        f"answers. Nats of its token at held-out places: {fit['alone']:.2f} alone, {fit['steered']:.2f} with {CATEGORIES} "
        f"vectors, {bias['steered']:.2f} with one."
    )
    body = "\n\n".join((provenance("hybrid"), about, places, *(recovered(found, of) for of in ("answers", "texts"))))
    print(body)
    if args.results:
        write_section("hybrid", "Hybrid routing", body)


def fitted(recipe: Recipe, runs: Path) -> Path:
    """The directory of the adapter."""
    place = runs / f"adapter-{recipe.digest()}"
    if not place.is_dir():
        prepare(recipe.domain)
        begun = runs / "begun" / recipe.digest()
        job = Job(recipe, begun, runs / "cache", available_threads(), keep_as_fitted=True)
        outcome = run_isolated(job, lambda phase, share: None)
        if outcome.state != "complete":
            raise SystemExit(f"The fit is {outcome.state}: {outcome.reason}")
        (begun / ADAPTER).rename(place)
        shutil.rmtree(begun)
    return place


def reading(backbone_name: str, adapter: Path, count: int) -> dict[str, Any]:
    use_threads()
    backbone, profile = Backbone.load(backbone_name), Profile.load(adapter)
    engine = TorchEngine(backbone, max_rows=64, precision="bfloat16")
    engine.load(_ADAPTED, profile)
    asked = [direct_prompt(example) for example in ICD10.examples("search", count)]
    texts = greedy_texts(engine, backbone, _ADAPTED, asked, MAX_NEW_TOKENS)
    fit, bias = (
        fit_routing(engine, backbone, _ADAPTED, texts, RoutingFitSpec(num_categories=number)) for number in (CATEGORIES, 1)
    )
    engine.unload(_ADAPTED)
    judged = ICD10.examples("select", count)
    found = hybrid(engine, backbone, profile, fit.routing, bias.routing, ICD10, judged, direct_prompt, MAX_NEW_TOKENS)
    fits = {
        name: {"places": one.num_places, "of_tokens": one.num_tokens, "alone": one.alone.nats, "steered": one.steered.nats}
        for name, one in (("fit", fit), ("bias", bias))
    }
    return {**found.as_dict(), **fits, "commit": commit()}


def recovered(found: dict[str, Any], of: str) -> str:
    one, gain = found[of], found[of]["gain"]
    told = f"**{one['unit']}**: adapter less backbone {gain['change']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]."
    if one["not_measurable"]:
        return f"{told} Recovery is not measurable: {one['not_measurable']}."
    rows = [
        [name, "{} [{}, {}]".format(*(told_end(share[end]) for end in ("value", "low", "high"))), f"{found['steered'][name]:.0%}"]
        for name, share in one["recovery"].items()
    ]
    above = "lies above every control" if one["above_controls"] else "does not lie above every control"
    return f"{told} The hybrid {above}.\n\n{table(['arm', 'recovered', 'tokens steered'], rows)}"


def told_end(end: float | None) -> str:
    """None is an infinite end: in a draw of the items the adapter gained nothing."""
    return "unbounded" if end is None else f"{end:.0%}"


if __name__ == "__main__":
    main()
