"""Critique fine-tuning: what the critic finds, and what a fit learns of it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from adapters.adapter import Stack
from adapters.backbone import Backbone
from adapters.lora import LoRA, LoRASpec
from evaluation.errors import DataError
from evaluation.task import Example, Split, reasoning_prompt, same_answer
from evaluation.tasks import FAMILIES, TASKS
from tuning.batches import collate, rows_of
from tuning.critiques import ASKED, ENDS, OBJECTIONS, PRAISES, VERDICTS, Critique
from tuning.distance import label_logits
from tuning.methods.critique import CritiqueSpec, CritiqueTuning
from tuning.methods.method import Fit, Given
from tuning.mistakes import Response, astray, first_wrong, gold


class Ladder:
    """A user's task: its rationale is its own, and nobody else checks its steps."""

    name = "ladder"

    def examples(self, split: Split, count: int, seed: int = 0) -> list[Example]:
        return [
            Example(
                id=str(n),
                question=f"Where is {n}?",
                answer=f"house {n % 7}",
                rationale=f"Street: {n}\nYard: {n * 3}",
                group=str(n),
            )
            for n in range(count)
        ]


LADDER = Ladder()
SMALL = {"steps": 8, "batch_size": 8}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_critic_finds_the_very_step_at_which_a_problem_of_a_family_goes_astray(name: str) -> None:
    family, found = FAMILIES[name], []
    for number, example in enumerate(family.examples("train", 20)):
        response = astray(family, example, (), random.Random(number))
        assert response is not None
        right_up_to = next(place for place, step in enumerate(response.steps) if step != example.steps[place])
        found.append(first_wrong(family, example, response) == right_up_to)
        assert first_wrong(family, example, gold(example)) is None
    assert sum(found) >= 18  # a false step can be one that the question entails all the same


def test_a_row_of_a_domain_goes_astray_onto_another_rows_trace_and_its_answer() -> None:
    examples = LADDER.examples("train", 12)
    for number, example in enumerate(examples):
        response = astray(LADDER, example, examples, random.Random(number))
        assert response is not None and not same_answer(response.answer, example.answer)
        place = first_wrong(LADDER, example, response)
        assert place in (0, 1) and response.steps[:place] == example.steps[:place]
        assert [step.split(":")[0] for step in response.steps] == ["Street", "Yard"]


@pytest.mark.slow
def test_icd10_has_wrong_traces_to_criticise() -> None:
    task = TASKS["icd10"]
    found = CritiqueTuning(CritiqueSpec()).critiques(task, task.examples("train", 40), 40)
    assert len(found) == 40 and sum(critique.is_right for critique in found) == 20


def test_a_wrong_answer_after_right_steps_is_found_on_the_answer_line() -> None:
    example = LADDER.examples("train", 3)[2]
    assert first_wrong(LADDER, example, Response(example.steps, "house 9")) == 2
    said = Critique(example, Response(example.steps, "house 9"), 2).said(random.Random(0))
    assert "Answer: house 9" in said and "Answer: house 2" in said


def test_a_wrong_choice_is_one_of_those_that_are_listed() -> None:
    examples = [
        Example(id=str(n), question="q", answer=f"a{n}", choices=(f"a{n}", f"b{n}"), rationale=f"s: {n}", group=str(n))
        for n in range(4)
    ]
    response = astray(LADDER, examples[0], examples, random.Random(0))
    assert response is not None and response.answer == "b0"


def test_every_problem_is_posed_once_right_and_once_wrong() -> None:
    found = CritiqueTuning(CritiqueSpec(problems="both")).critiques(LADDER, LADDER.examples("train", 14), 56)
    by_problem: dict[str, list[bool]] = {}
    for critique in found:
        by_problem.setdefault(critique.example.id, []).append(critique.is_right)
    assert all(verdicts.count(True) == verdicts.count(False) for verdicts in by_problem.values())
    assert {name.split("/")[0] for name in by_problem} >= {"0", "boxes", "kinship"}


def test_a_critique_names_the_wrong_line_and_what_was_due() -> None:
    example = LADDER.examples("train", 5)[4]
    critique = Critique(example, Response(("Street: 4", "Yard: 9"), "house 3"), 1)
    for seed in range(8):
        said = critique.said(random.Random(seed))
        assert "Yard: 9" in said and "Yard: 12" in said and said.endswith(VERDICTS[False])
    assert Critique(example, gold(example), None).said(random.Random(0)).endswith(VERDICTS[True])


def test_held_out_wordings_are_never_learnt(backbone: Backbone) -> None:
    examples = LADDER.examples("train", 12)
    rows = CritiqueTuning(CritiqueSpec(**SMALL)).prepare(Given(backbone, (), examples, LADDER)).rows
    texts = " ".join(backbone.decode(ids) for row in rows for ids in (row.prompt_ids, row.completion_ids))
    pieces = [wordings[-1].split("{")[0].strip() for wordings in (ASKED, PRAISES, OBJECTIONS)]
    assert not any(piece in texts for piece in pieces)
    held_out = CritiqueTuning(CritiqueSpec()).rows(
        backbone, CritiqueTuning(CritiqueSpec()).critiques(LADDER, examples, 4), held_out=True
    )
    assert pieces[0] in backbone.decode(held_out[0].prompt_ids)


