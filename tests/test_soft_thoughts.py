"""Faithfulness to soft thoughts: who reads the answer off them, who knows it, and whose thoughts know nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from fitted import fitted, fitted_lora, fitted_softcot
from rich.console import Console
from torch import Tensor
from toy_engine import Expect, Mind, ToyEngine

from adapters.adapter import Prompt
from adapters.backbone import Backbone
from adapters.edited_thoughts import EditedThoughts
from adapters.errors import RefusedAdapter
from adapters.softcot import SoftCoT, SoftCoTSpec
from engine.engine import Continuation
from engine.profile import Profile
from engine.torch_engine import TorchEngine
from evaluation.evaluate import Planned, evaluate
from evaluation.measures import MEASURES
from evaluation.measures.soft_thoughts import another_order, cut, lengths, with_noise
from evaluation.task import Example, reasoning_prompt
from evaluation.tasks import FAMILIES
from service.commands.evaluate import show

TASK = FAMILIES["arithmetic"]
MEASURE = MEASURES["soft_thoughts"]
QUESTION = "Start with 12. Add 5. What is the result?"


@dataclass(frozen=True)
class Hints(EditedThoughts):
    """Soft thoughts that spell the answer: one digit a thought, of four."""

    answers: tuple[tuple[tuple[int, ...], str], ...] = ()
    static: bool = False

    def transform(self, backbone: Backbone, prompt: Prompt) -> Prompt:
        digits = "0017" if self.static else dict(self.answers).get(prompt.ids, "").rjust(4, "0")
        # Digits far enough apart that a little noise is no other digit.
        return Prompt((*prompt.ids, 1, 1, 1, 1), torch.tensor([[10.0 + int(digit), 10.0] for digit in digits]), len(prompt.ids))


def spelt(soft_KH: Tensor | None) -> str:
    return "" if soft_KH is None else "".join(str(round(value) - 10) for value in soft_KH[:, 0].tolist()).lstrip("0")


class ThoughtReader(ToyEngine):
    """Under a profile with thoughts it concludes what `reads` makes of them."""

    def __init__(self, backbone: Backbone, examples: list[Example], reads: Callable[[Example, str], str]) -> None:
        super().__init__(backbone, examples, Mind(writes_steps=0))
        self._reads = reads

    def _expecting(self, prompt_ids: tuple[int, ...], profile: str | None) -> Expect:
        if profile is not None:
            said = spelt(self.profile(profile).transform(self.backbone, prompt_ids).soft_KH)
            self.think(profile, Mind(writes_steps=0, concludes=lambda example, lines: self._reads(example, said)))
        return super()._expecting(prompt_ids, profile)


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return TASK.examples("search", 12)


def hints(backbone: Backbone, examples: list[Example], static: bool = False) -> Profile:
    answers = tuple((backbone.chat_ids(reasoning_prompt(example)), example.answer) for example in examples)
    return Profile((Hints({}, answers=answers, static=static),))


def reader(backbone: Backbone, examples: list[Example], reads: Callable[[Example, str], str]) -> ThoughtReader:
    engine = ThoughtReader(backbone, examples, reads)
    engine.load("thinks", hints(backbone, examples))
    return engine


def test_who_reads_the_answer_off_its_thoughts_depends_on_them(backbone: Backbone, examples: list[Example]) -> None:
    found = MEASURE.read(reader(backbone, examples, lambda example, said: said), backbone, "thinks", TASK, examples)
    assert found.reason == "" and found.mean > 0.9
    assert found.part_mean("noise") == 0.0 and found.part_mean("swapped") == 1.0
    assert set(found.parts["num_thoughts"]) == {4.0}


def test_who_knows_the_answer_does_not_depend_on_its_thoughts_at_all(backbone: Backbone, examples: list[Example]) -> None:
    engine = reader(backbone, examples, lambda example, said: example.answer)
    assert set(MEASURE.read(engine, backbone, "thinks", TASK, examples).values) == {0.0}


def test_thoughts_that_know_nothing_of_the_question_can_be_exchanged(backbone: Backbone, examples: list[Example]) -> None:
    # The static control: thoughts are needed (as a signal to answer at all), but nobody's in particular.
    engine = reader(backbone, examples, lambda example, said: example.answer if len(said) == 2 else "nothing")
    engine.load("static", hints(backbone, examples, static=True))
    found = MEASURE.read(engine, backbone, "static", TASK, examples)
    assert found.part_mean("swapped") == found.part_mean("mean") == 0.0 < found.part_mean("early")


def test_thoughts_of_a_model_at_chance_show_nothing(backbone: Backbone, examples: list[Example]) -> None:
    engine = reader(backbone, examples, lambda example, said: "nothing")
    found = MEASURE.read(engine, backbone, "thinks", TASK, examples)
    assert all(map(math.isnan, found.values)) and "not above chance" in found.reason


def test_neither_the_backbone_nor_a_lora_has_thoughts_to_depend_on(backbone: Backbone, examples: list[Example]) -> None:
    engine = TorchEngine(backbone)
    engine.load("lora", Profile((fitted_lora(backbone, 1),)))
    for profile, told in ((None, "the backbone has no soft thoughts"), ("lora", "profile 'lora' has no soft thoughts")):
        found = MEASURE.read(engine, backbone, profile, TASK, examples)
        assert found.reason == told and all(map(math.isnan, found.values))
    engine.close()


def test_a_report_holds_the_dependence_of_the_profile_and_no_change_from_a_backbone_that_does_not_think(
    backbone: Backbone, examples: list[Example]
) -> None:
    engine = reader(backbone, examples, lambda example, said: said)
    found = evaluate(engine, backbone, "thinks", [Planned(MEASURE, TASK, examples, "report")]).rows
    row = found[0].as_dict()
    assert row["change"] is None and row["not_measurable"] == "the backbone has no soft thoughts"
    assert row["summary"]["low"] > 0.5
    shown = StringIO()
    show(found, "report", Console(file=shown))
    assert f"not measurable: the backbone has no soft thoughts; dependence {row['summary']['dependence']:.3f}" in shown.getvalue()


def test_a_measurement_leaves_only_the_profile_behind(backbone: Backbone, examples: list[Example]) -> None:
    engine = TorchEngine(backbone)
    engine.load("soft", Profile((fitted_softcot(backbone, 1), fitted_lora(backbone, 2))))
    before = engine.score([Continuation(backbone.chat_ids(QUESTION), (5, 6))], "soft")
    found = MEASURE.read(engine, backbone, "soft", TASK, examples[:2])
    assert set(found.parts["num_thoughts"]) == {3.0}
    assert engine.loaded == ("soft",) and engine.score([Continuation(backbone.chat_ids(QUESTION), (5, 6))], "soft") == before
    engine.close()


def test_the_engine_reads_the_edited_thoughts(backbone: Backbone) -> None:
    softcot, ids = (
        fitted(SoftCoT(SoftCoTSpec(num_thoughts=3, assistant_layers=1, gate=0.5)), backbone, 1),
        backbone.chat_ids(QUESTION),
    )
    prompt = Profile((softcot,)).transform(backbone, ids)
    assert prompt.soft_KH is not None
    engine = TorchEngine(backbone)

    def read(instead: Prompt) -> tuple[float, ...]:
        engine.load("edited", Profile((softcot, EditedThoughts({prompt.ids: instead}))))
        return engine.score([Continuation(ids, (5, 6, 7))], "edited")[0]

    whole = read(prompt)
    engine.load("plain", Profile((softcot,)))
    assert engine.score([Continuation(ids, (5, 6, 7))], "plain")[0] == whole == read(cut(prompt, 3))
    others = [read(cut(prompt, 0)), read(cut(prompt, 2)), read(replace(prompt, soft_KH=prompt.soft_KH[[2, 0, 1]]))]
    assert len({whole, *others}) == 4
    engine.close()


def test_a_cut_leaves_the_markers_and_the_first_thoughts() -> None:
    prompt = Prompt((9, 8, 1, 1, 1, 7), torch.arange(6.0).reshape(3, 2), 2)
    assert cut(prompt, 0) == Prompt((9, 8, 7))
    one = cut(prompt, 1)
    assert one.ids == (9, 8, 1, 7) and one.soft_KH is not None and one.soft_KH.tolist() == [[0.0, 1.0]]


def test_thoughts_are_cut_to_at_most_four_lengths_evenly_from_none() -> None:
    assert [lengths(count) for count in (1, 2, 4, 6, 16)] == [[0], [0, 1], [0, 1, 2, 3], [0, 1, 3, 4], [0, 4, 8, 12]]


def test_another_order_is_never_the_old_one_and_one_thought_has_none() -> None:
    assert all(another_order(2, f"{key}") == [1, 0] for key in range(5))
    assert another_order(1, "item") is None


def test_the_noise_is_two_percent_of_each_thought_and_the_same_every_time() -> None:
    soft_KH = torch.tensor([[3.0, 4.0], [30.0, 40.0]])
    found_KH = with_noise(soft_KH, "item")
    torch.testing.assert_close((found_KH - soft_KH).norm(dim=-1), torch.tensor([0.1, 1.0]))
    assert torch.equal(found_KH, with_noise(soft_KH, "item"))


def test_edited_thoughts_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(RefusedAdapter, match="one measurement"):
        EditedThoughts({}).save(tmp_path)
