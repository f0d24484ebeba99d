"""Every decoding policy on the default backbone, each against its null: the policy off, token caps, sampled votes, a filter.

    python -m benchmarks.policies [--items 48] [--full] [--results]

Per set of items (two generated families at trained lengths, the same with longer chains, ICD-10) and policy: how many answers are
right, how many tokens a reply costs and how many replies are not those of the policy off. A branched reply costs the tokens of
all its branches; votes over the same branches read the same texts. A policy helps where it is right more often than its null and
than the policy off, hurts where it is right less often than the policy off, by paired 95 % intervals, and did nothing where it
changed no reply; nothing is corrected for the number of comparisons. Thought tracing is read on belief questions, beside the
filter that costs less.

Every reading is a row in runs/benchmarks/policies and is not made again. About half an hour on two cores; --full takes 200 items.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from adapters.backbone import REASONER, Backbone
from benchmarks.compression import CAPS, DOMAIN, SETS, Items, caps_of, curve, dashed, kept, point, told_change
from benchmarks.results import commit, provenance, table, write_section
from engine.decoding.answer import said
from engine.decoding.branches import Branches
from engine.decoding.budget import Budget
from engine.decoding.served import complete_branches
from engine.decoding.tip import WORDS, SwitchPenalty
from engine.decoding.tracing import Tracing
from engine.engine import GenerationRequest
from engine.profile import DecodingPolicy, Profile
from engine.torch_engine import TorchEngine
from evaluation.cap_curve import Point, above_cap
from evaluation.pairs import BE_CONCISE
from evaluation.statistics import PairedChange, paired_change
from evaluation.task import Example, Task, is_right, reasoning_prompt
from evaluation.tasks import FAMILIES
from evaluation.tasks.belief import BELIEF
from evaluation.tasks.generated import HELD_OUT_LENGTHS, TRAINED_LENGTHS
from evaluation.tasks.icd10 import ICD10
from evaluation.thoughts import about_beliefs, compare_ways
from tuning.isolation import use_threads

MAX_NEW_TOKENS = 128
NUM_BRANCHES = 8
DRAWN = ("word_problem", "boxes")
OFF, CONCISE, CAP = "off", "asked to be concise", "cap of 48"
SAMPLED, GREEDY = "sampled", "first tokens"  # how branches begin
VOTES = ("margin", "majority", "best", "length")
_LOADED = "policy"


@dataclass(frozen=True)
class Arm:
    """`null`: the arm that it must beat; empty where that is the curve of token caps, at as many tokens."""

    name: str
    policy: DecodingPolicy = DecodingPolicy()
    also: str = ""
    null: str = OFF


def arms(common: str) -> Iterator[Arm]:
    """`common`: the word that the chains write most often, as a control that the penalty acts."""
    yield Arm(OFF)
    yield Arm(CONCISE, also=BE_CONCISE, null="")
    yield Arm(CAP, DecodingPolicy(budget=Budget(max_trace_tokens=48)))
    yield Arm("cap of 48, ramp 5", DecodingPolicy(budget=Budget(max_trace_tokens=48, ramp=5.0)), null=CAP)
    yield Arm("at least 64 tokens", DecodingPolicy(budget=Budget(min_trace_tokens=64)))
    yield Arm("one end ignored", DecodingPolicy(budget=Budget(num_ignored_ends=1)))
    yield Arm("tip, window", DecodingPolicy(tip=SwitchPenalty()))
    yield Arm("tip, const", DecodingPolicy(tip=SwitchPenalty(schedule="const")))
    yield Arm("tip, cyclic", DecodingPolicy(tip=SwitchPenalty(schedule="cyclic", period=40)))
    yield Arm(f"tip of 30 on {common!r}", DecodingPolicy(tip=SwitchPenalty(alpha=30.0, words=(common,))))


# A greedy branch stands beside as many sampled ones, the filter by length beside the plain majority of the same chains.
BRANCHED_NULLS = {
    (GREEDY, "margin"): (SAMPLED, "majority"),
    (GREEDY, "majority"): (SAMPLED, "majority"),
    (GREEDY, "best"): (SAMPLED, "majority"),
    (GREEDY, "length"): (GREEDY, "majority"),
    (SAMPLED, "length"): (SAMPLED, "majority"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=48, help="of each family, of ICD-10 and of belief questions")
    parser.add_argument("--backbone", default=REASONER)
    parser.add_argument("--full", action="store_true", help="200 items")
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks/policies"))
    parser.add_argument("--results", action="store_true", help="write the section into docs/results.md too")
    args = parser.parse_args()
    count = 200 if args.full else args.items
    use_threads()
    backbone = Backbone.load(args.backbone)
    engine = TorchEngine(backbone, max_rows=64, precision="bfloat16")
    runs = args.runs / f"{backbone.fingerprint[:12]}-{count}"
    texts = [section(name, items, engine, backbone, runs / name) for name, items in sets_of(count).items()]
    about = (
        f"{backbone.name}; {', '.join(DRAWN)} and icd10, {count} items of each; easy: chains of {_range(TRAINED_LENGTHS)} "
        f"steps, hard: {_range(HELD_OUT_LENGTHS)}; {NUM_BRANCHES} branches, sampled at temperature 0.7; at most {MAX_NEW_TOKENS} "
        "tokens; paired 95 % intervals, not corrected for their number."
    )
    body = "\n\n".join((provenance("policies"), about, *texts, tracing(engine, backbone, count, runs)))
    print(body)
    if args.results:
        write_section("policies", "Decoding policies against their nulls", body)


def sets_of(count: int) -> dict[str, Items]:
    def drawn(lengths: tuple[int, ...]) -> Items:
        tasks = [FAMILIES[name].at_length(*lengths) for name in DRAWN]
        return [(task, task.examples("select", count)) for task in tasks]

    return dict(
        zip(SETS, (drawn(TRAINED_LENGTHS), drawn(HELD_OUT_LENGTHS), [(ICD10, ICD10.examples("select", count))]), strict=True)
    )


def section(name: str, items: Items, engine: TorchEngine, backbone: Backbone, place: Path) -> str:
    """One set: its readings, then the table and what the intervals say."""
    caps = curve(kept(place / f"{CAPS}.json", partial(caps_of, engine, backbone, items, MAX_NEW_TOKENS)))
    read, nulls = dict[str, dict[str, Any]](), dict[str, str]()
    off = kept(place / "off.json", partial(read_arm, engine, backbone, items, Arm(OFF)))
    for arm in arms(commonest(off["texts"])):
        read[arm.name] = kept(place / f"{dashed(arm.name)}.json", partial(read_arm, engine, backbone, items, arm))
        nulls[arm.name] = arm.null
        print(name, arm.name, point(read[arm.name]).accuracy, flush=True)
    for begun in (SAMPLED, GREEDY):
        found = kept(place / f"branches-{dashed(begun)}.json", partial(read_branches, engine, backbone, items, begun))
        for vote in VOTES:
            read[branched(begun, vote)] = found[vote]
            nulls[branched(begun, vote)] = branched(*BRANCHED_NULLS[begun, vote]) if (begun, vote) in BRANCHED_NULLS else OFF
        print(name, begun, {vote: point(found[vote]).accuracy for vote in VOTES}, flush=True)
    clusters = [example.group for _, examples in items for example in examples]
    rows = [row(arm, read, nulls[arm], caps, clusters, drawn=name == DOMAIN) for arm in read]
    headings = ["policy", "right", "tokens", "replies changed", "right, less off", "its null", "right, less its null", ""]
    told = ", ".join(f"{cap}: {one.accuracy:.2f}" for cap, one in caps.items())
    words = Counter(word for text in off["texts"] for word in WORDS if word in text.lower().split())
    note = f"Right under token caps: {told}. Replies of the policy off with a word that TIP lowers: {sum(words.values())}."
    return f"**{name}**, {len(clusters)} items:\n\n{table(headings, rows)}\n\n{note}"


def row(
    name: str, read: Mapping[str, Any], null: str, caps: Mapping[int, Point], clusters: Sequence[str], drawn: bool
) -> list[str]:
    one, off = point(read[name]), point(read[OFF])
    told = [name, f"{one.accuracy:.2f}", f"{one.mean_tokens:.1f}"]
    if name == OFF:
        return [*told, "", "", "", "", ""]
    changed = sum(now != then for now, then in zip(read[name]["texts"], read[OFF]["texts"], strict=True))
    less_off = paired_change(off.right, one.right, clusters, drawn_clusters=drawn)
    less_null = (
        paired_change(point(read[null]).right, one.right, clusters, drawn_clusters=drawn)
        if null
        else above_cap(one, caps, clusters, drawn)
    )
    return [
        *told,
        str(changed),
        told_change(less_off),
        null or "the caps",
        told_change(less_null),
        verdict(changed, less_off, less_null),
    ]


def verdict(changed: int, less_off: PairedChange, less_null: PairedChange) -> str:
    if not changed:
        return "did nothing"
    if less_off.high < 0:
        return "hurt"
    return "helped" if min(less_off.low, less_null.low) > 0 else "not shown"


def read_arm(engine: TorchEngine, backbone: Backbone, items: Items, arm: Arm) -> dict[str, Any]:
    engine.load(_LOADED, Profile((), arm.policy))
    try:
        written = [engine.complete(asked(backbone, examples, _LOADED, arm.also)) for _, examples in items]
    finally:
        engine.unload(_LOADED)
    replies = [reply for part in written for reply in part]
    return as_row(items, [reply.text for reply in replies], [float(len(reply.token_ids)) for reply in replies])


def read_branches(engine: TorchEngine, backbone: Backbone, items: Items, begun: str) -> dict[str, Any]:
    """Of one writing, every vote."""
    spec = Branches(num_branches=NUM_BRANCHES, temperature=0.7 if begun == SAMPLED else 0.0)
    decoding = spec.within(backbone, DecodingPolicy(), MAX_NEW_TOKENS)
    examples = [example for _, part in items for example in part]
    requests = [replace(one, seed=place) for place, one in enumerate(asked(backbone, examples, None))]
    written = complete_branches(engine, backbone, decoding, requests)
    spent = [float(sum(len(one.token_ids) for one in rows)) for _, rows in written]
    return {
        vote: as_row(items, [spec.model_copy(update={"vote": vote}).winner(one, said).text for one, _ in written], spent)
        for vote in VOTES
    }


def asked(backbone: Backbone, examples: Sequence[Example], profile: str | None, also: str = "") -> list[GenerationRequest]:
    texts = [f"{reasoning_prompt(example)}\n{also}".rstrip() for example in examples]
    return [GenerationRequest(backbone.chat_ids(text), profile, MAX_NEW_TOKENS, temperature=0.0) for text in texts]


def as_row(items: Items, texts: Sequence[str], tokens: Sequence[float]) -> dict[str, Any]:
    known: list[tuple[Task, Example]] = [(task, example) for task, examples in items for example in examples]
    right = [float(is_right(task, example, text)) for (task, example), text in zip(known, texts, strict=True)]
    return {"right": right, "tokens": list(tokens), "texts": list(texts), "commit": commit()}


def tracing(engine: TorchEngine, backbone: Backbone, count: int, runs: Path) -> str:
    def read() -> dict[str, Any]:
        examples = about_beliefs(BELIEF.examples("select", 2 * count))[:count]
        return compare_ways(engine, backbone, None, examples, Tracing(num_hypotheses=4)).as_dict()

    found = kept(runs / "tracing.json", read)
    rows = []
    for name, way in found["ways"].items():
        changes = [way[key] for key in ("right_against_plain", "margin_against_plain")]
        told = ["" if one is None else f"{one['change']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}]" for one in changes]
        rows.append([name, f"{way['accuracy']:.2f}", f"{way['tokens_per_item']:.0f}", str(way["traced"]), *told])
    headings = [
        "way",
        "right",
        "tokens through a forward",
        "items whose story it changed",
        "right, less plain",
        "margin, less plain (nats)",
    ]
    return f"**thought tracing**, {found['items']} belief questions, scored by likelihood:\n\n{table(headings, rows)}"


def commonest(texts: Sequence[str]) -> str:
    """A word in small letters."""
    return Counter(word for text in texts for word in text.split() if word.isalpha() and word.islower()).most_common(1)[0][0]


def branched(begun: str, vote: str) -> str:
    return f"{NUM_BRANCHES} branches, {begun}, {vote}"


def _range(lengths: tuple[int, ...]) -> str:
    return f"{lengths[0]}-{lengths[-1]}"


if __name__ == "__main__":
    main()