@pytest.mark.parametrize(("share", "answers", "critiques"), [(0.5, 12, 12), (0.25, 12, 36), (0.0, 0, 64)])
def test_a_share_of_the_rows_answers_directly_as_asked_at_test_time(
    backbone: Backbone, share: float, answers: int, critiques: int
) -> None:
    examples = LADDER.examples("train", 12)
    done = CritiqueTuning(CritiqueSpec(**SMALL, answer_share=share)).prepare(Given(backbone, (), examples, LADDER))
    assert (done.counts["answers"], len(done.rows)) == (answers, answers + critiques)
    assert list(done.rows[:answers]) == rows_of(backbone, examples, "answer", "reasoning")[:answers]
    if answers:
        assert done.rows[0].prompt_ids == backbone.chat_ids(reasoning_prompt(examples[0]))


def test_the_control_has_the_same_critiques_and_none_by_its_own_response(backbone: Backbone) -> None:
    examples = LADDER.examples("train", 12)
    own, other = (
        CritiqueTuning(CritiqueSpec(**SMALL, answer_share=0.0, shuffled=shuffled))
        .prepare(Given(backbone, (), examples, LADDER))
        .rows
        for shuffled in (False, True)
    )
    assert [row.prompt_ids for row in own] == [row.prompt_ids for row in other]
    assert sorted(row.completion_ids for row in own) == sorted(row.completion_ids for row in other)
    assert sum(one.completion_ids == two.completion_ids for one, two in zip(own, other, strict=True)) < len(own) / 4


def plainly(number: int, kind: str) -> Example:
    return Example(
        id=f"{kind}{number}", question=f"{number}?", answer=kind, rationale=f"{kind * 3}: {kind * 5}", group=str(number)
    )


def test_a_fit_learns_which_responses_are_wrong_and_the_control_does_not(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Short wordings, and rows of which only one can lend the others a wrong trace: what a random model of two layers can learn.
    monkeypatch.setattr("tuning.critiques.ASKED", ("{question} {response}", "{response}"))
    monkeypatch.setattr("tuning.critiques.PRAISES", ("yes", "well"))
    monkeypatch.setattr("tuning.critiques.OBJECTIONS", ("no", "ill"))
    examples = [*(plainly(number, "a") for number in range(20)), plainly(99, "b")]
    held_out = [*(plainly(number, "a") for number in range(30, 38)), plainly(98, "b")]
    method = CritiqueTuning(CritiqueSpec(answer_share=0.0))
    fresh = [critique for critique in method.critiques(LADDER, held_out, 16) if critique.example.answer == "a"]
    yes, no = (backbone.encode(word)[0] for word in ("yes", "no"))

    def share_right(lora: LoRA) -> float:
        rows = method.rows(backbone, fresh)
        with torch.no_grad(), lora.attach(backbone):
            logits = [label_logits(backbone, collate(backbone, Stack(()), [row]))[0][0] for row in rows]
        said = [bool(logits_V[yes] > logits_V[no]) for logits_V in logits]
        return sum(one == critique.is_right for one, critique in zip(said, fresh, strict=True)) / len(fresh)

    def fitted(shuffled: bool) -> tuple[Fit, LoRA]:
        spec, lora = (
            CritiqueSpec(steps=30, batch_size=8, learning_rate=2e-2, answer_share=0.0, shuffled=shuffled),
            LoRA(LoRASpec()),
        )
        return CritiqueTuning(spec).fit(backbone, [lora], examples, task=LADDER), lora

    (fit, learnt), (_, control) = fitted(False), fitted(True)
    assert fit.losses[-1] < 0.2 * fit.losses[0]
    assert share_right(learnt) >= 0.9 and share_right(control) <= 0.7


def test_a_critic_that_never_fires_is_refused_before_anything_is_fitted() -> None:
    same = [Example(id=str(n), question=f"q{n}", answer="yes", rationale="a: b", group=str(n)) for n in range(6)]
    bare = [Example(id=str(n), question=f"q{n}", answer=str(n), group=str(n)) for n in range(6)]
    for examples in (same, bare):
        with pytest.raises(DataError, match=r"of 32 problems of 'ladder' it finds none .*method.problems = .families"):
            CritiqueTuning(CritiqueSpec()).check(examples, LADDER)
    CritiqueTuning(CritiqueSpec(problems="families")).check(bare, LADDER)


def test_a_share_that_leaves_no_critique_is_refused() -> None:
    with pytest.raises(ValueError, match="answer_share leaves room for critiques"):
        CritiqueSpec(answer_share=1.0)


def test_both_verdicts_are_offered_in_every_wording() -> None:
    assert all(VERDICTS[right] in ENDS for right in (True, False)) and all("{ends}" in wording for wording in ASKED)


def test_a_critique_fit_that_was_killed_ends_as_if_it_had_not_been(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuning.loop.CHECKPOINT_S", 0.0)
    examples, method = LADDER.examples("train", 8), CritiqueTuning(CritiqueSpec(steps=4, batch_size=4))

    def kill(step: int, steps: int, loss: float) -> None:
        if step == 3:
            raise KeyboardInterrupt

    whole = method.fit(backbone, [LoRA(LoRASpec(rank=4))], examples, task=LADDER)
    with pytest.raises(KeyboardInterrupt):
        method.fit(backbone, [LoRA(LoRASpec(rank=4))], examples, kill, task=LADDER, directory=tmp_path)
    assert method.fit(backbone, [LoRA(LoRASpec(rank=4))], examples, task=LADDER, directory=tmp_path).losses == whole.losses
