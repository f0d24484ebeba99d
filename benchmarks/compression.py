"""Compression against its nulls: accuracy and tokens under a steering vector, and under everything that is simpler.

    python -m benchmarks.compression [--items 48] [--full] [--results]

Per set of items (generated families of trained lengths, the same of longer chains, ICD-10) and system: how many answers are right
and how many tokens were written. Systems: the policy off, a token cap at ten budgets, a plain request to be concise, one for the
answer alone, the vector at several bounds of its KL (as a difference of means, and trained), a random vector of equal length and
one of equal KL, and the vector turned round. What a vector is compared with, item by item, is writing freely, and the best that
caps and draws between them give for no more tokens than it writes.

The default backbone writes the gold chains, to the letter, and writes no shorter when asked to: its short chains here are the
answer alone. One vector is made, of pairs of two families, and used on all items. Every reading is a row in
runs/benchmarks/compression and is not made again. About 45 minutes on two free cores; --full takes more items and bounds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch

from adapters.backbone import REASONER, Backbone
from adapters.ces import CESSpec
from adapters.files import load_adapters, save_adapters
from adapters.steering import Steering, SteeringSpec
from adapters.whole_file import write_whole
from benchmarks.results import commit, provenance, table, write_section
from engine.engine import Continuation
from engine.profile import Profile
from engine.torch_engine import TorchEngine
from evaluation.cap_curve import Point, above_cap, cap_points, written_point
from evaluation.compression import CompressionSpec, split, vector
from evaluation.pairs import BE_CONCISE, Pairs, make_pairs, read_pairs, write_pairs
from evaluation.statistics import PairedChange, paired_change
from evaluation.strength import Divergence, calibrated
from evaluation.task import Example, Task, direct_prompt, reasoning_prompt
from evaluation.tasks import FAMILIES
from evaluation.tasks.generated import HELD_OUT_LENGTHS, TRAINED_LENGTHS
from evaluation.tasks.icd10 import ICD10
from tuning.isolation import use_threads

MAX_NEW_TOKENS = 96
OFF, CONCISE, ALONE, CAPS = "off", "asked to be concise", "asked for the answer alone", "cap"
EASY, HARD, DOMAIN = SETS = "easy", "hard", "icd10"
_LOADED = "system"


@dataclass(frozen=True)
class Size:
    families: tuple[str, ...]
    items: int  # of each family, and of ICD-10
    pairs: int  # of each family
    layer: float
    eps: tuple[float, ...]
    steps: int  # of a trained vector


DEFAULT = Size(("word_problem", "boxes"), 48, 12, 0.6, (0.01, 0.1, 0.3), 12)
FULL = Size(("word_problem", "boxes", "arithmetic", "calendar"), 60, 24, 0.6, (0.003, 0.01, 0.03, 0.1, 0.3), 25)
METHODS: tuple[Literal["diffmean", "ces"], ...] = ("diffmean", "ces")


@dataclass(frozen=True)
class System:
    """A name, and what it runs: a vector, words at the end of the prompt, another prompt, or none of them."""

    name: str
    steering: Steering | None = None
    also: str = ""
    prompt: Callable[[Example], str] = reasoning_prompt
    kl: float | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, help="of each family, and of ICD-10")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--backbone", default=REASONER)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks/compression"))
    parser.add_argument("--results", action="store_true", help="write the section into docs/results.md too")
    args = parser.parse_args()
    size = FULL if args.full else DEFAULT
    size = size if args.items is None else replace(size, items=args.items)
    use_threads()
    backbone = Backbone.load(args.backbone)
    engine = TorchEngine(backbone, max_rows=64, precision="bfloat16")
    runs = args.runs / f"{backbone.fingerprint[:12]}-{size.items}{'-full' if args.full else ''}"
    sets, read = {name: items for name, items in sets_of(size).items() if name in args.sets}, dict[tuple[str, str], Any]()
    for name, items in sets.items():
        read[name, CAPS] = kept(runs / name / "caps.json", partial(caps_of, engine, backbone, items))
    for system in systems(engine, backbone, size, runs):
        for name, items in sets.items():
            file = runs / name / f"{dashed(system.name)}.json"
            read[name, system.name] = kept(file, partial(read_system, engine, backbone, items, system))
            one = point(read[name, system.name])
            print(name, system.name, f"{one.accuracy:.2f} right", f"{one.mean_tokens:.1f} tokens", flush=True)
    names = list(dict.fromkeys(system for _, system in read if system != CAPS))
    clusters = {name: [example.group for _, examples in items for example in examples] for name, items in sets.items()}
    text, verdict = tables(read, names, clusters), said(read, names, clusters[HARD]) if HARD in clusters else ""
    body = f"{provenance('compression')}\n\n{about(size, backbone)}\n\n{text}\n\n{verdict}"
    print(body)
    if args.results:
        write_section("compression", "Compression against its nulls", body)


Items = Sequence[tuple[Task, Sequence[Example]]]


def sets_of(size: Size) -> dict[str, Items]:
    families = [FAMILIES[name] for name in size.families]

    def drawn(lengths: tuple[int, ...]) -> Items:
        return [(task.at_length(*lengths), task.at_length(*lengths).examples("select", size.items)) for task in families]

    return {EASY: drawn(TRAINED_LENGTHS), HARD: drawn(HELD_OUT_LENGTHS), DOMAIN: [(ICD10, ICD10.examples("select", size.items))]}


def systems(engine: TorchEngine, backbone: Backbone, size: Size, runs: Path) -> Iterator[System]:
    """Each is made when its turn comes; the vectors are made once, and kept as adapter directories with their KL."""
    yield System(OFF)
    yield System(CONCISE, also=BE_CONCISE)
    yield System(ALONE, prompt=direct_prompt)
    pairs = kept_pairs(engine, backbone, size, runs / "pairs.jsonl")
    made_on, held_out = split(pairs.pairs)
    bench = Bench(backbone, runs / "vectors", [pair.verbose_trace(backbone) for pair in held_out])
    contrasts = [pair.contrast(backbone) for pair in made_on]
    middle = size.eps[len(size.eps) // 2]
    layer = SteeringSpec(layer=size.layer).index(len(backbone.layers))
    for method in METHODS:
        spec = CompressionSpec(method=method, ces=CESSpec(steps=size.steps, eps=max(size.eps)))
        make = cache(partial(vector, backbone, contrasts, spec, layer))
        of_method = {eps: bench.bounded(f"{method} eps {eps:g}", make, eps) for eps in size.eps}
        yield from of_method.values()
        chosen = of_method[middle].steering
        assert chosen is not None
        alike = random_like(backbone, chosen)
        longer = alike.at(length(chosen) / float(alike.tensors()["vector"].norm()))
        yield bench.fixed(f"{method} turned round", chosen.flipped)
        yield bench.fixed(f"random as long as {method}", longer)
        if method == METHODS[0]:
            yield bench.bounded(f"random at eps {middle:g}", partial(random_like, backbone, chosen), middle)


@dataclass(frozen=True)
class Bench:
    """Vectors at a strength, on disk."""

    backbone: Backbone
    place: Path
    traces: Sequence[Continuation]

    @cached_property
    def divergence(self) -> Divergence:
        """Made when first asked for: it holds whole distributions."""
        return Divergence(self.backbone, self.traces)

    def bounded(self, name: str, make: Callable[[], Steering], eps: float) -> System:
        """As strong as the bound allows."""

        def measured() -> tuple[Steering, float]:
            steering = make()
            strength = calibrated(self.divergence, steering, eps)
            return steering.at(strength.gamma), strength.kl

        return self._kept(name, measured)

    def fixed(self, name: str, steering: Steering) -> System:
        """At the strength that it has."""
        return self._kept(name, lambda: (steering, self.divergence.of(steering)))

    def _kept(self, name: str, make: Callable[[], tuple[Steering, float]]) -> System:
        place = self.place / dashed(name)
        if not (place / "kl.json").is_file():
            made, kl = make()
            save_adapters((made,), place)
            write_whole(place / "kl.json", json.dumps({"kl": kl}))
        (steering,) = load_adapters(place)
        assert isinstance(steering, Steering)
        return System(name, steering, kl=json.loads((place / "kl.json").read_text())["kl"])


def length(steering: Steering) -> float:
    """Of what is added."""
    return float(torch.stack(list(steering.contribution().residual.values())).norm())


def random_like(backbone: Backbone, steering: Steering) -> Steering:
    drawn_H = torch.randn(backbone.hidden_size, generator=torch.Generator().manual_seed(0))
    assert steering.layer is not None
    return Steering.of(SteeringSpec(layer=steering.layer), backbone, drawn_H)


def kept_pairs(engine: TorchEngine, backbone: Backbone, size: Size, file: Path) -> Pairs:
    if not file.is_file():
        made = [
            pair
            for task in (FAMILIES[name] for name in size.families)
            for pair in make_pairs(engine, backbone, task, task.examples("train", size.pairs), concise="answer").pairs
        ]
        made.sort(key=lambda pair: int(pair.id.split("/")[2]))  # the families in turn, so that those held out are of all
        file.parent.mkdir(parents=True, exist_ok=True)
        write_pairs(file, made)
    return read_pairs(file)


def read_system(engine: TorchEngine, backbone: Backbone, items: Items, system: System) -> dict[str, Any]:
    profile = None
    if system.steering is not None:
        profile = _LOADED
        engine.load(profile, Profile((system.steering,)))
    try:
        points = [
            written_point(engine, backbone, profile, task, examples, MAX_NEW_TOKENS, system.also, system.prompt)
            for task, examples in items
        ]
    finally:
        if profile is not None:
            engine.unload(profile)
    told = {"kl": system.kl, "length": length(system.steering) if system.steering else None, "commit": commit()}
    return {"right": joined(points, "right"), "tokens": joined(points, "tokens"), **told}


def caps_of(engine: TorchEngine, backbone: Backbone, items: Items, max_new_tokens: int = MAX_NEW_TOKENS) -> dict[str, Any]:
    found = [cap_points(engine, backbone, task, examples, max_new_tokens) for task, examples in items]
    return {
        str(cap): {"right": joined([one[cap] for one in found], "right"), "tokens": joined([one[cap] for one in found], "tokens")}
        for cap in found[0]
    }


def joined(points: Sequence[Point], part: str) -> list[float]:
    return [value for point in points for value in getattr(point, part)]


def kept(file: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(make()))
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def point(row: Mapping[str, Any]) -> Point:
    return Point(tuple(row["right"]), tuple(row["tokens"]))


def curve(row: Mapping[str, Any]) -> dict[int, Point]:
    return {int(cap): point(one) for cap, one in row.items()}


def compared(read: Mapping[tuple[str, str], Any], items: str, name: str, clusters: Sequence[str]) -> PairedChange:
    drawn = items == DOMAIN  # the families' groups are their templates, all of them present
    return above_cap(point(read[items, name]), curve(read[items, CAPS]), clusters, drawn)


def tables(read: Mapping[tuple[str, str], Any], names: Sequence[str], clusters: Mapping[str, Sequence[str]]) -> str:
    made = []
    for items in clusters:
        caps = curve(read[items, CAPS])
        rows = [[f"cap {cap}", f"{one.accuracy:.2f}", f"{one.mean_tokens:.1f}", "", "", "", ""] for cap, one in caps.items()]
        for name in names:
            one, row = point(read[items, name]), read[items, name]
            told = ["" if row[key] is None else f"{row[key]:.3g}" for key in ("kl", "length")]
            free = point(read[items, OFF]).right
            less_off = paired_change(free, one.right, clusters[items], drawn_clusters=items == DOMAIN)
            changes = map(told_change, (less_off, compared(read, items, name, clusters[items])))
            rows.append([name, f"{one.accuracy:.2f}", f"{one.mean_tokens:.1f}", *told, *changes])
        headings = ["system", "right", "tokens", "KL", "length", "right, less off", "right, less the cap curve at as many tokens"]
        made.append(f"**{items}**, {len(clusters[items])} items:\n\n{table(headings, rows)}")
    return "\n\n".join(made)


def told_change(found: PairedChange) -> str:
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def said(read: Mapping[tuple[str, str], Any], names: Sequence[str], clusters: Sequence[str]) -> str:
    """Is a vector above the cap curve on hard items, where it shortens at all, and what does it cost beside writing freely?"""
    free = point(read[HARD, OFF])
    lines = []
    for name in (name for name in names if " eps " in name):
        one, change = point(read[HARD, name]), compared(read, HARD, name, clusters)
        where = "above" if change.low > 0 else "below" if change.high < 0 else "not told apart from"
        saved = 1 - one.mean_tokens / free.mean_tokens
        told = f"{abs(saved):.0%} {'fewer' if saved >= 0 else 'more'} tokens than off on hard items"
        cost = told_change(paired_change(free.right, one.right, clusters))
        lines.append(f"- {name}: {told}, {where} the cap curve ({told_change(change)}); right less off {cost}.")
    return "\n".join(lines)


def about(size: Size, backbone: Backbone) -> str:
    return (
        f"{backbone.name}; {', '.join(size.families)} and icd10, {size.items} items of each; easy: chains of "
        f"{TRAINED_LENGTHS[0]}-{TRAINED_LENGTHS[-1]} steps, hard: {HELD_OUT_LENGTHS[0]}-{HELD_OUT_LENGTHS[-1]}; vectors after "
        f"{size.layer:g} of the depth, from {size.pairs} pairs of each family; at most {MAX_NEW_TOKENS} tokens; 95 % intervals."
    )


def dashed(name: str) -> str:
    return name.replace(" ", "-")


if __name__ == "__main__":
    main()
