"""Features of a sparse autoencoder on the default backbone: its gates, ReasonScore, and steering beside its nulls.

    python -m benchmarks.sae [--full] [--places 200000] [--results]

States of the layer at 0.6 of the depth are harvested at places of the backbone's own chains (seven families), their questions,
ICD-10 and prose; an autoencoder is fitted under two seeds and gated; features are scored by the words of ReasonScore's paper, and
by the marks with which this backbone's chains draw their conclusions; the best features steer at several strengths beside a
difference of means at the same places and random columns of the same length.

Shards, fits and readings are kept in runs/benchmarks/sae and are not made again. About an hour on two free cores; --full takes a
million places and more items.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from adapters.backbone import REASONER, Backbone
from adapters.sae import SAE
from adapters.whole_file import write_whole
from benchmarks.results import commit, provenance, table, write_section
from engine.torch_engine import TorchEngine
from evaluation.feature_steering import CLAMP, COLUMN, MEANS, compared
from evaluation.reason_score import WORDS, WordsHardlyOccur, difference_of_means, marked, reason_score
from service.pace import Pace
from tuning.harvest import HarvestSpec
from tuning.isolation import use_threads
from tuning.sae_fit import SAEFitSpec
from tuning.sae_study import SAEStudy, items_of

# The default backbone's chains hold none of the paper's words. It concludes with these: "14 + 6 = 20", "so Polly is a zumpus",
# "Gus > Ned > Ray", "Swap C D: A shell", "The brother of Cora is Kate".
MARKS = (("so",), ("=",), (">",), (":",), ("is",))


@dataclass(frozen=True)
class Size:
    places: int
    passes: int
    features: int  # that steer, best first
    strengths: tuple[float, ...]
    items: int
    max_new_tokens: int = 96


DEFAULT = Size(200_000, 4, 2, (0.5, 1.0, 2.0), 28)
FULL = Size(1_000_000, 2, 5, (0.25, 0.5, 1.0, 2.0, 4.0), 140)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--places", type=int, help="tokens whose states are harvested")
    parser.add_argument("--width", type=int, default=8, help="features for each number of a state")
    parser.add_argument("--backbone", default=REASONER)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks/sae"))
    parser.add_argument("--results", action="store_true", help="write the section into docs/results.md too")
    args = parser.parse_args()
    size = FULL if args.full else DEFAULT
    size = size if args.places is None else replace(size, places=args.places)
    use_threads()
    backbone = Backbone.load(args.backbone)
    engine = TorchEngine(backbone, max_rows=64, precision="bfloat16")
    harvest = HarvestSpec(places=size.places, max_new_tokens=size.max_new_tokens)
    fit = SAEFitSpec(passes=size.passes, width=args.width)
    study = SAEStudy(engine, backbone, harvest, fit, args.runs, MARKS, Pace())
    runs = args.runs / f"{backbone.fingerprint[:12]}-{size.places}-{args.width}{'-full' if args.full else ''}"
    gates = kept(runs / "gates.json", partial(gated, study, runs))
    sae = SAE.load(runs / "sae")
    scores = kept(runs / "scores.json", partial(scored, study, sae))
    steered = [
        kept(runs / f"steer-{feature}-{strength:g}.json", partial(steer, study, sae, size, feature, strength))
        for feature in scores["top"][: size.features]
        for strength in size.strengths
    ]
    body = "\n\n".join(
        (
            provenance("sae"),
            about(size, study, gates),
            gate_table(gates),
            score_table(scores),
            steer_table(steered),
            said(steered),
        )
    )
    print(body)
    if args.results:
        write_section("sae", "Features of a sparse autoencoder", body)


def kept(file: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    if not file.is_file():
        made = {**make(), "commit": commit()}
        write_whole(file, json.dumps(made, indent=1))
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def gated(study: SAEStudy, runs: Path) -> dict[str, Any]:
    sae, gates = study.gated()
    sae.save(runs / "sae")
    return {**gates.as_dict(), "verdicts": gates.verdicts, "places": study.places.counts()}


def scored(study: SAEStudy, sae: SAE) -> dict[str, Any]:
    """By the paper's words, which may be refused, and by the marks."""
    try:
        refused = f"not refused: {reason_score(study.backbone, sae, study.places, WORDS).marks.told}"
    except WordsHardlyOccur as error:
        refused = str(error)
    found = reason_score(study.backbone, sae, study.places, MARKS)
    top = found.top(10)
    rows = [
        [float(part[feature]) for part in (found.score_F, found.entropy_F, sae.max_act_F, sae.frequency_F)] for feature in top
    ]
    counts = marked(study.backbone, study.places.chains, MARKS).told
    return {"paper": refused, "counts": counts, "top": top, "rows": rows}


