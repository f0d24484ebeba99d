"""The search of a decoding policy: what is really better is found, what is not is not, and nothing is read twice.

On chains of one step and of seven, of which the test-bed does the first and never the second, a cap of a few tokens halves the
tokens and costs nothing. On chains of two and three steps every cap that saves a token costs an answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import optuna
import pytest
from small_policies import FEW, DiceEngine, study_of

from adapters.backbone import Backbone
from engine.decoding.budget import Budget
from engine.decoding.tip import SwitchPenalty
from engine.profile import DecodingPolicy, Profile
from engine.torch_engine import TorchEngine
from evaluation.evaluate import Planned
from evaluation.measure import Readings
from evaluation.overlap import Fingerprints
from evaluation.task import Example, Split, split_of
from evaluation.tasks import TASKS
from evaluation.tasks.alchemy import ALCHEMY
from evaluation.written_answer import WrittenAnswer
from registry.tracking import Tracking
from tuning.decoding.choice import Change, PolicyScore, chosen
from tuning.decoding.items import SPLIT, halves, split_in_two
from tuning.decoding.reading import Written
from tuning.decoding.settings import DecodingSearch
from tuning.decoding.space import OFF, POLICY
from tuning.decoding.study import PolicyTrial
from tuning.errors import NoSelection, NotSearchable
from tuning.rounds import Rounds

pytestmark = pytest.mark.usefixtures("tracking")
HELPS, HURTS = ALCHEMY.at_length(1, 7), ALCHEMY.at_length(2, 3)
CAP = "budget.max_trace_tokens"


@pytest.fixture(scope="module")
def engine(testbed: Backbone) -> TorchEngine:
    return TorchEngine(testbed, max_rows=64)


def test_a_budget_that_saves_tokens_at_equal_accuracy_is_found(engine: TorchEngine, testbed: Backbone, tmp_path: Path) -> None:
    found = study_of(engine, testbed, HELPS, tmp_path).run()
    assert found.better is not None and dict(found.better.claims) == {OFF: "fewer tokens"}
    off, best = found.trials[0].score, found.better.trial.score
    assert off is not None and best is not None and best.accuracy == off.accuracy and best.tokens < 0.7 * off.tokens
    budget = found.better.profile.policy.budget
    assert budget is not None and budget.max_trace_tokens == found.better.trial.values[CAP]


def test_where_every_cap_costs_answers_nothing_is_better(engine: TorchEngine, testbed: Backbone, tmp_path: Path) -> None:
    found = study_of(engine, testbed, HURTS, tmp_path).run()
    assert found.better is None
    assert any(trial.score is not None and trial.score.accuracy < 0.5 for trial in found.trials)


def test_a_policy_that_is_better_by_chance_alone_is_not_kept(backbone: Backbone, tmp_path: Path, tracking: Tracking) -> None:
    found = []
    for seed in range(5, 8):  # at least one of them has a winner by chance on the items that choose
        settings = FEW.model_copy(update={"trials": 8, "seed": seed})
        engine = DiceEngine(backbone, seed)
        found.append(study_of(engine, backbone, YesOrNo(), tmp_path / str(seed), settings, tracking=tracking).run())
    assert any(one.confirmed is not None for one in found)  # the best of several looks better than it is
    assert not any(one.better for one in found)


def test_what_hurts_a_protected_family_is_not_chosen(engine: TorchEngine, testbed: Backbone, tmp_path: Path) -> None:
    # Its chains of two and three steps need more tokens than the domain's of one.
    settings = FEW.model_copy(update={"ranges": {CAP: (8, 10)}})
    found = study_of(engine, testbed, HELPS, tmp_path, settings, protected=("alchemy",)).run()
    capped = [trial.score for trial in found.trials if CAP in trial.values and trial.score is not None]
    assert len(capped) >= 3 and not any(score.feasible for score in capped)
    assert all(score.changes[OFF].claim(FEW.tolerance) == "fewer tokens" for score in capped)
    assert found.confirmed is None


def test_the_policy_off_is_the_first_trial_and_no_policy_is_read_twice(
    engine: TorchEngine, testbed: Backbone, tmp_path: Path
) -> None:
    study = study_of(engine, testbed, HELPS, tmp_path, FEW.model_copy(update={"ranges": {CAP: (30, 33)}}))
    found = study.run()
    assert found.trials[0].number == 0 and dict(found.trials[0].values) == {POLICY: OFF}
    digests = [study.bench.digest(study.space.profile(trial.values)) for trial in found.trials]
    assert 1 < len(set(digests)) == len(digests) <= 5  # off and four caps, however many trials were asked for


class Stopped(RuntimeError):
    pass


def test_a_search_that_was_stopped_goes_on_and_reads_nothing_again(
    engine: TorchEngine, testbed: Backbone, tmp_path: Path
) -> None:
    def stop(trial: PolicyTrial) -> None:
        if trial.number == 3:
            raise Stopped

    with pytest.raises(Stopped):
        study_of(engine, testbed, HELPS, tmp_path).run(stop)
    seen: list[int] = []
    found = study_of(engine, testbed, HELPS, tmp_path).run(lambda trial: seen.append(trial.number))
    assert min(seen) > 3 and len(found.trials) == FEW.trials
    before = engine.stats().forward_tokens
    again = study_of(engine, testbed, HELPS, tmp_path).run()
    assert engine.stats().forward_tokens == before
    assert again.trials == found.trials and again.better == found.better


def test_a_trial_that_was_killed_is_made_once_more_in_the_same_run(
    engine: TorchEngine, testbed: Backbone, tmp_path: Path
) -> None:
    short = study_of(engine, testbed, HELPS, tmp_path, FEW.model_copy(update={"trials": 3}))
    short.run()
    storage = f"sqlite:///{short.directory / 'optuna.db'}"
    killed = optuna.load_study(study_name=short.name, storage=storage).ask()
    values = short.space.suggest(killed)
    run_id = short.tracking.start_run("graftline", "cut off")
    killed.set_user_attr("mlflow_run_id", run_id)
    found = study_of(engine, testbed, HELPS, tmp_path, FEW.model_copy(update={"trials": 5})).run()
    assert dict(found.trials[-1].values) == values and found.trials[-1].run_id == run_id


def test_every_trial_is_a_child_of_the_releases_run(
    engine: TorchEngine, testbed: Backbone, tmp_path: Path, tracking: Tracking
) -> None:
    parent = tracking.start_run("fits", "trial 7")
    study = replace(study_of(engine, testbed, HELPS, tmp_path, FEW.model_copy(update={"trials": 3})), run_id=parent)
    found = study.run()
    with tracking.client() as client:
        runs = [client.get_run(str(trial.run_id)) for trial in found.trials]
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {parent}
    assert [run.data.metrics["tokens"] for run in runs] == [trial.score.tokens for trial in found.trials if trial.score]
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_the_run_that_a_search_makes_for_its_trials_ends_with_it(
    engine: TorchEngine, testbed: Backbone, tmp_path: Path, tracking: Tracking
) -> None:
    found = study_of(engine, testbed, HELPS, tmp_path, FEW.model_copy(update={"trials": 2})).run()
    with tracking.client() as client:
        parent = client.get_run(client.get_run(str(found.trials[0].run_id)).data.tags["mlflow.parentRunId"])
    assert (parent.info.run_name, parent.info.status) == ("decoding of small@1", "FINISHED")


def test_a_policy_must_also_beat_the_one_that_the_release_has(engine: TorchEngine, testbed: Backbone, tmp_path: Path) -> None:
    best = Profile(policy=DecodingPolicy(budget=Budget(max_trace_tokens=8)))
    found = study_of(engine, testbed, HELPS, tmp_path, released=best).run()
    assert all(set(trial.score.changes) == {OFF, "as released"} for trial in found.trials if trial.score)
    assert found.better is None or found.better.score.tokens < 16


@dataclass(frozen=True)
class YesOrNo:
    """Open questions whose answer is a coin's."""

    name: str = "yes or no"

    def examples(self, split: Split, count: int, seed: int = 0) -> list[Example]:
        texts = [f"Is number {number} of {split} lucky?" for number in range(count)]
        return [Example(text, text, "yes" if len(text) % 2 else "no", group=text) for text in texts]


