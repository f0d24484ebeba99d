"""Hidden states from the engine equal those of the backbone with the adapters attached."""

from __future__ import annotations

import pytest
import torch
from fitted import fitted_lora, fitted_softcot, random_steering
from torch import Tensor, nn
from toy_engine import ToyEngine

from adapters.adapter import Stack
from adapters.backbone import Backbone
from engine.bank import BankLimits
from engine.engine import Continuation
from engine.inspect import inspector
from engine.profile import Profile
from engine.torch_engine import TorchEngine

QUESTIONS = ("Start with 12. Add 5.", "Which chapter is it in? Options: skin; ear; eye", "Cholera")
PROFILES = ("lora", "softcot", "steering", "all")


def profiles(backbone: Backbone) -> dict[str, Profile]:
    one, two, three = fitted_lora(backbone, 1), fitted_softcot(backbone, 2), random_steering(backbone, 0)
    return dict(zip(PROFILES, (Profile((one,)), Profile((two,)), Profile((three,)), Profile((one, two, three))), strict=True))


def plain_states(backbone: Backbone, profile: Profile, asked: Continuation) -> Tensor:
    """Every layer's output at every token, [L, T, H], by hooks of our own: transformers norms the last one."""
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
        found.append(output[0])

    with Stack(profile.adapters).attach(backbone), torch.no_grad():
        hooks = [layer.register_forward_hook(keep) for layer in backbone.layers]
        prompt = profile.transform(backbone, asked.prompt_ids)
        found.clear()  # the assistant of soft thoughts went through the same layers
        ids_T = torch.tensor(asked.ids, dtype=torch.long)
        embeds_TH = torch.cat((prompt.embed(backbone.embeddings), backbone.embeddings(ids_T)))
        backbone.model(inputs_embeds=embeds_TH[None], use_cache=False)
        for hook in hooks:
            hook.remove()
    return torch.stack(found)


def test_rows_of_all_profiles_in_one_batch_have_the_states_of_their_solo_runs(backbone: Backbone) -> None:
    engine, loaded = TorchEngine(backbone), profiles(backbone)
    for name, profile in loaded.items():
        engine.load(name, profile)
    answers = [tuple(backbone.encode(text)) for text in ("12 + 5 = 17", "skin", "")]
    rows = [
        (Continuation(backbone.chat_ids(question), ids), name)
        for question, ids in zip(QUESTIONS, answers, strict=True)
        for name in (None, *PROFILES)
    ]
    found = engine.hidden_states([asked for asked, _ in rows], [name for _, name in rows], [1, 0])
    for (asked, name), states_LPH in zip(rows, found, strict=True):
        expected = plain_states(backbone, loaded[name] if name else Profile(), asked)[:, -len(asked.ids) - 1 :]
        torch.testing.assert_close(states_LPH, expected.flip(0), atol=1e-4, rtol=1e-4)


def test_more_adapters_than_stand_in_the_bank_together_are_looked_into_in_turn(backbone: Backbone) -> None:
    engine, prompt, names = TorchEngine(backbone, bank=BankLimits(adapters=2)), backbone.chat_ids("Cholera"), list("abcde")
    for seed, name in enumerate(names):
        engine.load(name, Profile((fitted_lora(backbone, seed),)))
    asked = [Continuation(prompt, ())] * 11
    found = engine.hidden_states(asked, [*names, None, *names], [1])
    for name, *both in zip(names, found[:5], found[6:], strict=True):
        (alone,) = engine.hidden_states(asked[:1], [name], [1])
        for states_LPH in both:
            torch.testing.assert_close(states_LPH, alone, atol=1e-4, rtol=1e-4)
        assert not torch.equal(alone, found[5])


def test_only_the_asked_places_come_back(backbone: Backbone) -> None:
    engine, prompt, ids = TorchEngine(backbone), backbone.chat_ids("Cholera"), tuple(backbone.encode("12 + 5 = 17"))
    whole = engine.hidden_states([Continuation(prompt, ids)], [None], [0])[0]
    late = engine.hidden_states([Continuation(prompt, ids, scored_from=3)], [None], [0])[0]
    assert whole.shape == (1, len(ids) + 1, backbone.hidden_size)
    assert torch.equal(late, whole[:, 3:])


def test_an_adapter_of_zeros_has_exactly_the_backbones_states(backbone: Backbone) -> None:
    engine, prompt = TorchEngine(backbone), backbone.chat_ids("Cholera")
    engine.load("off", profiles(backbone)["lora"].scaled(0.0))
    base, off = engine.hidden_states([Continuation(prompt, ())] * 2, [None, "off"], [0, 1])
    assert torch.equal(base, off)


def test_what_is_looked_at_is_counted_as_forward_tokens(backbone: Backbone) -> None:
    engine, prompt = TorchEngine(backbone), backbone.chat_ids("Cholera")
    engine.hidden_states([Continuation(prompt, (9, 9))], [None], [0])
    assert engine.stats().forward_tokens == len(prompt) + 2


def test_a_layer_that_is_not_there_is_refused(backbone: Backbone) -> None:
    for layers in ([2], [-1], []):
        with pytest.raises(ValueError, match="from 0 to 1 on this backbone"):
            TorchEngine(backbone).hidden_states([Continuation((1,), ())], [None], layers)


def test_looking_leaves_nothing_behind(backbone: Backbone) -> None:
    engine, asked = TorchEngine(backbone), [Continuation(backbone.chat_ids("Cholera"), (9, 9))]
    before = engine.score(asked)
    engine.hidden_states(asked, [None], [0, 1])
    assert engine.score(asked) == before
    assert not any(layer._forward_hooks for layer in engine._twin.layers)


def test_an_engine_without_the_capability_is_no_inspector(backbone: Backbone) -> None:
    assert inspector(TorchEngine(backbone)) is not None
    assert inspector(ToyEngine(backbone, ())) is None


@pytest.mark.parametrize("name", PROFILES)
def test_a_factor_a_layer_scales_what_the_layer_adds_and_all_ones_change_nothing(backbone: Backbone, name: str) -> None:
    engine, whole = TorchEngine(backbone), profiles(backbone)[name]
    for held, factors in (("whole", None), ("ones", (1.0, 1.0)), ("none", (0.0, 0.0)), ("upper", (0.0, 1.0))):
        engine.load(held, whole if factors is None else whole.scaled_by_layer(factors))
    asked = [Continuation(backbone.chat_ids(QUESTIONS[0]), tuple(backbone.encode("12 + 5 = 17")))]
    scores = {held: engine.score(asked, held) for held in ("whole", "ones", "none", "upper")}
    assert scores["ones"] == scores["whole"]
    if name in ("lora", "steering"):
        assert scores["none"] == engine.score(asked, None) != scores["whole"]
    if name == "lora":
        assert scores["upper"] not in (scores["whole"], scores["none"])
    if name == "softcot":
        assert scores["none"] == scores["whole"]
