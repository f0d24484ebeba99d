"""`graftline sae`: trains a sparse autoencoder, scores its features, and writes one of them as a steering adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console
from rich.table import Table

from registry.home import home_directory
from service.elsewhere import elsewhere
from service.pace import Pace

if TYPE_CHECKING:
    from adapters.backbone import Backbone
    from adapters.sae import SAE
    from adapters.spec import Spec
    from engine.torch_engine import TorchEngine
    from evaluation.feature_steering import Compared
    from evaluation.places import Places
    from evaluation.reason_score import ReasonScore
    from tuning.harvest import HarvestSpec

    S = TypeVar("S", bound=Spec)


def train(
    out: Path,
    harvest: dict[str, object],
    fit: dict[str, object],
    words: str | None,
    backbone_name: str,
    home: Path | None,
    as_json: bool,
) -> int:
    """0 where every gate is passed, else 1; the autoencoder is written either way, with its gates."""
    from adapters.backbone import Backbone
    from adapters.whole_file import whole_directory
    from engine.torch_engine import TorchEngine
    from evaluation.tasks import task_named
    from tuning.harvest import HarvestSpec
    from tuning.isolation import use_threads
    from tuning.sae_fit import SAEFitSpec
    from tuning.sae_study import SAEStudy

    _refuse_existing(out)
    harvest_spec, fit_spec, groups = _spec(HarvestSpec, harvest), _spec(SAEFitSpec, fit), _groups(words)
    for name in (*harvest_spec.tasks, *harvest_spec.texts):
        task_named(name)
    use_threads()
    backbone = Backbone.load(backbone_name)
    engine = TorchEngine(backbone, max_rows=64, precision="bfloat16")
    study = SAEStudy(engine, backbone, harvest_spec, fit_spec, home_directory(home), groups, Pace())
    sae, gates = study.gated()
    with whole_directory(out) as part:
        sae.save(part)
    if as_json:
        told = {"directory": str(out), "backbone": backbone.name, "layer": sae.record.layer, "features": sae.num_features}
        print(json.dumps(told | {"k": sae.k, "places": study.places.counts(), "gates": gates.as_dict()}))
    else:
        counted = ", ".join(f"{count} of {kind}s" for kind, count in study.places.counts().items() if count)
        print(f"{sae.num_features} features after layer {sae.record.layer}, {sae.k} at a place; places: {counted}")
        for verdict, passed in gates.verdicts.items():
            print(f"{'passed' if passed else 'NOT PASSED'}: {verdict}")
        print(f"wrote {out}; next: graftline sae score {out}{elsewhere(home_directory(home))}")
    return 0 if gates.passed else 1


def score(saved: Path, words: str | None, top: int, backbone_name: str | None, home: Path | None, as_json: bool) -> None:
    sae, backbone, engine = _loaded(saved, backbone_name)
    found = _scored(sae, backbone, _places(sae, backbone, engine, home), words)
    listed = found.top(top)
    if as_json:
        counts = {"/".join(group): count for group, count in zip(found.marks.groups, found.marks.counts, strict=True)}
        print(json.dumps({"words": counts, "features": [_told(sae, found, feature) for feature in listed]}))
        return
    table = Table(title=f"ReasonScore over {found.marks.told}", title_justify="left")
    for heading in ("feature", "score", "at the words", "elsewhere", "entropy", "largest", "active at"):
        table.add_column(heading)
    for feature in listed:
        row = _told(sae, found, feature)
        numbers = [f"{row[name]:.3g}" for name in ("score", "at_words", "elsewhere", "entropy", "max_act")]
        table.add_row(str(feature), *numbers, f"{row['frequency']:.1%}")
    Console(markup=False).print(table)
    print("a feature at the words need not be their cause: compare it with its nulls (graftline sae steer)")


def steer(
    saved: Path,
    out: Path,
    feature: int | None,
    form: str,
    strength: float,
    num_items: int,
    words: str | None,
    domain: str | None,
    name: str | None,
    eps: float,
    despite_gates: bool,
    backbone_name: str | None,
    home: Path | None,
    as_json: bool,
) -> None:
    """The adapter is written with what was compared beside it, whatever that says; of its KL the gate decides."""
    from evaluation.feature_steering import check_strength, compared
    from evaluation.reason_score import difference_of_means
    from evaluation.strength import check_bound
    from tuning.feature_release import write_feature
    from tuning.guarded import guarded
    from tuning.harvest import examples_read
    from tuning.sae_study import items_of

    _refuse_existing(out)
    check_bound(eps)
    check_strength(strength)
    sae, backbone, engine = _loaded(saved, backbone_name)
    _refuse_ungated(sae, saved, despite_gates)
    harvest = _harvest(sae)
    domain = domain or harvest.tasks[0]
    recipe = guarded(name or f"{Path(domain).stem}-feature", backbone.name, domain)
    if feature is not None:
        sae.steering(backbone, feature, form, strength)  # refused before anything is read
    places = _places(sae, backbone, engine, home)
    scored = _scored(sae, backbone, places, words)
    if feature is None:
        feature = _best(scored)
    steering = sae.steering(backbone, feature, form, strength)
    means_H = difference_of_means(places, scored.marks.near_N)
    items, limit = items_of(harvest, "search", num_items), harvest.max_new_tokens
    found = compared(engine, backbone, sae, feature, strength, means_H, scored.marks.groups, items, limit)
    told = {"sae": str(saved), "form": form, "layer": sae.record.layer, **found.as_dict()}
    write_feature(out, recipe, backbone, steering, eps, saved, told, examples_read(backbone, harvest, home_directory(home)))
    if as_json:
        print(json.dumps({"directory": str(out), "backbone": backbone.name, "domain": recipe.domain, "eps": eps, **told}))
    else:
        _show(found, form, out, eps, elsewhere(home_directory(home)))


def _best(scored: ReasonScore) -> int:
    from evaluation.errors import DataError

    for feature in scored.top(1):
        return feature
    raise DataError("No feature is more active at the words than elsewhere. Name one (--feature), or other words (--words).")


def _show(found: Compared, form: str, out: Path, eps: float, where: str) -> None:
    table = Table(title=f"feature {found.feature} at {found.strength:g} of its largest activation", title_justify="left")
    for heading in ("system", "words", "tokens", "right", "KL", "words, less without", "less random columns"):
        table.add_column(heading, overflow="fold")
    for name, read in found.systems.items():
        means = read.means()
        cells = [f"{means[key] or 0:.3g}" for key in ("words", "tokens", "right", "kl")]
        changes = [str(one[name]) if name in one else "" for one in (found.more_than_off, found.more_than_random)]
        table.add_row(name, *cells, *changes)
    Console(markup=False).print(table)
    said = "writes its words more often" if found.steers(form) else "is not shown to write its words more often"
    print(f"the {form} {said} than both the backbone and random columns of the same length")
    if (kl := found.systems[form].kl) > eps:
        print(
            f"its KL is {kl:.3g} nats a token, above the {eps:g} that the gate will hold it to: lower --strength, or raise --eps"
        )
    print(f"wrote {out}; next: graftline evaluate {out}{where}, or graftline publish {out}{where}")


def _told(sae: SAE, found: ReasonScore, feature: int) -> dict[str, Any]:
    parts = {"score": found.score_F, "at_words": found.at_words_F, "elsewhere": found.elsewhere_F, "entropy": found.entropy_F}
    parts |= {"max_act": sae.max_act_F, "frequency": sae.frequency_F}
    return {"feature": feature, **{name: float(values[feature]) for name, values in parts.items()}}


def _loaded(saved: Path, backbone_name: str | None) -> tuple[SAE, Backbone, TorchEngine]:
    from adapters.backbone import Backbone
    from adapters.sae import SAE
    from engine.torch_engine import TorchEngine
    from tuning.isolation import use_threads

    sae = SAE.load(saved)
    use_threads()
    backbone = Backbone.load(backbone_name or sae.record.backbone)
    sae.check(backbone)
    return sae, backbone, TorchEngine(backbone, max_rows=64, precision="bfloat16")


def _harvest(sae: SAE) -> HarvestSpec:
    from tuning.harvest import HarvestSpec

    return HarvestSpec(**sae.record.told["harvest"])


def _places(sae: SAE, backbone: Backbone, engine: TorchEngine, home: Path | None) -> Places:
    """Those that it was trained on; harvested again where they are not in this home."""
    from tuning.harvest import harvested

    return harvested(engine, backbone, _harvest(sae), home_directory(home), Pace()).usual


def _scored(sae: SAE, backbone: Backbone, places: Places, words: str | None) -> ReasonScore:
    """By the words that are given, else those that it was gated by."""
    from evaluation.reason_score import WORDS, reason_score

    groups = _groups(words) if words is not None else sae.record.told.get("words", WORDS)
    return reason_score(backbone, sae, places, groups)


def _groups(words: str | None) -> list[tuple[str, ...]]:
    from evaluation.errors import DataError
    from evaluation.reason_score import WORDS

    if words is None:
        return list(WORDS)
    groups = [tuple(form.strip() for form in group.split(",") if form.strip()) for group in words.split(";")]
    if not any(groups):
        raise DataError(f"Words come in groups of one form or more, but {words!r} has none. Write 'so; because, since'.")
    return [group for group in groups if group]


def _spec(kind: type[S], values: dict[str, object]) -> S:
    from pydantic import ValidationError

    from tuning.errors import BadRecipe
    from tuning.faults import in_one_sentence

    try:
        return kind(**{name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        raise BadRecipe(in_one_sentence(error)) from error


def _refuse_existing(out: Path) -> None:
    from adapters.errors import RefusedAdapter

    if out.exists():
        raise RefusedAdapter(f"What is made goes to a new directory, but {out} is there already. Name another.")
    out.absolute().parent.stat()  # a folder that is not there is told before anything is read


def _refuse_ungated(sae: SAE, saved: Path, despite_gates: bool) -> None:
    from adapters.errors import RefusedAdapter

    gates = sae.record.told.get("gates", {})
    if not gates.get("passed") and not despite_gates:
        raise RefusedAdapter(
            f"Features of an autoencoder that passed its gates steer, but {saved} did not pass them all (graftline.json there). "
            "Train it on more places, or say --despite-gates."
        )
