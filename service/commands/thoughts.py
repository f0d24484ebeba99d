"""`graftline thoughts`: whether tracing a mind's thoughts, or a perspective filter, helps to answer what somebody believes."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from service.commands.subject import LOADED, load_subject

SIDES = {"backbone": None, "adapted": LOADED}


def thoughts(
    named: str,
    items: int,
    num_hypotheses: int,
    seed: int,
    backbone_name: str | None,
    home: Path | None,
    tracking_uri: str | None,
    as_json: bool,
) -> None:
    from engine.decoding.tracing import Tracing
    from evaluation.tasks.belief import BELIEF
    from evaluation.thoughts import Thoughts, about_beliefs, compare_ways

    subject = load_subject(named, "belief", backbone_name, home, tracking_uri)
    # Half of a story's questions are about a belief.
    examples = about_beliefs(BELIEF.examples("select", 2 * items, seed))[:items]
    spec = Tracing(num_hypotheses=num_hypotheses)
    found: dict[str, Thoughts] = {}
    for side, profile in SIDES.items():
        with Console(stderr=True).status(f"tracing {len(examples)} stories: {side}"):
            found[side] = compare_ways(subject.engine, subject.backbone, profile, examples, spec, seed)
    if as_json:
        told = {"subject": named, "backbone": subject.backbone.name}
        print(json.dumps({**told, **{side: one.as_dict() for side, one in found.items()}}))
        return
    for side, one in found.items():
        print(f"{side}, {len(one.item_ids)} questions about beliefs:")
        plain = one.plain
        print(f"  plain: {plain.accuracy:.0%} right, {plain.tokens / len(plain.margins):.0f} tokens an item")
        for name, way in one.ways.items():
            spent = f"{way.tokens / len(way.margins):.0f} tokens an item, {way.num_traced} changed what is asked"
            print(f"  {name}: {way.accuracy:.0%} right ({way.right} against plain), {spent}")
