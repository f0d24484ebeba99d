"""Steering: one vector added to the residual stream after one layer, from a difference of means or from a fit.

The vector is the mean hidden state of what is wanted less the mean of what is not, after the same prompts (difference of means;
ASC, Azizi et al. 2025, arXiv 2507.04742, takes it at the last token), or it is trained to prefer what is wanted (adapters.ces).
It acts on every token, the prompt's too, as the control vectors of llama.cpp do. Adding it leads towards what is wanted: the sign
is worth a test, since both directions are in use.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import AfterValidator
from torch import Tensor, nn

from adapters.adapter import Adapter, Contribution, Held, Prompt
from adapters.backbone import Backbone
from adapters.errors import BackboneMismatch, DamagedAdapter, RefusedAdapter
from adapters.hold import Hold
from adapters.lora import CONFIG
from adapters.residual import ResidualShift
from adapters.softcot import states_at_layer
from adapters.spec import Choices, Range, Spec
from adapters.steering_files import LastLinear, last_linear, read, write
from adapters.steering_record import SteeringRecord

# Legend: T tokens, H hidden


def _a_layer(value: int | float) -> int | float:
    if (isinstance(value, float) and not 0 < value < 1) or value < 0:
        raise ValueError(f"layer must be an index from 0, or a share of the depth in (0, 1), but got {value}.")
    return value


Layer = Annotated[int | float, AfterValidator(_a_layer)]  # an index from 0, or a share of the depth in (0, 1)


class SteeringSpec(Spec):
    """`layer` is an index from 0, or a share of the depth in (0, 1); `gamma` times the vector is added to that layer's output.

    `method`: a difference of means, trained (ces), or a feature of a sparse autoencoder. `pooling`, of the difference of
    means: the last token of each continuation, or the mean over its tokens.
    """

    kind: Literal["steering"] = "steering"
    layer: Annotated[Layer, Range(0.4, 0.8)] = 0.6
    gamma: Annotated[float, Range(0.05, 1.0, log=True)] = 1.0
    pooling: Annotated[Literal["last", "mean_cot"], Choices(("last", "mean_cot"))] = "mean_cot"
    method: Annotated[Literal["diffmean", "ces", "feature"], Choices(("diffmean", "ces"))] = "diffmean"

    def index(self, num_layers: int) -> int:
        """The layer, counted from 0."""
        index = int(self.layer * num_layers) if isinstance(self.layer, float) else self.layer
        if index >= num_layers:
            raise RefusedAdapter(f"The backbone has layers 0 to {num_layers - 1}, but layer={index} was asked for. Choose one.")
        return index


@dataclass(frozen=True)
class Contrast:
    """One prompt, continued as wanted and as not."""

    prompt_ids: tuple[int, ...]
    wanted_ids: tuple[int, ...]
    other_ids: tuple[int, ...]


class Steering:
    """Holds one vector; every weight of the backbone is left alone."""

    def __init__(
        self,
        spec: SteeringSpec,
        scale: float = 1.0,
        vector_H: Tensor | None = None,
        layer: int | None = None,
        backbone_fingerprint: str | None = None,
        record: SteeringRecord | None = None,
        made_on: Backbone | LastLinear | None = None,
        hold: Hold | None = None,
    ) -> None:
        """`layer` is the spec's, counted on the backbone that the vector belongs to; `made_on` is that backbone, or what a file
        says of the form in which PEFT can load the vector. With a `hold` the vector is added as far as that says."""
        self.spec = spec
        self.scale = scale
        self.layer = layer
        self.record = record
        self.hold = hold
        self._made_on = made_on
        self._vector = None if vector_H is None else nn.Parameter(vector_H.detach().float().clone(), requires_grad=False)
        self._backbone_fingerprint = backbone_fingerprint

    @classmethod
    def of(cls, spec: SteeringSpec, backbone: Backbone, vector_H: Tensor, hold: Hold | None = None) -> Steering:
        """The vector at the spec's layer of this backbone."""
        if vector_H.shape != (backbone.hidden_size,):
            raise RefusedAdapter(
                f"A steering vector of {backbone.name!r} has {backbone.hidden_size} numbers, but got shape "
                f"{tuple(vector_H.shape)}. Take it from the hidden states of this backbone."
            )
        layer = spec.index(len(backbone.layers))
        return cls(spec, 1.0, vector_H, layer, backbone.fingerprint, made_on=backbone, hold=hold)

    @classmethod
    def difference_of_means(cls, spec: SteeringSpec, backbone: Backbone, contrasts: Sequence[Contrast]) -> Steering:
        """Wanted less other, pooled as the spec says, and averaged over the contrasts."""
        if not contrasts or not all(contrast.wanted_ids and contrast.other_ids for contrast in contrasts):
            raise RefusedAdapter(
                f"A difference of means needs one or more prompts with two continuations of one token or more, but got "
                f"{len(contrasts)}, or an empty continuation among them. Leave out the prompts that have none."
            )
        depth = spec.index(len(backbone.layers)) + 1
        found = [
            _pooled(backbone, contrast.prompt_ids, contrast.wanted_ids, depth, spec)
            - _pooled(backbone, contrast.prompt_ids, contrast.other_ids, depth, spec)
            for contrast in contrasts
        ]
        return cls.of(spec, backbone, torch.stack(found).mean(dim=0))

    @contextmanager
    def attach(self, backbone: Backbone) -> Iterator[None]:
        vector_H = self._bound(backbone)
        assert self.layer is not None
        vector_H.requires_grad_(True)
        hold = self.hold and self.hold.to(backbone.device)
        hook = backbone.layers[self.layer].register_forward_hook(ResidualShift(vector_H, self.factor, hold))
        try:
            yield
        finally:
            hook.remove()
            vector_H.requires_grad_(False)

    @property
    def factor(self) -> float:
        """What the vector is multiplied by."""
        return self.spec.gamma * self.scale

    def transform(self, backbone: Backbone, prompt: Prompt) -> Prompt:
        """Leaves the prompt as it is; a vector of another backbone is refused."""
        self._bound(backbone)
        return prompt

    def contribution(self) -> Contribution:
        vector_H = self.tensors()["vector"]
        assert self.layer is not None
        if self.hold is not None:
            return Contribution(held={self.layer: Held(self.factor * vector_H, self.hold)})
        return Contribution(residual={self.layer: self.factor * vector_H})

    def parameters(self) -> Iterator[nn.Parameter]:
        if self._vector is None:
            raise RuntimeError(
                "A steering vector has parameters only while it is attached: use `with steering.attach(backbone):`."
            )
        yield self._vector

    def scaled(self, factor: float) -> Steering:
        return self._changed(self.spec, self.scale * factor, self.record)

    def at(self, gamma: float) -> Steering:
        """The same vector at another strength."""
        return self._changed(self.spec.model_copy(update={"gamma": gamma}), self.scale, self.record)

    def recorded(self, record: SteeringRecord) -> Steering:
        """The same vector with what is known of it."""
        return self._changed(self.spec, self.scale, record)

    def become(self, other: Steering) -> None:
        """Takes over all that the other is: how a fit leaves its result in the adapter that it was given."""
        vector_H, told = other.tensors()["vector"], (other.record, other._made_on, other.hold)
        self.__init__(other.spec, other.scale, vector_H, other.layer, other._backbone_fingerprint, *told)  # type: ignore[misc]

    @property
    def flipped(self) -> Steering:
        """Its negative, at the same strength."""
        made = self._changed(self.spec, self.scale, self.record)
        assert made._vector is not None
        made._vector.data.neg_()
        return made

    def scaled_by_layer(self, factors: Sequence[float]) -> Steering:
        self.tensors()
        assert self.layer is not None
        return self.scaled(factors[self.layer])

    def tensors(self) -> dict[str, Tensor]:
        if self._vector is None:
            raise RuntimeError("This steering vector was never attached, so it has no layer and no numbers yet.")
        return {"vector": self._vector.detach().clone()}

    def save(self, directory: Path) -> None:
        """As a LoRA of rank 1 that is all bias, which PEFT loads, where the block allows it; see adapters.steering_files."""
        described = {
            "spec": self.spec.model_dump(),
            "scale": self.scale,
            "layer": self.layer,
            "backbone_fingerprint": self._backbone_fingerprint,
            "record": self.record.model_dump(mode="json") if self.record else None,
        }
        write(directory, self.tensors()["vector"], self.factor, self.place(), described, self.hold)

    @classmethod
    def load(cls, directory: Path) -> Steering:
        try:
            stored = read(directory)
            told, spec = stored.described, SteeringSpec(**stored.described["spec"])
            record = SteeringRecord(**told["record"]) if told.get("record") else None
            fingerprint, scale = told["backbone_fingerprint"], float(told["scale"])
            made = cls(spec, scale, stored.vector_H, int(told["layer"]), fingerprint, record, stored.place, stored.hold)
        except DamagedAdapter:
            raise
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise DamagedAdapter(
                f"{directory / CONFIG} and what stands beside it are no steering config ({error!r}). Save the adapter again."
            ) from error
        if stored.factor is not None and not math.isclose(stored.factor, made.factor, rel_tol=1e-6):
            raise DamagedAdapter(
                f"A steering vector acts at gamma times scale, {made.factor:g} in {directory}, but {CONFIG} there has a "
                f"lora_alpha of {stored.factor:g}. Change neither by hand: scale the adapter and save it again."
            )
        return made

    def _changed(self, spec: SteeringSpec, scale: float, record: SteeringRecord | None) -> Steering:
        vector_H, fingerprint = self.tensors()["vector"], self._backbone_fingerprint
        return Steering(spec, scale, vector_H, self.layer, fingerprint, record, self._made_on, self.hold)

    def place(self) -> LastLinear | None:
        """The linear layer whose bias the vector can be; None where the hook alone acts."""
        assert self.layer is not None
        if self.hold is not None:  # what is added depends on the state
            return None
        return last_linear(self._made_on, self.layer) if isinstance(self._made_on, Backbone) else self._made_on

    def _bound(self, backbone: Backbone) -> nn.Parameter:
        """The vector, made for (or checked against) this backbone. A new one is 0: the backbone's own behaviour."""
        if self._backbone_fingerprint not in (None, backbone.fingerprint):
            raise BackboneMismatch(
                f"This steering vector was made on backbone {str(self._backbone_fingerprint)[:12]}, this one is "
                f"{backbone.fingerprint[:12]}. Load that backbone, or make the vector again."
            )
        if self._vector is None:
            self._vector = nn.Parameter(torch.zeros(backbone.hidden_size), requires_grad=False)
            self.layer = self.spec.index(len(backbone.layers))
        self._made_on = self._made_on or backbone
        self._backbone_fingerprint = backbone.fingerprint
        self._vector.data = self._vector.data.to(backbone.device)
        return self._vector


@torch.no_grad()
def _pooled(
    backbone: Backbone, prompt_ids: tuple[int, ...], continuation_ids: tuple[int, ...], depth: int, spec: SteeringSpec
) -> Tensor:
    states_TH = states_at_layer(backbone, [*prompt_ids, *continuation_ids], depth).float()
    return states_TH[-1] if spec.pooling == "last" else states_TH[len(prompt_ids) :].mean(dim=0)


if TYPE_CHECKING:
    _: Adapter = Steering(SteeringSpec())
