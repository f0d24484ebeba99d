"""Several LoRA adapters as one, and one without its intruder dimensions: PEFT's arithmetic, on copies.

What PEFT drops is seen to: every adapter brings its own alpha, rank and scale into the sum (rank-stabilised ones among them),
and one with biases, which PEFT would leave out without a word, is refused by name.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora.intruders import reduce_intruder_dimension
from pydantic import Field, model_validator

from adapters.backbone import Backbone
from adapters.errors import RefusedAdapter
from adapters.lora import PREFIX, LoRA, LoRASpec, TargetModules, detach
from adapters.spec import Spec

Combination = Literal["cat", "svd", "ties", "dare", "dare_ties"]
# PEFT's plain `ties` and `dare_linear` average A and B each on its own, which adds products of one's A with the other's B.
_ELECTING = ("ties", "dare_ties")
_IN_PEFT = {"cat": "cat", "svd": "svd", "ties": "ties_svd", "dare": "dare_linear_svd", "dare_ties": "dare_ties_svd"}


class MergeSpec(Spec):
    """`cat` is the exact sum, of summed rank; the rest are cut to `rank` by an SVD of the summed update.

    ties (Yadav et al. 2023, arXiv 2306.01708) keeps the share `density` of largest entries and the sign of the majority; dare
    (Yu et al. 2023, arXiv 2311.03099) drops entries at random and scales up the rest.
    """

    combination: Combination = "cat"
    weights: tuple[float, ...] = ()  # one an adapter; 1 each where none is given
    density: float = Field(default=0.5, gt=0, le=1)  # of ties and dare
    rank: int | None = Field(default=None, ge=1)  # None: the largest of the adapters' own
    seed: int = 0  # of what dare drops

    @model_validator(mode="after")
    def _elects(self) -> MergeSpec:
        if self.combination == "cat" and self.rank is not None:
            raise ValueError(
                f"'cat' is the exact sum, whose rank is the sum of theirs, but got rank = {self.rank}. Take 'svd', which cuts "
                "the sum to a rank, or leave rank out."
            )
        # PEFT lets the adapters vote on each entry's sign before it weighs them: what is to be taken away would vote for itself.
        if self.combination in _ELECTING and any(weight <= 0 for weight in self.weights):
            raise ValueError(
                f"{self.combination!r} elects a sign for every entry, for which weights are above 0, but got "
                f"{', '.join(f'{weight:g}' for weight in self.weights)}. Take an adapter away by 'cat', 'svd' or 'dare', and "
                "leave out one that weighs nothing."
            )
        return self


class IntruderSpec(Spec):
    """An intruder dimension is one of the `top_k` strongest of the adapted weight that is like no one of the frozen weight.

    Like: the absolute cosine of their left singular vectors is at least `threshold`. It is scaled to the share `kept`, the
    lambda of Shuttleworth et al. 2024 (arXiv 2410.21228). PEFT's defaults; where its text says that the share is subtracted,
    its code keeps it, as the paper does.
    """

    top_k: int = Field(default=10, ge=1)
    threshold: float = Field(default=0.5, gt=0, le=1)
    kept: float = Field(default=0.75, ge=0, lt=1)


@dataclass(frozen=True)
class Mitigated:
    """`intruders` counts those that were found, by module path."""

    lora: LoRA
    intruders: dict[str, int]


def merged(backbone: Backbone, loras: Sequence[LoRA], spec: MergeSpec) -> LoRA:
    """One LoRA of scale 1 whose effect is the weighted sum of theirs; they stay as they are, and so does the backbone."""
    if len(loras) < 2:
        raise RefusedAdapter(f"A merge joins two adapters or more, but got {len(loras)}. Name the others too.")
    weights = spec.weights or (1.0,) * len(loras)
    if len(weights) != len(loras):
        raise RefusedAdapter(f"A merge has one weight an adapter, but got {len(weights)} for {len(loras)}. Give one each.")
    with _held(backbone, loras) as model:
        torch.manual_seed(spec.seed)
        model.base_model.add_weighted_adapter(
            [_name(index) for index in range(len(loras))],
            list(weights),
            "merged",
            combination_type=_IN_PEFT[spec.combination],
            svd_rank=spec.rank,
            svd_full_matrices=False,
            density=spec.density,
        )
        rank = model.peft_config["merged"].r
        tensors = get_peft_model_state_dict(model, adapter_name="merged")
        tensors = {key: tensor.detach().float().cpu().clone() for key, tensor in tensors.items()}
    modules = {lora.spec.target_modules for lora in loras}
    target: TargetModules = modules.pop() if len(modules) == 1 else "all-linear"
    return LoRA(LoRASpec(rank=rank, alpha=rank, target_modules=target), tensors=tensors)


def without_intruders(backbone: Backbone, lora: LoRA, spec: IntruderSpec) -> Mitigated:
    """A new LoRA of the same rank; one without intruders comes back as it was. The old one is not changed."""
    found: dict[str, int] = {}

    def note(line: str) -> None:
        module, said, count = line.rpartition(": Intruders: ")
        if said:
            found[module.removeprefix(PREFIX)] = int(count)

    with _held(backbone, [lora]) as model:
        reduce_intruder_dimension(model, _name(0), "mitigated", spec.top_k, spec.threshold, spec.kept, note)
        tensors = get_peft_model_state_dict(model, adapter_name="mitigated")
        tensors = {key: tensor.detach().float().cpu().clone() for key, tensor in tensors.items()}
    return Mitigated(LoRA(lora.spec, lora.scale, tensors), found)


@contextmanager
def _held(backbone: Backbone, loras: Sequence[LoRA]) -> Iterator[PeftModel]:
    """All of them in one PEFT model; leaving restores the backbone bit for bit."""
    if any(lora.has_bias for lora in loras):
        raise RefusedAdapter("A merge sums low-rank updates, but one adapter has biases: a steering vector inside. Leave it out.")
    modules_before = dict(backbone.model.named_modules())
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # PEFT speaks of a second adapter, and of names that transformers renames
        try:
            model = get_peft_model(backbone.model, loras[0].config(backbone), adapter_name=_name(0))
            for index, lora in enumerate(loras):
                if index:
                    model.add_adapter(_name(index), lora.config(backbone))
                set_peft_model_state_dict(model, lora.tensors(), adapter_name=_name(index))
            yield model
        finally:
            detach(backbone.model, modules_before)


def _name(index: int) -> str:
    """Not a bare number: PEFT passes over every path that holds another adapter's name, and `layers.0` is a path."""
    return f"part{index}"
