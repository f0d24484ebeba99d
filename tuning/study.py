"""A study: Optuna asks, a child process fits and measures, MLflow keeps what was found."""

from __future__ import annotations

import fcntl
import hashlib
import json
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError, StorageInternalError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from adapters.spec import Choices, Range
from adapters.whole_file import write_whole
from registry.errors import RegistryError, StoreRefused
from registry.tracking import RunStatus, Tracking
from tuning.asked import LENGTH_KEY, ask, take_back
from tuning.budget import SECONDS_KEY, left
from tuning.candidates import SCORE_KEY, Candidate, candidates_of, readable
from tuning.errors import BadRecipe, NoStudy, Preempted, StudyMismatch, SweepRefused
from tuning.isolation import available_threads, prepare
from tuning.kept_weights import remove_unneeded
from tuning.recipe import METHOD_NAME, Recipe, narrowed
from tuning.records import Records, begun
from tuning.retries import enqueue_forgotten, try_lost_again
from tuning.space import Value, defaults, is_active, search_digest
from tuning.stop_curve import CURVE_KEY
from tuning.stop_pruners import pruner_of
from tuning.stop_winner import Settling
from tuning.storage import StudyStorage, is_away
from tuning.study_folder import StudyFolder
from tuning.worker import FAMILIES_KEY, Worker, finished, running
from tuning.worker import Event as Event

SEARCH_KEY, RECIPE_KEY = "search_digest", "recipe"  # user attributes of a study
_NUM_OBJECTIVES = {"pareto": 2, "constrained": 1}


