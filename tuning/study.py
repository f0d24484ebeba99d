"""A study: Optuna asks, a child process fits and measures, MLflow keeps what was found."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from registry.errors import RegistryError
from registry.tracking import Tracking
from tuning.errors import StudyMismatch
from tuning.isolation import ChildDied, prepare, run_isolated
from tuning.recipe import Recipe
from tuning.space import defaults, suggest
from tuning.trial import ADAPTER, Job, Outcome

MAX_RETRIES = 2
SEARCH_KEY, DIRECTORY_KEY, RUN_KEY, SCORE_KEY = "search_digest", "directory", "mlflow_run_id", "score"
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
class Candidate:
    """A finished trial that may be published."""

    trial: int
    directory: Path
    params: dict[str, Any]
    score: dict[str, Any]
    run_id: str | None

    @property
    def feasible(self) -> bool:
        return bool(self.score["feasible"])

    @property
    def domain_gain(self) -> float:
        return float(self.score["chosen"]["domain_gain"])

    @property
    def retention(self) -> float:
        return float(self.score["retention"])


@dataclass(frozen=True)
class Sweep:
    """One study of one recipe in one home directory."""

    recipe: Recipe
    home: Path
    tracking: Tracking
    threads: int = 2

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
        first = defaults(self.recipe)
        points = [first, *({**first, **point} for point in self.recipe.start)]
        for point in points:
            self.recipe.with_values(dict(point))  # refuses a value out of its range before anything is written
        self.directory.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
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
        if not exists:
            for point in points:
                study.enqueue_trial(point)
            study.set_user_attr(SEARCH_KEY, digest)
        for stale in study.get_trials(states=(TrialState.RUNNING,)):
            study.tell(stale.number, state=TrialState.FAIL)
            _try_again(study, stale)
        # The sampler's state is not stored: the same seed after a resume would propose the same points again.
        seed = self.recipe.study.seed + len(study.trials)
        study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=4)
        return study

    def run(self, study: optuna.Study, on_event: Callable[[Event], None]) -> None:
        """Trials until the recipe's number of finished ones or its time is reached."""
        prepare()
        parent = self._parent_run(study, on_event)
        started, budget = time.monotonic(), self.recipe.study.time_budget_s
        while len(finished(study)) < self.recipe.study.trials:
            spent = time.monotonic() - started
            if budget is not None and finished(study) and spent + 0.8 * _mean_seconds(study) > budget:
                on_event(Event("note", -1, text=f"time budget of {budget:.0f} s is used up by {len(finished(study))} trials"))
                break
            trial = study.ask()
            try:
                values = self._objective(trial, parent, on_event)
            except optuna.TrialPruned as pruned:
                study.tell(trial, state=TrialState.PRUNED)
                on_event(Event("pruned", trial.number, text=str(pruned)))
            except ChildDied as died:
                trial.set_user_attr("failure", str(died))
                study.tell(trial, state=TrialState.FAIL)
                again = _try_again(study, study.trials[trial.number])
                on_event(
                    Event("failed", trial.number, text=f"{str(died).strip().splitlines()[-1]}{' (tried again)' if again else ''}")
                )
                if not again:
                    raise
            except BaseException:
                study.tell(trial, state=TrialState.FAIL)
                _try_again(study, study.trials[trial.number])
                raise
            else:
                study.tell(trial, values)
        self._close_parent(study, parent, on_event)

    def candidates(self, study: optuna.Study) -> list[Candidate]:
        """Finished trials, the one to gate first at the front: feasible ones by gain, then the rest by retention."""
        return in_order([_candidate(trial) for trial in study.get_trials(states=(TrialState.COMPLETE,))])

    def _objective(self, trial: optuna.Trial, parent: str | None, on_event: Callable[[Event], None]) -> tuple[float, ...]:
        values = suggest(trial, self.recipe)
        recipe = self.recipe.with_values(dict(values))
        directory = self.directory / "trials" / str(trial.number)
        trial.set_user_attr(DIRECTORY_KEY, str(directory))
        on_event(Event("start", trial.number, params=values))
        job = Job(recipe, directory, self.home / "cache" / "base", self.threads)
        started = time.monotonic()
        outcome = run_isolated(job, lambda phase, share: on_event(Event(phase, trial.number, share)))
        trial.set_user_attr("seconds", time.monotonic() - started)
        run_id = self._log_trial(trial, recipe, outcome, parent, on_event)
        if run_id is not None:
            trial.set_user_attr(RUN_KEY, run_id)
        if outcome.state == "failed":
            # Reported as PRUNED, since samplers do not see failed trials and would propose the same again.
            trial.set_user_attr("failure", outcome.reason)
            trial.set_constraint("finished", 1.0)
            raise optuna.TrialPruned(outcome.reason)
        trial.set_user_attr(SCORE_KEY, outcome.score)
        for family, value in outcome.score["constraints"].items():
            trial.set_constraint(family, value)
        on_event(Event("complete", trial.number, 1.0, score=outcome.score, params=values))
        gain, retention = outcome.score["chosen"]["domain_gain"], outcome.score["retention"]
        return (gain, retention) if self.recipe.study.mode == "pareto" else (gain,)

    def _parent_run(self, study: optuna.Study, on_event: Callable[[Event], None]) -> str | None:
        known = study.user_attrs.get(RUN_KEY)
        if known is not None:
            return str(known)
        try:
            run_id = self.tracking.create().start_run(
                self.recipe.name, f"study {self.recipe.name}", tags={"optuna.study": study.study_name}
            )
            self.tracking.log_dict(run_id, self.recipe.model_dump(mode="json"), "recipe.json")
        except RegistryError as error:
            on_event(Event("note", -1, text=f"not tracked: {error}"))
            return None
        study.set_user_attr(RUN_KEY, run_id)
        return run_id

    def _log_trial(
        self, trial: optuna.Trial, recipe: Recipe, outcome: Outcome, parent: str | None, on_event: Callable[[Event], None]
    ) -> str | None:
        """A sweep does not fail because tracking does: the result is on disk either way."""
        if parent is None:
            return None
        try:
            tags = {"optuna.study": self.recipe.name, "optuna.trial": str(trial.number), "outcome": outcome.state}
            run_id = self.tracking.start_run(self.recipe.name, f"trial {trial.number}", parent=parent, tags=tags)
            self.tracking.log_params(
                run_id, flat(recipe.model_dump(mode="json", include={"adapter", "method", "backbone", "domain"}))
            )
            self.tracking.set_tags(run_id, {"data_digest": outcome.data_digest, "recipe_digest": recipe.digest()})
            if outcome.state == "failed":
                self.tracking.set_tags(run_id, {"failure": outcome.reason[:5000]})
            else:
                for step, loss in enumerate(outcome.fit["losses"]):
                    self.tracking.log_metrics(run_id, {"fit/loss": loss}, step=step)
                self.tracking.log_metrics(run_id, trial_metrics(outcome))
            self.tracking.log_dict(run_id, outcome.model_dump(mode="json"), "result.json")
            self.tracking.end_run(run_id, "FINISHED" if outcome.state == "complete" else "FAILED")
        except RegistryError as error:
            on_event(Event("note", trial.number, text=f"not tracked: {error}"))
            return None
        return run_id

    def _close_parent(self, study: optuna.Study, parent: str | None, on_event: Callable[[Event], None]) -> None:
        from tuning.pictures import pareto_picture

        picture = pareto_picture(study, self.candidates(study), self.directory / "pareto.png")
        table = trials_table(study)
        (self.directory / "trials.json").write_text(json.dumps(table, indent=2))
        if parent is None:
            return
        try:
            self.tracking.log_artifact(parent, picture)
            self.tracking.log_dict(parent, {"trials": table}, "trials.json")
            ordered = self.candidates(study)
            if ordered:
                self.tracking.set_tags(parent, {"chosen_trial": ordered[0].trial, "chosen_feasible": ordered[0].feasible})
            self.tracking.end_run(parent)
        except RegistryError as error:
            on_event(Event("note", -1, text=f"not tracked: {error}"))


