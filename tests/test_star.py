"""Self-training: only right samples are learnt, and the way out where there are none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from fitted import fitted_lora

from adapters.adapter import Adapter
from adapters.backbone import TESTBED, Backbone
from adapters.lora import LoRA, LoRASpec
from engine.engine import Completion, GenerationRequest
from evaluation.errors import DataError
from evaluation.task import Example, is_right, reasoning_prompt
from evaluation.tasks import TASKS
from evaluation.tasks.alchemy import ALCHEMY
from tuning.loop import OnStep
from tuning.methods.method import Fit, Given
from tuning.methods.star import STaR, STaRSpec, grouped
from tuning.methods.supervised import Prepared
from tuning.rollouts import WRITER, rollouts

# Of chains that are longer than it knows, the tiny model solves few: some groups have a right sample, most have none.
HARD = ALCHEMY.at_length(3, 4)
EXAMPLES = HARD.examples("train", 12)
SMALL = {"steps": 4, "batch_size": 4, "samples": 2, "learning_rate": 5e-3, "num_questions": 12}


def prepared(backbone: Backbone, **values: object) -> Prepared:
    return STaR(STaRSpec(**{**SMALL, **values})).prepare(Given(backbone, (LoRA(LoRASpec(rank=4)),), EXAMPLES, HARD))


def test_every_row_is_a_right_sample_and_groups_without_one_are_counted(testbed: Backbone) -> None:
    done = prepared(testbed)
    by_prompt = {testbed.chat_ids(reasoning_prompt(example)): example for example in EXAMPLES}
    assert done.rows and all(is_right(HARD, by_prompt[row.prompt_ids], testbed.decode(row.completion_ids)) for row in done.rows)
    assert 0 < done.counts["groups_without_right"] < done.counts["groups"] == 12
    assert len({row.prompt_ids for row in done.rows}) == 12 - done.counts["groups_without_right"]
    assert done.num_generated > 0


def test_the_control_learns_wrong_samples_as_well(testbed: Backbone) -> None:
    right, both = prepared(testbed), prepared(testbed, keep="any")
    assert len(both.rows) > len(right.rows) and {row.prompt_ids for row in right.rows} < {row.prompt_ids for row in both.rows}
    assert both.counts == right.counts


def test_an_easy_question_does_not_crowd_out_the_others(testbed: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuning.methods.star.MAX_PER_QUESTION", 1)
    done = prepared(testbed, keep="any", samples=4, num_questions=4)
    learnt = Counter(row.prompt_ids for row in done.rows)
    assert max(learnt.values()) == 1 and done.counts["different_samples"] > len(done.rows)


def test_samples_that_say_the_same_are_one_and_an_unfinished_one_is_none() -> None:
    def said(text: str, reason: str = "stop") -> Completion:
        return Completion(text, (1,), (0.0,), reason, 1)  # type: ignore[arg-type]

    example = Example(id="a", question="q", answer="4", group="a")
    samples = [
        said("2+2\nAnswer: 5"),
        said("Answer: 4"),
        said("answer:  4."),
        said("Answer:  4."),
        said("so\nAnswer: 4", "length"),
    ]
    found = grouped(TASKS["boxes"], example, samples)
    assert [sample.text for sample in found.finished] == ["2+2\nAnswer: 5", "Answer: 4"]
    assert [sample.text for sample in found.right] == ["Answer: 4"]


def test_where_all_samples_are_wrong_the_way_out_is_said(backbone: Backbone) -> None:
    with pytest.raises(DataError, match=r"none of the 2 that the backbone wrote to each of 12 questions was. Take more samples"):
        prepared(backbone)


def test_a_hint_gives_groups_without_a_right_sample_a_trace_that_is_learnt_without_it(
    testbed: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tiny model never learnt to take a hint: here the hint is an easier question of the same answer.
    easy = ALCHEMY.at_length(1).examples("train", 1)[0]
    monkeypatch.setattr("tuning.methods.star.HINT", easy.question + "\n{reason}")
    hinted = Example(id="h", question="?", answer=easy.answer, group="h")
    spec = STaRSpec(**{**SMALL, "rationalise": True})
    done = STaR(spec).prepare(Given(testbed, (), [hinted], ALCHEMY))
    assert done.counts["rationalised"] == done.counts["groups_without_right"] == 1
    assert easy.question not in testbed.decode(done.rows[0].prompt_ids)
    with pytest.raises(DataError, match="method.rationalise"):
        STaR(STaRSpec(**SMALL)).prepare(Given(testbed, (), [hinted], ALCHEMY))


def test_the_adapter_that_a_fit_goes_on_from_writes_the_first_round(testbed: Backbone, tmp_path: Path) -> None:
    # Noise in the place of an earlier fit: it is never right, where the tiny model itself is now and then.
    given = Given(testbed, (fitted_lora(testbed, 1),), EXAMPLES, HARD, tmp_path)
    with pytest.raises(DataError, match=r"none of the 2 that the adapter that it began from wrote to each of 12 questions was"):
        STaR(STaRSpec(**SMALL)).prepare(given)
    assert list(tmp_path.glob("round-0-*/rollouts.jsonl")), "what it wrote is not kept with what the backbone writes"


def test_every_round_fits_anew_from_where_the_fit_begins(testbed: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []

    def learnt(given: Given, *_: object) -> Fit:
        begun.append(given.adapters[0].digest())  # type: ignore[attr-defined]  # a LoRA
        with given.adapters[0].attach(testbed), torch.no_grad():
            next(given.adapters[0].parameters()).add_(1.0)
        return Fit({"loss": ()}, 0, 0.0)

    monkeypatch.setattr("tuning.methods.star.learnt", learnt)
    prepared(testbed, rounds=3, keep="any", num_questions=4)
    assert len(begun) == 2 and len(set(begun)) == 1


def test_in_a_later_round_the_adapter_of_the_round_before_writes(testbed: Backbone) -> None:
    one, two = prepared(testbed), prepared(testbed, rounds=2)
    assert two.num_tokens > one.num_tokens == 0
    assert two.counts["round_1_groups"] == 12 and two.num_generated > one.num_generated
    assert [row.completion_ids for row in two.rows] != [row.completion_ids for row in one.rows]


@pytest.fixture(scope="module")
def unsure() -> Backbone:
    """The tiny model with noise in its weights: a third of what it samples is right."""
    backbone = Backbone.load(str(TESTBED), device="cpu", dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in backbone.model.named_parameters():
            if weight.dim() == 2 and "embed" not in name:
                weight.add_(0.7 * weight.std() * torch.randn(weight.shape, generator=generator))
    return backbone


def share_right(backbone: Backbone, adapters: Sequence[Adapter] = ()) -> float:
    examples = ALCHEMY.examples("search", 64)
    with rollouts(backbone, adapters) as writer:
        profile = WRITER if adapters else None
        prompts = [backbone.chat_ids(reasoning_prompt(example)) for example in examples]
        asked = [GenerationRequest(ids, profile, 64, temperature=1.0, seed=seed) for seed, ids in enumerate(prompts)]
        written = writer.write(asked)
    return sum(is_right(ALCHEMY, example, one.text) for example, one in zip(examples, written, strict=True)) / len(examples)


@pytest.mark.slow
def test_learning_the_right_samples_makes_it_right_more_often_and_learning_them_all_does_not(unsure: Backbone) -> None:
    def after(keep: str) -> tuple[Fit, float]:
        lora, values = LoRA(LoRASpec(rank=8)), {"steps": 20, "batch_size": 8, "learning_rate": 5e-3, "num_questions": 32}
        fit = STaR(STaRSpec(**values, keep=keep)).fit(unsure, [lora], ALCHEMY.examples("train", 32), task=ALCHEMY)
        return fit, share_right(unsure, [lora])

    (fit, right), (_, any_sample) = after("right"), after("any")
    assert right >= share_right(unsure) + 0.1 and any_sample <= right - 0.1
    assert fit.losses[-1] < 0.5 * fit.losses[0]


def fitted(backbone: Backbone, directory: Path | None, on_step: OnStep | None = None) -> tuple[Fit, dict[str, torch.Tensor]]:
    lora = LoRA(LoRASpec(rank=4))
    fit = STaR(STaRSpec(**{**SMALL, "rounds": 2})).fit(backbone, [lora], EXAMPLES, on_step, task=HARD, directory=directory)
    return fit, lora.tensors()


def test_a_kill_in_the_second_rollout_changes_nothing(testbed: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFTLINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tuning.rollouts.CHUNK", 8)
    whole, at_once = fitted(testbed, None)
    calls: list[int] = []

    def kill(step: int, steps: int, loss: float) -> None:
        calls.append(step)
        if len(calls) == 5:  # three chunks of the first round are written, and two of the second
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted(testbed, tmp_path / "fit", kill)
    resumed, in_two = fitted(testbed, tmp_path / "fit")
    assert calls == [0] * 5 and 0 < resumed.counts["written_anew"] < whole.counts["written_anew"]
    for name in ("losses", "num_tokens", "num_generated"):
        assert getattr(resumed, name) == getattr(whole, name)
    assert all(torch.equal(at_once[key], in_two[key]) for key in at_once)


def test_a_budget_of_tokens_is_shared_by_the_rounds(testbed: Backbone) -> None:
    spec = STaRSpec(**{**SMALL, "steps": 1000, "rounds": 2, "token_budget": 6000})
    fit = STaR(spec).fit(testbed, [LoRA(LoRASpec(rank=4))], EXAMPLES, task=HARD)
    assert 6000 <= fit.num_tokens + fit.num_generated <= 6000 + 4 * 150


def test_the_rounds_share_what_replay_left_of_the_budget(testbed: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int | None]] = []

    def learnt(given: Given, spec: STaRSpec, learner: object, rows: object, num_written: int, *_: object) -> Fit:
        told.append((num_written, spec.token_budget))
        return Fit({"loss": ()}, 0, 0.0)

    monkeypatch.setattr("tuning.methods.supervised.replay_of", lambda given, spec: Prepared([], num_generated=4000))
    monkeypatch.setattr("tuning.methods.star.learnt", learnt)
    spec = STaRSpec(**{**SMALL, "rounds": 2, "keep": "any", "token_budget": 6000})
    STaR(spec).fit(testbed, [LoRA(LoRASpec(rank=4))], EXAMPLES, task=HARD)
    ((used, share),) = told
    assert 4000 < used < share == 4000 + 2000 // 2


def test_no_more_questions_are_asked_than_the_tokens_pay_for() -> None:
    spec = STaRSpec(samples=4, rounds=2, rationalise=True, token_budget=12_800)
    assert spec.num_asked() == 10 and spec.model_copy(update={"token_budget": None}).num_asked() == spec.num_questions
    assert spec.num_asked(6400) == 5 and spec.model_copy(update={"token_budget": 100}).num_asked() == 1


def test_a_question_that_leaves_no_room_is_named(backbone: Backbone) -> None:
    long = Example(id="long", question="word " * 600, answer="1", group="a")
    with pytest.raises(DataError, match=r"1 of 1 do not; the first, 'long', has \d+. Shorten"):
        STaR(STaRSpec(**SMALL)).prepare(Given(backbone, (), [long], HARD))


@pytest.mark.parametrize("values", [{"samples": 0}, {"rounds": 0}, {"temperature": 0.0}])
def test_what_draws_no_samples_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be at least 1|differ only at a temperature above 0"):
        STaRSpec(**values)
