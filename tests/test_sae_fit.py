"""The fit of a sparse autoencoder: a planted dictionary is found, noise has none, and what was stopped goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from adapters.errors import RefusedAdapter
from adapters.sae import SAE, SAERecord
from tuning.errors import BadRecipe, Diverged
from tuning.sae_fit import SAEFitSpec, fit_sae

HIDDEN, PLANTED, ACTIVE = 32, 48, 3
RECORD = SAERecord(layer=0, backbone="none", backbone_fingerprint="0" * 64, threshold=0.0)
SPEC = SAEFitSpec(width=2, k=ACTIVE, batch_size=256, passes=8, rate=3e-3, dead_after=2000, aux_k=8)
QUICK = SPEC.model_copy(update={"passes": 6})


def planted(num_places: int = 4096) -> tuple[Tensor, Tensor]:
    """The dictionary's rows, and states that are sums of three of them beside a constant."""
    generator = torch.Generator().manual_seed(0)
    rows_FH = torch.randn(PLANTED, HIDDEN, generator=generator)
    rows_FH /= rows_FH.norm(dim=-1, keepdim=True)
    index_NK = torch.rand(num_places, PLANTED, generator=generator).topk(ACTIVE, dim=-1).indices
    values_NK = 7 * (1 + torch.rand(num_places, ACTIVE, generator=generator))
    return rows_FH, (rows_FH[index_NK] * values_NK[..., None]).sum(dim=1) + 5.0


def unexplained(sae: SAE, states_NH: Tensor) -> float:
    left_NH, centred_NH = states_NH - sae.reconstructed(states_NH), states_NH - states_NH.mean(dim=0)
    return float(left_NH.pow(2).sum() / centred_NH.pow(2).sum())


@pytest.fixture(scope="module")
def fitted() -> SAE:
    return fit_sae(SPEC, planted()[1], RECORD)


def test_a_planted_dictionary_is_recovered(fitted: SAE) -> None:
    rows_FH, states_NH = planted()
    cosines_F = (rows_FH @ fitted.w_dec_FH.T).amax(dim=1)
    assert float(cosines_F.min()) > 0.9 and float(cosines_F.mean()) > 0.97
    assert unexplained(fitted, states_NH) < 0.1


def test_states_without_a_dictionary_stay_unexplained() -> None:
    noise_NH = torch.randn(4096, HIDDEN, generator=torch.Generator().manual_seed(1))
    assert unexplained(fit_sae(SPEC, noise_NH, RECORD), noise_NH) > 0.4


def test_columns_have_length_one_and_activations_the_states_own_unit(fitted: SAE) -> None:
    torch.testing.assert_close(fitted.w_dec_FH.norm(dim=-1), torch.ones(fitted.num_features))
    _, states_NH = planted()
    # Planted values lie between 7 and 14.
    assert 10.0 < float(fitted.max_act_F.max()) < 20.0
    larger = fit_sae(QUICK, 100 * states_NH, RECORD)
    same = fit_sae(QUICK, states_NH, RECORD)
    torch.testing.assert_close(larger.reconstructed(100 * states_NH), 100 * same.reconstructed(states_NH), rtol=0.05, atol=20.0)
    assert larger.record.threshold == pytest.approx(100 * same.record.threshold, rel=0.05)


def test_frequencies_and_largest_activations_are_measured_over_the_places(fitted: SAE) -> None:
    _, states_NH = planted()
    acts_NF = fitted.encode(states_NH)
    torch.testing.assert_close(fitted.frequency_F, (acts_NF > 0).float().mean(dim=0))
    torch.testing.assert_close(fitted.max_act_F, acts_NF.amax(dim=0))
    assert fitted.record.threshold == pytest.approx(float(fitted.active(states_NH).values_NK.amin(dim=1).mean()), rel=1e-5)


def test_features_that_never_fire_learn_from_the_residual_alone() -> None:
    spec = QUICK.model_copy(update={"width": 8, "passes": 1, "dead_after": 1, "aux_k": 32})
    drawn_FH = torch.randn(8 * HIDDEN, HIDDEN, generator=torch.Generator().manual_seed(spec.seed))
    begun_FH = drawn_FH / drawn_FH.norm(dim=-1, keepdim=True)

    def unmoved(aux: float) -> int:
        made = fit_sae(spec.model_copy(update={"aux": aux}), planted(1200)[1], RECORD)
        return int(((made.w_dec_FH - begun_FH).abs().amax(dim=1) < 1e-6).sum())

    assert unmoved(aux=0.0) > 0 and unmoved(aux=1.0) < unmoved(aux=0.0)


def test_an_interrupted_fit_goes_on_and_ends_in_the_same_numbers(tmp_path: Path) -> None:
    states_NH = planted()[1].to(torch.bfloat16)
    whole, steps = fit_sae(QUICK, states_NH, RECORD), list[int]()

    def stop(done: int, of: int, loss: float, dead: float) -> None:
        steps.append(done)
        if done == 77:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_sae(QUICK, states_NH, RECORD, tmp_path / "fit.safetensors", stop)
    steps.clear()
    resumed = fit_sae(QUICK, states_NH, RECORD, tmp_path / "fit.safetensors", lambda done, *_: steps.append(done))
    assert steps[0] == 51
    for part in ("w_enc_HF", "b_enc_F", "w_dec_FH", "b_dec_H", "max_act_F"):
        assert torch.equal(getattr(resumed, part), getattr(whole, part))


def test_a_checkpoint_that_is_torn_or_of_another_shape_is_begun_anew(tmp_path: Path) -> None:
    states_NH, file = planted(600)[1], tmp_path / "fit.safetensors"
    short = QUICK.model_copy(update={"passes": 1})
    whole = fit_sae(short, states_NH, RECORD, file)
    file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(fit_sae(short, states_NH, RECORD, file).w_dec_FH, whole.w_dec_FH)
    wider = short.model_copy(update={"width": 3})
    assert fit_sae(wider, states_NH, RECORD, file).num_features == 3 * HIDDEN


def test_seeds_begin_differently_and_the_same_seed_alike() -> None:
    states_NH = planted(600)[1]
    one, again, other = (fit_sae(QUICK.model_copy(update={"seed": seed, "passes": 1}), states_NH, RECORD) for seed in (0, 0, 1))
    assert torch.equal(one.w_dec_FH, again.w_dec_FH) and not torch.equal(one.w_dec_FH, other.w_dec_FH)


def test_bad_input_is_refused() -> None:
    with pytest.raises(BadRecipe, match="512 places or more .* but got 511"):
        fit_sae(SPEC, torch.zeros(511, HIDDEN), RECORD)
    with pytest.raises(RefusedAdapter, match="k=64 and 64 features"):
        fit_sae(SPEC.model_copy(update={"k": 64}), torch.zeros(600, HIDDEN), RECORD)
    with pytest.raises(Diverged, match="diverged in step 1"):
        fit_sae(SPEC, torch.full((600, HIDDEN), torch.nan), RECORD)
