"""Fits a router: questions of every name's domain against questions that the backbone answers best itself.

Each question is asked in three forms (bare, for an answer, for steps), so that the wording of an instruction says nothing about
the class. The train split fits, the search split chooses layer, penalty, temperature and threshold, the select split is reported.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from adapters.adapter_router import AdapterRouter
from adapters.backbone import Backbone
from adapters.spec import Spec
from engine.inspect import Inspector
from engine.routed_engine import states_by_layer
from evaluation.reliability import calibration_error, equal_mass_bins
from evaluation.statistics import upper_limit, wilson
from evaluation.task import Split, Task, direct_prompt, question_text, reasoning_prompt
from registry.manifest import BackboneIdentity, ProfileDescription, write_manifest
from tuning.manifest import hashes_of, installed_digest
from tuning.plan import data_digest

# Legend: N prompts, C classes (the backbone first), H hidden

FORMS = (question_text, direct_prompt, reasoning_prompt)
PENALTIES = (1e-3, 1e-2, 1e-1)
NEVER = 1.01  # a threshold that no probability reaches


class RouterSpec(Spec):
    """`max_astray`: of the prompts that are the backbone's, the share that may be sent to an adapter, with 95 % confidence."""

    items: Annotated[int, Field(ge=20, le=5000)] = 240  # questions a class and split
    max_astray: Annotated[float, Field(gt=0, lt=1)] = 0.03
    seed: int = 0


@dataclass(frozen=True)
class Prompts:
    """Of one split: token ids with their class, 0 the backbone's."""

    ids: tuple[tuple[int, ...], ...]
    classes: tuple[int, ...]


@dataclass(frozen=True)
class RouterReading:
    """How a router does on prompts that it has not seen. Intervals are Wilson's, at 95 %."""

    count: int
    right: float  # share sent where they belong
    right_low: float
    right_high: float
    astray: float  # of the backbone's prompts, the share sent to an adapter
    astray_high: float
    missed: float  # of the adapters' prompts, the share that stays with the backbone
    mistaken: float  # of the adapters' prompts, the share sent to another adapter
    calibration_error: float
    by_class: Mapping[str, float]


@dataclass(frozen=True)
class RouterFit:
    router: AdapterRouter
    reading: RouterReading
    shuffled: RouterReading  # the same fit on labels drawn anew: what no knowledge gives


