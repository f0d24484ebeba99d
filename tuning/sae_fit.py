"""The fit of a sparse autoencoder: TopK reconstruction, dead features kept alive by what the others leave over (aux-k).

After Gao et al. 2024 (arXiv 2406.04093): the loss is the unexplained share of the variance, plus `aux` times the share of the
residual that the likeliest dead features leave unexplained. The encoder begins as the decoder's transpose, the decoder's rows
keep length 1. Interrupted, a fit goes on from its last checkpoint and ends in the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from adapters.sae import SAE, SAERecord, check_width
from adapters.spec import Range, Spec
from adapters.whole_file import written_whole
from tuning.errors import BadRecipe, Diverged

# Legend: N places, H hidden, F features, K active features

_WARM_UP, _DECAY = 0.05, 0.3  # shares of the steps: the rate rises linearly at the start, and falls to 0 at the end
_CHECKPOINT_EVERY = 50  # steps
_MIN_BATCHES = 2


class SAEFitSpec(Spec):
    """`width` features for each number of the states; `passes` over the places. A feature is dead after `dead_after` of them."""

    width: Annotated[int, Field(ge=1), Range(2, 16, log=True)] = 8
    k: Annotated[int, Field(ge=1), Range(8, 64, log=True)] = 32
    passes: Annotated[int, Field(ge=1)] = 4
    batch_size: Annotated[int, Field(ge=2)] = 1024
    rate: Annotated[float, Field(gt=0), Range(1e-4, 3e-3, log=True)] = 1e-3
    aux: Annotated[float, Field(ge=0)] = 1 / 32
    aux_k: Annotated[int, Field(ge=1)] = 64
    dead_after: Annotated[int, Field(ge=1)] = 50_000
    seed: int = 0


OnStep = Callable[[int, int, float, float], None]  # steps done, of how many, the unexplained share, the share of dead features


class _Parts(nn.Module):
    """What is trained, in units where a state is sqrt(H) long, centred on the mean."""

    def __init__(self, num_hidden: int, num_features: int, seed: int) -> None:
        super().__init__()
        drawn_FH = torch.randn(num_features, num_hidden, generator=torch.Generator().manual_seed(seed))
        self.w_dec_FH = nn.Parameter(drawn_FH / drawn_FH.norm(dim=-1, keepdim=True))
        self.w_enc_HF = nn.Parameter(self.w_dec_FH.detach().T.contiguous())
        self.b_enc_F = nn.Parameter(torch.zeros(num_features))
        self.b_dec_H = nn.Parameter(torch.zeros(num_hidden))

    @torch.no_grad()
    def keep_unit_rows(self) -> None:
        self.w_dec_FH.div_(self.w_dec_FH.norm(dim=-1, keepdim=True).clamp(min=1e-8))


@dataclass
class _Fit:
    """Where a fit stands."""

    parts: _Parts
    adam: torch.optim.Adam
    last_active_F: Tensor  # the step at which each was active last
    step: int = 0

    @classmethod
    def begun(cls, num_hidden: int, num_features: int, spec: SAEFitSpec) -> _Fit:
        parts = _Parts(num_hidden, num_features, spec.seed)
        adam = torch.optim.Adam(parts.parameters(), lr=spec.rate, betas=(0.9, 0.999), fused=True)
        return cls(parts, adam, torch.zeros(num_features, dtype=torch.long))

    def save(self, file: Path) -> None:
        tensors = {f"part.{name}": value.detach() for name, value in self.parts.named_parameters()}
        for name, value in self.parts.named_parameters():
            tensors |= {f"adam.{key}.{name}": moment for key, moment in self.adam.state[value].items()}
        tensors |= {"last_active": self.last_active_F, "step": torch.tensor(self.step)}
        with written_whole(file) as part:
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, part)

    def restore(self, file: Path) -> None:
        """A checkpoint that cannot be read, or of another shape, is none."""
        try:
            kept = load_file(file)
            shapes = {name: kept[f"part.{name}"].shape for name, _ in self.parts.named_parameters()}
        except (OSError, SafetensorError, KeyError):
            return
        if shapes != {name: value.shape for name, value in self.parts.named_parameters()}:
            return
        for name, value in self.parts.named_parameters():
            value.data.copy_(kept[f"part.{name}"])
            self.adam.state[value] = {key: kept[f"adam.{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
        self.last_active_F, self.step = kept["last_active"], int(kept["step"])


def fit_sae(
    spec: SAEFitSpec, states_NH: Tensor, record: SAERecord, checkpoint: Path | None = None, on_step: OnStep | None = None
) -> SAE:
    """On states as the layer puts them out, in any dtype; they are not changed. The record's threshold is measured here."""
    num_places, num_hidden = states_NH.shape
    num_features = spec.width * num_hidden
    check_width(num_features, spec.k)
    check_places(num_places, spec)
    centre_H, scale = _units(states_NH)
    variance = _variance(states_NH, centre_H, scale)
    fit = _Fit.begun(num_hidden, num_features, spec)
    if checkpoint is not None:
        fit.restore(checkpoint)
    of = spec.passes * (num_places // spec.batch_size)
    for batch_N in _batches(num_places, spec, fit.step):
        batch_NH = (states_NH[batch_N].float() - centre_H) * scale
        _update(fit, spec, batch_NH, variance, of, on_step)
        if checkpoint is not None and (fit.step % _CHECKPOINT_EVERY == 0 or fit.step == of):
            fit.save(checkpoint)
    return _finished(fit, spec, states_NH, centre_H, scale, record)


def check_places(num_places: int, spec: SAEFitSpec) -> None:
    """BadRecipe where there are too few for two batches."""
    if num_places < _MIN_BATCHES * spec.batch_size:
        raise BadRecipe(
            f"An autoencoder is trained on {_MIN_BATCHES * spec.batch_size} places or more (two batches of {spec.batch_size}), "
            f"but got {num_places}. Harvest more, or lower batch_size."
        )


def _batches(num_places: int, spec: SAEFitSpec, begin: int) -> Iterator[Tensor]:
    """Each pass in an order of its own; what is left over of a pass is left out."""
    per_pass = num_places // spec.batch_size
    for done in range(spec.passes):
        if begin >= (done + 1) * per_pass:
            continue
        order_N = torch.randperm(num_places, generator=torch.Generator().manual_seed(spec.seed * 1000 + done))
        for place in range(max(begin - done * per_pass, 0), per_pass):
            yield order_N[place * spec.batch_size : (place + 1) * spec.batch_size]


def _update(fit: _Fit, spec: SAEFitSpec, batch_NH: Tensor, variance: float, of: int, on_step: OnStep | None) -> None:
    parts = fit.parts
    for group in fit.adam.param_groups:
        group["lr"] = spec.rate * _share_of_rate(fit.step, of)
    read_NF = (batch_NH - parts.b_dec_H) @ parts.w_enc_HF + parts.b_enc_F
    made_NH, index_NK, values_NK = _made(parts.w_dec_FH, read_NF, spec.k)
    left_NH = batch_NH - made_NH - parts.b_dec_H
    unexplained = left_NH.pow(2).sum(dim=-1).mean() / variance
    loss = unexplained
    dead_F = (fit.step - fit.last_active_F) * spec.batch_size > spec.dead_after
    num_dead = int(dead_F.sum())
    if num_dead and spec.aux:
        residual_NH = left_NH.detach()
        by_dead_NH, _, _ = _made(parts.w_dec_FH[dead_F], read_NF[:, dead_F], min(spec.aux_k, num_dead))
        missed = (residual_NH - by_dead_NH).pow(2).sum(dim=-1).mean() / residual_NH.pow(2).sum(dim=-1).mean().clamp(min=1e-12)
        loss = loss + spec.aux * missed
    if not torch.isfinite(loss):
        raise Diverged(f"The fit of the autoencoder diverged in step {fit.step + 1}. Lower the rate, now {spec.rate:g}.")
    fit.adam.zero_grad()
    loss.backward()
    fit.adam.step()
    parts.keep_unit_rows()
    fit.step += 1
    fit.last_active_F[index_NK[values_NK > 0].unique()] = fit.step
    if on_step is not None:
        on_step(fit.step, of, float(unexplained.detach()), num_dead / len(dead_F))


def _made(w_dec_FH: Tensor, read_NF: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """What the k largest write together, [N, H], and which they are."""
    values_NK, index_NK = read_NF.topk(k, dim=-1, sorted=False)
    values_NK = values_NK.relu()
    return embedding_bag(index_NK, w_dec_FH, per_sample_weights=values_NK, mode="sum"), index_NK, values_NK


def _share_of_rate(step: int, of: int) -> float:
    return min(1.0, (step + 1) / (_WARM_UP * of + 1), (of - step) / (_DECAY * of + 1))


def _units(states_NH: Tensor) -> tuple[Tensor, float]:
    """The mean, and what makes a centred state sqrt(H) long in the mean."""
    total_H, total = torch.zeros(states_NH.shape[1], dtype=torch.float64), 0.0
    for chunk_NH in states_NH.split(8192):
        total_H += chunk_NH.double().sum(dim=0)
    centre_H = (total_H / len(states_NH)).float()
    for chunk_NH in states_NH.split(8192):
        total += float((chunk_NH.float() - centre_H).norm(dim=-1).sum())
    return centre_H, math.sqrt(states_NH.shape[1]) / max(total / len(states_NH), 1e-12)


def _variance(states_NH: Tensor, centre_H: Tensor, scale: float) -> float:
    """The mean squared length of a centred state, in the fit's units."""
    total = sum(float((chunk_NH.float() - centre_H).pow(2).sum()) for chunk_NH in states_NH.split(8192))
    return scale**2 * total / len(states_NH)


@torch.no_grad()
def _finished(fit: _Fit, spec: SAEFitSpec, states_NH: Tensor, centre_H: Tensor, scale: float, record: SAERecord) -> SAE:
    """In the states' own units: with rows of length 1, only the biases change."""
    parts = fit.parts
    w_enc_HF, w_dec_FH = parts.w_enc_HF.detach().clone(), parts.w_dec_FH.detach().clone()
    b_dec_H, nothing_F = centre_H + parts.b_dec_H.detach() / scale, torch.zeros(len(parts.b_enc_F))
    made = SAE(w_enc_HF, parts.b_enc_F.detach() / scale, w_dec_FH, b_dec_H, spec.k, record, nothing_F, nothing_F)
    return measured(made, states_NH)


@torch.no_grad()
def measured(sae: SAE, states_NH: Tensor) -> SAE:
    """The same with the largest activation and the frequency of each feature over these places, and the threshold."""
    max_act_F, counts_F, least = torch.zeros(sae.num_features), torch.zeros(sae.num_features), 0.0
    for chunk_NH in states_NH.split(4096):
        active = sae.active(chunk_NH.float())
        values, index = active.values_NK.flatten(), active.index_NK.flatten()
        max_act_F.scatter_reduce_(0, index, values, "amax")
        counts_F.index_add_(0, index, (values > 0).float())
        least += float(active.values_NK.amin(dim=-1).sum())
    record = sae.record.model_copy(update={"threshold": least / len(states_NH)})
    return replace(sae, record=record, max_act_F=max_act_F, frequency_F=counts_F / len(states_NH))
