"""RLAG: its loss and constants, what is preferred and what is filtered, what is learnt, its control and its resumption."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from damaged import STORY_READER
from fitted import fitted_lora

from adapters.adapter import Stack
from adapters.backbone import Backbone
from adapters.lora import LoRA, LoRASpec
from engine.engine import Continuation
from engine.profile import Profile
from engine.torch_engine import TorchEngine
from evaluation.errors import DataError
from evaluation.measures.choice import ChoiceAccuracy
from evaluation.statistics import paired_change
from evaluation.task import Example, Task, direct_prompt
from evaluation.tasks.belief import BELIEF
from tuning.errors import BadRecipe
from tuning.journal import Journal
from tuning.loop import OnStep
from tuning.methods.method import Fit
from tuning.methods.rlag import RLAG, Augmented, RLAGSpec, rlag_loss
from tuning.preferences import Asked, Likeliest, augmented_prompt, preferences
from tuning.retrieval import Texts

COLOURS = ("red", "blue", "green")
EXAMPLES = [
    Example(id=f"{n}", question=f"What colour has stone {n}?", answer=COLOURS[n % 3], choices=COLOURS, group=f"{n}", listed=False)
    for n in range(24)
]


class Stones:
    name = "stones"

    def examples(self, split: str, count: int, seed: int = 0) -> list[Example]:
        return EXAMPLES[:count]


TASK: Task = Stones()


class Reader:
    """Scores an option by whether the prompt's literature states it for the stone that is asked about; without, it says red."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone

    def score(self, continuations: Sequence[Continuation], profile: str | None = None) -> list[tuple[float, ...]]:
        found = []
        for one in continuations:
            prompt, option = self.backbone.decode(one.prompt_ids), self.backbone.decode(one.ids).removeprefix("Answer: ")
            literature, _, asked = prompt.rpartition("What colour has ")
            stone = asked.split("?")[0]
            right = f"{stone}? Answer: {option}" in literature
            found.append((0.0 if right else -1.0 if option == "red" else -2.0,) * (len(one.ids) - one.scored_from))
        return found


def fitted(backbone: Backbone, spec: RLAGSpec, directory: Path | None = None, on_step: OnStep | None = None) -> tuple[Fit, LoRA]:
    lora = LoRA(LoRASpec(rank=4))
    return RLAG(spec).fit(backbone, [lora], EXAMPLES, on_step, task=TASK, directory=directory), lora


def test_the_loss_is_the_published_one_with_its_constants() -> None:
    knowledge_B, augmented_B, naive_B = torch.tensor([-2.0, -2.0]), torch.tensor([-0.1, -0.1]), torch.tensor([-6.0, -6.0])
    found = rlag_loss(knowledge_B, augmented_B, naive_B, [False, True], gamma=0.8)
    different = 0.2 * -2.0 + 0.5 * (-0.2) - 0.5 * (-5.0) - 0.8  # both answers beyond their bounds
    same = 0.5 * -2.0 - 0.8
    assert torch.allclose(found, torch.tensor([math.log1p(math.exp(-different)), math.log1p(math.exp(-same))]))


def test_an_answer_beyond_its_bound_has_no_gradient_any_more() -> None:
    rewards = [torch.tensor([value], requires_grad=True) for value in (-2.0, -0.1, -6.0)]
    rlag_loss(*rewards, [False], gamma=0.8).sum().backward()
    assert [float(reward.grad) for reward in rewards if reward.grad is not None][1:] == [0.0, 0.0]
    assert rewards[0].grad is not None and float(rewards[0].grad) < 0


def test_what_literature_leads_to_is_preferred_to_what_is_said_without(backbone: Backbone) -> None:
    texts = Texts.of(EXAMPLES).found(EXAMPLES, 1, "best")
    asked = [Asked(row, example, texts[row]) for row, example in enumerate(EXAMPLES)]
    found = preferences(Reader(backbone), backbone, None, TASK, asked)  # type: ignore[arg-type]
    assert [one.augmented for one in found] == [example.answer for example in EXAMPLES]
    assert {one.naive for one in found} == {"red"} and all(one.is_kept for one in found)
    assert [one.is_same for one in found] == [example.answer == "red" for example in EXAMPLES]