@dataclass(frozen=True)
class OneGroup:
    name: str = "one group"
    kept: tuple[Example, ...] = field(default=tuple(Example(str(n), f"Question {n}?", "yes", group="all") for n in range(40)))

    def examples(self, split: Split, count: int, seed: int = 0) -> list[Example]:
        return list(self.kept[:count])


def test_a_task_without_a_selection_split_is_refused_in_a_sentence() -> None:
    with pytest.raises(
        NoSelection, match="chosen on 8 items of the select split and tested on 8 others, but one group has 40 and 0"
    ):
        split_in_two(OneGroup(), 20)


@pytest.mark.parametrize("name", ["icd10", "alchemy", "boxes"])
def test_no_item_of_the_gate_is_read(name: str) -> None:
    task = TASKS[name]
    parts = halves(
        DecodingSearch(items=60, family_items=16), task, ("word_problem", "boxes") if name != "boxes" else (), (), True
    )
    for one, other in zip(parts.choosing, parts.confirming, strict=True):
        gated = Rounds(one.task, 100, 0, Fingerprints.of([]))
        gates = [example for number in range(4) for example in gated.items(number)]
        for examples in (one.examples, other.examples):
            assert len(examples) >= 16
            assert not {e.question for e in examples} & {e.question for e in gates}
            assert not {e.id for e in examples} & {e.id for e in gates}
        assert not {e.question for e in one.examples} & {e.question for e in other.examples}
    if name == "icd10":  # whose groups never part
        groups = [{e.group for e in side[0].examples} for side in (parts.choosing, parts.confirming)]
        assert not groups[0] & groups[1] and {split_of(group) for group in groups[0] | groups[1]} == {SPLIT}


