"""Criteria-guided instruction: labels that are known, criteria said outright, and a control without them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from adapters.adapter import Stack
from adapters.backbone import Backbone
from adapters.lora import LoRA, LoRASpec
from evaluation.errors import DataError
from evaluation.rubric import Criterion, JudgePrompt, load_rubric
from evaluation.task import Example, Split, reasoning_prompt, same_answer
from evaluation.tasks import FAMILIES
from tuning.batches import Row, collate
from tuning.distance import label_logits
from tuning.labelled import FLAWS, Labelled, labelled
from tuning.methods.criteria import Criteria, CriteriaSpec
from tuning.methods.method import Given
from tuning.methods.supervised import token_loss
from tuning.mistakes import Posed, Response, first_wrong

RUBRIC = load_rubric()
CRITERIA = {criterion.name: criterion for criterion in RUBRIC.criteria}


class Ladder:
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
EXAMPLES = LADDER.examples("train", 12)
SMALL = {"steps": 4, "batch_size": 6}


def pair(criterion: str, number: int = 3, seed: int = 0) -> tuple[Labelled, ...]:
    return labelled(Posed(LADDER, EXAMPLES[number], EXAMPLES), CRITERIA[criterion], random.Random(seed))


def test_every_criterion_of_the_rubric_can_be_missed_knowingly() -> None:
    assert FLAWS.keys() == CRITERIA.keys()


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("seed", range(6))
def test_a_sound_explanation_has_the_highest_score_and_a_flawed_one_less_with_evidence_word_for_word(
    criterion: str, seed: int
) -> None:
    sound, flawed = pair(criterion, seed, seed)
    assert sound.score(RUBRIC) == RUBRIC.highest > flawed.score(RUBRIC) >= RUBRIC.lowest
    assert sound.response.steps == EXAMPLES[seed].steps
    assert first_wrong(LADDER, EXAMPLES[seed], sound.response) in (
        None,
        2,
    )  # 2: the answer alone, which acceptability is not about
    for one in (sound, flawed):
        assert one.evidence in one.response.lines
        assert one.said(RUBRIC) == f'Evidence: "{one.evidence}"\nScore: {one.score(RUBRIC)}'


def test_what_is_flawed_is_flawed_in_its_own_way() -> None:
    gold = EXAMPLES[3]
    false, idle, missing, other = (
        pair(name)[1].response for name in ("acceptability", "relevance", "sufficiency", "consistency")
    )
    assert first_wrong(LADDER, gold, false) is not None and not same_answer(false.answer, gold.answer)
    assert set(gold.steps) < set(idle.steps) and idle.answer == gold.answer
    assert set(missing.steps) < set(gold.steps) and missing.answer == gold.answer
    assert other.steps == gold.steps and not same_answer(other.answer, gold.answer)


@pytest.mark.parametrize("name", FAMILIES)
def test_problems_of_the_families_can_miss_every_criterion(name: str) -> None:
    family = FAMILIES[name]
    examples = family.examples("train", 6)
    made = {
        criterion: [labelled(Posed(family, one, examples), CRITERIA[criterion], random.Random(one.id)) for one in examples]
        for criterion in CRITERIA
    }
    assert all(any(pairs) for pairs in made.values())


def texts(backbone: Backbone, **values: object) -> list[tuple[str, str]]:
    done = Criteria(CriteriaSpec(**{**SMALL, **values})).prepare(Given(backbone, (), EXAMPLES, LADDER))
    return [(backbone.decode(row.prompt_ids), backbone.decode(row.completion_ids)) for row in done.rows]


def test_criteria_stand_in_what_is_asked_and_every_second_answer_is_asked_for_plainly(backbone: Backbone) -> None:
    found = texts(backbone)
    explained, judged = found[:12], found[12:]
    named = [all(criterion.definition in asked for criterion in RUBRIC.criteria) for asked, _ in explained]
    assert named == [True, False] * 6 and [said for _, said in explained] == [example.chain for example in EXAMPLES]
    assert len(judged) == 12 and reasoning_prompt(EXAMPLES[1]) in explained[1][0]
    assert all(sum(criterion.definition in asked for criterion in RUBRIC.criteria) == 1 for asked, _ in judged)


def test_the_control_has_the_same_explanations_and_labels_and_names_no_criterion(backbone: Backbone) -> None:
    guided, plain = texts(backbone), texts(backbone, guided=False)
    assert [said for _, said in guided] == [said for _, said in plain]
    words = [word for criterion in RUBRIC.criteria for word in (criterion.name, criterion.definition, criterion.lowest)]
    assert not any(word.lower() in asked.lower() for asked, _ in plain for word in words)


def test_every_criterion_is_judged_on_problems_of_both_sources() -> None:
    found = Criteria(CriteriaSpec(problems="both")).judged(LADDER, LADDER.examples("train", 40), 80)
    assert {(one.criterion.name, "/" in one.example.id) for one in found} == {
        (name, of_family) for name in CRITERIA for of_family in (False, True)
    }
    assert sum(one.share == 1.0 for one in found) == len(found) / 2


def test_told_the_criterion_a_fit_learns_what_is_asked_of_an_explanation_and_the_control_cannot(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Short wordings, and two criteria of which a wrong answer after true steps meets one: what a random model can learn.
    two = tuple(CRITERIA[name] for name in ("acceptability", "consistency"))
    short = RUBRIC.model_copy(update={"criteria": two, "judge": JudgePrompt(prompt="{name} {explanation}")})
    monkeypatch.setattr("tuning.methods.criteria.load_rubric", lambda: short)
    monkeypatch.setattr("tuning.labelled.UNGUIDED", "{explanation}")
    examples = [Example(id=str(n), question=f"{n}?", answer=f"{n % 3}", rationale=f"a: {n % 3}", group=str(n)) for n in range(24)]

    def asked_of(example: Example) -> list[Labelled]:
        response = Response(example.steps, str((int(example.answer) + 1) % 3))
        return [
            Labelled(example, response, two[0], 1.0, example.steps[0]),
            Labelled(example, response, two[1], 0.0, response.lines[-1]),
        ]

    def share_right(lora: LoRA, guided: bool) -> float:
        found = []
        with torch.no_grad(), lora.attach(backbone):
            for example in examples[:3]:
                both = asked_of(example)
                for one in both:
                    prompt_ids = backbone.chat_ids(one.asked(short, guided))
                    rows = [Row(prompt_ids, tuple(backbone.encode(label.said(short)))) for label in both]
                    read = [label_logits(backbone, collate(backbone, Stack(()), [row])) for row in rows]
                    own, other = (float(token_loss(*read[place], "nll")) for place in (both.index(one), 1 - both.index(one)))
                    found.append(own < other)
        return sum(found) / len(found)

    def fitted(guided: bool) -> LoRA:
        lora = LoRA(LoRASpec(rank=16))
        spec = CriteriaSpec(steps=40, batch_size=8, learning_rate=2e-2, judged_share=0.9, guided=guided)
        Criteria(spec).fit(backbone, [lora], examples, task=LADDER)
        return lora

    assert share_right(fitted(True), True) >= 0.8
    assert share_right(fitted(False), False) == 0.5


def test_the_loss_falls_and_a_kill_changes_nothing(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuning.loop.CHECKPOINT_S", 0.0)
    method = Criteria(CriteriaSpec(steps=8, batch_size=4, learning_rate=2e-2))

    def kill(step: int, steps: int, loss: float) -> None:
        if step == 3:
            raise KeyboardInterrupt

    whole, lora = LoRA(LoRASpec(rank=4)), LoRA(LoRASpec(rank=4))
    fit = method.fit(backbone, [whole], EXAMPLES, task=LADDER)
    assert fit.losses[-1] < 0.8 * fit.losses[0]
    with pytest.raises(KeyboardInterrupt):
        method.fit(backbone, [LoRA(LoRASpec(rank=4))], EXAMPLES, kill, task=LADDER, directory=tmp_path)
    assert method.fit(backbone, [lora], EXAMPLES, task=LADDER, directory=tmp_path).losses == fit.losses
    assert all(torch.equal(whole.tensors()[key], lora.tensors()[key]) for key in whole.tensors())


def test_rows_that_cannot_be_made_to_miss_anything_are_refused_with_the_way_out() -> None:
    bare = [Example(id=str(n), question=f"q{n}", answer=str(n), group=str(n)) for n in range(6)]
    with pytest.raises(DataError, match="The method .criteria. learns a rationale from every row, but 6 of 6 rows have none"):
        Criteria(CriteriaSpec()).check(bare, LADDER)
    with pytest.raises(DataError, match=r"of 32 problems of 'ladder' none has a rationale .*method.problems = .families"):
        Criteria(CriteriaSpec()).judged(LADDER, bare, 64)


def test_a_criterion_that_nobody_knows_how_to_miss_has_no_labels() -> None:
    unknown = Criterion(name="charm", definition="d", lowest="l", highest="h", likelihood="")
    assert labelled(Posed(LADDER, EXAMPLES[0], EXAMPLES), unknown, random.Random(0)) == ()


def test_a_share_that_leaves_no_answers_is_refused() -> None:
    with pytest.raises(ValueError, match="judged_share leaves room for answers"):
        CriteriaSpec(judged_share=1.0)