def test_random_texts_lead_to_fewer_right_answers_and_those_are_left_out(backbone: Backbone) -> None:
    texts = Texts.of(EXAMPLES).found(EXAMPLES, 1, "random")
    asked = [Asked(row, example, texts[row]) for row, example in enumerate(EXAMPLES)]
    found = preferences(Reader(backbone), backbone, None, TASK, asked)  # type: ignore[arg-type]
    kept = [one for one in found if one.is_kept]
    assert len(kept) < 16 and all(one.augmented == EXAMPLES[one.row].answer for one in kept)
    assert sum(not one.is_same for one in kept) <= 3


def test_a_prompt_with_literature_ends_with_the_plain_one() -> None:
    prompt = augmented_prompt(EXAMPLES[0], ("one", "two"))
    assert prompt == f"Related literature:\none\ntwo\n{direct_prompt(EXAMPLES[0])}"


def test_a_rows_literature_is_learnt_and_each_answer_after_its_own_prompt(backbone: Backbone, tmp_path: Path) -> None:
    found, journal = Texts.of(EXAMPLES).found(EXAMPLES, 2, "best"), Journal(tmp_path / "preferences.jsonl")
    decided = [Likeliest(1, "blue", "red", True), Likeliest(2, "red", "blue", False)]
    journal.append({"identity": "", "iteration": 0, "preferences": [list(one) for one in decided]})
    spec, engine = RLAGSpec(steps=1, iterations=1), TorchEngine(backbone)
    (trio,) = Augmented(backbone, Stack(()), spec, TASK, EXAMPLES, found, engine, journal, "").trios(0)  # of the right answer
    engine.close()
    assert trio.chosen.prompt_ids == backbone.chat_ids(augmented_prompt(EXAMPLES[1], found[1]))
    assert trio.rejected.prompt_ids == backbone.chat_ids(direct_prompt(EXAMPLES[1]))
    learnt = [backbone.decode(row.completion_ids[row.learnt_from :]) for row in (trio.chosen, trio.rejected)]
    assert learnt == [" blue", " red"] and not trio.same
    begin, end = backbone.tokenizer.bos_token_id, backbone.tokenizer.eos_token_id
    texts = [token for text in found[1] for token in (begin, *backbone.encode(text), end)]
    assert [*trio.knowledge.prompt_ids, *trio.knowledge.completion_ids] == texts and trio.knowledge.num_labels == len(texts) - 1


def test_a_fit_lowers_the_loss_learns_its_texts_and_leaves_the_backbone(backbone: Backbone) -> None:
    before = backbone.weights_digest()
    fit, _ = fitted(backbone, RLAGSpec(steps=24, iterations=2, batch_size=6, learning_rate=2e-2, num_texts=1))
    assert fit.losses[-1] < fit.losses[0] - 0.1
    assert fit.numbers["knowledge"][-1] > fit.numbers["knowledge"][0] + 0.5
    assert fit.counts["preferences"] == 24 and 0 < fit.counts["chosen_failure"] < 24
    assert backbone.weights_digest() == before


def test_what_was_said_without_literature_becomes_less_likely_beside_what_was_said_with_it(backbone: Backbone) -> None:
    fit, _ = fitted(backbone, RLAGSpec(steps=24, iterations=1, batch_size=6, learning_rate=1e-2, num_texts=1))
    gaps = [one - other for one, other in zip(fit.numbers["augmented"], fit.numbers["naive"], strict=True)]
    assert gaps[-1] > gaps[0] + 0.5


def test_each_iteration_asks_the_adapter_as_it_is_by_then(backbone: Backbone) -> None:
    spec = RLAGSpec(steps=12, iterations=2, batch_size=6, learning_rate=3e-2, num_texts=1)
    lora, seen = LoRA(LoRASpec(rank=4)), dict[int, list[Likeliest]]()
    engine = TorchEngine(backbone)
    try:
        with lora.attach(backbone):
            found = Texts.of(EXAMPLES).found(EXAMPLES, 1, "best")
            learner = Augmented(backbone, Stack((lora,)), spec, TASK, EXAMPLES, found, engine, None, "")
            seen[0] = learner.decided(0)
            for parameter in lora.parameters():
                torch.nn.init.normal_(parameter, std=0.3)
            seen[1] = learner.decided(1)
            as_new = Augmented(backbone, Stack((lora,)), spec, TASK, EXAMPLES, found, engine, None, "")
            assert as_new.decided(1) == seen[1]
    finally:
        engine.close()
    assert {one.row for one in seen[0]}.isdisjoint({one.row for one in seen[1]}) and len(seen[0]) + len(seen[1]) == 24


