"""Admission: what this backbone can show a loss on."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from toy_engine import Mind, ToyEngine

from adapters.backbone import Backbone
from engine.engine import Completion, GenerationRequest
from engine.errors import PromptTooLong
from engine.profile import Profile
from evaluation import admission
from evaluation.admission import PACKAGED, Admission, above_chance, admissions, admit, random_update, stored_admission
from evaluation.measures import MEASURES
from evaluation.task import Example, Split
from evaluation.tasks import FAMILIES
from evaluation.tasks.generated import GeneratedTask
from tuning.recipe import REASONING_FAMILIES

TASK, WRITTEN = FAMILIES["arithmetic"], MEASURES["generation"]


def looked_at(backbone: Backbone, mind: Mind | None = None, damage: float = 0.5) -> Admission:
    engine = ToyEngine(backbone, TASK.examples("search", 12, seed=5), mind)
    return admit(engine, backbone, WRITTEN, TASK, chance=0.0, items=12, damage=damage)


def test_a_backbone_that_can_do_the_task_is_admitted(backbone: Backbone) -> None:
    found = looked_at(backbone)
    assert found.admitted and not found.reasons
    assert found.base == 1.0 and found.damaged_high < 0 and found.noop_change == 0.0


def test_a_backbone_that_cannot_do_the_task_is_refused_with_the_score_and_the_floor(backbone: Backbone) -> None:
    found = looked_at(backbone, Mind(writes_steps=1))
    assert not found.admitted
    assert any("scores 0.00" in reason and "chance" in reason for reason in found.reasons)


def test_completions_without_an_answer_line_are_a_reason_of_their_own(backbone: Backbone) -> None:
    assert any("answer line in 0%" in reason for reason in looked_at(backbone, Mind(solves=False)).reasons)


def test_a_score_that_damage_does_not_lower_is_refused(backbone: Backbone) -> None:
    found = looked_at(backbone, damage=0.0)
    assert not found.admitted and any("a loss would not be seen" in reason for reason in found.reasons)


class Forgetful(ToyEngine):
    """Its second call comes out otherwise, as kernels that race do."""

    calls = 0

    def complete(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        self.calls += 1
        found = super().complete(requests)
        return [replace(done, text="Answer: 0") for done in found] if self.calls == 2 else found


def test_an_engine_that_answers_otherwise_the_second_time_is_found_out(backbone: Backbone) -> None:
    engine = Forgetful(backbone, TASK.examples("search", 12, seed=5))
    found = admit(engine, backbone, WRITTEN, TASK, chance=0.0, items=12)
    assert not found.admitted and any("twice" in reason for reason in found.reasons)


class Altered(ToyEngine):
    """Under every name it writes what the backbone writes, but for a wrong answer in some places."""

    wrong: Mapping[str | None, Collection[int]] = {}

    def load(self, name: str, profile: Profile) -> None:
        super().load(name, profile)
        self.think(name, self.mind)

    def complete(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        wrong = self.wrong.get(requests[0].profile, ())
        found = super().complete(requests)
        return [replace(done, text="Answer: 0") if place in wrong else done for place, done in enumerate(found)]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"admission-control-0.5": {0, 1}}, "a loss would not be seen"),
        ({None: {0}, "admission-control-0": {1}, "admission-control-0.5": range(12)}, "an adapter of zeros changes it by +0"),
    ],
    ids=["two items lost under damage", "as many won as lost under zeros"],
)
def test_controls_are_judged_by_their_items_and_not_by_the_mean(
    backbone: Backbone, wrong: Mapping[str | None, Collection[int]], reason: str
) -> None:
    engine = Altered(backbone, TASK.examples("search", 12, seed=5))
    engine.wrong = wrong
    found = admit(engine, backbone, WRITTEN, TASK, chance=0.0, items=12)
    assert len(found.reasons) == 1 and reason in found.reasons[0]


def test_fewer_items_than_were_asked_for_are_no_admission(backbone: Backbone) -> None:
    class Few(GeneratedTask):
        def examples(self, split: Split, count: int, seed: int = 0) -> list[Example]:
            return super().examples(split, 12, seed)

    few = Few(**{each.name: getattr(TASK, each.name) for each in fields(TASK)})
    found = admit(ToyEngine(backbone, few.examples("search", 24, seed=5)), backbone, WRITTEN, few, chance=0.0, items=24)
    assert found.reasons == ("has only 12 of 24 distinct items",)


def test_prompts_that_do_not_fit_are_a_reason_and_no_score(backbone: Backbone) -> None:
    class Narrow(ToyEngine):
        def complete(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
            raise PromptTooLong("The prompt has 900 tokens.")

    found = admit(Narrow(backbone, ()), backbone, WRITTEN, TASK, chance=0.0, items=12)
    assert (found.admitted, found.reasons) == (False, ("The prompt has 900 tokens.",)) and math.isnan(found.base)


@pytest.mark.parametrize(("stderr", "above"), [(0.01, 0.10), (0.05, 0.15)])
def test_above_chance_is_a_tenth_and_three_standard_errors(stderr: float, above: float) -> None:
    assert above_chance(stderr) == pytest.approx(above)


def test_open_answers_are_not_guessed_by_chance(backbone: Backbone, tmp_path: Path) -> None:
    class Open:
        name = "open"

        def examples(self, split: str, count: int, seed: int = 0) -> list[Example]:
            return [Example(id=f"{index}", question=f"Question {index}?", answer=f"word {index}") for index in range(count)]

    task = Open()
    engine = ToyEngine(backbone, task.examples("search", 24))
    found = admissions(engine, backbone, [task], tmp_path)["open"]
    assert found.admitted and found.chance == 0.0


def test_a_backbone_is_looked_at_once(backbone: Backbone, tmp_path: Path) -> None:
    examples = TASK.examples("search", 24, seed=5)
    first = admissions(ToyEngine(backbone, examples), backbone, [TASK], tmp_path)
    # Another mind under the same fingerprint would be refused if it were asked.
    again = admissions(ToyEngine(backbone, examples, Mind(solves=False)), backbone, [TASK], tmp_path)
    assert again == first and again[TASK.name].admitted


@pytest.mark.parametrize("text", ["", '{"task": "arithm', "[]", "null", "{}", '{"reasons": []}'])
def test_a_damaged_admission_is_looked_at_again_and_replaced(backbone: Backbone, tmp_path: Path, text: str) -> None:
    examples = TASK.examples("search", 24, seed=5)
    first = admissions(ToyEngine(backbone, examples), backbone, [TASK], tmp_path)
    (file,) = (tmp_path / "admission").iterdir()
    file.write_text(text)
    assert stored_admission(backbone, TASK, tmp_path) is None
    assert admissions(ToyEngine(backbone, examples), backbone, [TASK], tmp_path) == first
    assert stored_admission(backbone, TASK, tmp_path) == first[TASK.name]


def test_an_admission_with_room_stands_for_a_lower_precision_and_says_where_it_is_from(
    backbone: Backbone, tmp_path: Path
) -> None:
    engine = ToyEngine(backbone, TASK.examples("search", 24, seed=5))
    first = admissions(engine, backbone, [TASK], tmp_path)[TASK.name]
    again = admissions(engine, backbone, [TASK], tmp_path, precision="bfloat16")[TASK.name]
    assert again == first and first.has_room and again.precision == "float32"


def test_a_refusal_in_one_precision_is_looked_at_again_in_another(backbone: Backbone, tmp_path: Path) -> None:
    examples = TASK.examples("search", 24, seed=5)
    refused = admissions(ToyEngine(backbone, examples, Mind(solves=False)), backbone, [TASK], tmp_path)[TASK.name]
    other = admissions(ToyEngine(backbone, examples), backbone, [TASK], tmp_path, precision="bfloat16")[TASK.name]
    assert not refused.admitted and other.admitted and other.precision == "bfloat16"


def test_an_admission_close_to_the_bar_stands_for_its_own_precision_only(backbone: Backbone) -> None:
    found = looked_at(backbone)
    assert found.has_room
    assert not replace(found, base=0.12, chance=0.0, stderr=0.01).has_room
    assert not replace(found, damaged_high=-0.01).has_room


def test_other_thresholds_or_choices_ask_for_a_new_look(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = TASK.examples("search", 24, seed=5)
    assert admissions(ToyEngine(backbone, examples), backbone, [TASK], tmp_path)[TASK.name].admitted
    monkeypatch.setattr("evaluation.admission.LEAST_ABOVE_CHANCE", 0.2)
    mind = Mind(solves=False)
    assert not admissions(ToyEngine(backbone, examples, mind), backbone, [TASK], tmp_path)[TASK.name].admitted


@pytest.mark.parametrize(("measure", "stands"), [("chain_likelihood", False), ("generation", True)])
def test_how_far_chains_must_lie_apart_asks_for_a_new_look_where_chains_are_read(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch, measure: str, stands: bool
) -> None:
    monkeypatch.setattr(admission, "gate_measure", lambda task: MEASURES[measure])
    before = admission._key(backbone, TASK, 24, "float32")
    monkeypatch.setattr(admission, "LEAST_APART", 6.0)
    assert (admission._key(backbone, TASK, 24, "float32") == before) == stands


@pytest.mark.parametrize("family", REASONING_FAMILIES)
def test_the_admissions_that_come_with_the_package_have_room(family: str) -> None:
    packaged = [json.loads(file.read_text()) for file in PACKAGED.glob("*.json")]
    found = next(Admission(**values) for values in packaged if values["task"] == family)
    assert found.precision == "float32" and found.has_room


@pytest.mark.parametrize("size", [0.1, 0.5])
def test_damage_has_the_size_that_was_asked_for_and_leaves_the_backbone_alone(backbone: Backbone, size: float) -> None:
    before = backbone.weights_digest()
    modules = dict(backbone.model.named_modules())
    for path, update in random_update(backbone, size).contribution().low_rank.items():
        weight = modules[path].weight
        torch.testing.assert_close((update.b_OR @ update.a_RI).norm(), size * weight.detach().norm(), rtol=1e-4, atol=0.0)
    assert backbone.weights_digest() == before
