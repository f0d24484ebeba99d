"""Studies of tests that nothing was fitted for: trials with the scores and times that a test names."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from tuning.trial import ADAPTER

START = 1_000_000.0  # s since the epoch
PARETO = [optuna.study.StudyDirection.MAXIMIZE] * 2


def empty(storage: str | None = None, name: str = "small") -> optuna.Study:
    return optuna.create_study(study_name=name, storage=storage, directions=PARETO)


def empty_in(file: Path) -> optuna.Study:
    """In a file whose tables are copied: Optuna makes them by dozens of migrations."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(_empty_file())
    return optuna.load_study(study_name="small", storage=f"sqlite:///{file}")


@cache
def _empty_file() -> bytes:
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "optuna.db"
        empty(f"sqlite:///{file}")
        return file.read_bytes()


def complete(
    gain: float,
    retention: float,
    *,
    feasible: bool = True,
    stderr: float = 0.0,
    directory: Path = Path("nowhere"),
    params: dict[str, float] | None = None,
    as_fitted: bool = False,
    **told: Any,
) -> FrozenTrial:
    """One that finished; `told` are further user attributes."""
    score = {
        "chosen": {"domain_gain": gain, "gain_stderr": stderr, "scale": 1.0},
        "retention": retention,
        "constraints": {"kin": -1.0 if feasible else 1.0},
        "feasible": feasible,
        "as_fitted": {} if not as_fitted else {"scale": 1.0},
    }
    given = params or {}
    searched: dict[str, optuna.distributions.BaseDistribution] = {
        name: optuna.distributions.FloatDistribution(0.0, 1.0) for name in given
    }
    return optuna.trial.create_trial(
        values=[gain, retention],
        params=given,
        distributions=searched,
        user_attrs={"score": score, "directory": str(directory), **told},
    )


def ended(state: TrialState, **told: Any) -> FrozenTrial:
    """One without values."""
    return optuna.trial.create_trial(state=state, user_attrs=told)


def with_weights(directory: Path) -> Path:
    """A trial's directory, with the files of an adapter in it."""
    (directory / ADAPTER).mkdir(parents=True)
    (directory / ADAPTER / "manifest.json").write_text("{}")
    (directory / "result.json").write_text("{}")
    return directory
