"""Studies whose trials have made-up scores."""

from __future__ import annotations

from pathlib import Path

import optuna

from tuning.candidates import DIRECTORY_KEY, SCORE_KEY


def study_of(home: Path, scores: list[tuple[float, int | None]]) -> optuna.Study:
    """Trials that gained so much, on so many items; None: on all."""
    (home / "studies" / "small").mkdir(parents=True)
    storage = f"sqlite:///{home / 'studies' / 'small' / 'optuna.db'}"
    study = optuna.create_study(study_name="small", storage=storage, direction="maximize")
    for number, (gain, num_items) in enumerate(scores):
        attributes = {SCORE_KEY: score(gain, num_items), DIRECTORY_KEY: str(home / str(number))}
        study.add_trial(optuna.create_trial(value=gain, user_attrs=attributes))
    return study


def score(gain: float, num_items: int | None = None) -> dict[str, object]:
    chosen = {"domain_gain": gain, "gain_stderr": 0.0}
    return {"chosen": chosen, "retention": 0.0, "constraints": {"kin": -1.0}, "feasible": True, "num_items": num_items}
