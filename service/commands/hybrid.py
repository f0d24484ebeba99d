"""`graftline hybrid`: what few vectors, routed by the adapter, recover of its gain on the bare backbone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from registry.errors import RegistryError
from registry.home import home_directory
from service.commands.subject import LOADED, load_subject
from service.elsewhere import elsewhere

if TYPE_CHECKING:
    from evaluation.hybrid import Recovery
    from tuning.routing_fit import FittedRouting


def hybrid(
    named: str,
    items: int,
    categories: int,
    direct: bool,
    max_tokens: int,
    keep: Path | None,
    domain: str | None,
    backbone_name: str | None,
    home: Path | None,
    tracking_uri: str | None,
    as_json: bool,
) -> None:
    from adapters.errors import RefusedAdapter
    from evaluation.hybrid import greedy_texts
    from evaluation.hybrid import hybrid as read
    from evaluation.task import direct_prompt, reasoning_prompt
    from tuning.routed_release import write_routed
    from tuning.routing_fit import RoutingFitSpec, fit_routing

    if keep is not None:
        if keep.exists():
            raise RegistryError(f"A profile goes into a new directory, but {keep} is there. Give another, or remove it.")
        keep.absolute().parent.stat()  # a folder that is not there is told before anything is read
    subject = load_subject(named, domain, backbone_name, home, tracking_uri)
    if not subject.profile.adapters:
        raise RefusedAdapter(f"What few vectors recover is an adapter's gain, but {named} has no adapter. Name one that has.")
    prompt, spec = direct_prompt if direct else reasoning_prompt, RoutingFitSpec(num_categories=categories)
    fitted_on, judged_on = (subject.domain.examples(split, items) for split in ("search", "select"))
    with Console(stderr=True).status(f"routing {subject.backbone.name} by {named}"):
        texts = greedy_texts(subject.engine, subject.backbone, LOADED, [prompt(one) for one in fitted_on], max_tokens)
        fitted, bias = (
            fit_routing(subject.engine, subject.backbone, LOADED, texts, each)
            for each in (spec, spec.model_copy(update={"num_categories": 1}))
        )
        found = read(
            subject.engine,
            subject.backbone,
            subject.profile,
            fitted.routing,
            bias.routing,
            subject.domain,
            judged_on,
            prompt,
            max_tokens,
        )
    kept = None
    if keep is not None:
        routed = replace(subject.profile, routing=fitted.routing)
        kept = write_routed(keep, routed, named, subject.directory, subject.manifest, fitted_on)
    if as_json:
        told = {"subject": named, "backbone": subject.backbone.name, "task": subject.domain.name}
        print(json.dumps({**told, "fit": _as_dict(fitted), "fit_of_bias": _as_dict(bias), **found.as_dict()}))
        return
    share = fitted.num_places / fitted.num_tokens
    print(f"{named} and its backbone differ at {share:.0%} of {fitted.num_tokens} tokens of {subject.domain.name}")
    print(f"places by category: {', '.join(map(str, fitted.by_category))}; the held-out ones, in nats of the adapter's token:")
    print(
        f"  alone {fitted.alone.nats:.2f}, with {categories} vectors {fitted.steered.nats:.2f}, with one {bias.steered.nats:.2f}"
    )
    for recovery in (found.answers, found.texts):
        _show(recovery)
    print("tokens steered: " + ", ".join(f"{name} {share:.0%}" for name, share in found.steered.items()))
    if keep is not None:
        where = elsewhere(home_directory(home), tracking_uri)
        said = f"next: graftline publish {keep}{where}" if kept else f"not to be published, since {named} has no manifest"
        print(f"wrote {keep}; {said}")


def _show(recovery: Recovery) -> None:
    print(f"{recovery.unit}: adapter - backbone {recovery.gain} ({recovery.gain.n} items)")
    if recovery.not_measurable:
        print("  recovery not measurable: that is not clear of 0")
    for name, share in recovery.shares.items():
        print(f"  recovered by {name}: {share.value:.0%} [{share.low:.0%}, {share.high:.0%}]")


def _as_dict(fitted: FittedRouting) -> dict[str, object]:
    return {
        "layer": fitted.routing.spec.layer,
        "read_layer": fitted.routing.spec.read_layer,
        "places": fitted.num_places,
        "of_tokens": fitted.num_tokens,
        "by_category": list(fitted.by_category),
        "explained": fitted.explained,
        "alone": fitted.alone._asdict(),
        "steered": fitted.steered._asdict(),
    }
