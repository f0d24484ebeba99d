"""Trials an hour with one and with several workers on PostgreSQL, and what a trial costs beside its fit and its measures.

    python -m benchmarks.workers [--full]

Every arm runs the same points of the quickstart's recipe in a study of its own: one worker with all cores, two with half of them
each, four where there are four cores. The overhead of a trial is the time from its beginning to the next one's, less what its
child process spends on loading, fitting and measuring: Optuna's storage, MLflow, and the start of a process. PostgreSQL and the
registry are this machine's. Default: 4 points; --full: 16. Rows are kept: what was measured is not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import optuna

from adapters.whole_file import write_whole
from benchmarks.results import commit, commits, provenance, run_kind, table, write_section
from registry.tracking import Tracking
from tests.postgres import Postgres, running
from tuning.recipe import Recipe
from tuning.storage import StudyStorage
from tuning.study import Sweep

POINTS, FULL_POINTS = 4, 16
TRIAL_S = 120.0  # the trial that the overhead is told as a share of


@dataclass(frozen=True)
class Row:
    """One arm. Seconds of wall time; `overheads_s` of the trials of one worker after the other."""

    workers: int
    threads: int
    trials: int
    wall_s: float  # from the beginning of the first trial to the end of the last
    own_s: tuple[float, ...]  # by trial: load, fit and measure in its child
    overheads_s: tuple[float, ...]
    start_s: float  # from the command to the first trial
    commit: str

    @property
    def per_hour(self) -> float:
        return self.trials / self.wall_s * 3600


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.workers", description=__doc__)
    parser.add_argument("--full", action="store_true", help=f"{FULL_POINTS} points")
    parser.add_argument("--points", type=int, help=f"[default: {POINTS}]")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/quickstart.toml"))
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks/workers"))
    given = parser.parse_args()
    count, cores = given.points or (FULL_POINTS if given.full else POINTS), os.cpu_count() or 1
    recipe = with_points(Recipe.load(given.recipe), count)
    rows = []
    with running() as server:
        measured(server, recipe.with_values({"study.trials": 1}), given.runs.absolute(), 1, cores, "warm")  # admission, read once
        for workers in (1, 2, 4):
            if workers <= cores:
                rows.append(measured(server, recipe, given.runs.absolute(), workers, max(1, cores // workers), f"{count}"))
                print(rows[-1], flush=True)
    write_section(
        "workers",
        f"Trials an hour by workers on PostgreSQL ({run_kind(given.points, full=given.full)})",
        f"{told(rows)}\n\n{provenance('workers')} · rows of commit {commits(map(asdict, rows))}",
    )


def with_points(recipe: Recipe, count: int) -> Recipe:
    """The same points for every arm, the recipe's own values the first; nothing is left to a sampler."""
    draw = random.Random(0)
    points = [
        {
            "adapter.kind": "lora",
            "method.learning_rate": 10 ** draw.uniform(-4, -3),
            "method.target": draw.choice(("answer", "rationale")),
            "method.prompt": draw.choice(("reasoning", "matching")),
        }
        for _ in range(count - 1)
    ]
    told = recipe.model_dump(mode="json") | {"start": points}
    told["study"] |= {"trials": count, "time_budget_s": None, "min_trials": 0}
    return Recipe.model_validate(told)


def measured(server: Postgres, recipe: Recipe, runs: Path, workers: int, threads: int, name: str) -> Row:
    file, home = runs / f"{name}-{workers}.json", runs / f"home-{name}-{workers}"
    if file.is_file():
        return Row(**json.loads(file.read_text()))
    shutil.rmtree(home, ignore_errors=True)
    storage = StudyStorage.of(home, recipe.name, server.database())
    if (cache := runs / "cache").is_dir():
        shutil.copytree(cache, home / "cache")
    sweep = Sweep(recipe, home, Tracking.at(home), threads, storage)
    sweep.create()
    began = time.time()
    command = [
        sys.executable,
        "-m",
        "service.cli",
        "worker",
        "--study",
        recipe.name,
        "--storage",
        storage.url,
        "--home",
        str(home),
    ]
    environment = {**os.environ, "GRAFTLINE_THREADS": str(threads)}
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) for _ in range(workers)]
    codes = [process.wait() for process in processes]
    if any(codes):
        raise SystemExit(f"The workers of {home} ended with {codes}: look at what they printed.")
    study = optuna.load_study(study_name=recipe.name, storage=storage.open())
    if not (runs / "cache").is_dir():
        shutil.copytree(home / "cache", runs / "cache")
    row = _row([trial for trial in study.trials if trial.state.is_finished()], home, workers, threads, began)
    write_whole(file, json.dumps(asdict(row)))
    return row


def _row(trials: list[optuna.trial.FrozenTrial], home: Path, workers: int, threads: int, began: float) -> Row:
    spans = sorted((_time(trial.datetime_start), _time(trial.datetime_complete), _own(trial)) for trial in trials)
    # With several workers a trial is not followed by the next one of its own: its end stands for that.
    ends = [later[0] for _, later in pairwise(spans)] if workers == 1 else [end for _, end, _ in spans]
    return Row(
        workers,
        threads,
        len(spans),
        max(end for _, end, _ in spans) - spans[0][0],
        tuple(own for *_, own in spans),
        tuple(end - start - own for (start, _, own), end in zip(spans, ends, strict=False)),
        spans[0][0] - began,
        commit(),
    )


def _time(moment: datetime | None) -> float:
    assert moment is not None
    return moment.timestamp()


def _own(trial: optuna.trial.FrozenTrial) -> float:
    result = json.loads((Path(trial.user_attrs["directory"]) / "result.json").read_text())
    return float(sum(result["seconds"].values()))


def told(rows: list[Row]) -> str:
    one = rows[0]
    lines = [
        [
            str(row.workers),
            str(row.threads),
            str(row.trials),
            f"{row.per_hour:.1f}",
            f"{row.per_hour / one.per_hour:.2f}",
            f"{statistics.median(row.own_s):.0f}",
            f"{statistics.median(row.overheads_s):.1f} ({max(row.overheads_s):.1f})",
            f"{statistics.median(row.overheads_s) / TRIAL_S:.1%}",
            f"{row.start_s:.0f}",
        ]
        for row in rows
    ]
    headings = ["workers", "threads each", "trials", "trials an hour", "times one worker's", "median trial s"]
    headings += ["median (largest) overhead s", f"share of a trial of {TRIAL_S:.0f} s", "start of a worker s"]
    return table(headings, lines)


if __name__ == "__main__":
    main()
