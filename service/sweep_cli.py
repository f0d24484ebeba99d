"""Options of `graftline sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.options import Home, Json, Storage, seconds

sweep_app = typer.Typer(no_args_is_help=True, help="Look at a study while it runs, and tell its workers what to do.")
Study = Annotated[str, typer.Argument(metavar="STUDY", help="A study's name: that of its recipe.")]


@sweep_app.command()
def status(
    study: Study,
    watch: Annotated[bool, typer.Option("--watch", help="Look again until the study is over or Ctrl-C.")] = False,
    pictures: Annotated[
        Path | None, typer.Option(help="A directory for the Pareto picture and the importances.", file_okay=False)
    ] = None,
    home: Home = None,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Trials, the best one, workers, failures and what the objectives hang on. Exit code 1: over, and nothing feasible."""
    from service.commands.sweep import status as run

    raise typer.Exit(run(study, watch, pictures, home, storage, as_json))


@sweep_app.command()
def pause(study: Study, home: Home = None, storage: Storage = None, as_json: Json = False) -> None:
    """Let no worker begin another trial. Those that run end orderly; the workers wait for `resume`."""
    from service.commands.sweep import tell

    tell(study, "pause", home, storage, as_json)


@sweep_app.command()
def resume(study: Study, home: Home = None, storage: Storage = None, as_json: Json = False) -> None:
    """Let a study that was paused or stopped go on."""
    from service.commands.sweep import tell

    tell(study, "run", home, storage, as_json)


@sweep_app.command()
def stop(study: Study, home: Home = None, storage: Storage = None, as_json: Json = False) -> None:
    """End a study's workers after the trials that they run. What was found is kept."""
    from service.commands.sweep import tell

    tell(study, "stop", home, storage, as_json)


@sweep_app.command()
def adopt(study: Study, home: Home = None, storage: Storage = None, as_json: Json = False) -> None:
    """Take a study in a file over to this machine: it got another name, or the file was moved to it."""
    from service.commands.sweep import adopt as run

    run(study, home, storage, as_json)


@sweep_app.command()
def extend(
    study: Study,
    trials: Annotated[int | None, typer.Option(help="Finished trials to reach, in all.", min=1)] = None,
    time_budget_s: Annotated[float | None, typer.Option(help="Seconds, in all.", callback=seconds)] = None,
    max_cost: Annotated[float | None, typer.Option(help="Cost, in all.", min=0)] = None,
    home: Home = None,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Let a study go on for longer; workers that run see it before their next trial."""
    from service.commands.sweep import lengthen

    lengthen(study, trials, time_budget_s, max_cost, home, storage, as_json)


@sweep_app.command()
def refit(
    study: Study,
    trial: Annotated[int, typer.Option(help="A finished trial whose weights are no longer kept.", min=0)],
    home: Home = None,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Fit a trial again, so that its weights can be published. Exit code 1: its scores came out differently."""
    from service.commands.sweep import refit as run

    raise typer.Exit(run(study, trial, home, storage, as_json))
