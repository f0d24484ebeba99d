"""Fourteen ways in which a study of reasoning goes wrong, and the tests that keep this one from each.

Most have a home beside what they test; here stand the others, and the list.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path

import pytest
from fitted import fitted_lora, fitted_softcot
from toy_engine import Mind, ToyEngine

from adapters.backbone import Backbone
from adapters.lora import LoRASpec
from engine.engine import Continuation
from engine.profile import Profile
from engine.torch_engine import TorchEngine
from evaluation.measures import MEASURES
from evaluation.measures.faithfulness import Faithfulness
from evaluation.measures.information_gain import InformationGain
from evaluation.tasks import FAMILIES, TASKS
from tuning.plan import generated_plan, likelihood_plan
from tuning.recipe import Recipe

ROOT = Path(__file__).parent.parent
KEPT_BY = {
    "information gain of the whole sequence, by step only, with the answer leaked, or without a swapped trace": (
        "test_only_the_tokens_of_the_answer_are_scored",
        "test_the_gains_of_the_steps_add_up_to_the_total",
        "test_the_gain_before_the_answer_is_stated_is_smaller_than_the_total",
        "test_a_reader_that_uses_the_steps_gains_from_them_and_not_from_swapped_ones",
        "test_what_any_trace_would_give_is_taken_off",
    ),
    "a published drop as a threshold": ("test_no_published_drop_is_a_threshold",),
    "an answer that a paraphrase leaves alone counted as unfaithful": (
        "test_who_computes_from_the_trace_depends_on_it",
        "test_half_noise_is_taken_off",
    ),
    "dependence at chance, without a noise floor, or with the lengths unreported": (
        "test_who_guesses_is_not_measurable_though_every_change_changes_its_answer",
        "test_a_reader_that_every_rewording_throws_off_shows_no_dependence",
        "test_an_adapter_that_came_to_know_the_answers_lost_its_dependence",
    ),
    "compositions that commute or undo themselves, cuts by characters, deletions that leave nothing to solve": (
        "test_no_rotation_is_its_own_inverse",
        "test_the_operations_of_a_held_out_pair_do_not_commute",
        "test_a_perfect_reasoner_is_right_on_every_twin",
        "test_a_format_shift_leaves_the_chain_and_takes_no_word_away",
    ),
    "seeds of reasoning-gym that overlap, partial scores, answers that are none, majorities": (
        "test_no_question_is_in_two_splits_whatever_the_seeds",
        "test_neighbouring_seeds_share_no_item",
        "test_partial_credit_is_wrong",
        "test_a_dataset_without_gold_answers_is_refused",
        "test_the_majority_answer_is_the_chance_level",
    ),
    "backward transfer of isolated adapters, or without its denominator; the served path not evaluated": (
        "test_backward_transfer_is_over_the_earlier_domains_and_not_over_all",
        "test_the_tables_state_their_denominators",
        "test_an_evaluation_reads_all_that_a_profile_serves_at_once",
        "test_a_profile_writes_what_the_attached_adapter_writes",
    ),
    "a calibration error compared across numbers of items, or unpaired": (
        "test_a_perfectly_calibrated_model_shows_a_calibration_error_by_chance",
        "test_less_what_chance_gives_a_calibrated_model_has_no_error_and_an_overconfident_one_has",
        "test_growing_surer_without_growing_righter_is_a_loss",
    ),
    "a task at its floor, no positive control, no check of the backbone against itself": (
        "test_a_task_at_the_floor_is_not_admitted_and_the_reason_is_told",
        "test_real_damage_is_flagged_with_its_interval_clear_of_zero",
        "test_an_adapter_of_zeros_changes_no_item_of_what_the_test_bed_can_do",
        "test_the_backbone_against_itself_is_exactly_zero",
    ),
    "too few items for the claim": (
        "test_items_that_show_a_drop_of_1_2_3_and_5_points",
        "test_an_inconclusive_verdict_says_how_many_items_would_decide",
        "test_few_drawn_sets_cover_as_often_as_they_say_and_as_templates_they_would_not",
    ),
    "selection and report on the same items, one training seed, pruning by one of several objectives": (
        "test_no_group_is_in_two_splits",
        "test_a_sweep_and_its_gate_read_different_splits",
        "test_one_seed_that_collapsed_widens_the_interval_over_seeds",
        "test_no_trial_is_pruned_by_a_value_on_the_way",
    ),
    "a rule of which layers hold what": (
        "test_no_layer_is_adapted_by_a_rule",
        "test_a_layer_without_weights_answers_for_nothing_and_the_other_for_all",
    ),
    "influence without its removal experiment, without its sign, at the start of a fit": (
        "test_without_the_removal_experiment_it_is_alignment_and_no_cause",
        "test_a_step_on_a_row_above_zero_lowers_the_loss_of_the_query_and_below_zero_raises_it",
        "test_before_the_first_update_every_gradient_of_a_is_exactly_zero_so_that_no_checkpoint_is_taken_there",
    ),
    "a trace read by its writer only, or by another only": (
        "test_traces_are_read_by_the_profile_and_by_the_backbone",
        "test_the_four_cells_tell_an_ignored_trace_from_a_worse_one",
    ),
}


class Watching(ToyEngine):
    """Keeps what it is asked to score."""

    asked: tuple[Continuation, ...] = ()

    def score(self, continuations: Sequence[Continuation], profile: str | None = None) -> list[tuple[float, ...]]:
        self.asked += tuple(continuations)
        return super().score(continuations, profile)


def test_there_are_fourteen() -> None:
    assert len(KEPT_BY) == 14


@pytest.mark.parametrize("way", KEPT_BY)
def test_the_tests_that_keep_from_it_exist(way: str) -> None:
    trees = [ast.parse(file.read_text()) for file in (ROOT / "tests").glob("test_*.py")]
    known = {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert set(KEPT_BY[way]) <= known, set(KEPT_BY[way]) - known


def test_only_the_tokens_of_the_answer_are_scored(backbone: Backbone) -> None:
    task = FAMILIES["arithmetic"]
    examples = task.examples("search", 4)
    engine = Watching(backbone, examples)
    InformationGain("self", "gold").read(engine, backbone, None, task, examples)
    answers = {tuple(backbone.encode(f" {example.answer}")) for example in examples}
    assert engine.asked and {asked.ids[asked.scored_from :] for asked in engine.asked} == answers


def test_a_fluent_trace_that_says_nothing_gains_nothing(backbone: Backbone) -> None:
    task = FAMILIES["arithmetic"]
    found = InformationGain("self", "gold").read(
        ToyEngine(backbone, task.examples("search", 6), Mind(certainty=0.99, reads_steps=False)),
        backbone,
        None,
        task,
        task.examples("search", 6),
    )
    assert found.values == pytest.approx((0.0,) * 6)


def test_no_published_drop_is_a_threshold() -> None:
    for package in ("adapters", "engine", "evaluation", "registry", "tuning", "service"):
        for file in (ROOT / package).rglob("*.py"):
            numbers = [node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)]
            assert not {38.9, 0.389, 37.1, 0.371, 37.2, 0.372} & {n for n in numbers if isinstance(n, float)}, file


def test_an_evaluation_reads_all_that_a_profile_serves_at_once(backbone: Backbone) -> None:
    task = FAMILIES["arithmetic"]
    engine, examples = TorchEngine(backbone), task.examples("search", 3)
    lora, softcot = fitted_lora(backbone, 1), fitted_softcot(backbone, 2)
    for name, adapters in (("lora", (lora,)), ("softcot", (softcot,)), ("served", (lora, softcot))):
        engine.load(name, Profile(adapters))
    values = {name: MEASURES["chain_likelihood"].read(engine, backbone, name, task, examples).values for name in engine.loaded}
    assert len(set(values.values())) == 3
    engine.close()


@pytest.mark.parametrize("file", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda file: file.name)
def test_no_layer_is_adapted_by_a_rule(file: Path) -> None:
    # Knowledge below and reasoning above is a hypothesis: where an adapter acts is searched, knocked out, or everywhere.
    assert LoRASpec().band == "all"
    recipe = Recipe.load(file)
    assert recipe.adapter.lora.band == "all" or "adapter.lora.band" in recipe.search


def test_traces_are_read_by_the_profile_and_by_the_backbone() -> None:
    for kind in (InformationGain, Faithfulness):
        assert {measure.scorer for measure in MEASURES.values() if isinstance(measure, kind)} == {"self", "external"}


def test_a_sweep_and_its_gate_read_different_splits() -> None:
    recipe = Recipe.load(ROOT / "recipes" / "quickstart.toml")
    swept = [*likelihood_plan(recipe, TASKS[recipe.domain]), *generated_plan(recipe)]
    for planned in swept:
        gated = {example.question for example in planned.task.examples("gate", 200)}
        assert gated.isdisjoint(example.question for example in planned.examples)


def test_no_trial_is_pruned_by_a_value_on_the_way() -> None:
    # Optuna's report and should_prune know one objective only; a trial that is pruned here could not be fitted or written.
    for file in (ROOT / "tuning").rglob("*.py"):
        called = {node.attr for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute)}
        assert "should_prune" not in called, file
