"""Attribution: row by row, resumable, and called a cause by nobody before rows were left out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from scipy import stats

from adapters.backbone import TESTBED, Backbone
from evaluation.task import Example
from evaluation.tasks import TASKS
from tuning.arms import BACKBONE, ArmReadings
from tuning.attribution import Attribution, AttributionSpec
from tuning.errors import BadRecipe
from tuning.ground import Ground
from tuning.influence import Influence
from tuning.methods.sft import SFTSpec
from tuning.recipe import Recipe
from tuning.removal import (
    ALIGNMENT,
    BEST,
    CONFIRMED,
    RANDOM,
    REFUTED,
    UNDECIDED,
    WORST,
    Removal,
    arms,
    length_buckets,
    reading_plan,
)

SPEC = AttributionSpec(rows=16, queries=3, checkpoints=2, dims=256, share=0.2, seeds=1)


def in_letters(row: Example) -> Example:
    """As long as it was, with a letter for every digit and sign: what a model that knows only how often signs occur can learn."""
    letters = str.maketrans("0123456789+-*=", "qzxjkvwyhgbdfm")
    return replace(row, rationale=(row.rationale or "").translate(letters), answer=row.answer.translate(letters))


def scores(count: int) -> list[Influence]:
    return [Influence(str(n), 10 + n % 7, 0.1, {"boxes": (n * 7 % count) / count - 0.5}) for n in range(count)]


def test_without_the_removal_experiment_it_is_alignment_and_no_cause(ground: Ground, recipe: Recipe, home: Path) -> None:
    found = Attribution(recipe, SPEC, ground, home).run(check=False)
    assert found is not None and found.evidence == ALIGNMENT and found.removal is None
    told = json.dumps(found.as_dict()).lower()
    assert "cause" not in told and "gradient alignment" in told
    assert [one.row for one in found.worst][0] == min(found.influences, key=lambda one: one.retention).row
    assert set(found.influences[0].families) == {"arithmetic", "ordering"}
    assert "3 items a query" in found.sentences()[-1]


def test_what_was_stopped_goes_on_row_by_row_and_finds_the_same(ground: Ground, recipe: Recipe, home: Path) -> None:
    spec = SPEC.model_copy(update={"rows": 12})
    whole = Attribution(recipe, spec, ground, home / "whole").run(check=False)
    looks = iter([False] * 10 + [True] + [False] * 9 + [True] + [False] * 100)
    attribution, runs, counted = Attribution(recipe, spec, ground, home / "stopped"), [], list[int]()
    for _ in range(3):
        found = attribution.run(
            False, lambda what, done, of: counted.append(done) if "rows" in what else None, lambda: next(looks)
        )
        runs.append(found)
    assert runs[:2] == [None, None] and runs[2] is not None and whole is not None
    assert counted == list(range(1, 25))
    assert runs[2].as_dict() == whole.as_dict()


def test_one_command_scores_and_leaves_out_and_compares(ground: Ground, recipe: Recipe, home: Path) -> None:
    found = Attribution(recipe, SPEC, ground, home).run()
    assert found is not None and found.removal is not None and found.evidence in (CONFIRMED, UNDECIDED, REFUTED)
    told = json.loads((found.directory / "attribution.json").read_text())
    for name in (WORST, BEST):
        assert set(told["removal"]["against_random"][name]) >= {"choice_accuracy/icd10-chapter", "chain_likelihood/ordering"}
        assert len(told["removal"]["chains_against_random"][name]["by_seed"]) == 1


@pytest.mark.slow
def test_planted_rows_come_out_worst_and_leaving_them_out_keeps_reasoning(home: Path, recipe: Recipe) -> None:
    recipe = recipe.with_values(
        {
            "protected": ("arithmetic",),
            "method.target": "rationale",
            "method.steps": 48,
            "method.batch_size": 8,
            "method.learning_rate": 1e-2,
            "evaluation.chain_items": 24,
            "evaluation.generated_items": 0,
        }
    )
    rows = TASKS["arithmetic"].examples("train", 60)
    planted = {row.id for row in rows[::5]}
    mixed = [in_letters(row) if row.id in planted else row for row in rows]
    ground = replace(Ground.of(recipe, home / "cache"), examples=mixed)
    spec = AttributionSpec(rows=60, queries=50, checkpoints=4, share=0.2, seeds=2)
    found = Attribution(recipe, spec, ground, home).run()
    assert found is not None and found.removal is not None
    kept = [one.retention for one in found.influences if one.row not in planted]
    lost = [one.retention for one in found.influences if one.row in planted]
    assert stats.mannwhitneyu(kept, lost).statistic / (len(kept) * len(lost)) > 0.85
    worst, best = (found.removal.chains[name].change.mean for name in (WORST, BEST))
    assert worst > 0 and worst > best, found.removal.sentence()


@pytest.mark.slow
def test_on_the_model_that_reasons_the_damaged_rows_are_found_and_removal_confirms_it(testbed: Backbone, tmp_path: Path) -> None:
    rows = TASKS["alchemy"].examples("train", 120, seed=3)
    damaged = {row.id for row in rows[::10]}
    mixed = [replace(row, rationale=" ".join((row.rationale or "").split()[::-1])) if row.id in damaged else row for row in rows]
    recipe = Recipe(
        name="found",
        backbone=str(TESTBED),
        domain="arithmetic",
        protected=("alchemy",),
        adapter={"lora": {"rank": 8, "alpha": 16}},
        method={"steps": 30, "batch_size": 8, "learning_rate": 3e-3, "target": "rationale"},
        evaluation={"domain_items": 8, "chain_items": 32, "generated_items": 0},
    )
    spec = AttributionSpec(rows=120, queries=50, checkpoints=3)
    found = Attribution(recipe, spec, Ground(testbed, TASKS["alchemy"], mixed, {}), tmp_path).run()
    assert found is not None
    assert len(damaged & {one.row for one in found.worst[:12]}) >= 10
    assert found.evidence == CONFIRMED, found.sentences()


def test_a_target_in_turns_is_refused_before_anything_is_fitted(ground: Ground, recipe: Recipe, home: Path) -> None:
    mixed = recipe.with_values({"method.target": "mixed"})
    attribution = Attribution(mixed, SPEC, ground, home)
    with pytest.raises(BadRecipe, match="with method.target = 'mixed' the rows behind them would get the other target"):
        attribution.run()
    assert not attribution.directory.exists()


def test_left_out_rows_are_the_worst_the_best_and_random_ones_of_the_same_lengths() -> None:
    found, examples = scores(100), TASKS["arithmetic"].examples("train", 100)
    made = {(arm.name, arm.seed): arm for arm in arms(examples, found, 0.1, SFTSpec(), range(2))}
    assert {len(arm.examples) for arm in made.values()} == {90}

    def left_out(name: str, seed: int) -> list[int]:
        kept = {example.id for example in made[name, seed].examples}
        return [index for index, example in enumerate(examples) if example.id not in kept]

    def mean(indices: Sequence[int]) -> float:
        return sum(found[index].retention for index in indices) / len(indices)

    assert mean(left_out(WORST, 0)) < -0.35 and mean(left_out(BEST, 0)) > 0.35
    assert left_out(WORST, 0) == left_out(WORST, 1) and left_out(RANDOM, 0) != left_out(RANDOM, 1)
    for bucket in length_buckets(found):
        assert len({len(set(bucket) & set(left_out(name, 0))) for name in (WORST, RANDOM, BEST)}) == 1


def test_the_worst_are_left_out_even_where_all_of_them_are_short() -> None:
    found = [Influence(str(n), 5 + n, 0.1, {"boxes": -0.5 if n < 10 else 0.01 * n}) for n in range(100)]
    made = {arm.name: arm for arm in arms(TASKS["arithmetic"].examples("train", 100), found, 0.1, SFTSpec(), [0])}
    examples = TASKS["arithmetic"].examples("train", 100)
    assert made[WORST].examples == examples[10:]
    for name in (RANDOM, BEST):  # from the same bucket of length
        assert made[name].examples[-80:] == examples[20:] and made[name].examples != made[WORST].examples


def test_a_share_that_leaves_nothing_out_is_refused() -> None:
    with pytest.raises(BadRecipe, match="A share of 0.01 of 10 rows is none"):
        arms(TASKS["arithmetic"].examples("train", 10), scores(10), 0.01, SFTSpec(), range(1))


@pytest.mark.parametrize(("kept", "evidence"), [(0.05, CONFIRMED), (0.0, UNDECIDED), (-0.05, REFUTED)])
def test_removal_confirms_only_what_it_shows(ground: Ground, recipe: Recipe, kept: float, evidence: str) -> None:
    removal = removed(ground, recipe, [kept] * 3)
    assert removal.evidence == evidence
    assert ("these rows cost reasoning" in removal.sentence()) == (evidence == CONFIRMED)
    assert ("the scores do not hold" in removal.sentence()) == (evidence == REFUTED)


def test_one_seed_that_kept_much_decides_nothing_and_more_seeds_do(ground: Ground, recipe: Recipe) -> None:
    few = removed(ground, recipe, [0.001, 0.027, 0.002], cost=-0.011)
    assert few.evidence == UNDECIDED
    assert "more kept in 3 of 3 seeds, which decides nothing" in few.sentence() and "More --seeds" in few.sentence()
    assert removed(ground, recipe, [0.001, 0.027, 0.002] * 4, cost=-0.011).evidence == CONFIRMED


def test_a_fit_that_cost_nothing_has_nothing_to_give_back(ground: Ground, recipe: Recipe) -> None:
    assert "no clear loss to blame rows for" in removed(ground, recipe, [0.001, -0.001], cost=0.0).sentence()


def removed(ground: Ground, recipe: Recipe, kept: Sequence[float], cost: float = -0.1) -> Removal:
    """What arms would read of which the one without the worst rows kept so much in each seed, and the others lost `cost`."""
    plan = reading_plan(recipe, ground)

    def readings(name: str, seed: int) -> ArmReadings:
        level = 0.0 if name == BACKBONE else cost + (kept[seed] if name == WORST else 0.0)
        values = {f"{p.measure.name}/{p.task.name}": [level] * len(p.examples) for p in plan}
        clusters = {key: [str(n) for n in range(len(found))] for key, found in values.items()}
        return ArmReadings(name, seed, values, clusters, {}, {})

    seeds = range(len(kept))
    return Removal.of([readings(BACKBONE, 0), *(readings(name, seed) for seed in seeds for name in (WORST, RANDOM, BEST))], plan)
