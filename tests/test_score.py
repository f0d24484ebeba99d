"""Scoring over shared prefixes equals a plain loop of forwards."""

from __future__ import annotations

import pytest
import torch
from fitted import fitted_lora, fitted_softcot

from adapters.adapter import Stack
from adapters.backbone import Backbone
from engine.engine import Continuation
from engine.errors import PromptTooLong
from engine.profile import Profile
from engine.torch_engine import TorchEngine
from engine.trie import Trie, batches, plant

QUESTIONS = ("Start with 12. Add 5.", "Which chapter is it in? Options: skin; ear; eye", "Take 7, add 3, times 4.", "Cholera")


def plain_scores(backbone: Backbone, profile: Profile, continuation: Continuation) -> list[float]:
    """One forward of the whole sequence with the adapters attached."""
    with Stack(profile.adapters).attach(backbone), torch.no_grad():
        prompt = profile.transform(backbone, continuation.prompt_ids)
        answer_TH = backbone.embeddings(torch.tensor(continuation.ids))
        embeds_BTH = torch.cat((prompt.embed(backbone.embeddings), answer_TH))[None]
        logprobs_TV = backbone.model(inputs_embeds=embeds_BTH, use_cache=False).logits[0].log_softmax(-1)
    first = len(prompt.ids) - 1
    return [
        float(logprobs_TV[first + offset, token])
        for offset, token in enumerate(continuation.ids)
        if offset >= continuation.scored_from
    ]


def continuations(backbone: Backbone) -> list[Continuation]:
    """Options of uneven lengths, one-token ones, duplicates, nested prefixes and scored suffixes, over several prompts."""
    found = []
    for question in QUESTIONS:
        prompt = backbone.chat_ids(question)
        options = [backbone.encode(text) for text in ("skin diseases", "ear", "eye diseases and more", "e", "ear")]
        found += [Continuation(prompt, tuple(option)) for option in options]
        steps, answer = tuple(backbone.encode("12 + 5 = 17\n17 - 3 = 14\n")), tuple(backbone.encode("Answer: 14"))
        for kept in (0, len(steps) // 2, len(steps)):
            found.append(Continuation(prompt + steps[:kept], answer))
            found.append(Continuation(prompt, steps[:kept] + answer, scored_from=kept))
    return found


def profiles(backbone: Backbone) -> dict[str, Profile]:
    return {
        "base": Profile(),
        "lora": Profile((fitted_lora(backbone, 1),)),
        "softcot": Profile((fitted_softcot(backbone, 2),)),
        "both": Profile((fitted_lora(backbone, 3), fitted_softcot(backbone, 4))),
    }


@pytest.mark.parametrize("name", ["base", "lora", "softcot", "both"])
def test_scores_equal_a_plain_loop_of_forwards(backbone: Backbone, name: str) -> None:
    engine, profile = TorchEngine(backbone, max_batch_tokens=300), profiles(backbone)[name]
    engine.load(name, profile)
    asked = continuations(backbone)
    for continuation, scores in zip(asked, engine.score(asked, name), strict=True):
        expected = plain_scores(backbone, profile, continuation)
        torch.testing.assert_close(torch.tensor(scores), torch.tensor(expected), atol=1e-4, rtol=0.0)
    engine.close()


def test_a_profile_without_adapters_scores_exactly_as_the_backbone(backbone: Backbone) -> None:
    engine = TorchEngine(backbone)
    engine.load("same", Profile())
    asked = continuations(backbone)
    assert engine.score(asked) == engine.score(asked) == engine.score(asked, "same")


def test_an_adapter_of_zero_scale_scores_exactly_as_the_backbone(backbone: Backbone) -> None:
    engine = TorchEngine(backbone)
    engine.load("none", Profile((fitted_lora(backbone, 1).scaled(0.0),)))
    asked = continuations(backbone)
    assert engine.score(asked, "none") == engine.score(asked)


def test_scores_do_not_depend_on_what_else_is_asked(backbone: Backbone) -> None:
    engine = TorchEngine(backbone)
    engine.load("both", profiles(backbone)["both"])
    asked = continuations(backbone)
    for continuation, scores in zip(asked, engine.score(asked, "both"), strict=True):
        alone = engine.score([continuation], "both")[0]
        torch.testing.assert_close(torch.tensor(scores), torch.tensor(alone), atol=1e-4, rtol=0.0)


def test_nested_prefixes_are_computed_once(backbone: Backbone) -> None:
    engine = TorchEngine(backbone)
    prompt, steps, answer = tuple(range(10, 60)), tuple(range(60, 80)), tuple(range(80, 85))
    engine.score([Continuation(prompt + steps[:kept], answer) for kept in (0, 10, 20)])
    stats = engine.stats()
    # Each answer's last token is read from nothing, so it is no node.
    assert stats.scored_tokens == 50 + 20 + 3 * 4
    assert stats.scored_tokens_unshared == 3 * 50 + 30 + 3 * 4


def test_soft_thoughts_of_different_prompts_are_not_shared(backbone: Backbone) -> None:
    engine = TorchEngine(backbone)
    engine.load("softcot", profiles(backbone)["softcot"])
    one, two = backbone.chat_ids("Add 5."), backbone.chat_ids("Add 6.")
    engine.score([Continuation(one, (9,)), Continuation(one, (10,))], "softcot")
    same = engine.stats().scored_tokens
    engine.score([Continuation(one, (9,)), Continuation(two, (9,))], "softcot")
    assert engine.stats().scored_tokens - same > same


def test_nothing_asked_is_nothing_scored(backbone: Backbone) -> None:
    assert TorchEngine(backbone).score([]) == []


def test_a_continuation_without_a_scored_token_is_refused(backbone: Backbone) -> None:
    engine = TorchEngine(backbone)
    for continuation in (Continuation((9,), ()), Continuation((9,), (10, 11), scored_from=2)):
        with pytest.raises(ValueError, match="scored_from"):
            engine.score([continuation])


def test_a_continuation_beyond_the_context_is_refused(backbone: Backbone) -> None:
    with pytest.raises(PromptTooLong, match="at most 512 tokens"):
        TorchEngine(backbone).score([Continuation(tuple([9] * 500), tuple([9] * 13))])


def test_a_node_reads_itself_and_its_ancestors_only() -> None:
    tree = Trie()
    assert tree.add((1, 2, 3)) == [0, 1, 2]
    assert tree.add((1, 4)) == [0, 3]
    assert tree.depths == [0, 1, 2, 1]
    assert tree.ancestors_NN().tolist() == [
        [True, False, False, False],
        [True, True, False, False],
        [True, True, True, False],
        [True, False, False, True],
    ]


def test_sequences_share_a_tree_only_if_they_share_half_of_the_prompt() -> None:
    near, far = (1, 2, 3, 9), (1, 7, 8, 9)
    trees, places = plant([(1, 2, 3, 4), near, far], [4, 4, 4], max_nodes=100)
    assert [place.tree for place in places] == [0, 0, 1]
    assert [len(tree) for tree in trees] == [5, 4]
    assert len(plant([(1, 2, 3, 4), near], [4, 4], max_nodes=4)[0]) == 2


def test_a_batch_holds_no_more_tokens_than_allowed() -> None:
    sizes = [5, 50, 7, 30, 31]
    found = list(batches(sizes, 65))
    assert sorted(index for batch in found for index in batch) == [0, 1, 2, 3, 4]
    assert all(len(batch) * max(sizes[index] for index in batch) <= 65 for batch in found)