def test_what_cannot_be_searched_is_told_by_name(engine: TorchEngine, testbed: Backbone, tmp_path: Path) -> None:
    usual = FEW.model_copy(update={"kinds": None})
    left_out = study_of(engine, testbed, HELPS, tmp_path, usual).space.left_out
    assert set(left_out) == {"tip", "steering"} and "no steering vector" in left_out["steering"]
    assert "none for 'wait'" in left_out["tip"]  # the test-bed's vocabulary has no such word
    with pytest.raises(
        NotSearchable, match="can be searched: budget, ramp, minimum, branches. That leaves out tip: The policy's"
    ):
        study_of(engine, testbed, HELPS, tmp_path, FEW.model_copy(update={"kinds": ("budget", "tip")}))


def test_an_engine_that_can_run_no_policy_is_refused_by_name(backbone: Backbone, tmp_path: Path) -> None:
    class Plain(DiceEngine):
        @property
        def capabilities(self) -> frozenset[str]:
            return frozenset({"generate"})

    with pytest.raises(NotSearchable, match="can be searched: branches. That leaves out budget: .*the engine cannot run"):
        study_of(Plain(backbone, 0), backbone, YesOrNo(), tmp_path, FEW.model_copy(update={"kinds": None}))


def test_what_is_not_searched_stays_as_released(engine: TorchEngine, testbed: Backbone, tmp_path: Path) -> None:
    tip = SwitchPenalty(words=("reverse",))
    released = Profile(
        policy=DecodingPolicy(tip=tip, budget=Budget(max_trace_tokens=9, min_trace_tokens=5, max_answer_tokens=20))
    )
    space = study_of(engine, testbed, HELPS, tmp_path, released=released).space
    capped = space.profile({POLICY: "budget", CAP: 4}).policy
    assert capped.tip == tip and capped.budget == Budget(max_trace_tokens=4, min_trace_tokens=4, max_answer_tokens=20)
    assert space.profile({POLICY: OFF}).policy == DecodingPolicy()


WAVE = DecodingSearch(kinds=("budget", "ramp", "tip", "cyclic"), trials=3, items=8, max_new_tokens=192)
SWITCHES = Profile(policy=DecodingPolicy(tip=SwitchPenalty(words=("reverse",))))


