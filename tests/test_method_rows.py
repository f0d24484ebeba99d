"""The comparison of methods: arms that can be fitted, rows that are made once, and what is compared at the same gain."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
from small_releases import random_lora
from small_studies import small

from adapters.backbone import Backbone
from adapters.lora import LoRA
from adapters.merge import IntruderSpec, MergeSpec
from benchmarks.method_arms import (
    AGAIN,
    ARMS,
    COMBINATIONS,
    CURRICULUM,
    KEPT,
    LONG,
    MAIN,
    SFT,
    SHORT,
    expected_minutes,
    with_earlier,
)
from benchmarks.methods import Bench, at_gain, at_scales, body, credited, matched
from engine.profile import Profile
from evaluation.tasks import TASKS
from tuning.manifest import complete
from tuning.methods import METHODS
from tuning.recipe import Recipe
from tuning.trial import ADAPTER, Job, Outcome

# Compression shortens chains and teaches no domain: it is held against its own nulls (benchmarks.compression).
TEACHING = set(METHODS) - {"compression"}
QUICKSTART = Recipe.load(Path(__file__).parent.parent / "recipes" / "quickstart.toml")


def test_every_method_has_an_arm_and_every_control_is_one() -> None:
    for budget in (SHORT, LONG):
        names = {QUICKSTART.with_values(arm.under(budget)).method.name for arm in ARMS.values()}
        assert names == TEACHING
    assert {control for arm in ARMS.values() for control in arm.controls} | KEPT <= set(ARMS)
    assert not any(ARMS[name].made for name in KEPT), "what is made is made of what was fitted"


def test_an_arm_is_read_on_the_domain_of_its_controls() -> None:
    for arm in ARMS.values():
        assert {ARMS[control].values.get("domain") for control in arm.controls} <= {arm.values.get("domain")}


def test_a_control_of_the_same_method_differs_in_one_thing_and_begins_where_its_arm_does() -> None:
    for name, arm in ARMS.items():
        for other in (ARMS[control] for control in arm.controls):
            one, two = arm.under(SHORT), other.under(SHORT)
            if "method.name" in one and one["method.name"] == two.get("method.name") and not arm.made:
                differing = [field for field in {*one, *two} if one.get(field) != two.get(field)]
                assert len(differing) == 1 and arm.earlier == other.earlier, (name, differing)


def test_soft_thoughts_are_fitted_on_chains_whatever_the_recipe_learns() -> None:
    assert QUICKSTART.sft.target == "answer"
    recipes = [QUICKSTART.with_values(arm.under(SHORT)) for name, arm in ARMS.items() if name.startswith("softcot")]
    assert len(recipes) == 4
    assert {recipe.method.model_dump()["target"] for recipe in recipes} == {"rationale"}


def test_the_curriculum_feeds_three_methods_and_what_is_continued_or_combined_has_its_control() -> None:
    fed = [arm.under(SHORT).get("method.name", "sft") for arm in ARMS.values() if arm.values.get("domain") and not arm.made]
    assert set(fed) == {"sft", "critique", "rlvr"}
    assert {field for arm in ARMS.values() for field in arm.earlier} == {"adapter.warm_start", "adapter.orthogonal_to"}
    hows = [arm.made.how for arm in ARMS.values() if arm.made]
    assert {how.combination for how in hows if isinstance(how, MergeSpec)} == set(COMBINATIONS)
    assert any(isinstance(how, IntruderSpec) for how in hows)
    assert all(arm.controls for arm in ARMS.values() if arm.made and arm.made.how is not None)


def test_the_default_run_ends_within_an_hour_and_has_every_method_with_a_control() -> None:
    assert expected_minutes(MAIN, SHORT) <= 55 < expected_minutes(list(ARMS), SHORT)
    fitted = [name for name in MAIN if not ARMS[name].made]
    assert {QUICKSTART.with_values(ARMS[name].under(SHORT)).method.name for name in fitted} == TEACHING
    beaten = {name for name in MAIN if set(ARMS[name].controls) & set(MAIN)}
    assert {QUICKSTART.with_values(ARMS[name].under(SHORT)).method.name for name in beaten & set(fitted)} == TEACHING


def test_what_an_arm_needs_comes_first_and_once() -> None:
    assert with_earlier(["merge, cat", "continued", SFT]) == [SFT, CURRICULUM, "merge, cat", "continued"]


def test_an_arm_and_its_control_are_compared_at_a_gain_that_both_reach() -> None:
    assert at_gain([{"domain_gain": 0.2, "chain_changes": {"boxes": -0.4}}], 0.1) == {"boxes": pytest.approx(-0.2)}
    said = matched([row("rlvr", (0.1, -0.01, 0.1), (0.3, -0.03, 0.5)), row("rlvr, coin", (0.2, -0.1, 0.8))]).splitlines()
    shown = "| rlvr | rlvr, coin | 0 | +0.200 | -0.0100 | -0.0500 | 0.3000 | 0.8000 | +0.0800 | +0.0000 |"
    assert said[-1] == shown and len(said) == 3


def test_a_merge_is_compared_with_the_better_of_its_parts() -> None:
    parts = [row(SFT, (0.2, -0.1, 0.1)), row("curriculum, sft, on ICD-10", (0.3, -0.1, 0.1))]
    assert "| merge, ties | curriculum, sft, on ICD-10 | 0 | +0.300" in matched([row("merge, ties", (0.4, -0.1, 0.1)), *parts])
    assert "| merge, ties | sft, rationale | 0 | +0.200" in matched([row("merge, ties", (0.4, -0.1, 0.1)), parts[0]])


def test_a_gain_is_credited_only_where_its_interval_is_above_the_better_control() -> None:
    rows = [row("rlvr", (0.3, 0.0, 0.0)), row("rlvr, coin", (0.1, 0.0, 0.0)), row(AGAIN, (0.2, 0.0, 0.0))]
    for one, stderr in zip(rows, (0.03, 0.9, 0.04), strict=True):
        one["outcome"]["score"]["chosen"]["gain_stderr"] = stderr
    assert credited(rows).splitlines()[-1] == "| rlvr | sft, four choices, continued | 0 | +0.100 ± 0.098 | yes |"
    rows[0]["outcome"]["score"]["chosen"]["gain_stderr"] = 0.04
    assert credited(rows).splitlines()[-1].endswith("| +0.100 ± 0.111 | no |")


def test_reduced_intruders_are_compared_scale_by_scale() -> None:
    reduced = {**row("sft, intruders reduced", (0.1, -0.02, 0.0)), "intruders": 7}
    said = at_scales([reduced, row(SFT, (0.2, -0.06, 0.0))])
    assert said.splitlines()[-1] == "| sft, intruders reduced | 0 | 1 | 7 | +0.100 | +0.200 | -0.0100 | -0.0300 |"


def row(arm: str, *scales: tuple[float, float, float]) -> dict[str, Any]:
    same = {"scale": 1.0, "gain_stderr": 0.0}
    told = [
        {**same, "domain_gain": gain, "chain_changes": {"boxes": change, "kinship": 0.0}, "forward_kl": kl}
        for gain, change, kl in scales
    ]
    score = {"scales": told, "chosen": told[-1], "generated_changes": {"boxes": 0.0}, "as_fitted": {"written": {"boxes": 0.0}}}
    score |= {"retention": 0.0, "feasible": True, "forward_kl": told[-1]["forward_kl"]}
    fit = {"num_tokens": 1, "num_generated": 0}
    outcome = {"state": "complete", "score": score, "fit": fit, "seconds": {"fit": 1.0}, "peak_memory_mib": 1.0}
    return {"arm": arm, "seed": 0, "commit": "", "outcome": outcome}


Jobs = list[Job]


@pytest.fixture
def jobs(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> Jobs:
    """What was run, instead of a trial: a random adapter is left behind, and a row as above."""
    found: Jobs = []
    alone = Lock()

    def run(job: Job, report: Callable[[str, float], None]) -> Outcome:
        found.append(job)
        if job.given is None:
            examples = TASKS["arithmetic"].examples("train", 2)
            with alone:
                lora = random_lora(backbone, len(found))
            complete(job.directory / ADAPTER, job.recipe, backbone, Profile((lora,)), 1.0, examples)
        return Outcome(**row("", (0.1, 0.0, 0.0))["outcome"])

    monkeypatch.setattr("benchmarks.methods.run_isolated", run)
    return found


@pytest.fixture
def bench(backbone_directory: Path, tmp_path: Path) -> Bench:
    return Bench(small(backbone_directory), 0, SHORT, tmp_path, threads=1)


def test_a_first_adapter_is_fitted_once_kept_and_gone_on_from(bench: Bench, jobs: Jobs) -> None:
    bench.row("continued")
    bench.row("sft, O-LoRA")
    first, warm, apart = [job.recipe for job in jobs]
    place = str(bench.kept.of(CURRICULUM).resolve())
    assert (first.domain, warm.domain) == ("graph:icd10", "icd10-chapter")
    assert warm.adapter.warm_start == place and apart.adapter.orthogonal_to == (place,)
    assert warm.method.token_budget == SHORT and Profile.load(Path(place)).adapters
    bench.row("continued")
    bench.row(CURRICULUM)
    assert len(jobs) == 3, "rows that are there are not made again"


def test_rows_that_are_made_side_by_side_wait_for_those_they_need_and_keep_their_order(bench: Bench, jobs: Jobs) -> None:
    arms = with_earlier(["merge, cat", "continued", "merge, cat, on the graph"])
    with ThreadPoolExecutor(4) as pool:
        rows = bench.rows(arms, pool)
    assert [row["arm"] for row in rows] == arms and {row["outcome"]["state"] for row in rows} == {"complete"}
    assert len(jobs) == len(arms)


def test_an_arm_that_was_changed_is_made_anew_and_so_is_what_it_was_fitted_for(
    bench: Bench, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.row("continued")
    changed = replace(ARMS[CURRICULUM], values={**ARMS[CURRICULUM].values, "method.learning_rate": 1e-4})
    monkeypatch.setitem(ARMS, CURRICULUM, changed)
    bench.row("continued")
    assert [job.recipe.method.learning_rate for job in jobs] == [4e-4, 4e-4, 1e-4, 4e-4]
    assert all(job.keep_as_fitted for job in jobs)


def test_a_merge_is_made_of_two_fits_and_read_on_either_domain(bench: Bench, jobs: Jobs) -> None:
    bench.row("merge, cat")
    bench.row("merge, cat, on the graph")
    read = [job for job in jobs if job.given is not None]
    assert len(jobs) == 4 and read[0].given == read[1].given
    assert [job.recipe.domain for job in read] == ["icd10-chapter", "graph:icd10"]
    assert read[0].given is not None
    (lora,) = Profile.load(read[0].given).adapters
    assert isinstance(lora, LoRA) and lora.spec.rank == 8


def test_an_adapter_that_is_gone_is_fitted_again_and_merged_anew(bench: Bench, jobs: Jobs) -> None:
    bench.row("merge, cat")
    for place in (bench.runs / "adapters").glob("sft*"):
        place.rename(bench.runs / "gone")
    (bench.runs / f"{bench.key('merge, cat')}.json").unlink()
    bench.row("merge, cat")
    read = [job.given for job in jobs if job.given is not None]
    assert len(jobs) == 5 and read[0] != read[1]


def test_an_arm_whose_first_fit_failed_is_a_row_that_says_so(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.methods.run_isolated", lambda job, report: Outcome(state="failed", reason="why"))
    made = bench.row("sft, intruders reduced")
    assert made["outcome"]["reason"] == "the arm 'sft, rationale', whose adapter it needs, was not fitted"
    assert "why" in "".join(body([made, bench.row(SFT)], SHORT))
