"""Fourteen ways in which a study of reasoning goes wrong: each is tried here, and found out.

A measure's own tests say more of it; here is, way by way, what alone would make its numbers a false claim.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from itertools import combinations
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from fitted import fitted_lora, fitted_softcot, random_steering
from test_admission import looked_at
from test_attribution import SPEC
from test_calibration import row
from test_continual import documents
from test_faithfulness import BRITTLE, COMPUTES, GUESSES, readings
from test_gate import QUICK, gate
from test_influence import apple, scored
from test_shifts import FORMAT, twins
from toy_engine import Mind, ToyEngine

from adapters.backbone import Backbone
from adapters.lora import LoRA, LoRASpec
from engine.engine import Continuation
from engine.profile import Profile
from engine.torch_engine import TorchEngine
from evaluation.admission import admit, chance_level
from evaluation.continual import DENOMINATORS, ContinualMatrix, Transfer
from evaluation.errors import DataError
from evaluation.evaluate import Planned, evaluate
from evaluation.measures import MEASURES
from evaluation.measures.faithfulness import Faithfulness
from evaluation.measures.information_gain import InformationGain
from evaluation.reliability import calibration_error, equal_mass_bins, excess_calibration_error
from evaluation.shifts import shifts_of
from evaluation.significance import non_inferiority
from evaluation.statistics import change_over_seeds, paired_change
from evaluation.task import Example
from evaluation.tasks import FAMILIES, TASKS, gym
from evaluation.tasks.alchemy import ALCHEMY, ATOMS, HELD_OUT_PAIRS, OPERATIONS, path
from registry.gate import judge
from registry.gate_report import SeedVerdict, Verdict
from registry.gate_settings import GateSettings
from registry.gate_statistics import PairedItems
from tuning.attribution import Attribution
from tuning.batches import rows_of
from tuning.checkpoints import Checkpoint
from tuning.gradients import Weighted
from tuning.ground import Ground
from tuning.plan import generated_plan, likelihood_plan, report_plan
from tuning.queries import DOMAIN
from tuning.recipe import Recipe
from tuning.removal import ALIGNMENT

ROOT = Path(__file__).parent.parent
TASK = FAMILIES["arithmetic"]
SELF, EXTERNAL = InformationGain("self", "gold"), InformationGain("external", "own")


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return TASK.examples("search", 12)


def own(count: int) -> list[str]:
    return [str(index) for index in range(count)]


# 1. Information gain of the whole sequence, by step only, with the answer leaked, or without a swapped trace.
class Watching(ToyEngine):
    """Keeps what it is asked to score."""

    asked: tuple[Continuation, ...] = ()

    def score(self, continuations: Sequence[Continuation], profile: str | None = None) -> list[tuple[float, ...]]:
        self.asked += tuple(continuations)
        return super().score(continuations, profile)


def test_only_the_tokens_of_the_answer_are_scored(backbone: Backbone, examples: list[Example]) -> None:
    engine = Watching(backbone, examples)
    SELF.read(engine, backbone, None, TASK, examples)
    answers = {tuple(backbone.encode(f" {example.answer}")) for example in examples}
    assert engine.asked and {asked.ids[asked.scored_from :] for asked in engine.asked} == answers


def test_a_gain_is_total_less_what_any_trace_gives_and_tells_what_came_before_the_answer(
    backbone: Backbone, examples: list[Example]
) -> None:
    reads, gullible = (
        SELF.read(ToyEngine(backbone, examples, mind), backbone, None, TASK, examples) for mind in (None, Mind(gullible=True))
    )
    assert reads.values == reads.parts["total"] and reads.mean > 0.5
    assert 0 <= reads.part_mean("preleak") < reads.part_mean("total")
    per_step = [each * count for each, count in zip(reads.parts["per_step"], reads.parts["num_steps"], strict=True)]
    assert per_step == pytest.approx(reads.values)
    assert gullible.part_mean("total") > 0.5 and abs(gullible.mean) < 0.2 * gullible.part_mean("total")


# 2. A published drop as a threshold.
def test_a_loss_is_judged_by_its_margin_and_its_items_and_by_no_published_drop() -> None:
    def verdict(lost: int, of: int) -> tuple[str, float]:
        kept = PairedItems.of(np.ones(of), np.arange(of) >= lost, np.arange(of))
        found = judge(GateSettings(margin=0.05), {"icd10": kept, "boxes": kept}, "icd10")[1]
        return found.verdict, found.threshold

    assert verdict(40, 200) == ("fail", -0.05)  # 20 %, below all that was ever published
    assert verdict(2, 4) == ("inconclusive", -0.05)  # 50 %, above it


def test_no_published_drop_is_a_number_of_the_code() -> None:
    for package in ("adapters", "engine", "evaluation", "registry", "tuning", "service"):
        for file in (ROOT / package).rglob("*.py"):
            numbers = [node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)]
            assert not {38.9, 0.389, 37.1, 0.371, 37.2, 0.372} & {n for n in numbers if isinstance(n, float)}, file


# 3. An answer that a paraphrase leaves alone counted as unfaithful.
def test_who_computes_depends_on_its_trace_though_no_paraphrase_moves_it(backbone: Backbone, examples: list[Example]) -> None:
    found = readings(backbone, examples, COMPUTES)
    assert found.part_mean("paraphrase") == 0.0 and found.mean > 0.9


# 4. Dependence at chance, without a noise floor, or with the lengths unreported.
@pytest.mark.parametrize(("mind", "reason"), [(GUESSES, "not above chance"), (BRITTLE, "a paraphrase of the trace changes 1.00")])
def test_dependence_of_who_guesses_or_is_thrown_off_by_any_wording_is_not_measurable(
    backbone: Backbone, examples: list[Example], mind: Mind, reason: str
) -> None:
    found = readings(backbone, examples, mind)
    assert np.isnan(found.values).all() and reason in found.reason


@pytest.mark.parametrize("measure", [Faithfulness(), EXTERNAL], ids=lambda measure: measure.name)
def test_the_length_of_the_traces_stands_beside_their_use(
    backbone: Backbone, examples: list[Example], measure: Faithfulness | InformationGain
) -> None:
    engine = ToyEngine(backbone, examples)
    engine.think("terse", Mind(writes_steps=1))
    base, terse = (measure.read(engine, backbone, name, TASK, examples) for name in (None, "terse"))
    ratio = measure.summary(base, terse)["length_ratio"]
    assert ratio is not None and ratio < 0.7


# 5. Compositions that commute or undo themselves, cuts by characters, deletions that leave nothing to solve.
def test_no_rotation_undoes_itself_and_a_new_composition_has_another_answer_in_another_order() -> None:
    rotations = [turn for name, turn in OPERATIONS.items() if name.startswith("rot")]
    assert rotations and all(turn(turn(atom)) != atom for turn in rotations for atom in ATOMS)
    composed = shifts_of(ALCHEMY)["new_composition"]
    for example in composed.examples("gate", 40):
        chain = [step.partition(":")[0] for step in example.steps]
        element = re.findall(r"\b[A-Z](?: [A-Z])+\b", example.question)[0].replace(" ", "")
        assert " ".join(path(element, chain)[-1]) == example.answer
        places = [place for place in range(len(chain) - 1) if (chain[place], chain[place + 1]) in HELD_OUT_PAIRS]
        for place in places:
            exchanged = [*chain[:place], chain[place + 1], chain[place], *chain[place + 2 :]]
            assert path(element, exchanged)[-1] != path(element, chain)[-1]
        assert places


@pytest.mark.parametrize("name", FORMAT)
def test_a_twin_of_another_form_can_be_solved_word_for_word(name: str) -> None:
    for task in (*FAMILIES.values(), ALCHEMY):
        for example, twin in twins(task, name, 10) if name in shifts_of(task) else ():
            before, after = (Counter(re.findall(r"\w+", each.question.lower())) for each in (example, twin))
            assert before <= after and shifts_of(task)[name].check(twin, twin.chain).all_right


# 6. Seeds of reasoning-gym that overlap, partial scores, answers that are none, majorities.
class Counting:
    """Made as reasoning-gym makes its datasets: item i + 1 of a seed is item i of the next; half an answer is half a point."""

    def __init__(self, seed: int, answered: bool = True) -> None:
        self.seed, self.answered = seed, answered

    def __getitem__(self, index: int) -> dict[str, object]:
        number = self.seed + index
        return {"question": f"What comes after {number}?", "answer": str(number + 1) if self.answered else None}

    def score_answer(self, answer: str, entry: dict[str, object]) -> float:
        return 1.0 if answer == entry["answer"] else 0.5


def test_neighbouring_seeds_of_a_dataset_share_no_item_and_half_a_point_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gym, "_created", lambda dataset, options, seed: Counting(seed))
    task = gym.GymTask("gym:counting", "counting")
    first, second = (task.examples("train", 100, seed) for seed in (42, 43))
    assert len({example.question for example in (*first, *second)}) == 200
    assert task.is_right(first[0], f"Answer: {first[0].answer}") and not task.is_right(first[0], f"Answer: {first[0].answer}!")


def test_a_dataset_whose_answers_are_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    known = ModuleType("reasoning_gym.factory")
    known.DATASETS = {"counting": None}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "reasoning_gym", ModuleType("reasoning_gym"))
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", known)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: known)
    monkeypatch.setattr(gym, "_created", lambda dataset, options, seed: Counting(seed, answered=False))
    with pytest.raises(DataError, match="'counting' has items without one"):
        gym.load_gym.__wrapped__("counting")


def test_always_the_same_answer_is_the_chance_level() -> None:
    asked = [Example(str(index), f"Is {index} odd?", "yes" if index % 5 else "no", ("yes", "no")) for index in range(20)]
    assert chance_level(MEASURES["generation"], TASKS["icd10"], asked) == 0.8


# 7. Backward transfer of isolated adapters, or without its denominator; the served path not evaluated.
def test_transfer_has_its_denominators_and_they_are_what_it_was_divided_by() -> None:
    matrix = ContinualMatrix.of(documents())
    assert set(matrix.as_dict()["denominators"]) == set(DENOMINATORS) == {field.name for field in fields(Transfer)}
    scores, domains = matrix.scores, len(matrix.stages)
    lost = [scores[domains, at] - scores[at + 1, at] for at in range(domains - 1)]
    assert matrix.transfer.backward_transfer == pytest.approx(sum(lost) / (domains - 1))


def test_an_evaluation_reads_all_that_a_profile_serves_at_once(backbone: Backbone) -> None:
    engine, examples = TorchEngine(backbone), TASK.examples("search", 3)
    kinds = fitted_lora(backbone, 1), fitted_softcot(backbone, 2), random_steering(backbone)
    served = [chosen for count in (1, 2, 3) for chosen in combinations(kinds, count)]
    for number, adapters in enumerate(served):
        engine.load(str(number), Profile(adapters))
    read = [MEASURES["chain_likelihood"].read(engine, backbone, name, TASK, examples).values for name in engine.loaded]
    engine.close()
    assert len(set(read)) == len(served) == 7


# 8. A calibration error compared across numbers of items, or unpaired.
def test_of_a_calibrated_model_the_error_beyond_chance_is_none_at_any_number_of_items() -> None:
    def errors(count: int) -> tuple[float, float]:
        rng = np.random.default_rng(count)
        drawn = [(said := rng.beta(2, 2, count), (rng.random(count) < said).astype(float).tolist()) for _ in range(20)]
        raw = [calibration_error(equal_mass_bins(said.tolist(), was)) for said, was in drawn]
        beyond = [excess_calibration_error(said.tolist(), was, draws=40) for said, was in drawn]
        return float(np.mean(raw)), float(np.mean(beyond))

    few, many = errors(100), errors(2000)
    assert few[0] > 3 * many[0]  # what would look like a gain of twenty times the items
    assert abs(few[1]) < 0.02 and abs(many[1]) < 0.02


def test_confidence_is_compared_item_by_item(backbone: Backbone) -> None:
    surer = row(backbone, lambda margin: 4 * margin)
    assert surer.change.high < 0 and surer.adapted.parts["right"] == surer.base.parts["right"]
    paired = [after - before for before, after in zip(surer.base.values, surer.adapted.values, strict=True)]
    assert surer.change.per_item == pytest.approx(paired)


# 9. A task at its floor, no positive control, no check of the backbone against itself.
class Touchy(ToyEngine):
    """Whatever is loaded, an adapter of zeros too, throws it off."""

    def load(self, name: str, profile: Profile) -> None:
        super().load(name, profile)
        self.think(name, Mind(solves=False))


def test_a_task_at_its_floor_or_that_damage_does_not_touch_is_not_admitted(backbone: Backbone) -> None:
    assert looked_at(backbone).admitted
    floor, unharmed = looked_at(backbone, Mind(writes_steps=1)), looked_at(backbone, damage=0.0)
    assert not floor.admitted and any("not above chance" in reason for reason in floor.reasons)
    assert not unharmed.admitted and any("a loss would not be seen" in reason for reason in unharmed.reasons)


def test_a_measure_that_an_adapter_of_zeros_changes_is_not_admitted(backbone: Backbone) -> None:
    items = TASK.examples("search", 12, seed=5)
    found = admit(Touchy(backbone, items), backbone, MEASURES["generation"], TASK, chance=0.0, items=12)
    assert not found.admitted and any("an adapter of zeros changes it" in reason for reason in found.reasons)


def test_what_is_not_admitted_is_no_part_of_the_objective(recipe: Recipe) -> None:
    planned = [
        *likelihood_plan(recipe, FAMILIES["boxes"], without=["ordering"]),
        *generated_plan(recipe, without=["ordering"]),
    ]
    assert {each.task.name for each in planned if each.role == "protected"} == {"arithmetic"}


def test_the_backbone_against_itself_is_exactly_zero(backbone: Backbone, examples: list[Example]) -> None:
    engine = ToyEngine(backbone, examples)
    engine.load("empty", Profile())
    for found in evaluate(engine, backbone, "empty", [Planned(each, TASK, examples, "report") for each in (SELF, EXTERNAL)]).rows:
        assert (found.change.mean, found.change.low, found.change.high) == (0.0, 0.0, 0.0)


# 10. Too few items for the claim.
def test_six_hundred_items_of_which_a_tenth_flip_show_no_retention_within_two_points_and_say_so() -> None:
    after = np.repeat([1.0, -1.0, 0.0], (30, 30, 540))
    found = judge(GateSettings(margin=0.02), {name: PairedItems.of(np.zeros(600), after, own(600)) for name in "ab"}, "a")[1]
    assert found.verdict == "inconclusive" and found.items_needed is not None and found.items_needed > 600
    by_bootstrap = non_inferiority(np.zeros(600).tolist(), after.tolist(), own(600), margin=0.02)
    assert by_bootstrap.verdict == "inconclusive" and by_bootstrap.items_needed == pytest.approx(1546, rel=0.01)


# 11. Selection and report on the same items, one training seed, pruning by one of several objectives.
def test_a_sweep_a_report_and_a_gate_read_items_of_their_own() -> None:
    recipe = Recipe.load(ROOT / "recipes" / "quickstart.toml")
    domain, families = TASKS[recipe.domain], [TASKS[name] for name in recipe.protected]
    swept = [*likelihood_plan(recipe, domain), *generated_plan(recipe)]
    reported = report_plan(domain, families, 50)
    for task in (domain, *families):
        gated = {example.question for example in task.examples("gate", 200)}
        selected, shown = (
            {e.question for p in plan if p.task.name == task.name for e in p.examples} for plan in (swept, reported)
        )
        assert selected and shown and not gated & selected and not gated & shown and not selected & shown


def test_one_seed_of_three_that_lost_is_neither_averaged_away_nor_passed() -> None:
    fits = {str(seed): (np.random.default_rng(seed).normal(0, 0.2, 60) - 1.5 * (seed == 3)).tolist() for seed in (1, 2, 3)}
    assert change_over_seeds([0.0] * 60, fits, own(60)).low < -1.4
    alone = gate(QUICK)
    verdicts: tuple[Verdict, ...] = ("pass", "fail", "inconclusive")
    others = [SeedVerdict(number=1, verdict=verdict, sentence="") for verdict in verdicts]
    assert alone.passed and [alone.with_seeds([others[0], other]).verdict for other in others] == [*verdicts]


def test_only_a_study_with_one_objective_asks_optuna_to_prune_by_a_value_on_the_way() -> None:
    # Optuna's report and should_prune know one objective only: a recipe with a pruner in Pareto mode is refused.
    for file in (ROOT / "tuning").rglob("*.py"):
        if file.name == "stop_pruners.py":
            continue
        called = {node.attr for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute)}
        assert "should_prune" not in called, file


# 12. A rule of which layers hold what.
def test_no_layer_is_adapted_by_a_rule(backbone: Backbone) -> None:
    # Knowledge below and reasoning above is a hypothesis: where an adapter acts is searched, knocked out, or everywhere.
    lora = LoRA(LoRASpec())
    with lora.attach(backbone):
        adapted = {int(place.split(".")[2]) for place in lora.contribution().low_rank}
    assert adapted == set(range(len(backbone.layers)))
    for file in (ROOT / "recipes").glob("*.toml"):
        recipe = Recipe.load(file)
        assert recipe.adapter.lora.band == "all" or "adapter.lora.band" in recipe.search, file


# 13. Influence without its removal experiment, without its sign, at the start of a fit.
def test_influence_without_the_removal_experiment_is_called_no_cause(ground: Ground, recipe: Recipe, home: Path) -> None:
    found = Attribution(recipe, SPEC, ground, home).run(check=False)
    assert found is not None and found.evidence == ALIGNMENT
    told = found.as_dict()
    assert "cause" not in json.dumps(told).lower() and "above 0: training on the row lowers the family's loss" in told["sign"]


def test_a_row_that_teaches_what_is_asked_is_above_zero_and_one_that_teaches_the_contrary_below(backbone: Backbone) -> None:
    red_not_blue = rows_of(backbone, [apple(200, "red"), apple(200, "blue")], "rationale")
    query = [Weighted(each, sign) for each, sign in zip(red_not_blue, (1.0, -1.0), strict=True)]
    found = scored(
        backbone, [apple(number, "blue" if number % 2 else "red") for number in range(8)], {"red": query, DOMAIN: query}
    )
    right, wrong = ([one.families["red"] for one in found if int(one.row) % 2 == odd] for odd in (0, 1))
    assert min(right) > 0 > max(wrong)


def test_no_gradient_is_taken_before_the_first_update_where_that_of_a_is_zero() -> None:
    with pytest.raises(ValueError, match="step 0: there B = 0"):
        Checkpoint(0, 1e-3, 0.999, (), ())


# 14. A trace read by its writer only, or by another only.
@pytest.mark.parametrize("kind", [InformationGain, Faithfulness])
def test_traces_are_read_by_the_profile_and_by_the_backbone(kind: type) -> None:
    assert {measure.scorer for measure in MEASURES.values() if isinstance(measure, kind)} == {"self", "external"}


def test_each_reader_sees_the_loss_that_the_other_cannot(backbone: Backbone, examples: list[Example]) -> None:
    engine = ToyEngine(backbone, examples)
    engine.think("ignores its steps", Mind(reads_steps=False))
    engine.think("writes one step", Mind(writes_steps=1))
    sees = {}
    for measure in (SELF, EXTERNAL):
        base = measure.read(engine, backbone, None, TASK, examples)
        for name in ("ignores its steps", "writes one step"):
            adapted = measure.read(engine, backbone, name, TASK, examples)
            sees[measure.scorer, name] = paired_change(base.values, adapted.values, base.clusters).high < 0
    assert sees == {
        ("self", "ignores its steps"): True,
        ("self", "writes one step"): False,
        ("external", "ignores its steps"): False,
        ("external", "writes one step"): True,
    }
