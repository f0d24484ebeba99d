"""A worker: asks a study for one trial after another, runs each in a child process, and tells what came of it.

Any number of workers, on any machine that reaches the study's database, share one study: its length is counted over all of them.
"""

from __future__ import annotations

import os
import socket
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from tuning.asked import wish
from tuning.budget import BEGAN_KEY, RESUMED_KEY, RETRY_KEY, SECONDS_KEY, WORKER_KEY, left
from tuning.candidates import DIRECTORY_KEY, SCORE_KEY
from tuning.errors import Preempted, SweepRefused, SweepStopped
from tuning.isolation import ChildDied
from tuning.kept_weights import remove_unneeded
from tuning.memory import run_within_memory
from tuning.recipe import Recipe
from tuning.records import RUN_KEY, Records
from tuning.retries import (
    FAILURE_KEY,
    MAX_RETRIES,
    TRIES_KEY,
    Enqueue,
    continued,
    hand_back,
    kept_outcome,
    note_again,
    note_asked,
    tries,
    try_again,
    unshared,
)
from tuning.space import defaults, suggest
from tuning.stop_curve import FitReading
from tuning.stop_judge import StopJudge
from tuning.storage import beating, is_away
from tuning.trial import Job, Outcome

MAX_DEAD = 3  # trials in a row that died, before a worker stops
MAX_ALIKE = 3  # trials that could not be fitted, for the very same reason, before a sweep that has no other stops
FAMILIES_KEY = "not_measurable"  # user attribute of a study
_POLL_S = 1.0


@dataclass(frozen=True)
class Event:
    """Something that happened, for whoever shows the sweep."""

    kind: str  # start | fit | probe | measure | complete | pruned | failed | note
    trial: int
    share: float = 0.0
    text: str = ""
    score: dict[str, Any] | None = None
    params: dict[str, Any] | None = None


