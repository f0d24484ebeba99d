"""Going on from earlier adapters: where a fit starts, what it is kept apart from, and what it is pulled towards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fitted import fitted_lora, fitted_softcot
from small_releases import promote, random_lora

from adapters.adapter import Adapter
from adapters.backbone import Backbone
from adapters.errors import RefusedAdapter
from adapters.lora import LoRA, LoRASpec
from adapters.null_space import input_covariances, null_space_start
from adapters.orthogonal import Apart
from engine.profile import Profile
from evaluation.task import Example
from registry.errors import BackboneMismatch, UnknownRelease
from registry.manifest import TrainingHashes
from registry.release import publish
from registry.tracking import Tracking
from tuning.continuing import check_start, fetched, pinned, retention_texts
from tuning.errors import BadRecipe
from tuning.ground import new_adapters
from tuning.manifest import complete, fingerprints_of
from tuning.methods.method import Fit
from tuning.methods.sft import SFT, SFTSpec
from tuning.methods.supervised import identity_of
from tuning.recipe import Recipe

EXAMPLES = [
    Example(id=str(n), question=f"What comes after {n}?", answer=str(n + 1), rationale=f"{n} + 1 = {n + 1}", group=str(n))
    for n in range(6)
]
SHAPE = {"rank": 4, "alpha": 16}


def recipe_of(backbone: Backbone, **adapter: Any) -> Recipe:
    chosen = {"lora": SHAPE, "softcot": {"num_thoughts": 3, "assistant_layers": 1}} | adapter
    return Recipe(name="x", backbone=backbone.name, domain="icd10-chapter", protected=("boxes",), adapter=chosen)


def saved(directory: Path, backbone: Backbone, *adapters: Adapter) -> str:
    complete(directory, recipe_of(backbone), backbone, Profile(adapters), 1.0, EXAMPLES)
    return str(directory)


def weights(adapter: Adapter) -> dict[str, torch.Tensor]:
    return {path: low.b_OR @ low.a_RI for path, low in adapter.contribution().low_rank.items()}


def fit(backbone: Backbone, adapters: tuple[Adapter, ...], **spec: Any) -> Fit:
    return SFT(SFTSpec(**{"steps": 1, "batch_size": 6, "learning_rate": 1e-2} | spec)).fit(backbone, adapters, EXAMPLES)


def test_a_warm_start_has_the_effect_of_what_it_starts_from_under_the_recipes_own_spec(
    backbone: Backbone, tmp_path: Path
) -> None:
    start = fitted_lora(backbone, 1).scaled(0.3)  # of which no whole alpha is left
    (warm,) = new_adapters(recipe_of(backbone, warm_start=saved(tmp_path / "one", backbone, start)), backbone)
    (cold,) = new_adapters(recipe_of(backbone), backbone)
    assert isinstance(warm, LoRA) and warm.spec == cold.spec
    for path, update in weights(start).items():
        torch.testing.assert_close(weights(warm)[path], update, atol=1e-6, rtol=0.0)


def test_a_warm_start_begins_at_a_lower_loss_and_leaves_its_start_alone(backbone: Backbone, tmp_path: Path) -> None:
    first = new_adapters(recipe_of(backbone), backbone)
    fit(backbone, first, steps=25, learning_rate=2e-2)
    named = saved(tmp_path / "one", backbone, *first)
    before = weights(Profile.load(Path(named)).adapters[0])
    warm = fit(backbone, new_adapters(recipe_of(backbone, warm_start=named), backbone))
    cold = fit(backbone, new_adapters(recipe_of(backbone), backbone))
    assert warm.losses[0] < 0.9 * cold.losses[0]
    after = weights(Profile.load(Path(named)).adapters[0])
    assert all(torch.equal(before[path], after[path]) for path in before)


def test_the_pull_is_towards_the_backbone_and_not_towards_the_start(backbone: Backbone, tmp_path: Path) -> None:
    named = saved(tmp_path / "one", backbone, fitted_lora(backbone, 1))
    cold = fit(backbone, new_adapters(recipe_of(backbone), backbone), kl_weight=0.1)
    warm = fit(backbone, new_adapters(recipe_of(backbone, warm_start=named), backbone), kl_weight=0.1)
    assert cold.kl[0] == pytest.approx(0.0, abs=1e-5)
    assert warm.kl[0] > 0.01


def test_soft_thoughts_go_on_too(backbone: Backbone, tmp_path: Path) -> None:
    start = fitted_softcot(backbone, 1)
    named = saved(tmp_path / "one", backbone, start)
    (warm,) = new_adapters(recipe_of(backbone, kind="softcot", warm_start=named), backbone)
    ids = backbone.chat_ids("Add 5.")
    thoughts = [Profile((one,)).transform(backbone, ids).soft_KH for one in (warm, start)]
    assert thoughts[0] is not None and thoughts[1] is not None and torch.equal(thoughts[0], thoughts[1])


def test_a_start_of_another_shape_kind_or_backbone_is_refused(backbone: Backbone, testbed: Backbone, tmp_path: Path) -> None:
    named = saved(tmp_path / "one", backbone, fitted_lora(backbone, 1, rank=8))
    with pytest.raises(BadRecipe, match=r"adapter.lora.rank is 4 and .*one has 8. Set adapter.lora.rank = 8"):
        new_adapters(recipe_of(backbone, warm_start=named), backbone)
    with pytest.raises(BadRecipe, match=r"'softcot' and .* is 'lora'"):
        new_adapters(recipe_of(backbone, kind="softcot", warm_start=named), backbone)
    with pytest.raises(BadRecipe, match=r"'softcot' and .* is 'lora'"):
        check_start(recipe_of(backbone, kind="softcot", warm_start=named), backbone)  # before the first trial
    with pytest.raises(BadRecipe, match=r"updates others .* than adapter.lora.target_modules"):
        mlp = recipe_of(backbone, lora={"rank": 8, "target_modules": "mlp"}, warm_start=named)
        new_adapters(mlp, backbone)
    with pytest.raises(BackboneMismatch, match="of the same backbone"):
        new_adapters(recipe_of(testbed, lora={"rank": 8}, warm_start=named), testbed)
    bare = tmp_path / "bare"
    Profile((fitted_lora(backbone, 1),)).save(bare)
    with pytest.raises(BadRecipe, match="but .*bare has none"):
        new_adapters(recipe_of(backbone, warm_start=str(bare)), backbone)


def test_what_the_start_decides_is_not_searched(backbone: Backbone) -> None:
    found = recipe_of(backbone, warm_start="somewhere")
    assert "adapter.kind" not in found.search and "adapter.lora.rank" not in found.search and "method.steps" in found.search
    with pytest.raises(ValueError, match="search names adapter.lora.rank"):
        Recipe(name="x", domain="icd10", adapter={"warm_start": "somewhere"}, search=("adapter.lora.rank",))
    with pytest.raises(ValueError, match="from an adapter or from an init"):
        recipe_of(backbone, warm_start="somewhere", lora={"init": "null_space"})


def test_the_champion_is_looked_up_once_and_stays_what_it_was(backbone: Backbone, tmp_path: Path, tracking: Tracking) -> None:
    saved(tmp_path / "one", backbone, random_lora(backbone, 1))
    saved(tmp_path / "two", backbone, random_lora(backbone, 2))
    publish(tracking, "coding", tmp_path / "one")
    promote(tracking, "coding", 1)
    asked = recipe_of(backbone, warm_start="models:/coding@champion", orthogonal_to=("models:/coding/1",), lora=SHAPE)
    with pytest.raises(BadRecipe, match="looked up once, before the fit"):
        new_adapters(asked, backbone)
    found = pinned(asked, tracking)
    publish(tracking, "coding", tmp_path / "two")
    promote(tracking, "coding", 2)
    assert found.adapter.orthogonal_to == (found.adapter.warm_start,)
    (warm,) = new_adapters(found, backbone)
    assert torch.equal(*(weights(one)["model.layers.0.self_attn.q_proj"] for one in (warm, random_lora(backbone, 1).scaled(1.0))))
    assert pinned(asked, tracking).adapter.warm_start != found.adapter.warm_start
    with pytest.raises(UnknownRelease):
        pinned(recipe_of(backbone, warm_start="models:/nobody/1"), tracking)


def test_the_penalty_is_the_sum_of_all_products_of_rows() -> None:
    earlier = {"m": torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]])}
    new = {"m": torch.tensor([[0.0, -3.0, 1.0]], requires_grad=True), "n": torch.zeros(1, 3)}
    assert float(Apart(0.5, earlier).penalty(new).detach()) == pytest.approx(0.5 * (2.0 + 3.0))
    with pytest.raises(RefusedAdapter, match="none is the same"):
        Apart(0.5, earlier).penalty({"other": new["m"]})


def test_an_adapter_that_is_kept_apart_shares_less_with_the_earlier_one(backbone: Backbone, tmp_path: Path) -> None:
    earlier = fitted_lora(backbone, 1)
    named = saved(tmp_path / "one", backbone, earlier)

    def overlap(**adapter: Any) -> tuple[float, Fit]:
        found = new_adapters(recipe_of(backbone, **adapter), backbone)
        told = fit(backbone, found, steps=20)
        rows = {path: low.a_RI for path, low in found[0].contribution().low_rank.items()}
        return float(Apart.of(1.0, [earlier]).overlap(rows)), told

    (kept, told), (free, plain) = overlap(orthogonal_to=(named,)), overlap()
    assert kept < 0.5 * free
    assert told.numbers["penalty"][-1] < told.numbers["penalty"][0] and "penalty" not in plain.numbers
    assert told.losses[-1] < told.losses[0]


def test_what_is_kept_apart_by_its_inputs_cannot_have_them_frozen(backbone: Backbone) -> None:
    with pytest.raises(ValueError, match="lora.freeze_a leaves A as it starts. Leave one of them out"):
        recipe_of(backbone, orthogonal_to=("earlier",), lora={**SHAPE, "freeze_a": True})


def test_what_a_fit_starts_from_is_part_of_what_its_checkpoint_belongs_to(backbone: Backbone, tmp_path: Path) -> None:
    named = saved(tmp_path / "one", backbone, fitted_lora(backbone, 1))
    starts: list[dict[str, Any]] = [{}, {"warm_start": named}, {"orthogonal_to": (named,)}]
    found = [identity_of(backbone, new_adapters(recipe_of(backbone, **one), backbone), SFTSpec(), []) for one in starts]
    again = identity_of(backbone, new_adapters(recipe_of(backbone, warm_start=named), backbone), SFTSpec(), [])
    assert len(set(found)) == 3 and again == found[1]


def retained(backbone: Backbone, lora: Adapter, texts: list[tuple[int, ...]]) -> float:
    """How much of the retention set's inputs an adapter's update lets through: mean over modules of |dW X| / (|dW| |X|)."""
    covariances = input_covariances(backbone, list(weights(lora)), texts)
    shares = []
    for path, update_OI in weights(lora).items():
        through = ((update_OI @ covariances[path]) * update_OI).sum().clamp_min(0).sqrt()
        shares.append(float(through / (update_OI.norm() * covariances[path].trace().sqrt())))
    return sum(shares) / len(shares)


def test_a_null_space_start_leaves_the_retention_set_alone_while_a_plain_one_does_not(backbone: Backbone) -> None:
    digest = backbone.weights_digest()
    texts = retention_texts(recipe_of(backbone), backbone)

    def share(**lora: Any) -> float:
        adapters = new_adapters(recipe_of(backbone, lora=SHAPE | lora), backbone)
        fit(backbone, adapters, steps=8)
        return retained(backbone, adapters[0], texts)

    frozen, trained, plain = share(init="null_space", freeze_a=True), share(init="null_space"), share()
    assert frozen < 0.3 * plain and frozen < trained < plain
    assert backbone.weights_digest() == digest


def test_a_null_space_start_is_no_change_and_its_rows_are_the_least_used_directions(backbone: Backbone) -> None:
    texts = retention_texts(recipe_of(backbone), backbone)[:4]
    lora = null_space_start(backbone, LoRASpec(rank=4, init="null_space"), texts)
    assert all(not bool(update.any()) for update in weights(lora).values())
    path, low = next(iter(lora.contribution().low_rank.items()))
    covariance_II = input_covariances(backbone, [path], texts)[path].double()
    used = torch.einsum("ri,ij,rj->r", low.a_RI.double(), covariance_II, low.a_RI.double())
    torch.testing.assert_close(used, torch.linalg.eigvalsh(covariance_II)[:4], atol=1e-4, rtol=1e-3)


def test_a_null_space_is_that_of_what_is_read_where_a_family_is_measured(backbone: Backbone) -> None:
    (text, *_), (chain, *_) = (
        [backbone.decode(ids) for ids in retention_texts(recipe_of(backbone).with_values({"protected": (name,)}), backbone)]
        for name in ("grammar", "boxes")
    )
    assert "Options" not in text and "Answer" not in text and "step by step" not in text
    assert "step by step" in chain and "Answer" in chain


def test_a_null_space_needs_a_retention_set_and_no_more_rank_than_inputs(backbone: Backbone) -> None:
    with pytest.raises(RefusedAdapter, match="was given none"), LoRA(LoRASpec(init="null_space")).attach(backbone):
        pass
    with pytest.raises(RefusedAdapter, match="the set is empty"):
        null_space_start(backbone, LoRASpec(init="null_space"), [])
    with pytest.raises(RefusedAdapter, match="rank is 33 and .* has 32"):
        null_space_start(backbone, LoRASpec(rank=33, init="null_space"), [(1, 2)])


def test_a_release_that_was_begun_from_another_names_the_rows_of_both(backbone: Backbone, tmp_path: Path) -> None:
    named = saved(tmp_path / "one", backbone, fitted_lora(backbone, 1))
    other = [Example(id="x", question="What is red and sails by night?", answer="a ship", group="x")]
    recipe = recipe_of(backbone, warm_start=named)
    complete(tmp_path / "two", recipe, backbone, Profile(new_adapters(recipe, backbone)), 1.0, other)
    one, two = (fingerprints_of(TrainingHashes.read(tmp_path / name)) for name in ("one", "two"))
    assert one.rows < two.rows and len(two.rows) == len(EXAMPLES) + 1
    assert {repeat.held_out_id for repeat in two.repeats([*EXAMPLES, *other])} == {one.id for one in (*EXAMPLES, *other)}


def test_what_a_fit_was_begun_from_is_fetched_where_it_is_not_here(
    backbone: Backbone, tmp_path: Path, tracking: Tracking
) -> None:
    saved(tmp_path / "one", backbone, random_lora(backbone, 1))
    release = publish(tracking, "coding", tmp_path / "one")
    elsewhere = f"/gone/releases/{release.directory.name}"
    found = fetched(recipe_of(backbone, warm_start=elsewhere, orthogonal_to=(elsewhere,), lora=SHAPE), tracking)
    assert found.adapter.warm_start == str(release.directory) and found.adapter.orthogonal_to == (str(release.directory),)
    unknown = recipe_of(backbone, warm_start="/gone/releases/other", lora=SHAPE)
    assert fetched(unknown, tracking) == unknown