def steer(study: SAEStudy, sae: SAE, size: Size, feature: int, strength: float) -> dict[str, Any]:
    marks = reason_score(study.backbone, sae, study.places, MARKS).marks
    means_H = difference_of_means(study.places, marks.near_N)
    items = items_of(study.harvest, "select", size.items)
    args = (feature, strength, means_H, MARKS, items, size.max_new_tokens)
    return compared(study.engine, study.backbone, sae, *args).as_dict()


def about(size: Size, study: SAEStudy, gates: dict[str, Any]) -> str:
    counted = ", ".join(f"{count} of {kind}s" for kind, count in gates["places"].items())
    fit = study.fit
    return (
        f"{study.backbone.name}; layer {int(0.6 * len(study.backbone.layers))}; places: {counted}; "
        f"{fit.width * study.backbone.hidden_size} features, {fit.k} at a place, {fit.passes} passes; steered on {size.items} "
        f"items of the families, at most {size.max_new_tokens} tokens; 95 % intervals."
    )


def gate_table(gates: dict[str, Any]) -> str:
    rows = [[verdict, "yes" if passed else "no"] for verdict, passed in gates["verdicts"].items()]
    found = gates["recovered"]
    losses = ", ".join(f"{name} {found[name]:.3f}" for name in ("plain", "reconstructed", "mean", "zero"))
    also = f"Loss over held-out chains in nats a token: {losses}; recovered from zero {found['share_from_zero']:.3f}."
    if gates["stability"]:
        one = gates["stability"]
        told = ", ".join(f"{cosine:.2f}" for cosine in one["cosines"])
        also += f" Cosines of the top features with their likes under the other seed: {told}; by chance {one['by_chance']:.2f}."
    return f"{table(['gate', 'passed'], rows)}\n\n{also}"


def score_table(scores: dict[str, Any]) -> str:
    pairs = list(zip(scores["top"], scores["rows"], strict=True))[:5]
    rows = [[str(feature), *(f"{value:.3g}" for value in row)] for feature, row in pairs]
    made = table(["feature", "ReasonScore", "entropy", "largest", "active at"], rows)
    return f"With the paper's words: {scores['paper']}\n\nWith the marks ({scores['counts']}):\n\n{made}"


def steer_table(steered: list[dict[str, Any]]) -> str:
    headings = [
        "feature",
        "strength",
        "system",
        "words",
        "tokens",
        "right",
        "KL",
        "words, less off",
        "words, less random columns",
    ]
    rows = []
    for one in steered:
        for name, read in one["systems"].items():
            changes = [change(one[key].get(name)) for key in ("more_than_off", "more_than_random")]
            numbers = [f"{read[key]:.3g}" for key in ("words", "tokens", "right", "kl")]
            rows.append([str(one["feature"]), f"{one['strength']:g}", name, *numbers, *changes])
    return table(headings, rows)


def change(found: list[float] | None) -> str:
    return "" if found is None else "{:+.3f} [{:+.3f}, {:+.3f}]".format(*found)


def said(steered: list[dict[str, Any]]) -> str:
    lines = []
    for system in (COLUMN, CLAMP, MEANS):
        shown = [f"{one['feature']} at {one['strength']:g}" for one in steered if one["steers"][system]]
        lines.append(
            f"- {system}: writes more marks than off and than random columns in {len(shown)} of {len(steered)} readings"
            + (f" ({', '.join(shown)})." if shown else ".")
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
