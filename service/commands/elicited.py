"""`graftline elicited`: whether an adapter turned on what the backbone could do, or wrote something in."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from service.commands.subject import LOADED, load_subject
from service.pace import Pace

if TYPE_CHECKING:
    from evaluation.elicited import Share


def elicited(
    named: str,
    items: int,
    chain: bool,
    domain: str | None,
    backbone_name: str | None,
    home: Path | None,
    tracking_uri: str | None,
    as_json: bool,
) -> None:
    from evaluation.elicited import answer_texts, chain_texts
    from evaluation.elicited import elicited as read

    subject = load_subject(named, domain, backbone_name, home, tracking_uri)
    texts = chain_texts if chain else answer_texts
    made_on, judged_on = (subject.domain.examples(split, items) for split in ("search", "select"))
    print(f"steering {subject.backbone.name} towards {named}", file=sys.stderr)
    found = read(
        subject.engine,
        subject.backbone,
        LOADED,
        texts(subject.backbone, made_on),
        texts(subject.backbone, judged_on),
        [example.group for example in judged_on],
        on_progress=partial(Pace(), "readings and vectors"),
    )
    what = "gold chains" if chain else "gold answers"
    if as_json:
        told = {"subject": named, "backbone": subject.backbone.name, "task": subject.domain.name, "texts": what}
        print(json.dumps({**told, **found.as_dict()}))
        return
    if found.gain is not None:
        print(f"gain on the {what} of {subject.domain.name}: {found.gain} nats per token ({found.gain.n} items)")
    if found.share is None or found.opposite is None:
        print(f"not measurable: {found.not_measurable}")
        return
    layers = ", ".join(str(vector.layer) for vector in found.vectors)
    print(f"given to the backbone by {len(found.vectors)} vectors (layers {layers}): {_told(found.share)}")
    print(f"by the same vectors turned round: {_told(found.opposite)}")
    print(f"by random vectors of equal norm: {', '.join(map(_told, found.random))}")
    print(f"verdict: {found.verdict}")


def _told(share: Share) -> str:
    return f"{share.value:.0%} [{share.low:.0%}, {share.high:.0%}]"
