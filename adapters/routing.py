"""Hybrid routing: the backbone writes, and where its adapted self would write another token, one of a few vectors steers it.

Venhoff et al. (arXiv 2510.07364). What the adapted model is at is sorted into few categories, by a small TopK autoencoder over
the mean state of a sentence; every category has one vector and one strength. The vector is added for the one token alone: what
later tokens attend to is the backbone's own reading. The adapted model runs beside at every token, so nothing is saved: this is
a way of seeing what an adapter elicits, not of serving it cheaply.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from safetensors.torch import save_file
from torch import Tensor

from adapters.backbone import Backbone
from adapters.errors import BackboneMismatch, DamagedAdapter, RefusedAdapter
from adapters.spec import Spec
from adapters.weights import read_tensors
from adapters.whole_file import write_whole, written_whole

# Legend: K categories, H hidden

FOLDER, FILE, WEIGHTS = "routing", "routing.json", "routing.safetensors"
MAX_CATEGORIES = 50


class RoutingSpec(Spec):
    """Layers are counted from 0. `layer`: what it puts out is steered; `read_layer`: what it puts out is sorted into categories.

    The rest makes controls: a category drawn at random, and places drawn at a rate instead of where the two models differ.
    """

    layer: Annotated[int, Field(ge=0)]
    read_layer: Annotated[int, Field(ge=0)]
    category: Literal["latent", "random"] = "latent"
    places: Literal["differing", "random"] = "differing"
    rate: Annotated[float, Field(ge=0, le=1)] = 0.0
    seed: int = 0

    @model_validator(mode="after")
    def _a_rate_is_of_random_places(self) -> RoutingSpec:
        if self.rate and self.places != "random":
            raise ValueError(f"A rate is of random places, but got rate {self.rate:g} with places {self.places!r}. Leave it out.")
        return self


@dataclass(frozen=True, eq=False)
class Routing:
    """Never changed. A category of strength 0 occurred nowhere when it was fitted, and steers nothing."""

    spec: RoutingSpec
    backbone_fingerprint: str
    encoder_KH: Tensor
    bias_K: Tensor
    directions_KH: Tensor  # of length 1
    strengths_K: Tensor

    def __post_init__(self) -> None:
        count, width = self.directions_KH.shape
        shapes = tuple(tuple(part.shape) for part in (self.encoder_KH, self.bias_K, self.strengths_K))
        if shapes != ((count, width), (count,), (count,)) or not 1 <= count <= MAX_CATEGORIES:
            raise RefusedAdapter(
                f"A routing has 1 to {MAX_CATEGORIES} categories, each with a direction, a latent and a strength, but got "
                f"directions {(count, width)} and {', '.join(map(str, shapes))}. Fit it again."
            )

    @property
    def num_categories(self) -> int:
        return len(self.strengths_K)

    @property
    def used(self) -> tuple[int, ...]:
        """The categories that steer."""
        return tuple(int(index) for index in self.strengths_K.nonzero().flatten())

    def check(self, backbone: Backbone) -> None:
        """Refuses another backbone than its own, and layers that this one does not have."""
        if self.backbone_fingerprint != backbone.fingerprint:
            raise BackboneMismatch(
                f"This routing was fitted on backbone {self.backbone_fingerprint[:12]}, this one is {backbone.fingerprint[:12]}. "
                "Load that backbone, or fit the routing again."
            )
        count, width = len(backbone.layers), self.directions_KH.shape[1]
        if max(self.spec.layer, self.spec.read_layer) >= count or width != backbone.hidden_size:
            raise RefusedAdapter(
                f"{backbone.name!r} has {count} layers of {backbone.hidden_size} numbers, but the routing is of layers "
                f"{self.spec.layer} and {self.spec.read_layer} and {width} numbers. Fit it on this backbone."
            )

    def category(self, mean_H: Tensor) -> int:
        """The latent that a sentence's mean state excites most."""
        mean_H = mean_H.to(self.encoder_KH)
        return int((self.encoder_KH @ mean_H + self.bias_K).argmax())

    def shift(self, mean_H: Tensor, own_token: int, adapted_token: int, context: str) -> Tensor | None:
        """What is added for the next token, [H]; None where the backbone is left alone.

        `context` is the text before: what controls draw is drawn from it and the seed, so that a place is steered alike whether
        it is written or scored, and another text's beginning otherwise.
        """
        draw = random.Random(f"{self.spec.seed}/{context}")
        if self.spec.places == "random":
            if draw.random() >= self.spec.rate:
                return None
        elif own_token == adapted_token:
            return None
        if self.spec.category == "random":
            found = draw.choice(self.used) if self.used else 0
        else:
            found = self.category(mean_H)
        strength = float(self.strengths_K[found])
        return strength * self.directions_KH[found] if strength else None

    def with_random_categories(self, seed: int) -> Routing:
        return replace(self, spec=self.spec.model_copy(update={"category": "random", "seed": seed}))

    def at_random_places(self, rate: float, seed: int) -> Routing:
        """Steers this share of all tokens, wherever they stand."""
        return replace(self, spec=self.spec.model_copy(update={"places": "random", "rate": rate, "seed": seed}))

    def with_random_vectors(self, seed: int) -> Routing:
        """Of the same norms, in directions drawn at random."""
        drawn_KH = torch.randn(self.directions_KH.shape, generator=torch.Generator().manual_seed(seed))
        return replace(self, directions_KH=drawn_KH / drawn_KH.norm(dim=1, keepdim=True))

    def save(self, directory: Path) -> None:
        """Into `routing/` of a profile's directory."""
        place = directory / FOLDER
        place.mkdir(parents=True, exist_ok=True)
        described = {"spec": self.spec.model_dump(), "backbone_fingerprint": self.backbone_fingerprint}
        with written_whole(place / WEIGHTS) as part:
            save_file({name: tensor.detach().cpu().float().contiguous() for name, tensor in self._tensors().items()}, part)
        write_whole(place / FILE, json.dumps({"format_version": 1, **described}, indent=2) + "\n")

    @classmethod
    def load(cls, directory: Path) -> Routing | None:
        """None where the profile's directory holds none."""
        place = directory / FOLDER
        if not (place / FILE).is_file():
            return None
        tensors = read_tensors(place / WEIGHTS)
        try:
            told: dict[str, Any] = json.loads((place / FILE).read_text())
            return cls(
                RoutingSpec(**told["spec"]),
                str(told["backbone_fingerprint"]),
                tensors["encoder"],
                tensors["bias"],
                tensors["directions"],
                tensors["strengths"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedAdapter(f"{place} holds no routing ({error}). Fit it again, or restore its files.") from error

    def _tensors(self) -> dict[str, Tensor]:
        return {
            "encoder": self.encoder_KH,
            "bias": self.bias_K,
            "directions": self.directions_KH,
            "strengths": self.strengths_K,
        }
