"""Results that the tracking server could not take: each waits in a file of the study's folder until a store answers again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adapters.whole_file import write_whole
from registry.claim import held
from tuning.recipe import Recipe
from tuning.trial import Outcome

_LOGGED = "run.json"  # in a trial's directory: the MLflow run of its result


@dataclass(frozen=True)
class Result:
    """What is logged of a trial."""

    number: int
    directory: Path
    recipe: Recipe
    outcome: Outcome

    @property
    def run_id(self) -> str | None:
        """The run that an earlier attempt began to fill with this result; None where there is none.

        A result that may be taken over by a later trial, of a fit that ended, has one run whatever trial it is of.
        """
        file = self.directory / _LOGGED
        told = json.loads(file.read_text()) if file.is_file() else {}
        return str(told["run_id"]) if told.get("of") == self._of else None

    def note_run(self, run_id: str) -> None:
        if self.directory.is_dir():
            write_whole(self.directory / _LOGGED, json.dumps({"run_id": run_id, "of": self._of}))

    @property
    def _of(self) -> list[object]:
        state = self.outcome.state
        return [state, None if state in ("complete", "failed") else self.number]


@dataclass(frozen=True)
class Waiting:
    """The folder of results that wait. Processes may share it; one at a time logs."""

    folder: Path

    def put(self, result: Result) -> None:
        """On disk when this returns."""
        told = {
            "number": result.number,
            "directory": str(result.directory),
            "recipe": result.recipe.model_dump(mode="json"),
            "outcome": result.outcome.model_dump(mode="json"),
        }
        write_whole(self.folder / f"{result.number}.json", json.dumps(told))

    def results(self) -> list[Result]:
        """Oldest trial first."""
        files = sorted(self.folder.glob("*.json"), key=lambda file: int(file.stem)) if self.folder.is_dir() else []
        return [_read(file) for file in files]

    def log(self, take: Callable[[Result], None]) -> int:
        """Gives each to `take` and forgets it; how many. What `take` raises leaves that one and those after it waiting."""
        if not self.results():
            return 0
        logged = 0
        with held(self.folder / "lock") as holder:
            if holder:
                return 0
            for result in self.results():
                take(result)
                (self.folder / f"{result.number}.json").unlink(missing_ok=True)
                logged += 1
        return logged


def _read(file: Path) -> Result:
    told = json.loads(file.read_text())
    recipe, outcome = Recipe.model_validate(told["recipe"]), Outcome.model_validate(told["outcome"])
    return Result(int(told["number"]), Path(told["directory"]), recipe, outcome)