def test_a_ramp_comes_with_its_cap_and_a_penalty_has_one_schedule(engine: TorchEngine, testbed: Backbone, tmp_path: Path) -> None:
    space = study_of(engine, testbed, HELPS, tmp_path, WAVE, SWITCHES).space
    drawn = [set(choice.split("+")) for choice in space.choices]
    assert {"budget", "ramp", "cyclic"} in drawn and {"budget", "tip"} in drawn
    assert not any("ramp" in kinds and "budget" not in kinds for kinds in drawn)
    assert not any({"tip", "cyclic"} <= kinds for kinds in drawn)
    both = space.profile({POLICY: "budget+ramp", CAP: 9, "budget.ramp": 4.0}).policy
    assert both.tip is None and both.budget is not None and (both.budget.max_trace_tokens, both.budget.ramp) == (9, 4.0)
    wave = space.profile({POLICY: "cyclic", "tip.amplitude": 2.0, "tip.period": 100}).policy
    assert wave.budget is None and wave.tip == SwitchPenalty(schedule="cyclic", amplitude=2.0, period=100, words=("reverse",))
    starts = space.starts([20, 30, 40])
    assert {"cyclic", "budget+ramp"} <= {point[POLICY] for point in starts} <= set(space.choices)
    assert all(space.profile(point).policy.interventions for point in starts)
    with pytest.raises(ValueError, match="Name budget beside ramp"):
        DecodingSearch(kinds=("ramp",))


def test_a_wave_is_searched(engine: TorchEngine, testbed: Backbone, tmp_path: Path) -> None:
    settings = WAVE.model_copy(update={"kinds": ("cyclic",)})
    study = study_of(engine, testbed, HELPS, tmp_path, settings, SWITCHES)
    longest = study.space.ranges["tip.period"].high
    first, second, third = study.run().trials
    assert longest < 192 and first.values == {POLICY: OFF}  # a wave is no longer than a reply
    assert second.values == {POLICY: "cyclic", "tip.amplitude": 5.0, "tip.period": longest} and third.score is not None


def test_the_number_of_branches_is_searched_and_every_token_of_theirs_counts(
    engine: TorchEngine, testbed: Backbone, tmp_path: Path
) -> None:
    settings = DecodingSearch(kinds=("branches",), trials=3, items=8, ranges={"branches.num_branches": (2, 3)})
    study = study_of(engine, testbed, HELPS, tmp_path, settings)
    off, two, three = (trial.score for trial in study.run().trials)
    assert off is not None and two is not None and three is not None
    assert 1.5 * off.tokens < two.tokens < three.tokens
    branches = study.space.profile({POLICY: "branches", "branches.num_branches": 3}).policy.branches
    assert branches is not None and branches.num_branches == 3
    assert study.space.profile({POLICY: OFF}).policy.branches is None


def test_no_cap_is_tried_that_the_reply_has_no_room_for(engine: TorchEngine, testbed: Backbone, tmp_path: Path) -> None:
    settings = DecodingSearch(kinds=("budget",), max_new_tokens=64, items=8)
    space = study_of(engine, testbed, HELPS, tmp_path, settings).space
    assert space.ranges[CAP].high == 64 - space.budget.max_answer_tokens - len(testbed.encode("\nAnswer:"))
    assert all(space.ranges[CAP].low <= int(point[CAP]) <= space.ranges[CAP].high for point in space.starts([1, 500]))


@pytest.mark.parametrize(
    ("kind", "field", "rule"),
    [
        (
            "minimum",
            "budget.min_trace_tokens",
            "minimum: 64 tokens leave .* for a trace beside the answer's, and its range begins at 60",
        ),
        ("ramp", CAP, "ramp: it rises towards a searched cap, and of that 64 tokens leave"),
    ],
)
def test_a_range_that_the_reply_has_no_room_for_is_refused(
    engine: TorchEngine, testbed: Backbone, tmp_path: Path, kind: str, field: str, rule: str
) -> None:
    kinds = (kind,) if kind == "minimum" else ("budget", kind)
    settings = DecodingSearch(kinds=kinds, max_new_tokens=64, items=8, ranges={field: (60, 62)})
    with pytest.raises(NotSearchable, match=rule):
        study_of(engine, testbed, HELPS, tmp_path, settings)


def score(
    accuracy: float, tokens: float, right: tuple[float, float, float], fewer: float, harm: float = -1.0, stderr: float = 0.02
) -> PolicyScore:
    change = Change(right, (fewer, fewer - 1, fewer + 1), stderr)
    return PolicyScore(accuracy, tokens, {OFF: change}, {"boxes": harm})


