"""A sparse autoencoder of one layer's output: TopK features, what they read and write, and files that SAELens loads.

encode(h) keeps the k largest of (h - b_dec) W_enc + b_enc and sets what is not above 0 to 0; decode(z) = z W_dec + b_dec. Rows of
W_dec have length 1, so that an activation is in the states' own unit. Nothing is to be normalised first: the scale that the fit
worked in is folded into the biases.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import embedding_bag

from adapters.backbone import Backbone
from adapters.errors import BackboneMismatch, DamagedAdapter, RefusedAdapter
from adapters.hold import Hold
from adapters.spec import Spec
from adapters.steering import Steering, SteeringSpec
from adapters.weights import read_tensors
from adapters.whole_file import write_whole

# Legend: N places, H hidden, F features, K active features

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"  # as SAELens names them
RECORD, FEATURES = "graftline.json", "features.safetensors"
LIKE_SAELENS = "6.0.0"  # the first version with this form of config
_CHUNK = 4096  # places that are encoded at a time


class SAERecord(Spec):
    """`layer` counts from 0 and is read at its output. `threshold`: the mean over places of the least activation that was kept.

    `told` is what made and measured it: the specs of harvest and fit, and its gates.
    """

    layer: int
    backbone: str
    backbone_fingerprint: str
    threshold: float
    told: dict[str, Any] = {}


@dataclass(frozen=True)
class Active:
    """The features that are kept at each place, in no order; a value may be 0."""

    values_NK: Tensor
    index_NK: Tensor


@dataclass(frozen=True)
class SAE:
    """`max_act_F` and `frequency_F` (a share of places) were measured over all harvested places."""

    w_enc_HF: Tensor
    b_enc_F: Tensor
    w_dec_FH: Tensor
    b_dec_H: Tensor
    k: int
    record: SAERecord
    max_act_F: Tensor
    frequency_F: Tensor

    def __post_init__(self) -> None:
        num_hidden, num_features = self.w_enc_HF.shape
        shapes = [tuple(part.shape) for part in (self.b_enc_F, self.w_dec_FH, self.b_dec_H, self.max_act_F, self.frequency_F)]
        expected = [(num_features,), (num_features, num_hidden), (num_hidden,), (num_features,), (num_features,)]
        if shapes != expected:
            raise DamagedAdapter(f"The parts of an autoencoder fit each other, but got {shapes} instead of {expected}.")
        check_width(num_features, self.k)

    @property
    def num_features(self) -> int:
        return int(self.w_enc_HF.shape[1])

    def active(self, states_NH: Tensor) -> Active:
        """What is kept at each place."""
        read_NF = (states_NH - self.b_dec_H) @ self.w_enc_HF + self.b_enc_F
        values_NK, index_NK = read_NF.topk(self.k, dim=-1, sorted=False)
        return Active(values_NK.relu(), index_NK)

    def encode(self, states_NH: Tensor) -> Tensor:
        """Activations, [N, F], at most k of a place above 0."""
        active = self.active(states_NH)
        return torch.zeros(len(states_NH), self.num_features).scatter_(1, active.index_NK, active.values_NK)

    def decode(self, acts_NF: Tensor) -> Tensor:
        return acts_NF @ self.w_dec_FH + self.b_dec_H

    def reconstructed(self, states_NH: Tensor) -> Tensor:
        """decode(encode(.)) without the zeros in between, [N, H]."""
        parts = [self.active(chunk) for chunk in states_NH.split(_CHUNK)]
        made = [embedding_bag(p.index_NK, self.w_dec_FH, per_sample_weights=p.values_NK, mode="sum") for p in parts]
        return torch.cat(made) + self.b_dec_H

    def steering(self, backbone: Backbone, feature: int, form: str, strength: float) -> Steering:
        """`column`: the feature's column, `strength` times its largest activation long. `clamp`: the feature held at that level.

        At strength 0 a column does nothing; a clamp takes the feature out.
        """
        if form not in ("column", "clamp"):
            raise RefusedAdapter(f"A feature steers as its column or as a clamp, but got {form!r}. Say column or clamp.")
        if not math.isfinite(strength):
            raise RefusedAdapter(f"A strength is a finite number of largest activations, but got {strength}. 1 is a usual one.")
        self.check(backbone, feature)
        spec, column_H = SteeringSpec(layer=self.record.layer, method="feature"), self.w_dec_FH[feature]
        level = float(self.max_act_F[feature])
        if form == "column":
            return Steering.of(spec.model_copy(update={"gamma": strength}), backbone, level * column_H)
        return Steering.of(spec, backbone, column_H, self.hold(feature, strength * level))

    def hold(self, feature: int, level: float) -> Hold:
        """What reads the feature at run time: its own row, and the threshold in the place of its rivals."""
        encoder_H = self.w_enc_HF[:, feature]
        bias = float(self.b_enc_F[feature] - self.b_dec_H @ encoder_H)
        return Hold(encoder_H.clone(), bias, self.record.threshold, level)

    def check(self, backbone: Backbone, feature: int | None = None) -> None:
        """BackboneMismatch for another backbone; RefusedAdapter for a feature that is none, or never active."""
        if self.record.backbone_fingerprint != backbone.fingerprint:
            raise BackboneMismatch(
                f"This autoencoder was trained on backbone {self.record.backbone!r} ({self.record.backbone_fingerprint[:12]}), "
                f"but {backbone.name!r} is {backbone.fingerprint[:12]}. Load that backbone, or train one on this."
            )
        if feature is None:
            return
        if not 0 <= feature < self.num_features:
            raise RefusedAdapter(f"The features are 0 to {self.num_features - 1}, but {feature} was asked for. Choose one.")
        if not self.max_act_F[feature] > 0:
            raise RefusedAdapter(f"Feature {feature} was active at no harvested place: its column is noise. Choose another.")

    def told(self, **more: Any) -> SAE:
        """The same with more that is known of it."""
        return replace(self, record=self.record.model_copy(update={"told": {**self.record.told, **more}}))

    def save(self, directory: Path) -> None:
        """The four tensors and `cfg.json` as SAELens has them; what only Graftline reads stands beside."""
        directory.mkdir(parents=True, exist_ok=True)
        named = {"W_enc": self.w_enc_HF, "b_enc": self.b_enc_F, "W_dec": self.w_dec_FH, "b_dec": self.b_dec_H}
        save_file({name: tensor.float().cpu().contiguous() for name, tensor in named.items()}, directory / WEIGHTS)
        save_file({"max_act": self.max_act_F, "frequency": self.frequency_F}, directory / FEATURES)
        described = {"format_version": 1, **self.record.model_dump(mode="json")}
        write_whole(directory / RECORD, json.dumps(described, indent=2) + "\n")
        write_whole(directory / CONFIG, json.dumps(self._saelens(), indent=2) + "\n")

    @classmethod
    def load(cls, directory: Path) -> SAE:
        try:
            config = json.loads((directory / CONFIG).read_text())
            described = json.loads((directory / RECORD).read_text())
            if (config["architecture"], described.pop("format_version")) != ("topk", 1):
                raise DamagedAdapter(
                    f"{directory} holds an autoencoder of another kind ({config['architecture']}). Train one here."
                )
            record, weights = SAERecord(**described), read_tensors(directory / WEIGHTS)
            features = read_tensors(directory / FEATURES)
            w_enc_HF, b_enc_F, w_dec_FH, b_dec_H = (weights[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec"))
            measured = features["max_act"], features["frequency"]
            return cls(w_enc_HF, b_enc_F, w_dec_FH, b_dec_H, int(config["k"]), record, *measured)
        except (OSError, KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError, ValidationError) as error:
            raise DamagedAdapter(
                f"An autoencoder is a directory with {CONFIG}, {WEIGHTS}, {RECORD} and {FEATURES}, but {directory} is not whole "
                f"({error!r}). Train it again (graftline sae train)."
            ) from error

    def _saelens(self) -> dict[str, Any]:
        return {
            "architecture": "topk",
            "d_in": self.w_enc_HF.shape[0],
            "d_sae": self.num_features,
            "k": self.k,
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": True,
            "normalize_activations": "none",
            "reshape_activations": "none",
            "rescale_acts_by_decoder_norm": False,
            "metadata": {
                "sae_lens_version": LIKE_SAELENS,
                "sae_lens_training_version": None,
                "model_name": self.record.backbone,
                "model_class_name": "AutoModelForCausalLM",
                "hook_name": f"model.layers.{self.record.layer}",
                "hook_head_index": None,
                "prepend_bos": False,
            },
        }


def check_width(num_features: int, k: int) -> None:
    """RefusedAdapter where there are not more features than are kept at a place."""
    if not 0 < k < num_features:
        raise RefusedAdapter(
            f"An autoencoder keeps k of its features at a place, fewer than it has, but got k={k} and {num_features} features. "
            "Lower k or raise the width."
        )
