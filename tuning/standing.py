"""A study that is there already, looked at and told what to do from outside: by its name and its storage, on any machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import optuna

from registry.tracking import Tracking
from tuning.asked import Wish, ask, extend
from tuning.overview import Overview, overview
from tuning.pictures import IMPORTANCES, PARETO, importances_picture, pareto_picture
from tuning.recipe import StudyRecipe
from tuning.refit import Refit, refitted
from tuning.storage import PatientStorage
from tuning.study import Sweep


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