@dataclass(frozen=True)
class Worker:
    """One process's part in a study. `directory` is where it keeps the trials, `cache` what it read of the backbone."""

    recipe: Recipe
    study: optuna.Study
    storage: RDBStorage
    records: Records
    directory: Path
    cache: Path
    threads: int
    on_event: Callable[[Event], None]
    ended: Callable[[], bool] = lambda: False  # whether it was told to end

    def search(self) -> None:
        """Trials until the study has as many finished ones as it wants, its time or cost is used up, or it is stopped.

        Preempted when it was told to end; SweepRefused and SweepStopped for what trying on cannot mend.
        """
        dead = list[FrozenTrial]()
        while self._has_work():
            trial = _asked(self.study)
            if self._is_surplus(trial):
                continue
            with beating(self.storage, trial):
                outcome = self._told(trial)
            self._make_room()
            if outcome.state != "died":
                dead.clear()
                self._require_another_end()
                continue
            dead.append(self.study.trials[trial.number])
            if len(dead) == MAX_DEAD:
                self._give_up(dead, outcome.reason)

    def _has_work(self) -> bool:
        """Waits while the study is paused, and while other workers run all that is wanted: one of them may be lost."""
        paused = False
        while True:
            if self.ended():
                raise Preempted("The worker was told to end. What it had begun is tried again: start it, or --resume the sweep.")
            fail_stale(self.study)
            asked = wish(self.study)
            if asked == "stop":
                self.on_event(Event("note", -1, text="the study was stopped: --resume lets it go on"))
                return False
            if asked == "pause" and not paused:
                self.on_event(Event("note", -1, text=f"the study is paused: graftline sweep resume {self.study.study_name}"))
            paused = asked == "pause"
            if not paused:
                found = left(self.study, self.recipe)
                if found.may_begin:
                    return True
                if not found.may_come:
                    if found.trials:
                        more = f"graftline sweep extend {self.study.study_name}"
                        self.on_event(Event("note", -1, text=f"{found.used_up}; more: {more}"))
                    return False
            time.sleep(_POLL_S)

    def _make_room(self) -> None:
        """Removes weights that are no longer needed. A disk that refuses it is no reason to lose a trial."""
        try:
            remove_unneeded(self.study, self.recipe)
        except OSError as error:
            self.on_event(Event("note", -1, text=f"weights that are no longer needed stay: {error}"))

    def _is_surplus(self, trial: optuna.Trial) -> bool:
        """Workers that look at the same moment may begin more than is wanted or paid for: the larger numbers are given back."""
        again = trial.user_attrs.get(RETRY_KEY)
        if again is not None and any(one.user_attrs.get(RETRY_KEY) == again for one in self.study.trials[: trial.number]):
            # The answer of the database to the first was lost, or two workers found its worker dead at once.
            self._leave(trial, f"given back: trial {again} was enqueued twice", None)
            return True
        if left(self.study, self.recipe, before=trial.number).may_begin:
            return False
        # One that was enqueued is still to come, where the study is extended or what runs now dies.
        self._leave(trial, "given back: another worker had begun the last trial that was wanted or paid for", hand_back)
        return True

    def _told(self, trial: optuna.Trial) -> Outcome:
        """Runs the trial, logs its run and tells the study."""
        try:
            recipe, directory, outcome, took_s = self._run(trial)
            # First of all: a trial that is no longer this worker's is logged by the one that tries it again.
            trial.set_user_attr(SECONDS_KEY, took_s)
        except UpdateFinishedTrialError:
            return self._given_up(trial)
        except BaseException as error:
            if is_away(error):
                raise
            told_to = isinstance(error, Preempted | KeyboardInterrupt)
            reason = "its worker was told to end" if told_to else f"its worker ended: {type(error).__name__}: {error}"
            self._leave(trial, reason, hand_back if told_to else try_again)
            raise
        run_id = self.records.trial(trial.number, directory, recipe, outcome)
        try:
            trial.set_user_attr(RUN_KEY, run_id)
            self._tell(trial, outcome)
        except UpdateFinishedTrialError:
            return self._given_up(trial)
        self._note_families(outcome)
        return outcome

    def _given_up(self, trial: optuna.Trial) -> Outcome:
        text = "was given up by another worker, which heard nothing of this one; who tries it again finds the result"
        self.on_event(Event("failed", trial.number, text=text))
        return Outcome(state="stopped", reason=text)

    def _leave(self, trial: optuna.Trial, reason: str, enqueue: Enqueue | None) -> None:
        """Fails the trial and enqueues it, where no other worker has done so already."""
        try:
            trial.set_user_attr(FAILURE_KEY, reason)
            if enqueue is not None:
                note_again(trial, enqueue)
            self.study.tell(trial, state=TrialState.FAIL)
        except (UpdateFinishedTrialError, ValueError):  # ValueError: Optuna's word for one that was finished before
            return
        if enqueue is not None:
            enqueue(self.study, self.study.trials[trial.number])

    def _run(self, trial: optuna.Trial) -> tuple[Recipe, Path, Outcome, float]:
        """The trial's own recipe, its directory, what came of it, and the seconds that it took."""
        values = suggest(trial, self.recipe)
        recipe = self.recipe.with_values(dict(values))
        reference = values == defaults(self.recipe)
        # A trial that is tried again goes on from the checkpoint of the one that died, or was lost after its result.
        known = Path(trial.user_attrs[DIRECTORY_KEY]) if DIRECTORY_KEY in trial.user_attrs else None
        with unshared(known, self.directory / "trials" / str(trial.number)) as directory:
            trial.set_user_attr(DIRECTORY_KEY, str(directory))
            trial.set_user_attr(WORKER_KEY, f"{socket.gethostname()}:{os.getpid()}")
            trial.set_user_attr(BEGAN_KEY, time.time())
            self.on_event(Event("start", trial.number, params=values))
            job = Job(recipe, directory, self.cache, self.threads, reference)
            outcome, took_s = (directory == known and self._resumed(job, trial)) or self._fitted(job, trial)
        return recipe, directory, outcome, took_s

    def _resumed(self, job: Job, trial: optuna.Trial) -> tuple[Outcome, float] | None:
        """What the trial that this one goes on from had found when its worker was lost; None where it had not ended."""
        kept = kept_outcome(job.directory, job.recipe, job.reference)
        if kept is None:
            return None
        took_s = sum(kept.seconds.values())
        trial.set_user_attr(BEGAN_KEY, time.time() - took_s)
        trial.set_user_attr(RESUMED_KEY, True)
        return kept, took_s

    def _fitted(self, job: Job, trial: optuna.Trial) -> tuple[Outcome, float]:
        note_asked(job.directory, job.recipe, job.reference)
        started = time.monotonic()
        outcome = self._isolated(job, trial)
        return outcome, time.monotonic() - started

    def _isolated(self, job: Job, trial: optuna.Trial) -> Outcome:
        number = trial.number

        def report(phase: str, share: float) -> None:
            if phase in ("fit", "measure"):
                self.on_event(Event(phase, number, share))
            elif phase == "admission" and share == 0:
                self.on_event(Event("note", -1, text="reads once what this backbone can do; minutes"))

        def on_reading(reading: FitReading) -> None:
            self.on_event(Event("probe", number, reading.checkpoint, str(reading), reading.told))

        # The recipe's own values are what the others are compared with: they are read, and never stopped.
        judge = StopJudge(self.study, trial, self.recipe.study.stop, job.reference, on_reading)
        try:
            outcome = run_within_memory(job, report, self.recipe.study.stall_timeout_s, self.ended, judge)
        except ChildDied as died:
            outcome = Outcome(state="died", reason=str(died))
        return outcome.model_copy(update={"curve": judge.curve})

    def _tell(self, trial: optuna.Trial, outcome: Outcome) -> None:
        """Optuna's side of an outcome. Raises SweepRefused for one that every trial would have."""
        if outcome.state == "complete":
            trial.set_user_attr(SCORE_KEY, outcome.score)
            for family, value in outcome.score["constraints"].items():
                trial.set_constraint(family, value)
            gain, retention = outcome.score["chosen"]["domain_gain"], outcome.score["retention"]
            values = (gain, retention) if self.recipe.study.mode == "pareto" else gain
            self.study.tell(trial, values, skip_if_finished=True)
            self.on_event(Event("complete", trial.number, 1.0, score=outcome.score, params=trial.params))
            return
        trial.set_user_attr(FAILURE_KEY, outcome.reason)
        if outcome.state in ("stopped", "failed"):
            # Reported as PRUNED, since samplers do not see failed trials and would propose the same again.
            if outcome.state == "failed":  # of one that was stopped, its judge has said how far it is from feasible
                trial.set_constraint("finished", 1.0)
            self.study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
            self.on_event(Event("pruned", trial.number, text=outcome.reason))
            return
        note_again(trial, try_again)
        self.study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
        again = try_again(self.study, self.study.trials[trial.number])
        if outcome.state == "refused":
            raise SweepRefused(outcome.reason)
        self.on_event(Event("failed", trial.number, text=f"{_last_line(outcome.reason)}{' (tried again)' if again else ''}"))

    def _note_families(self, outcome: Outcome) -> None:
        """Says once which protected families constrain no trial."""
        if outcome.state not in ("complete", "stopped", "failed") or FAMILIES_KEY in self.study.user_attrs:
            return
        self.study.set_user_attr(FAMILIES_KEY, outcome.not_measurable)
        for family, reason in outcome.not_measurable.items():
            self.on_event(Event("note", -1, text=f"{family} constrains no trial, since it is not measurable: {reason}"))

    def _require_another_end(self) -> None:
        """Raises SweepStopped where all trials so far ended for the very same reason: what is searched does not touch it."""
        done = finished(self.study)
        reasons = {trial.user_attrs.get(FAILURE_KEY) for trial in done}
        if len(done) >= MAX_ALIKE and len(reasons) == 1 and (reason := reasons.pop()):
            raise SweepStopped(
                f"No trial of {len(done)} could be fitted, each for the same reason, which what is searched does not touch: "
                f"{reason} Change the recipe and its name, or try one more trial with --resume."
            )

    def _give_up(self, dead: list[FrozenTrial], reason: str) -> None:
        for trial in dead:
            if tries(trial) >= MAX_RETRIES:
                anew = {key: value for key, value in continued(trial).items() if key != TRIES_KEY}
                self.study.enqueue_trial(trial.params, user_attrs=anew)
        raise SweepStopped(
            f"{MAX_DEAD} trials in a row died, the last of: {_last_line(reason)} "
            "Look for the cause outside the recipe (memory, disk, devices), then go on with --resume."
        )


def finished(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def running(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def fail_stale(study: optuna.Study) -> None:
    """Gives up the trials whose worker has not been heard of for the grace period; they are tried again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        optuna.storages.fail_stale_trials(study)


def _asked(study: optuna.Study) -> optuna.Trial:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that only Optuna's own loop beats: so does `beating`
        return study.ask()


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1]
