"""A study that is there already, looked at and told what to do from outside: by its name and its storage, on any machine."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import optuna

from registry.tracking import Tracking
from tuning.asked import Wish, ask, extend
from tuning.candidates import readable
from tuning.overview import Overview, overview
from tuning.pictures import IMPORTANCES, PARETO, importances_picture, pareto_picture
from tuning.recipe import Recipe, StudyRecipe
from tuning.refit import Refit, refitted
from tuning.storage import PatientStorage, StudyStorage
from tuning.study import RECIPE_KEY, Sweep


@dataclass(frozen=True)
class Standing:
    sweep: Sweep
    study: optuna.Study
    storage: PatientStorage

    @classmethod
    def named(cls, name: str, home: Path, tracking: Tracking, storage_url: str | None = None) -> Standing:
        """NoStudy where there is none of that name."""
        return cls.of(Sweep.joined(name, home, tracking, storage_url))

    @classmethod
    def of(cls, sweep: Sweep) -> Standing:
        storage = sweep.kept_in.open()
        return cls(sweep, optuna.load_study(study_name=sweep.recipe.name, storage=storage), storage)

    @property
    def picture(self) -> Path | None:
        """The Pareto picture that the last worker drew in this home."""
        file = self.sweep.directory / PARETO
        return file if file.is_file() else None

    def overview(self) -> Overview:
        return overview(self.study, self.sweep.recipe, self.storage)

    def ask(self, what: Wish) -> None:
        ask(self.study, what)

    def adopt(self) -> None:
        self.sweep.kept_in.adopt(self.study, self.storage)

    def extend(self, trials: int | None, time_budget_s: float | None, max_cost: float | None) -> StudyRecipe:
        return extend(self.study, self.sweep.recipe, trials, time_budget_s, max_cost)

    def refitted(self, trial: int) -> Refit:
        return refitted(self.sweep, self.study, trial)

    def draw(self, seen: Overview, directory: Path) -> list[Path]:
        """The Pareto picture, and that of the importances where there are any."""
        directory.mkdir(parents=True, exist_ok=True)
        written = [pareto_picture(self.study, seen.candidates, directory / PARETO)]
        if any(seen.importances.values()):
            written.append(importances_picture(seen.importances, seen.study, directory / IMPORTANCES))
        return written


def study_names(home: Path, storage_url: str | None = None) -> list[str]:
    """The studies that are known here: those in files of the home, or those of the database that is given. Sorted."""
    storage = StudyStorage.of(home, "any", storage_url)
    if storage.file is None or storage_url is not None:
        return sorted(optuna.study.get_all_study_names(storage.open()))
    return sorted(file.parent.name for file in (home / "studies").glob("*/optuna.db"))


def stored_study(home: Path, name: str, storage_url: str | None = None) -> optuna.Study | None:
    """To look at; None where there is none of that name."""
    storage = StudyStorage.of(home, name, storage_url)
    if storage.file is not None and not storage.file.is_file():
        return None
    with readable(storage.file) if storage.file is not None else nullcontext():
        opened = storage.open()
        known = name in optuna.study.get_all_study_names(opened)
        return optuna.load_study(study_name=name, storage=opened) if known else None


def recipe_of(study: optuna.Study) -> Recipe | None:
    """None where it was made before recipes were kept with studies."""
    stored = study.user_attrs.get(RECIPE_KEY)
    return None if stored is None else Recipe.model_validate(stored)
