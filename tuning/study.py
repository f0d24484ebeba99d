"""A study: Optuna asks, a child process fits and measures, MLflow keeps what was found."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from adapters.spec import Choices, Range
from adapters.whole_file import write_whole
from registry.errors import RegistryUnreachable, StoreRefused
from registry.tracking import RunStatus, Tracking
from tuning.candidates import DIRECTORY_KEY, SCORE_KEY, Candidate, candidates_of, readable
from tuning.errors import BadRecipe, StudyMismatch, SweepRefused, SweepStopped
from tuning.isolation import ChildDied, available_threads, prepare
from tuning.memory import run_within_memory
from tuning.recipe import METHOD_NAME, Recipe, narrowed
from tuning.records import RUN_KEY, Records
from tuning.space import Value, defaults, is_active, suggest
from tuning.trial import Job, Outcome

MAX_RETRIES, MAX_DEAD = 1, 3  # of one trial; of trials in a row, before the sweep stops
MAX_ALIKE = 3  # trials that could not be fitted, for the very same reason, before a sweep that has no other stops
ROOM = 1.25  # by which a trial of a kind not yet seen may outlast the longest so far
SEARCH_KEY, FAMILIES_KEY = "search_digest", "not_measurable"  # user attributes of a study
_NUM_OBJECTIVES = {"pareto": 2, "constrained": 1}


@dataclass(frozen=True)
class Event:
    """Something that happened, for whoever shows the sweep."""

    kind: str  # start | fit | measure | complete | pruned | failed | note
    trial: int
    share: float = 0.0
    text: str = ""
    score: dict[str, Any] | None = None
    params: dict[str, Any] | None = None


@dataclass(frozen=True)
class Sweep:
    """One study of one recipe in one home directory."""

    recipe: Recipe
    home: Path
    tracking: Tracking
    threads: int = field(default_factory=available_threads)

    @property
    def directory(self) -> Path:
        return self.home / "studies" / self.recipe.name

    @property
    def storage_url(self) -> str:
        return f"sqlite:///{self.directory / 'optuna.db'}"

    @property
    def exists(self) -> bool:
        """Whether a study of this name was begun in this home."""
        return (self.directory / "optuna.db").is_file()

    def create(self, resume: bool = False) -> optuna.Study:
        """Makes the study, or joins the one of the same recipe; finished trials count."""
        points = self._points()
        with suppress(StoreRefused):  # a store that is away is said before there is a study; one that only refuses is noted later
            self.tracking.create()
        self.directory.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with readable(self.directory / "optuna.db"):
            return self._joined(points, resume)

    def _points(self) -> list[dict[str, Value]]:
        """What is tried first: the recipe's own values and its start points. A value out of its range is refused here."""
        points = [defaults(self.recipe)]
        for number, point in enumerate(self.recipe.start):
            method = {name: value for name, value in point.items() if name == METHOD_NAME}
            for name, value in point.items():
                where = f"start, point {number + 1}, gives {name!r} the value {value!r}"
                try:
                    under = self.recipe.with_values({**method, name: value})
                except BadRecipe as error:
                    raise BadRecipe(f"{where}, which a recipe cannot have: {error}") from error
                if not is_active(name, self.recipe.adapter.kind, under.method.name) and name.startswith("method."):
                    raise BadRecipe(
                        f"{where}, but the method {under.method.name!r} does not search it. Leave it out of the point."
                    )
                if (searched := _outside(narrowed(self.recipe, name, under.method.name), value)) is not None:
                    raise BadRecipe(f"{where}, but the sweep searches {searched}. Correct the value, or widen [ranges].")
            points.append({**defaults(self.recipe.with_values(dict(point))), **point})
        for values in points:
            self.recipe.with_values(dict(values))
        return points

    def _joined(self, points: list[dict[str, Value]], resume: bool) -> optuna.Study:
        storage = optuna.storages.RDBStorage(self.storage_url, engine_kwargs={"connect_args": {"timeout": 60}})
        exists = self.recipe.name in optuna.study.get_all_study_names(storage)
        if exists and not resume:
            raise StudyMismatch(
                f"A study named {self.recipe.name!r} is in {self.directory} already. "
                "Go on with it by --resume, or give the recipe another name."
            )
        study = optuna.create_study(
            storage=storage,
            study_name=self.recipe.name,
            directions=[StudyDirection.MAXIMIZE] * _NUM_OBJECTIVES[self.recipe.study.mode],
            load_if_exists=True,
        )
        digest = search_digest(self.recipe)
        if study.user_attrs.get(SEARCH_KEY, digest) != digest:
            raise StudyMismatch(
                f"The study {self.recipe.name!r} was started with another recipe (digest "
                f"{study.user_attrs[SEARCH_KEY][:12]}, now {digest[:12]}). Restore the recipe, or give it another name."
            )
        if SEARCH_KEY not in study.user_attrs:  # set last: a kill before it leaves points to enqueue
            for point in points:
                study.enqueue_trial(point, skip_if_exists=True)
            study.set_user_attr(SEARCH_KEY, digest)
        for stale in study.get_trials(states=(TrialState.RUNNING,)):
            study.tell(stale.number, state=TrialState.FAIL)
            _try_again(study, stale)
        # The sampler's state is not stored: the same seed after a resume would propose the same points again.
        seed = self.recipe.study.seed + len(study.trials)
        study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=4)
        return study

    def run(self, study: optuna.Study, on_event: Callable[[Event], None]) -> None:
        """Trials until the recipe's number of finished ones or its time is reached. However it ends, the study's run says so."""
        prepare(self.recipe.domain)
        records = Records.open(self.tracking, self.recipe, study, lambda text: on_event(Event("note", -1, text=text)))
        try:
            self._search(study, records, on_event)
        except BaseException as error:
            self._close(study, records, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED", str(error))
            if isinstance(error, SweepRefused) and not finished(study):
                optuna.delete_study(study_name=study.study_name, storage=self.storage_url)
            if isinstance(error, RegistryUnreachable):
                kept = len(finished(study))
                raise SweepStopped(f"{error} What was tried so far is kept ({kept} trials): go on with --resume.") from error
            raise
        self._close(study, records, "FINISHED")

    def candidates(self, study: optuna.Study) -> list[Candidate]:
        """Finished trials, the one to gate first at the front: by `in_order`."""
        return candidates_of(study)

    def has_time(self, study: optuna.Study, spent_s: float) -> bool:
        """Whether another trial may start."""
        budget = self.recipe.study.time_budget_s
        if budget is None:
            return True
        complete = sum(trial.state == TrialState.COMPLETE for trial in finished(study))
        if not finished(study) or complete < self.recipe.study.min_trials:
            return spent_s <= 2 * budget
        return spent_s + ROOM * _longest_seconds(study) <= budget

    def _search(self, study: optuna.Study, records: Records, on_event: Callable[[Event], None]) -> None:
        started, dead = time.monotonic(), list[FrozenTrial]()
        while len(finished(study)) < self.recipe.study.trials:
            if not self.has_time(study, time.monotonic() - started):
                budget = self.recipe.study.time_budget_s
                on_event(Event("note", -1, text=f"time budget of {budget:.0f} s is used up by {len(finished(study))} trials"))
                break
            trial = study.ask()
            try:
                recipe, outcome = self._run_trial(trial, on_event)
            except BaseException:
                study.tell(trial, state=TrialState.FAIL)
                _try_again(study, study.trials[trial.number])
                raise
            try:
                run_id = records.trial(trial.number, recipe, outcome)
                trial.set_user_attr(RUN_KEY, run_id)
            finally:  # a store that is away stops the sweep, but not before Optuna has the trial
                self._tell(study, trial, outcome, on_event)
            self._note_families(study, outcome, on_event)
            if outcome.state != "died":
                dead.clear()
                _require_another_end(study)
                continue
            dead.append(study.trials[trial.number])
            if len(dead) == MAX_DEAD:
                for given_up in dead:
                    if _tries(given_up) >= MAX_RETRIES:
                        study.enqueue_trial(given_up.params, user_attrs=_continued(given_up))
                raise SweepStopped(
                    f"{MAX_DEAD} trials in a row died, the last of: {_last_line(outcome.reason)} "
                    "Look for the cause outside the recipe (memory, disk, devices), then go on with --resume."
                )

    def _run_trial(self, trial: optuna.Trial, on_event: Callable[[Event], None]) -> tuple[Recipe, Outcome]:
        """The trial's own recipe, and what came of it."""
        values = suggest(trial, self.recipe)
        recipe = self.recipe.with_values(dict(values))
        # A trial that is tried again goes on from the checkpoint of the one that died.
        directory = Path(trial.user_attrs.get(DIRECTORY_KEY, self.directory / "trials" / str(trial.number)))
        trial.set_user_attr(DIRECTORY_KEY, str(directory))
        on_event(Event("start", trial.number, params=values))

        def report(phase: str, share: float) -> None:
            if phase in ("fit", "measure"):
                on_event(Event(phase, trial.number, share))
            elif phase == "admission" and share == 0:
                on_event(Event("note", -1, text="reads once what this backbone can do; minutes"))

        reference, started = values == defaults(self.recipe), time.monotonic()
        job = Job(recipe, directory, self.home / "cache", self.threads, reference)
        try:
            outcome = run_within_memory(job, report, self.recipe.study.stall_timeout_s)
        except ChildDied as died:
            outcome = Outcome(state="died", reason=str(died))
        trial.set_user_attr("seconds", time.monotonic() - started)
        return recipe, outcome

    def _tell(self, study: optuna.Study, trial: optuna.Trial, outcome: Outcome, on_event: Callable[[Event], None]) -> None:
        """Optuna's side of an outcome. Raises SweepRefused for one that every trial would have."""
        if outcome.state == "complete":
            trial.set_user_attr(SCORE_KEY, outcome.score)
            for family, value in outcome.score["constraints"].items():
                trial.set_constraint(family, value)
            gain, retention = outcome.score["chosen"]["domain_gain"], outcome.score["retention"]
            study.tell(trial, (gain, retention) if self.recipe.study.mode == "pareto" else gain)
            on_event(Event("complete", trial.number, 1.0, score=outcome.score, params=trial.params))
            return
        trial.set_user_attr("failure", outcome.reason)
        if outcome.state == "failed":
            # Reported as PRUNED, since samplers do not see failed trials and would propose the same again.
            trial.set_constraint("finished", 1.0)
            study.tell(trial, state=TrialState.PRUNED)
            on_event(Event("pruned", trial.number, text=outcome.reason))
            return
        study.tell(trial, state=TrialState.FAIL)
        again = _try_again(study, study.trials[trial.number])
        if outcome.state == "refused":
            raise SweepRefused(outcome.reason)
        on_event(Event("failed", trial.number, text=f"{_last_line(outcome.reason)}{' (tried again)' if again else ''}"))

    def _note_families(self, study: optuna.Study, outcome: Outcome, on_event: Callable[[Event], None]) -> None:
        """Says once which protected families constrain no trial."""
        if outcome.state not in ("complete", "failed") or FAMILIES_KEY in study.user_attrs:
            return
        study.set_user_attr(FAMILIES_KEY, outcome.not_measurable)
        for family, reason in outcome.not_measurable.items():
            on_event(Event("note", -1, text=f"{family} constrains no trial, since it is not measurable: {reason}"))

    def _close(self, study: optuna.Study, records: Records, status: RunStatus, reason: str = "") -> None:
        from tuning.pictures import pareto_picture

        ordered, families = self.candidates(study), study.user_attrs.get(FAMILIES_KEY, {})
        table = {"study": study.study_name, "not_measurable": families, "trials": trials_table(study)}
        write_whole(self.directory / "trials.json", json.dumps(table, indent=2))
        tags: dict[str, object] = {f"protected.{name}": f"not measurable: {why}" for name, why in families.items()}
        if ordered:
            tags |= {"chosen_trial": ordered[0].trial, "chosen_feasible": ordered[0].feasible}
        if reason:
            tags["failure"] = reason[:5000]
        picture = pareto_picture(study, ordered, self.directory / "pareto.png") if status == "FINISHED" else None
        records.close(tags, table, picture, status)


def _outside(mark: Range | Choices, value: Value) -> str | None:
    """What is searched, where the value is not in it: Optuna would quietly draw another."""
    if isinstance(mark, Choices):
        return None if value in mark.options else f"{list(mark.options)}"
    inside = isinstance(value, int | float) and mark.low <= value <= mark.high
    return None if inside else f"[{mark.low:g}, {mark.high:g}]"


def finished(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def _require_another_end(study: optuna.Study) -> None:
    """Raises SweepStopped where all trials so far ended for the very same reason: what is searched does not touch it."""
    done = finished(study)
    reasons = {trial.user_attrs.get("failure") for trial in done}
    if len(done) >= MAX_ALIKE and len(reasons) == 1 and (reason := reasons.pop()):
        raise SweepStopped(
            f"No trial of {len(done)} could be fitted, each for the same reason, which what is searched does not touch: {reason} "
            "Change the recipe and its name, or try one more trial with --resume."
        )


def search_digest(recipe: Recipe) -> str:
    """Of what must not change between the trials of one study: everything but its length and patience."""
    length = {"trials": 1, "time_budget_s": None, "min_trials": 0, "stall_timeout_s": 1.0}
    return recipe.model_copy(update={"study": recipe.study.model_copy(update=length)}).digest()


def trials_table(study: optuna.Study) -> list[dict[str, Any]]:
    """One row a trial, in order, readable without Optuna."""
    return [
        {
            "trial": trial.number,
            "state": trial.state.name,
            "params": trial.params,
            "score": trial.user_attrs.get(SCORE_KEY),
            "seconds": trial.user_attrs.get("seconds"),
            "failure": trial.user_attrs.get("failure"),
        }
        for trial in study.trials
    ]


def _try_again(study: optuna.Study, trial: FrozenTrial) -> bool:
    """Enqueues the same values once more, up to a limit; False when the limit is reached."""
    if _tries(trial) >= MAX_RETRIES:
        return False
    study.enqueue_trial(trial.params, user_attrs={"tries": _tries(trial) + 1, **_continued(trial)})
    return True


def _continued(trial: FrozenTrial) -> dict[str, Any]:
    """What ties a trial to the one that it goes on from: its number, and the directory with the checkpoint of its fit."""
    kept = {key: value for key, value in trial.user_attrs.items() if key == DIRECTORY_KEY}
    return {"retry_of": trial.number, **kept}


def _tries(trial: FrozenTrial) -> int:
    return int(trial.user_attrs.get("tries", 0))


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


def _longest_seconds(study: optuna.Study) -> float:
    """Kinds differ in what they take: a trial that may start must be able to be the longest."""
    return max((float(trial.user_attrs["seconds"]) for trial in finished(study) if "seconds" in trial.user_attrs), default=0.0)
