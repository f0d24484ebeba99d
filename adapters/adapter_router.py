"""A router: which adapter a prompt is for, or none, by a linear classifier over the backbone's own states.

Multinomial logistic regression on the mean state of the prompt's tokens after one layer, standardised, with a temperature that
makes its probabilities calibrated (Guo et al., arXiv 1706.04599) and a least probability below which the backbone answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save_file
from torch import Tensor

from adapters.backbone import Backbone
from adapters.errors import BackboneMismatch, DamagedAdapter, RefusedAdapter
from adapters.weights import read_tensors
from adapters.whole_file import write_whole, written_whole

# Legend: C classes (the backbone first), H hidden

FILE, WEIGHTS = "router.json", "router.safetensors"


class Choice(NamedTuple):
    """`name` is None where the backbone answers; `probability` is of the likeliest class, chosen or not."""

    name: str | None
    likeliest: str | None
    probability: float
    probabilities: Mapping[str, float]  # by name; the backbone's is under ""


@dataclass(frozen=True, eq=False)
class AdapterRouter:
    """Never changed. `layer` is counted from 0; `threshold` is the least probability at which the backbone is left."""

    names: tuple[str, ...]
    layer: int
    threshold: float
    temperature: float
    backbone_fingerprint: str
    mean_H: Tensor
    scale_H: Tensor
    weights_CH: Tensor
    bias_C: Tensor

    def __post_init__(self) -> None:
        classes, width = len(self.names) + 1, len(self.mean_H)
        shapes = tuple(map(tuple, (self.mean_H.shape, self.scale_H.shape, self.weights_CH.shape, self.bias_C.shape)))
        is_named = all(self.names) and 0 < len(self.names) == len(set(self.names))
        if shapes != ((width,), (width,), (classes, width), (classes,)) or not is_named:
            raise RefusedAdapter(
                "A router has a weight vector for the backbone and for each of its names, which differ, but got the names "
                f"{list(self.names)} and shapes {', '.join(map(str, shapes))}. Fit it again."
            )

    def check(self, backbone: Backbone) -> None:
        """Refuses another backbone than its own."""
        if self.backbone_fingerprint != backbone.fingerprint:
            raise BackboneMismatch(
                f"This router was fitted on backbone {self.backbone_fingerprint[:12]}, this one is {backbone.fingerprint[:12]}. "
                "Load that backbone, or fit the router again."
            )
        width, layers = backbone.hidden_size, len(backbone.layers)
        if len(self.mean_H) != width or self.layer >= layers:
            raise RefusedAdapter(
                f"A router reads one of this backbone's {layers} layers of {width} numbers, but this one reads layer "
                f"{self.layer} and {len(self.mean_H)} numbers. Fit it again."
            )

    def logits(self, states_NH: Tensor) -> Tensor:
        """[N, C], by temperature."""
        standard_NH = (states_NH.float() - self.mean_H) / self.scale_H
        return (standard_NH @ self.weights_CH.T + self.bias_C) / self.temperature

    def choose(self, state_H: Tensor) -> Choice:
        """Of one prompt's mean state. RefusedAdapter never: a state that is not finite goes to the backbone."""
        found_C = torch.softmax(self.logits(state_H[None])[0], dim=-1)
        if not bool(torch.isfinite(found_C).all()):
            return Choice(None, None, 0.0, {})
        best = int(found_C.argmax())
        likeliest, probability = (None if best == 0 else self.names[best - 1]), float(found_C[best])
        told = dict(zip(("", *self.names), found_C.tolist(), strict=True))
        return Choice(likeliest if probability >= self.threshold else None, likeliest, probability, told)

    def save(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        tensors = {"mean": self.mean_H, "scale": self.scale_H, "weights": self.weights_CH, "bias": self.bias_C}
        with written_whole(directory / WEIGHTS) as part:
            save_file({name: tensor.detach().cpu().float().contiguous() for name, tensor in tensors.items()}, part)
        stored = _Stored(
            names=self.names,
            layer=self.layer,
            threshold=self.threshold,
            temperature=self.temperature,
            backbone_fingerprint=self.backbone_fingerprint,
        )
        write_whole(directory / FILE, stored.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, directory: Path) -> AdapterRouter | None:
        """None where the directory holds none."""
        file = directory / FILE
        if not file.is_file():
            return None
        try:
            stored = _Stored.model_validate(json.loads(file.read_text(encoding="utf-8")))
        except (ValidationError, ValueError, OSError) as error:
            raise DamagedAdapter(f"{FILE} is not a router's ({type(error).__name__}). Fit it again, or restore it.") from error
        tensors = read_tensors(directory / WEIGHTS)
        try:
            mean_H, scale_H, weights_CH, bias_C = (tensors[name] for name in ("mean", "scale", "weights", "bias"))
        except KeyError as error:
            raise DamagedAdapter(f"{WEIGHTS} lacks {error}. Fit the router again, or restore its files.") from error
        return cls(
            stored.names,
            stored.layer,
            stored.threshold,
            stored.temperature,
            stored.backbone_fingerprint,
            mean_H,
            scale_H,
            weights_CH,
            bias_C,
        )


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format_version: int = Field(default=1, ge=1, le=1)
    names: tuple[str, ...] = Field(min_length=1)
    layer: int = Field(ge=0)
    threshold: float = Field(ge=0)
    temperature: float = Field(gt=0)
    backbone_fingerprint: str