def in_order(candidates: list[Candidate]) -> list[Candidate]:
    """Feasible ones first: of those within one standard error of the largest gain, the one that loses least; then the rest.

    Those that are not feasible follow by retention.
    """
    largest = max((c.domain_gain for c in candidates if c.feasible), default=0.0)

    def rank(candidate: Candidate) -> tuple[bool, bool, float, float]:
        near = candidate.domain_gain + float(candidate.score["chosen"]["gain_stderr"]) >= largest
        return candidate.feasible, candidate.feasible and near, candidate.retention, candidate.domain_gain

    return sorted(candidates, key=rank, reverse=True)


def stored_candidates(home: Path, name: str) -> list[Candidate]:
    """The finished trials of a study by its name, best first; empty when there is no such study."""
    file = home / "studies" / name / "optuna.db"
    if not file.is_file():
        return []
    study = optuna.load_study(study_name=name, storage=f"sqlite:///{file}")
    return in_order([_candidate(trial) for trial in study.get_trials(states=(TrialState.COMPLETE,))])


def finished(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def search_digest(recipe: Recipe) -> str:
    """Of what must not change between the trials of one study: everything but its length."""
    return recipe.model_copy(update={"study": recipe.study.model_copy(update={"trials": 1, "time_budget_s": None})}).digest()


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted name."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out


def trial_metrics(outcome: Outcome) -> dict[str, float]:
    score, chosen = outcome.score, outcome.score["chosen"]
    return {
        "domain/gain": chosen["domain_gain"],
        "domain/accuracy": chosen["domain_accuracy"],
        "retention/mean_capped": score["retention"],
        "scale": chosen["scale"],
        "kl/forward": score["forward_kl"],
        "feasible": float(score["feasible"]),
        "memory/peak_mib": outcome.peak_memory_mib,
        "fit/tokens_per_s": outcome.fit["tokens_per_s"],
        **{f"retention/chain/{family}": value for family, value in chosen["chain_changes"].items()},
        **{f"retention/written/{family}": value for family, value in score["generated_changes"].items()},
        **{f"constraint/{family}": value for family, value in score["constraints"].items()},
        **{f"seconds/{phase}": value for phase, value in outcome.seconds.items()},
    }


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


def _candidate(trial: FrozenTrial) -> Candidate:
    attributes = trial.user_attrs
    directory = Path(attributes[DIRECTORY_KEY]) / ADAPTER
    return Candidate(trial.number, directory, trial.params, attributes[SCORE_KEY], attributes.get(RUN_KEY))


def _try_again(study: optuna.Study, trial: FrozenTrial) -> bool:
    """Enqueues the same values once more, up to a limit; False when the limit is reached."""
    tries = int(trial.user_attrs.get("tries", 0))
    if tries >= MAX_RETRIES:
        return False
    study.enqueue_trial(trial.params, user_attrs={"tries": tries + 1, "retry_of": trial.number})
    return True


def _mean_seconds(study: optuna.Study) -> float:
    seconds = [trial.user_attrs["seconds"] for trial in finished(study) if "seconds" in trial.user_attrs]
    return sum(seconds) / len(seconds) if seconds else 0.0
