"""Admission: a task can show a loss only if the backbone can do it, a damaged model does worse and a no-op changes nothing.

Rule: above chance by max(0.10, 3 standard errors); where the model writes, an answer line in at least 95 % of the completions;
where gold chains are read, which have no chance level, a problem's own chain above one with another problem's steps by 5
standard errors; reading twice gives the same; random noise in the weights lowers the score significantly (positive control); an
adapter of zeros changes nothing at all (negative control). What is not admitted is reported as not measurable, with the reason,
and never as kept.

What was found is kept by all that decides it: the backbone, the measure, the items with their choices, the thresholds and the
precision that the engine computes in. One thing crosses precisions: an admission in float32 that clears the floor and the
positive control by ROOM or more stands for a lower precision too, taking it that rounding moves a score by less; the record says
which precision it is from. A refusal never crosses.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn

from adapters.backbone import Backbone
from adapters.four_bit import whole_weight
from adapters.lora import PREFIX, LoRA, LoRASpec
from adapters.whole_file import write_whole
from engine.engine import Engine
from engine.errors import PromptTooLong
from engine.profile import Profile
from engine.twin import Precision
from evaluation.measure import Measure, Readings
from evaluation.measures.chain import ChainLikelihood
from evaluation.measures.choice import ChoiceAccuracy, options_of
from evaluation.measures.generation import LEAST_PARSED, Generation
from evaluation.retention import gate_measure, is_written
from evaluation.statistics import paired_change, score
from evaluation.task import Example, Task
from evaluation.tasks.generated import GeneratedTask, draws_groups

LEAST_ABOVE_CHANCE = 0.10
NOISE = 0.5  # Frobenius norm of the noise in each layer, as a share of the layer's own
LEAST_APART = 5.0  # standard errors of the mean difference, own chain minus another's
ITEMS = 24  # written; a likelihood costs a tenth, so that four times as many are read
ROOM = 0.05  # in the measure's own unit
PACKAGED = Path(__file__).parent / "admitted"  # what benchmarks/admission.py found on the built-in backbones, by the same key


@dataclass(frozen=True)
class Admission:
    """What the backbone scored, and why the task is (or is not) measurable on it."""

    task: str
    measure: str
    admitted: bool
    reasons: tuple[str, ...]  # why not; empty when admitted
    base: float
    stderr: float
    chance: float | None  # None: a likelihood, which has no chance level
    damaged_change: float
    damaged_high: float
    noop_change: float
    n: int
    precision: str = "float32"  # that it was found in

    @property
    def has_room(self) -> bool:
        """Whether a change of ROOM would not have refused it."""
        floor = -math.inf if self.chance is None else self.chance + above_chance(self.stderr)
        return self.admitted and self.base >= floor + ROOM and self.damaged_high <= -ROOM


def above_chance(stderr: float) -> float:
    """By how much a score must lie above chance."""
    return max(LEAST_ABOVE_CHANCE, 3 * stderr)


def random_update(backbone: Backbone, size: float, rank: int = 8, seed: int = 0) -> LoRA:
    """A LoRA of random weights on every linear layer, of a given relative size: damage as a control. Size 0 is a no-op."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    inside = {id(module) for layer in backbone.layers for module in layer.modules()}
    for path, module in backbone.model.named_modules():
        if isinstance(module, nn.Linear) and id(module) in inside:
            a_RI = torch.randn(rank, module.in_features, generator=generator)
            b_OR = torch.randn(module.out_features, rank, generator=generator)
            norm = float(whole_weight(module).norm()) / float((b_OR @ a_RI).norm())
            tensors[f"{PREFIX}{path}.lora_A.weight"] = a_RI
            tensors[f"{PREFIX}{path}.lora_B.weight"] = b_OR * size * norm
    return LoRA(LoRASpec(rank=rank, alpha=rank), tensors=tensors)


def admit(
    engine: Engine,
    backbone: Backbone,
    measure: Measure,
    task: Task,
    chance: float | None,
    items: int = ITEMS,
    damage: float = NOISE,
) -> Admission:
    """Applies the rule on items of the search split. `chance` is None for a likelihood, which has no such level."""
    examples = task.examples("search", items, seed=5)
    try:
        base = measure.read(engine, backbone, None, task, examples)
    except PromptTooLong as error:
        base = Readings.of(measure, task, examples, [math.nan] * len(examples), reason=str(error))
    if base.reason:
        unknown = math.nan
        return Admission(
            task.name, measure.name, False, (base.reason,), unknown, unknown, chance, unknown, unknown, unknown, len(examples)
        )
    again = measure.read(engine, backbone, None, task, examples)
    damaged = _under(engine, backbone, measure, task, examples, damage)
    untouched = _under(engine, backbone, measure, task, examples, 0.0)
    own = score(base.values)
    drawn = draws_groups(task, base.clusters)
    loss = paired_change(base.values, damaged, base.clusters, confidence=0.90, drawn_clusters=drawn)
    noop = paired_change(base.values, untouched, base.clusters)
    above = above_chance(own.stderr)
    parsed = base.part_mean("parsed") if "parsed" in base.parts else 1.0
    reasons = []
    if len(examples) < items:
        reasons.append(f"has only {len(examples)} of {items} distinct items")
    if chance is not None and own.mean < chance + above:
        reasons.append(f"the backbone scores {own.mean:.2f}, which is not above chance ({chance:.2f}) by {above:.2f}")
    if parsed < LEAST_PARSED:
        reasons.append(f"the backbone writes an answer line in {parsed:.0%} of its completions, not in {LEAST_PARSED:.0%}")
    if isinstance(measure, ChainLikelihood):
        others = measure.read(engine, backbone, None, task, another_chain(examples)).values
        apart = score([own - other for own, other in zip(base.values, others, strict=True)])
        if not apart.mean > LEAST_APART * apart.stderr:
            reasons.append(
                f"a problem's own chain is above one with another problem's steps by {apart.mean:+.2f} nats per token, which is "
                f"not more than {LEAST_APART:g} standard errors ({apart.stderr:.3f})"
            )
    if again.values != base.values:
        reasons.append("reading the same items twice gave different values")
    if loss.high >= 0:
        reasons.append(f"a damaged model changes it by {loss.mean:+.2f} (up to {loss.high:+.2f}), so a loss would not be seen")
    if any(noop.per_item):
        reasons.append(f"an adapter of zeros changes it by {noop.mean:+.3g}")
    return Admission(
        task.name,
        measure.name,
        not reasons,
        tuple(reasons),
        own.mean,
        own.stderr,
        chance,
        loss.mean,
        loss.high,
        noop.mean,
        len(examples),
    )