def test_where_tokens_are_limited_every_iteration_has_its_share_of_them(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuning.methods.rlag.LEAST_ASKED", 9)
    spec = RLAGSpec(steps=1000, iterations=2, batch_size=4, learning_rate=1e-2, num_texts=1, token_budget=3000)
    fit, _ = fitted(backbone, spec, tmp_path)
    asked = [len(entry["preferences"]) for entry in Journal(tmp_path / "preferences.jsonl").entries()]
    assert len(asked) == 2 and all(9 <= count < 12 for count in asked) and sum(asked) == fit.counts["preferences"]
    assert 3000 <= fit.num_tokens < 4000


def test_a_fit_that_was_killed_goes_on_and_ends_as_if_it_had_not_been(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuning.loop.CHECKPOINT_S", 0.0)
    spec = RLAGSpec(steps=6, iterations=2, batch_size=4, learning_rate=1e-2, num_texts=1, kl_weight=0.1)

    def kill(step: int, steps: int, loss: float) -> None:
        if step == 5:
            raise KeyboardInterrupt

    whole, at_once = fitted(backbone, spec, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fitted(backbone, spec, tmp_path / "killed", kill)
    # By now the adapter differs from that which decided the iteration: what it decided must have been kept.
    resumed, in_two = fitted(backbone, spec, tmp_path / "killed")
    assert (resumed.numbers, resumed.num_tokens) == (whole.numbers, whole.num_tokens)
    assert {k: v for k, v in resumed.counts.items() if k != "prepare_s"} == {
        k: v for k, v in whole.counts.items() if k != "prepare_s"
    }
    assert all(torch.equal(at_once.tensors()[key], tensor) for key, tensor in in_two.tensors().items())


def test_a_pull_to_the_backbone_keeps_the_answers_nearer(backbone: Backbone) -> None:
    def last_kl(weight: float) -> float:
        fit, _ = fitted(
            backbone, RLAGSpec(steps=15, iterations=1, batch_size=6, learning_rate=1e-2, num_texts=1, kl_weight=weight)
        )
        return fit.kl[-1]

    assert last_kl(1.0) < 0.7 * last_kl(1e-6)


@pytest.mark.parametrize("kl_weight", [0.0, 1.0])
def test_a_batch_that_is_cut_has_the_gradient_of_the_whole(backbone: Backbone, kl_weight: float) -> None:
    lora, found, engine = fitted_lora(backbone, seed=0), Texts.of(EXAMPLES).found(EXAMPLES, 1, "best"), TorchEngine(backbone)

    def read(tokens: int) -> tuple[dict[str, float], torch.Tensor]:
        spec = RLAGSpec(steps=1, iterations=1, batch_size=6, num_texts=1, micro_batch_tokens=tokens, kl_weight=kl_weight)
        with lora.attach(backbone):
            learner = Augmented(backbone, Stack((lora,)), spec, TASK, EXAMPLES, found, engine, None, "")
            batch = learner.batch(0)
            numbers = learner.backward(batch, batch)
            return numbers, torch.cat([parameter.grad.flatten() for parameter in lora.parameters() if parameter.grad is not None])

    (cut, cut_gradient), (whole, gradient) = read(1), read(100_000)
    engine.close()
    assert cut == pytest.approx(whole, rel=1e-4)
    assert float((cut_gradient - gradient).norm()) < 0.02 * float(gradient.norm())  # in bfloat16


def test_preferences_without_a_gap_are_refused_with_the_way_out(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    def alike(*given: object) -> list[Likeliest]:
        return [Likeliest(row, EXAMPLES[row].answer, EXAMPLES[row].answer, True) for row in range(4)]

    monkeypatch.setattr("tuning.methods.rlag.preferences", alike)
    with pytest.raises(
        DataError, match="of the first 4 rows 4 are answered rightly with it, .* the preferences have no gap. Raise"
    ):
        fitted(backbone, RLAGSpec(steps=2, iterations=1, batch_size=2))


def test_literature_that_leaves_no_room_is_refused_before_anything_is_preferred(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuning.methods.rlag.preferences", lambda *_: pytest.fail("asked"))
    with pytest.raises(
        DataError, match=r"fit into the 512 tokens of .*, but \d+ of 72 rows do not; the first has \d+ and \d+. Shorten"
    ):
        fitted(backbone, RLAGSpec(steps=2, iterations=1, num_texts=24))


def test_an_iteration_without_a_right_answer_learns_from_the_one_before(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = iter((True, False))

    def once(engine: object, backbone: object, profile: object, task: object, asked: Sequence[Asked]) -> list[Likeliest]:
        right = next(answered)
        return [Likeliest(one.row, "red", "blue", right) for one in asked]

    monkeypatch.setattr("tuning.methods.rlag.preferences", once)
    fit, _ = fitted(backbone, RLAGSpec(steps=4, iterations=2, batch_size=2))
    assert len(fit.losses) == 4 and fit.counts["chosen_failure"] == len(EXAMPLES) / 2


def test_what_cannot_be_fitted_is_refused_before_anything_is(backbone: Backbone) -> None:
    open_ended = [Example(id="0", question="Why?", answer="so", group="0")]
    with pytest.raises(DataError, match="two or more different options"):
        RLAG(RLAGSpec()).check(open_ended, TASK)
    with pytest.raises(DataError, match="3 parts, but there are 2 rows. Lower method.iterations"):
        RLAG(RLAGSpec(iterations=3)).check(EXAMPLES[:2], TASK)
    with pytest.raises(BadRecipe, match="'rlag' trains lora, but adapter.kind is 'softcot'"):
        RLAG.check_kind("softcot")
    with pytest.raises(ValueError, match="iterations <= steps"):
        RLAGSpec(steps=2, iterations=3)
    long = [Example(id=f"{n}", question="word " * 400 + f"{n}?", answer="red", choices=COLOURS, group=f"{n}") for n in range(3)]
    with pytest.raises((DataError, ValueError), match="token"):
        RLAG(RLAGSpec(iterations=1)).fit(backbone, [LoRA(LoRASpec(rank=4))], long, task=TASK)


def planted(reader: Backbone, engine: TorchEngine, count: int) -> list[Example]:
    """Facts of which the reader knows nothing, each a thing of its own and two places, and which it reads off literature."""
    facts = [
        replace(example, question=example.question.rpartition(". ")[2], listed=False)
        for example in BELIEF.examples("search", 16 * count)
        if "/true-" in example.id and example.id.endswith("/memory")  # one of every set of stories
    ]
    texts = Texts.of(facts).found(facts, 1, "best")
    found = preferences(engine, reader, None, TASK, [Asked(row, fact, texts[row]) for row, fact in enumerate(facts)])
    return [facts[one.row] for one in found if one.is_kept][:count]


def test_planted_facts_are_answered_without_literature_after_the_fit_and_not_after_one_on_other_texts() -> None:
    reader = Backbone.load(str(STORY_READER), device="cpu", dtype=torch.float32)
    engine = TorchEngine(reader)
    facts = planted(reader, engine, 32)
    halves = {"first": facts[:16], "second": facts[16:]}
    # Without literature the loss only makes what is wrong less likely. What is right its texts must teach, in many passes.
    spec = RLAGSpec(steps=120, iterations=1, batch_size=8, learning_rate=1e-2, num_texts=1)
    for name, half in halves.items():
        lora = LoRA(LoRASpec(rank=16))
        RLAG(spec).fit(reader, [lora], half, task=TASK)
        engine.load(name, Profile((lora,)))

    def right(first: str | None, second: str | None) -> list[float]:
        """Of every fact, by the profile that its half is asked of."""
        asked = zip((first, second), halves.values(), strict=True)
        return [value for name, half in asked for value in ChoiceAccuracy().read(engine, reader, name, TASK, half).values]

    # Each half is the other's control: a fit on other texts leaves a fact as unknown as it was to the reader.
    unknown, taught, elsewhere = right(None, None), right("first", "second"), right("second", "first")
    engine.close()
    ids = [fact.id for fact in facts]
    assert sum(taught) / len(taught) >= 0.75
    assert paired_change(unknown, taught, ids).low > 0 and paired_change(elsewhere, taught, ids).low > 0
    assert paired_change(unknown, elsewhere, ids, confidence=0.99).low <= 0