FEWER = Change((0.0, -0.04, 0.04), (-10, -12, -8), 0.02)


@pytest.mark.parametrize(("count", "claim"), [(71, None), (72, "fewer tokens")])
def test_answers_that_all_stay_claim_what_so_many_of_them_show(count: int, claim: str | None) -> None:
    """One of 20 may be lost: with a share of 0.05 that change, none of 72 does so once in 40 draws."""
    planned = Planned(WrittenAnswer(), ALCHEMY, ALCHEMY.examples("select", count), "domain")

    def written(tokens: float) -> Written:
        read = Readings.of(WrittenAnswer(), ALCHEMY, planned.examples, [1.0] * count, {"tokens": (tokens,) * count})
        return Written((planned,), (read,))

    assert Change.between(written(40), written(30)).claim(tolerance=0.05) == claim
    assert Change.between(written(40), written(40)).right == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("right", "tokens", "claim"),
    [
        (FEWER.right, FEWER.tokens, "fewer tokens"),
        ((0.0, -0.06, 0.06), FEWER.tokens, None),  # may cost more than the tolerance
        (FEWER.right, (-1, -3, 1), None),  # may write more
        ((0.1, 0.02, 0.2), (9, 8, 10), "more right"),
        ((0.1, -0.02, 0.2), (9, 8, 10), None),
    ],
)
def test_what_is_claimed_is_shown_by_the_ends_of_the_intervals(
    right: tuple[float, float, float], tokens: tuple[float, float, float], claim: str | None
) -> None:
    change = Change(right, tokens, 0.02)
    assert change.claim(tolerance=0.05) == claim
    assert change.bears("fewer tokens", 0.05) == (claim == "fewer tokens")
    assert change.bears("more right", 0.05) == (claim == "more right")


def test_a_claim_holds_against_every_reference_and_keeps_the_families() -> None:
    longer = Change((0.0, -0.01, 0.01), (3, 1, 5), 0.02)
    assert PolicyScore(0.5, 20, {OFF: FEWER, "as released": longer}, {}).claims(0.05) is None
    both = PolicyScore(0.5, 20, {OFF: FEWER, "as released": FEWER}, {"boxes": 0.0})
    claims = both.claims(0.05)
    assert claims == {OFF: "fewer tokens", "as released": "fewer tokens"} and both.bears(claims, 0.05)
    assert not replace(both, constraints={"boxes": 0.1}).bears(claims, 0.05)
    assert not replace(both, changes={OFF: FEWER, "as released": longer}).bears(claims, 0.05)


def test_where_no_more_is_right_than_may_be_lost_fewer_tokens_claim_nothing() -> None:
    assert score(0.06, 20, (0.0, 0.0, 0.0), -10).claims(0.05) == {OFF: "fewer tokens"}
    assert score(0.05, 20, (0.0, 0.0, 0.0), -10).claims(0.05) is None
    assert score(0.0, 20, (0.0, 0.0, 0.0), -10).claims(0.0) is None
    assert score(0.3, 40, (0.3, 0.1, 0.5), 10).claims(0.05) == {OFF: "more right"}


def test_of_equally_right_policies_the_one_that_writes_least_is_chosen() -> None:
    kept = score(0.50, 20, (0.0, -0.04, 0.04), -10)
    better_by_noise = score(0.51, 25, (0.01, -0.03, 0.05), -5)
    lost = score(0.40, 5, (-0.1, -0.2, -0.02), -25)
    harmful = score(0.50, 10, (0.0, 0.0, 0.0), -20, harm=0.2)
    longer = score(0.50, 33, (0.0, 0.0, 0.0), 3)
    assert chosen([kept, better_by_noise, lost, harmful, longer], tolerance=0.05) is kept
    assert chosen([lost, harmful, longer], tolerance=0.05) is None
    more_right = score(0.70, 60, (0.2, 0.1, 0.3), 30)
    assert chosen([kept, more_right], tolerance=0.05) is more_right
    # What answers as the policy off does, to the letter, has no error of its own: that of the best one counts.
    same = score(0.50, 20, (0.0, 0.0, 0.0), -10, stderr=0.0)
    assert chosen([same, better_by_noise], tolerance=0.05) is same