def another_chain(examples: Sequence[Example]) -> list[Example]:
    """Each problem with its own answer and the steps of the next one."""
    return [replace(one, rationale=other.rationale) for one, other in zip(examples, (*examples[1:], *examples[:1]), strict=True)]


def admissions(
    engine: Engine,
    backbone: Backbone,
    tasks: Sequence[Task],
    directory: Path,
    items: int = ITEMS,
    precision: Precision = "float32",
) -> dict[str, Admission]:
    """Of every task by its gate measure, kept on disk so that a backbone is looked at once. `precision` is the engine's."""
    found = {}
    for task in tasks:
        known = stored_admission(backbone, task, directory, items, precision)
        if known is None:
            measure, count = gate_measure(task), _count(task, items)
            chance = chance_level(measure, task, task.examples("search", count, seed=5))
            computed = _computed(backbone, precision)
            known = replace(admit(engine, backbone, measure, task, chance, count), precision=computed)
            _store(known, directory / "admission" / f"{_key(backbone, task, items, computed)}.json")
        found[task.name] = known
    return found


def stored_admission(
    backbone: Backbone, task: Task, directory: Path, items: int = ITEMS, precision: Precision = "float32"
) -> Admission | None:
    """What was found before, in the directory or with the package; None when the backbone must be looked at."""
    computed, places = _computed(backbone, precision), (PACKAGED, directory / "admission")
    stored = _stored(_key(backbone, task, items, computed), places)
    if stored is None and computed != "float32" and backbone.format == "full":
        stored = _stored(_key(backbone, task, items, "float32"), places)
        return stored if stored is not None and stored.has_room else None
    return stored


def _computed(backbone: Backbone, precision: Precision) -> str:
    computed = precision if backbone.dtype == torch.float32 else str(backbone.dtype).removeprefix("torch.")
    return computed if backbone.format == "full" else f"{computed}/{backbone.format}"


def _count(task: Task, items: int) -> int:
    return items if is_written(task) else 4 * items


def _key(backbone: Backbone, task: Task, items: int, precision: str) -> str:
    """SHA-256 over all that decides an admission."""
    count, measure = _count(task, items), gate_measure(task)
    thresholds = [NOISE, LEAST_ABOVE_CHANCE, LEAST_PARSED, *((LEAST_APART,) if isinstance(measure, ChainLikelihood) else ())]
    identity = [
        backbone.fingerprint,
        precision,
        repr(measure),
        [count, *thresholds],
        [
            [e.id, e.question, e.answer, e.choices, e.listed, e.rationale, e.context, e.group]
            for e in task.examples("search", count, seed=5)
        ],
    ]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def _stored(key: str, places: Sequence[Path]) -> Admission | None:
    return next(filter(None, (_read(place / f"{key}.json") for place in places)), None)


def _read(file: Path) -> Admission | None:
    """None where there is no such file, or it is damaged: the backbone is then looked at again."""
    if not file.is_file():
        return None
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        return Admission(**{**values, "reasons": tuple(values["reasons"])})
    except (ValueError, KeyError, TypeError):
        return None


def _store(admission: Admission, file: Path) -> None:
    write_whole(file, json.dumps(asdict(admission), indent=2))


def chance_level(measure: Measure, task: Task, examples: Sequence[Example]) -> float | None:
    """What guessing would score: one of the choices, or always the answer that is right most often, whichever is more.

    No chain that is right in every step is written by chance, and no open answer that is right only once.
    """
    if not measure.unit.startswith("share"):
        return None
    if not examples or (isinstance(task, GeneratedTask) and not isinstance(measure, ChoiceAccuracy)):
        return 0.0
    if isinstance(measure, ChoiceAccuracy):
        guesses = [1 / len(options_of(task, example)) for example in examples]
    else:
        unseen = isinstance(measure, Generation)  # choices that are not listed are none to whoever writes
        guesses = [1 / len(e.choices) if e.choices and (e.listed or not unseen) else 0.0 for e in examples]
    most = max(Counter(example.answer for example in examples).values())
    return max(sum(guesses), most if most > 1 else 0) / len(examples)


def _under(
    engine: Engine, backbone: Backbone, measure: Measure, task: Task, examples: Sequence[Example], size: float
) -> tuple[float, ...]:
    name = f"admission-control-{size:g}"
    engine.load(name, Profile((random_update(backbone, size),)))
    try:
        return measure.read(engine, backbone, name, task, examples).values
    finally:
        engine.unload(name)
