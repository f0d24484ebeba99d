"""A study of a release's decoding policy: Optuna asks, the engine writes, and what is better by chance alone is not kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from engine.errors import CannotRun
from engine.profile import Profile
from evaluation.errors import DataError
from registry.tracking import Tracking
from tuning.candidates import SCORE_KEY, readable
from tuning.decoding.choice import Change, Claim, PolicyScore, chosen
from tuning.decoding.reading import Bench, Written
from tuning.decoding.records import PARENT_KEY, PolicyRecords
from tuning.decoding.settings import DecodingSearch
from tuning.decoding.space import OFF, POLICY, DecodingSpace
from tuning.records import RUN_KEY
from tuning.space import Value

AS_RELEASED = "as released"
STARTED_KEY, DIGEST_KEY, SAME_KEY = "started", "profile_digest", "same_as"  # user attributes
MAX_REPEATS = 30  # draws in a row of what was tried, before the space counts as used up
_FAILED = (CannotRun, DataError)  # what the same values would meet again


@dataclass(frozen=True)
class PolicyTrial:
    """One finished trial, as it is shown; the score is None where it failed."""

    number: int
    values: Mapping[str, Value]
    score: PolicyScore | None
    failure: str = ""
    run_id: str | None = None  # its MLflow run


@dataclass(frozen=True)
class Confirmed:
    """The chosen trial on items that chose nothing."""

    trial: PolicyTrial
    profile: Profile
    claims: Mapping[str, Claim]
    score: PolicyScore
    better: bool


@dataclass(frozen=True)
class Found:
    """`trials` in order; what was drawn again stands there once. `confirmed` is None where nothing is claimed of any."""

    trials: tuple[PolicyTrial, ...]
    confirmed: Confirmed | None

    @property
    def better(self) -> Confirmed | None:
        """What was shown twice, or None."""
        return self.confirmed if self.confirmed is not None and self.confirmed.better else None


@dataclass(frozen=True)
class PolicyStudy:
    """`subject` is the release's full name, `run_id` its run. `directory` holds the study, one a settings and release."""

    subject: str
    settings: DecodingSearch
    space: DecodingSpace
    bench: Bench
    margins: Mapping[str, float]
    directory: Path
    tracking: Tracking
    run_id: str | None
    note: Callable[[str], None] = lambda text: None
    now: Callable[[], float] = field(default=time.monotonic)

    @cached_property
    def references(self) -> Mapping[str, Profile]:
        """What a policy must be better than, each alone: no policy, and the release's own where it has one."""
        own = self.space.released
        return {OFF: self.space.off, **({AS_RELEASED: own} if own.policy.changes_replies else {})}

    @property
    def name(self) -> str:
        return self.directory.name

    def run(self, on_trial: Callable[[PolicyTrial], None] = lambda trial: None) -> Found:
        """To the number of trials or the end of the time; then the best is tested again, on items that chose nothing."""
        study = self._joined()
        known = study.user_attrs.get(PARENT_KEY)
        records = PolicyRecords.open(self.tracking, self.run_id, known, self.name, self.subject, self.note)
        study.set_user_attr(PARENT_KEY, records.parent)
        self._search(study, records, on_trial)
        trials = tuple(map(_told, _finished(study)))
        found = Found(trials, self._confirmed(trials, records))
        records.close()
        return found

    def score(self, written: Written, confirm: bool = False) -> PolicyScore:
        """Against every reference, on the same items."""
        changes = {
            name: Change.between(self.bench.written(profile, confirm), written) for name, profile in self.references.items()
        }
        constraints = written.constraints(self.bench.of_backbone(confirm), self.margins)
        return PolicyScore(written.accuracy, written.tokens, changes, constraints)

    def _joined(self) -> optuna.Study:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.directory.mkdir(parents=True, exist_ok=True)
        file = self.directory / "optuna.db"
        with readable(file):
            storage = optuna.storages.RDBStorage(f"sqlite:///{file}", engine_kwargs={"connect_args": {"timeout": 60}})
            study = optuna.create_study(
                storage=storage,
                study_name=self.name,
                directions=[StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE],
                load_if_exists=True,
            )
            if not study.trials:
                study.enqueue_trial({POLICY: OFF})
            for stale in study.get_trials(states=(TrialState.RUNNING,)):
                study.tell(stale.number, state=TrialState.FAIL)
                _again(study, stale)
            # The sampler's state is not stored: the same seed after a resume would propose the same points again.
            study.sampler = optuna.samplers.TPESampler(seed=self.settings.seed + len(study.trials), n_startup_trials=6)
        return study

    def _search(self, study: optuna.Study, records: PolicyRecords, on_trial: Callable[[PolicyTrial], None]) -> None:
        started, repeats = self.now(), 0
        while len(done := _finished(study)) < self.settings.trials and repeats < MAX_REPEATS:
            budget = self.settings.time_budget_s
            if done and budget is not None and self.now() - started >= budget:
                self.note(f"the time budget of {budget:.0f} s is used up by {len(done)} trials")
                return
            if done and STARTED_KEY not in study.user_attrs:
                self._enqueue_starts(study)
            trial = study.ask()
            try:
                fresh = self._tried(study, trial, records)
            except BaseException as error:
                study.tell(trial, state=TrialState.FAIL)
                stopped = study.trials[trial.number]
                records.cut_off(stopped.user_attrs.get(RUN_KEY), "KILLED", str(error) or type(error).__name__)
                _again(study, stopped)
                raise
            repeats = 0 if fresh else repeats + 1
            if fresh:
                on_trial(_told(study.trials[trial.number]))
        if repeats == MAX_REPEATS:
            self.note(f"what there is to try is tried: {len(_finished(study))} policies")

    def _tried(self, study: optuna.Study, trial: optuna.Trial, records: PolicyRecords) -> bool:
        """Whether the drawn policy is another one than those before, which are read once only."""
        values = self.space.suggest(trial)
        began = self.now()
        try:
            profile = self.space.profile(values)
            digest = self.bench.digest(profile)
            trial.set_user_attr(DIGEST_KEY, digest)
            if (same := _of_digest(study, digest)) is not None:
                trial.set_user_attr(SAME_KEY, same.number)
                for family, value in same.constraints.items():
                    trial.set_constraint(family, value)
                study.tell(trial, same.values)
                return False
            run_id = records.begin(trial.number, trial.user_attrs.get(RUN_KEY))
            trial.set_user_attr(RUN_KEY, run_id)
            score = self.score(self.bench.written(profile))
        except _FAILED as error:
            trial.set_user_attr("failure", str(error))
            records.cut_off(trial.user_attrs.get(RUN_KEY), "FAILED", str(error))
            # Reported as PRUNED, since samplers do not see failed trials and would propose the same again.
            trial.set_constraint("finished", 1.0)
            study.tell(trial, state=TrialState.PRUNED)
            return True
        trial.set_user_attr(SCORE_KEY, score.as_dict())
        trial.set_user_attr("seconds", self.now() - began)
        for family, value in score.constraints.items():
            trial.set_constraint(family, value)
        records.complete(run_id, values, profile.policy.model_dump(mode="json"), score)
        study.tell(trial, (score.accuracy, score.tokens))
        return True

    def _enqueue_starts(self, study: optuna.Study) -> None:
        lengths = self.bench.written(self.space.off).readings[0].parts["tokens"]
        for point in self.space.starts(lengths):
            study.enqueue_trial(point, skip_if_exists=True)
        study.set_user_attr(STARTED_KEY, True)

    def _confirmed(self, trials: Sequence[PolicyTrial], records: PolicyRecords) -> Confirmed | None:
        scored = {id(trial.score): trial for trial in trials if trial.score is not None}
        best = chosen([trial.score for trial in scored.values() if trial.score is not None], self.settings.tolerance)
        claims = None if best is None else best.claims(self.settings.tolerance)
        if claims is None:
            return None
        trial = scored[id(best)]
        profile = self.space.profile(trial.values)
        score = self.score(self.bench.written(profile, confirm=True), confirm=True)
        better = score.bears(claims, self.settings.tolerance)
        records.confirmed(trial.run_id, score, better)
        return Confirmed(trial, profile, claims, score, better)


def _finished(study: optuna.Study) -> list[FrozenTrial]:
    found = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    return [trial for trial in found if SAME_KEY not in trial.user_attrs]


def _of_digest(study: optuna.Study, digest: str) -> FrozenTrial | None:
    complete = [trial for trial in _finished(study) if trial.state == TrialState.COMPLETE]
    return next((trial for trial in complete if trial.user_attrs.get(DIGEST_KEY) == digest), None)


def _again(study: optuna.Study, trial: FrozenTrial) -> None:
    """The same values, and the same run, once more: what was read of them is kept."""
    values = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
    study.enqueue_trial(values, user_attrs={key: trial.user_attrs[key] for key in (RUN_KEY,) if key in trial.user_attrs})


def _told(trial: FrozenTrial) -> PolicyTrial:
    stored = trial.user_attrs.get(SCORE_KEY)
    score = PolicyScore.of_dict(stored) if stored is not None else None
    return PolicyTrial(trial.number, trial.params, score, trial.user_attrs.get("failure", ""), trial.user_attrs.get(RUN_KEY))
