"""Fits a release again from its manifest alone, and says how far the two adapters are apart.

Bit-equal is what one kind of CPU gives with the same packages and threads. Elsewhere sums are taken in another order, and Adam
carries the difference on: two fits are then *equivalent* where their weights are nearer than WEIGHTS_APART and what they say of
the domain's answers nearer than NATS_APART. Another seed is ten times as far, or more.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from adapters.backbone import Backbone
from adapters.lora import CONFIG
from adapters.whole_file import whole_directory
from engine.engine import Continuation, Engine
from engine.profile import Profile
from evaluation.errors import DataChanged
from evaluation.task import Example, answer_line, direct_prompt
from evaluation.tasks import task_named
from registry.errors import BackboneMismatch
from registry.manifest import Machine
from registry.tracking import Tracking
from tuning.continuing import check_start, fetched
from tuning.errors import NotReproducible
from tuning.gating import Subject, check_tasks
from tuning.journal import alone_in
from tuning.laid_out import at_hand, fitted_on
from tuning.loop import CHECKPOINT
from tuning.machine import changes, this_machine
from tuning.plan import data_digest, training_examples
from tuning.recipe import Recipe

Sameness = Literal["identical", "equivalent", "different"]
WEIGHTS_APART = 0.05  # |again - release| / |release| over all weights together
NATS_APART = 0.02  # mean |difference| of the log-probability of a token of the domain's right answers
ITEMS = 32  # of the select split, on which that is read


@dataclass(frozen=True)
class Nearness:
    """`relative_distance` and the differences (nats per token) are infinite where the two have other weights at all."""

    bit_equal: bool
    relative_distance: float
    mean_nats: float
    max_nats: float

    @property
    def verdict(self) -> Sameness:
        if self.bit_equal:
            return "identical"
        near = self.relative_distance <= WEIGHTS_APART and self.mean_nats <= NATS_APART
        return "equivalent" if near else "different"


@dataclass(frozen=True)
class Reproduction:
    """`changed`: what the manifest records of the machine and is not so now; None where it records none of it."""

    nearness: Nearness
    changed: tuple[str, ...] | None
    directory: Path  # of what was fitted now

    @property
    def bits_expected(self) -> bool:
        return self.changed == ()


def reproduce(
    subject: Subject,
    backbone: Backbone,
    engine: Engine,
    directory: Path,
    on_step: Callable[[float], None] = lambda share: None,
    tracking: Tracking | None = None,
) -> Reproduction:
    """Fits the release's recipe again, on as many threads as it was, and keeps what comes out in `directory`.

    What the fit was begun from is fetched from the registry of `tracking` where it is not here.

    A fit that was killed goes on at its checkpoint there. Raises before the fit: NotReproducible for what no fit made,
    DataChanged where the task or its rows are others now, with both digests, and BackboneMismatch; StudyIsRunning where another
    process fits in `directory`.
    """
    manifest, recipe = subject.manifest, _fitted_recipe(subject)
    if manifest.backbone.fingerprint != backbone.fingerprint:
        raise BackboneMismatch(
            f"A release is fitted again on its own backbone, but {subject.name} was fitted on "
            f"{manifest.backbone.fingerprint[:12]} and {backbone.name!r} is {backbone.fingerprint[:12]} now. Restore it."
        )
    check_tasks(manifest, subject.name)
    domain = task_named(recipe.domain)
    examples = training_examples(recipe, domain)
    then, now = manifest.data_digests.get("train"), data_digest(examples)
    if then != now:
        raise DataChanged(
            f"{subject.name} was fitted on rows with SHA-256 {str(then)[:12]}, but its recipe draws rows with {now[:12]} now. "
            "Restore the data, or fit the recipe anew."
        )
    recipe = recipe if tracking is None else fetched(recipe, tracking)
    check_start(recipe, backbone)
    with alone_in(directory), _threads(manifest.fitted_on):
        changed = None if manifest.fitted_on is None else tuple(changes(manifest.fitted_on, this_machine(backbone.device)))
        again = _fit(recipe, backbone, examples, directory, on_step).scaled(manifest.profile.scale)
        shutil.rmtree(directory / "adapter", ignore_errors=True)
        with whole_directory(directory / "adapter") as part:
            again.save(part)
        nearness = compared_files(subject.directory, directory / "adapter", engine, backbone, domain.examples("select", ITEMS))
    return Reproduction(nearness, changed, directory / "adapter")


def compared_files(release: Path, again: Path, engine: Engine, backbone: Backbone, examples: Sequence[Example]) -> Nearness:
    """Two directories of adapter files: their weights, and what they make of the right answers."""
    one, other = _weights(release), _weights(again)
    shapes = [{name: tensor.shape for name, tensor in found.items()} for found in (one, other)]
    if shapes[0] != shapes[1]:
        return Nearness(False, math.inf, math.inf, math.inf)
    equal = all(torch.equal(one[name], other[name]) for name in one) and _configs(release) == _configs(again)
    apart = math.sqrt(sum(float((other[name].double() - one[name].double()).square().sum()) for name in one))
    size = math.sqrt(sum(float(tensor.double().square().sum()) for tensor in one.values()))
    said = [_said(directory, engine, backbone, examples) for directory in (release, again)]
    nats = [abs(after - before) for before, after in zip(*said, strict=True)]
    return Nearness(equal, apart / size if size else math.inf, sum(nats) / len(nats), max(nats))


def _fitted_recipe(subject: Subject) -> Recipe:
    if subject.manifest.derived:
        raise NotReproducible(
            f"A release is fitted again by its recipe, but {subject.name} was made without a fit "
            f"({subject.manifest.derived.get('how', 'see its manifest')}). Make it again from what it was made of."
        )
    return subject.recipe


def _fit(
    recipe: Recipe, backbone: Backbone, examples: Sequence[Example], directory: Path, on_step: Callable[[float], None]
) -> Profile:
    directory.mkdir(parents=True, exist_ok=True)
    adapters = fitted_on(
        at_hand(recipe),
        backbone,
        examples,
        lambda step, steps, loss: on_step(step / steps),
        task=task_named(recipe.domain),
        directory=directory,
        threads=torch.get_num_threads(),
    ).adapters
    for checkpoint in directory.rglob(CHECKPOINT):
        checkpoint.unlink()
    return Profile(adapters)


@contextmanager
def _threads(machine: Machine | None) -> Iterator[None]:
    """As many as the fit had; as before outside."""
    before = torch.get_num_threads()
    torch.set_num_threads(machine.threads if machine else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _weights(directory: Path) -> dict[str, Tensor]:
    files = sorted(directory.rglob("*.safetensors"))
    return {f"{file.relative_to(directory)}:{name}": tensor for file in files for name, tensor in load_file(file).items()}


def _configs(directory: Path) -> dict[str, object]:
    """What PEFT writes as a set comes in any order, and its version changes no adapter."""

    def ordered(value: object) -> object:
        return sorted(map(str, value)) if isinstance(value, list) else value

    found: dict[str, object] = {}
    for file in sorted(directory.rglob(CONFIG)):
        told = json.loads(file.read_text())
        found[str(file.relative_to(directory))] = {name: ordered(value) for name, value in told.items() if name != "peft_version"}
    return found


def _said(directory: Path, engine: Engine, backbone: Backbone, examples: Sequence[Example]) -> list[float]:
    """The log-probability of every token of the right answers, as the domain is asked."""
    asked = [
        Continuation(backbone.chat_ids(direct_prompt(example)), tuple(backbone.encode(answer_line(example.answer))))
        for example in examples
    ]
    engine.load("reproduced", Profile.load(directory))
    try:
        return [value for tokens in engine.score(asked, "reproduced") for value in tokens]
    finally:
        engine.unload("reproduced")
