"""`graftline tune-decoding`: a search of a release's decoding policy, as lines while it runs and as a table at its end."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from registry.home import home_directory
from registry.names import resolve
from registry.release import load_release
from registry.tracking import Tracking
from service.clock import clock
from service.commands.subject import served_backbone
from service.elsewhere import elsewhere
from service.policy_view import shown, table, verdict

if TYPE_CHECKING:
    from registry.release import Release
    from tuning.decoding.settings import DecodingSearch
    from tuning.decoding.space import DecodingSpace
    from tuning.decoding.study import Found, PolicyStudy, PolicyTrial

_WIDE = 160  # columns that the table takes


def tune_decoding(
    reference: str,
    values: Mapping[str, object],
    ranges: Sequence[str],
    dry_run: bool,
    home: Path | None,
    tracking_uri: str | None,
    as_json: bool,
) -> None:
    from tuning.decoding.settings import settings_of

    settings = settings_of(values, ranges)
    place = home_directory(home)
    tracking = Tracking.at(place, tracking_uri).existing()
    named = resolve(tracking, reference)
    release = load_release(tracking, named.name, named.version)
    study = opened(release, settings, tracking, place)
    say(f"{study.subject}: searching {', '.join(study.space.kinds)} ({_ranges(study.space)})")
    for what, why in study.space.left_out.items():
        say(f"{what} is not searched: {why}")
    if dry_run:
        _dry(study, as_json)
        return
    from tuning.decoding.release import next_version
    from tuning.journal import alone_in

    with alone_in(study.directory):
        found = study.run(lambda trial: say(_line(trial, settings.trials)))
        better = found.better
        made = None if better is None else next_version(tracking, release, study, better)
    if as_json:
        print(json.dumps(_told(study, found, made)))
        return
    console = Console(markup=False)
    console.width = console.width if console.is_terminal else max(console.width, _WIDE)
    console.print(table(study, found))
    console.print(verdict(study, found, made, elsewhere(place, tracking_uri)), highlight=False, soft_wrap=True)


def opened(release: Release, settings: DecodingSearch, tracking: Tracking, home: Path) -> PolicyStudy:
    """The study on the backbone that is to serve the policy."""
    from engine.torch_engine import TorchEngine
    from tuning.decoding.release import policy_study
    from tuning.gating import Subject

    recipe = Subject(str(release.full_name), release.directory, release.manifest).recipe
    backbone = served_backbone(release, say)
    engine = TorchEngine(backbone, max_rows=64, precision=recipe.evaluation.precision)
    return policy_study(release, settings, engine, backbone, tracking, home, say)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _dry(study: PolicyStudy, as_json: bool) -> None:
    from evaluation.forecast import forecast
    from tuning.decoding.reading import READ

    items, bench = study.bench.items, study.bench
    bench.engine.load(READ, study.space.off)
    try:
        cost = forecast(bench.engine, bench.backbone, READ, items.choosing).all(items.choosing)
    finally:
        bench.engine.unload(READ)
    told = {
        "release": study.subject,
        "searched": {name: _bounds(study.space, name) for name in study.space.fields},
        "not_searched": dict(study.space.left_out),
        "trials": study.settings.trials,
        "domain_items": [len(items.choosing[0].examples), len(items.confirming[0].examples)],
        "families": items.families,
        "seconds_a_trial": cost.seconds,
        "directory": str(study.directory),
    }
    if as_json:
        print(json.dumps(told))
        return
    trials, domain = study.settings.trials, items.choosing[0]
    whole = clock(cost.seconds * (trials + 1 + len(study.references)))
    guarded = ", ".join(items.families) or "nothing"
    print(f"{len(domain.examples)} items of {domain.task.name} choose, as many others confirm; guarded: {guarded}")
    print(f"a trial takes about {cost.seconds:.0f} s, {trials} of them with the confirmation {whole} minutes; no trial was made")


def _line(trial: PolicyTrial, of: int) -> str:
    told = f"trial {trial.number} ({of} in all): {shown(trial.values)}: "
    if trial.score is None:
        return told + trial.failure
    return told + f"{trial.score.accuracy:.3f} right, {trial.score.tokens:.1f} tokens"


def _ranges(space: DecodingSpace) -> str:
    return "; ".join(f"{name} {_bounds(space, name)}" for name in space.fields)


def _bounds(space: DecodingSpace, name: str) -> list[float]:
    mark = space.ranges.get(name)
    if mark is not None:
        return [mark.low, mark.high]
    return [float(layer) for layer in space.steered.layers] if space.steered else []


def _told(study: PolicyStudy, found: Found, made: Release | None) -> dict[str, object]:
    chosen = found.confirmed
    return {
        "release": study.subject,
        "searched": list(study.space.kinds),
        "not_searched": dict(study.space.left_out),
        "trials": [asdict(trial) for trial in found.trials],
        "confirmed": None
        if chosen is None
        else {
            "trial": chosen.trial.number,
            "claims": dict(chosen.claims),
            "score": asdict(chosen.score),
            "better": chosen.better,
            "policy": chosen.profile.policy.model_dump(mode="json"),
        },
        "new_release": None if made is None else str(made.full_name),
    }