@dataclass(frozen=True)
class Sweep:
    """One study of one recipe, with what this process keeps of it in a home directory. `storage`: None for a file there."""

    recipe: Recipe
    home: Path
    tracking: Tracking
    threads: int = field(default_factory=available_threads)
    storage: StudyStorage | None = None

    @classmethod
    def joined(cls, name: str, home: Path, tracking: Tracking, storage_url: str | None = None) -> Sweep:
        """The sweep of a study that is there already, by its name alone: the recipe is kept with it. NoStudy where it is not."""
        storage = StudyStorage.of(home, name, storage_url)
        absent = NoStudy(
            f"A study is there once `graftline tune` has made it, but {storage.shown} has none that is called {name!r}. Check "
            "its name, --home and --storage, or make it: graftline tune RECIPE --create-only."
        )
        if storage.file is not None and not storage.file.is_file():
            raise absent
        opened = storage.open()
        if name not in optuna.study.get_all_study_names(opened):
            raise absent
        stored = optuna.load_study(study_name=name, storage=opened).user_attrs.get(RECIPE_KEY)
        if stored is None:
            raise absent
        return cls(Recipe.model_validate(stored), home, tracking, storage=storage)

    @property
    def directory(self) -> Path:
        return self.home / "studies" / self.recipe.name

    @property
    def folder(self) -> StudyFolder:
        return StudyFolder(self.directory, self.recipe.name, self.kept_in.shown)

    @property
    def kept_in(self) -> StudyStorage:
        return self.storage or StudyStorage.of(self.home, self.recipe.name)

    @property
    def storage_url(self) -> str:
        return self.kept_in.url

    @property
    def exists(self) -> bool:
        """Whether a study of this name was begun."""
        file = self.kept_in.file
        if file is not None:
            return file.is_file()
        return self.recipe.name in optuna.study.get_all_study_names(self.kept_in.open())

    def create(self, resume: bool = False, instead: Collection[str] = ()) -> optuna.Study:
        """Makes the study, or joins the one of the same recipe; finished trials count.

        `instead`: limits of the recipe, by name, that hold in place of what the study was extended to.
        """
        points = self._points()
        self.kept_in.refuse_shared_with(self.tracking.uri)
        with suppress(StoreRefused):  # a store that is away is said before there is a study; one that only refuses is noted later
            self.tracking.create()
        if (file := self.kept_in.file) is not None and not file.is_file():
            self.folder.refuse_to_new()  # before there is a file
        self.directory.mkdir(parents=True, exist_ok=True)
        with self._opened() as storage:
            return self._made(storage, points, resume, instead)

    def create_for_workers(self, resume: bool = False, instead: Collection[str] = ()) -> optuna.Study:
        """As `create`; the study's run is made too, since workers that begin together would each begin one."""
        study = self.create(resume, instead)
        with suppress(RegistryError):  # whatever a store has against it, each worker says
            begun(self.tracking, self.recipe, study, waits=True)
        return study

    def join(self) -> optuna.Study:
        """The study that another process made, for one more worker of it."""
        self.kept_in.refuse_shared_with(self.tracking.uri)
        self.directory.mkdir(parents=True, exist_ok=True)
        with self._opened() as storage:
            study = optuna.load_study(study_name=self.recipe.name, storage=storage)
            self.kept_in.refuse_other_host(study)
            self.folder.refuse_to_other(study)
            enqueue_forgotten(study)
            return self._sampled(study)

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

    def _made(self, storage: RDBStorage, points: list[dict[str, Value]], resume: bool, instead: Collection[str]) -> optuna.Study:
        exists = self.recipe.name in optuna.study.get_all_study_names(storage)
        if exists and not resume:
            raise StudyMismatch(
                f"A study named {self.recipe.name!r} is in {self.kept_in.shown} already. "
                "Go on with it by --resume, or give the recipe another name."
            )
        if not exists:
            self.folder.refuse_to_new()
        study, is_new = self._named(storage)
        digest = search_digest(self.recipe)
        if study.user_attrs.get(SEARCH_KEY, digest) != digest:
            raise StudyMismatch(
                f"The study {self.recipe.name!r} was started with another recipe (digest "
                f"{study.user_attrs[SEARCH_KEY][:12]}, now {digest[:12]}). Restore the recipe, or give it another name."
            )
        self.kept_in.refuse_other_host(study)
        if is_new:
            self.folder.own(study)
        else:
            self.folder.refuse_to_other(study)
        study.set_user_attr(RECIPE_KEY, self.recipe.model_dump(mode="json"))
        study.set_user_attr(LENGTH_KEY, self.recipe.study.trials)
        take_back(study, instead)
        ask(study, "run")
        if SEARCH_KEY not in study.user_attrs:  # set last: a kill before it leaves points to enqueue
            for point in points:
                study.enqueue_trial(point, skip_if_exists=True)
            study.set_user_attr(SEARCH_KEY, digest)
        self._give_up_lost(study)
        enqueue_forgotten(study)
        return self._sampled(study)

    def _named(self, storage: RDBStorage) -> tuple[optuna.Study, bool]:
        """The study, and whether this process made it: of several that do so at once, one does."""
        directions = [StudyDirection.MAXIMIZE] * _NUM_OBJECTIVES[self.recipe.study.mode]
        with suppress(DuplicatedStudyError):
            return optuna.create_study(storage=storage, study_name=self.recipe.name, directions=directions), True
        there = optuna.create_study(storage=storage, study_name=self.recipe.name, directions=directions, load_if_exists=True)
        return there, False

    def _give_up_lost(self, study: optuna.Study) -> None:
        """In a file of this machine: where no worker runs, no trial does. Elsewhere their heartbeats tell."""
        if self.kept_in.is_shared:
            return
        with self._here(fcntl.LOCK_EX) as is_alone:
            for lost in running(study) if is_alone else ():
                study.tell(lost.number, state=TrialState.FAIL)
                try_lost_again(study, lost)

    def _sampled(self, study: optuna.Study) -> optuna.Study:
        # The sampler's state is not stored: the same seed after a resume, or in two workers, would propose the same points again.
        seed = self.recipe.study.seed + len(study.trials)
        if self.kept_in.is_shared or running(study):
            seed = int.from_bytes(hashlib.sha256(f"{seed}/{uuid.uuid4()}".encode()).digest()[:4])
        study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=4)
        study.pruner = pruner_of(self.recipe.study.stop)
        return study

    @contextmanager
    def _opened(self) -> Iterator[RDBStorage]:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        file = self.kept_in.file
        if file is None:
            with self._reached():
                yield self.kept_in.open(try_lost_again)
        else:
            with readable(file):
                yield self.kept_in.open(try_lost_again)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """A database that is away for good is StorageAway."""
        try:
            yield
        except (SQLAlchemyError, StorageInternalError) as error:
            if not is_away(error):
                raise
            raise self.kept_in.away(error) from error

    @contextmanager
    def _here(self, how: int) -> Iterator[bool]:
        """Holds the file that says whether workers of this home run; whether it could be held that way."""
        with (self.directory / "workers.lock").open("a") as lock:
            try:
                fcntl.flock(lock, how if how == fcntl.LOCK_SH else how | fcntl.LOCK_NB)
            except OSError:
                yield False
                return
            yield True

    def run(self, study: optuna.Study, on_event: Callable[[Event], None], ended: Callable[[], bool] = lambda: False) -> None:
        """Trials until the study's number of finished ones or its time is reached. However it ends, the study's run says so."""
        prepare(self.recipe.domain)

        def note(text: str) -> None:
            on_event(Event("note", -1, text=text))

        shared = self.kept_in.is_shared
        with self._here(fcntl.LOCK_SH), self._reached(), self._opened() as storage:
            records = Records.open(self.tracking, self.recipe, study, note, self.directory, share_files=shared)
            worker = Worker(
                self.recipe, study, storage, records, self.directory, self.home / "cache", self.threads, on_event, ended
            )
            try:
                worker.search()
                if not running(study):
                    parts = (self.recipe, study, records, self.directory, self.home / "cache", self.threads)
                    Settling(*parts, note, ended).run()
            except BaseException as error:
                if is_away(error):
                    raise
                told_to = isinstance(error, KeyboardInterrupt | Preempted)
                self._close(study, records, "KILLED" if told_to else "FAILED", str(error))
                if isinstance(error, SweepRefused) and not finished(study) and not running(study):
                    optuna.delete_study(study_name=study.study_name, storage=storage)
                    self.folder.leave()
                raise
            self._close(study, records, "FINISHED")

    def candidates(self, study: optuna.Study) -> list[Candidate]:
        """Finished trials, the one to gate first at the front: by `in_order`."""
        return candidates_of(study)

    def _close(self, study: optuna.Study, records: Records, status: RunStatus, reason: str = "") -> None:
        """The last worker of a study ends its run; the others leave their pictures and tables alone."""
        from tuning.pictures import pareto_picture

        if running(study):
            return
        if status == "FINISHED" and not left(study, self.recipe).may_begin:
            with suppress(OSError):
                remove_unneeded(study, self.recipe, over=True)
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


def trials_table(study: optuna.Study) -> list[dict[str, Any]]:
    """One row a trial, in order, readable without Optuna."""
    return [
        {
            "trial": trial.number,
            "state": trial.state.name,
            "params": trial.params,
            "score": trial.user_attrs.get(SCORE_KEY),
            "seconds": trial.user_attrs.get(SECONDS_KEY),
            "failure": trial.user_attrs.get("failure"),
            "curve": trial.user_attrs.get(CURVE_KEY, []),
        }
        for trial in study.trials
    ]