def prompts_of(
    backbone: Backbone,
    domains: Mapping[str, Task],
    others: Sequence[Task],
    split: Split,
    items: int,
    seed: int,
    own: Sequence[str] = (),
) -> Prompts:
    """`items` questions of each domain, and as many of the others together; `own` are texts that are the backbone's too."""
    asked: list[tuple[str, int]] = []

    def ask(task: Task, count: int, label: int) -> None:
        for place, example in enumerate(task.examples(split, count, seed=seed)):
            asked.append((FORMS[place % len(FORMS)](example), label))

    for label, task in enumerate(domains.values(), start=1):
        ask(task, items, label)
    share = -(-items // max(1, len(others)))
    for task in others:
        ask(task, share, 0)
    # A text of one's own falls into one split for ever, by its place.
    part = {"train": (0, 1), "search": (2,), "select": (3,), "gate": ()}[split]
    asked += [(text, 0) for place, text in enumerate(own) if place % 4 in part]
    return Prompts(tuple(backbone.chat_ids(text) for text, _ in asked), tuple(label for _, label in asked))


def fit_router(
    engine: Inspector,
    backbone: Backbone,
    domains: Mapping[str, Task],
    others: Sequence[Task],
    spec: RouterSpec,
    own: Sequence[str] = (),
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> RouterFit:
    """`domains`: what each name is for; `others`: tasks whose questions are the backbone's, as the texts of `own` are.

    `on_progress` is told how many of how many prompts are read, which is nearly all of the work.
    """
    if not domains or not (others or own):
        raise ValueError("A router chooses between the backbone and at least one name, but one side has no prompts. Name a task.")
    read = {
        split: prompts_of(backbone, domains, others, split, spec.items, spec.seed, own) for split in ("train", "search", "select")
    }
    for split, part in read.items():
        if 0 not in part.classes:
            raise ValueError(
                f"Every split has prompts of the backbone, but {split} has none: {len(own)} texts of one's own and no task. Of "
                "four texts two are fitted on, one is searched on and one is read: give at least 20."
            )
    layers = sorted({max(0, round(share * (len(backbone.layers) - 1))) for share in (0.25, 0.5, 0.75, 1.0)})
    total, before = sum(len(part.ids) for part in read.values()), 0
    by_split = {}
    for split, part in read.items():

        def told(done: int, before: int = before) -> None:
            on_progress(before + done, total)

        by_split[split] = states_by_layer(engine, part.ids, layers, told)
        before += len(part.ids)
    states = {layer: {split: found[layer] for split, found in by_split.items()} for layer in layers}
    labels = {split: torch.tensor(part.classes) for split, part in read.items()}

    def best(train_N: Tensor) -> AdapterRouter:
        found: list[tuple[float, AdapterRouter]] = []
        for layer in layers:
            for penalty in PENALTIES:
                fitted = _fitted(states[layer]["train"], train_N, tuple(domains), layer, penalty, backbone.fingerprint)
                found.append((_loss(fitted, states[layer]["search"], labels["search"]), fitted))
        _, router = min(found, key=lambda one: one[0])
        return _calibrated(router, states[router.layer]["search"], labels["search"], spec.max_astray)

    router = best(labels["train"])
    shuffled_N = labels["train"][torch.tensor(random.Random(spec.seed).sample(range(len(labels["train"])), len(labels["train"])))]
    control = best(shuffled_N)
    return RouterFit(
        router,
        reading(router, states[router.layer]["select"], labels["select"]),
        reading(replace(control, threshold=0.0), states[control.layer]["select"], labels["select"]),
    )


def write_router(
    directory: Path,
    fitted: RouterFit,
    backbone: Backbone,
    targets: Mapping[str, str],
    domains: Mapping[str, Task],
    others: Sequence[Task],
    spec: RouterSpec,
) -> None:
    """A directory that `graftline publish` takes. `targets`: NAME@VERSION that each name stood for."""
    fitted.router.save(directory)
    seen = [
        example
        for split in ("train", "search")
        for task in (*domains.values(), *others)
        for example in task.examples(split, spec.items, seed=spec.seed)
    ]
    write_manifest(
        directory,
        backbone=BackboneIdentity(
            name=backbone.name, fingerprint=backbone.fingerprint, dtype=str(backbone.dtype).removeprefix("torch.")
        ),
        profile=ProfileDescription(adapters=()),
        recipe={"name": "auto", "protected": [task.name for task in others], "router": spec.model_dump(mode="json")},
        task={"name": "routing", "domains": {name: task.name for name, task in domains.items()}},
        data_digests={"train": data_digest(seen)},
        lock_digest=installed_digest(),
        seeds={"router": spec.seed},
        training=hashes_of(seen),
        derived={"router": dict(targets), "select": asdict(fitted.reading)},
    )


def reading(router: AdapterRouter, states_NH: Tensor, labels_N: Tensor) -> RouterReading:
    choices = [router.choose(state_H) for state_H in states_NH]
    sent = [0 if choice.name is None else router.names.index(choice.name) + 1 for choice in choices]
    likeliest = [0 if choice.likeliest is None else router.names.index(choice.likeliest) + 1 for choice in choices]
    labels = labels_N.tolist()
    right = [a == b for a, b in zip(sent, labels, strict=True)]
    of_backbone = [one != 0 for one, label in zip(sent, labels, strict=True) if label == 0]
    of_adapters = [(one, label) for one, label in zip(sent, labels, strict=True) if label != 0]
    low, high = wilson(sum(right), len(right))
    confident = [float(one == label) for one, label in zip(likeliest, labels, strict=True)]
    names = ("", *router.names)
    by_class = {
        name: _share([ok for ok, label in zip(right, labels, strict=True) if label == place]) for place, name in enumerate(names)
    }
    return RouterReading(
        count=len(labels),
        right=_share(right),
        right_low=low,
        right_high=high,
        astray=_share(of_backbone),
        astray_high=upper_limit(sum(of_backbone), len(of_backbone)),
        missed=_share([one == 0 for one, _ in of_adapters]),
        mistaken=_share([one not in (0, label) for one, label in of_adapters]),
        calibration_error=calibration_error(equal_mass_bins([choice.probability for choice in choices], confident)),
        by_class=by_class,
    )


def _fitted(
    states_NH: Tensor, labels_N: Tensor, names: tuple[str, ...], layer: int, penalty: float, fingerprint: str
) -> AdapterRouter:
    """Full-batch logistic regression with every class of the same weight and a quadratic penalty."""
    mean_H, scale_H = states_NH.mean(dim=0), states_NH.std(dim=0).clamp(min=1e-6)
    standard_NH = (states_NH - mean_H) / scale_H
    weights_CH = torch.zeros(len(names) + 1, states_NH.shape[1], requires_grad=True)
    bias_C = torch.zeros(len(names) + 1, requires_grad=True)
    counts_C = torch.bincount(labels_N, minlength=len(names) + 1).clamp(min=1)
    share_C = 1.0 / (counts_C * len(counts_C))
    optimizer = torch.optim.LBFGS([weights_CH, bias_C], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        losses_N = torch.nn.functional.cross_entropy(standard_NH @ weights_CH.T + bias_C, labels_N, reduction="none")
        loss: Tensor = (losses_N * share_C[labels_N]).sum() + penalty * weights_CH.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return AdapterRouter(names, layer, 0.0, 1.0, fingerprint, mean_H, scale_H, weights_CH.detach(), bias_C.detach())


def _loss(router: AdapterRouter, states_NH: Tensor, labels_N: Tensor) -> float:
    return float(torch.nn.functional.cross_entropy(router.logits(states_NH), labels_N))


def _calibrated(router: AdapterRouter, states_NH: Tensor, labels_N: Tensor, max_astray: float) -> AdapterRouter:
    """The temperature of least log loss, then the least threshold at which the backbone's prompts stay with it."""
    grid = [math.exp(0.1 * step) for step in range(-30, 31)]
    router = min((replace(router, temperature=one) for one in grid), key=lambda one: _loss(one, states_NH, labels_N))
    backbones = [router.choose(state_H) for state_H, label in zip(states_NH, labels_N.tolist(), strict=True) if label == 0]
    tempting = sorted(choice.probability for choice in backbones if choice.likeliest is not None)
    for threshold in (0.0, *(math.nextafter(one, 2.0) for one in tempting)):
        astray = sum(one >= threshold for one in tempting)
        if upper_limit(astray, len(backbones)) <= max_astray:
            return replace(router, threshold=threshold)
    return replace(router, threshold=NEVER)


def _share(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else math.nan
