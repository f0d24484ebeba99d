"""From a release to the search of its policy, and from a policy that was shown to be better to the files of the next version."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from adapters.backbone import Backbone
from adapters.steering import Steering
from adapters.steering_record import SteeringRecord
from adapters.whole_file import whole_directory
from engine.engine import Engine
from engine.profile import Profile
from evaluation.compression import signs
from evaluation.evaluate import Planned
from evaluation.refusals import PROMPTS, read_prompts, refusal_probe
from evaluation.tasks import task_named
from registry.manifest import MANIFEST, ProfileDescription, TrainingHashes, file_digest, write_manifest
from registry.release import Release, check_backbone, publish, published
from registry.tracking import Tracking
from tuning.decoding.items import SPLIT, halves
from tuning.decoding.reading import READ, Bench
from tuning.decoding.settings import EPS, LAYER, USUAL, DecodingSearch
from tuning.decoding.space import searchable, steering_of
from tuning.decoding.strengths import Steered
from tuning.decoding.study import Confirmed, PolicyStudy
from tuning.gating import Subject, check_tasks
from tuning.manifest import installed_digest
from tuning.measurable import not_measurable
from tuning.methods.compression import CompressionMethodSpec
from tuning.plan import data_digest
from tuning.recipe import Recipe

PARENT_TAG = "graftline.decoding_of"


def policy_study(
    release: Release,
    settings: DecodingSearch,
    engine: Engine,
    backbone: Backbone,
    tracking: Tracking,
    home: Path,
    note: Callable[[str], None] = lambda text: None,
) -> PolicyStudy:
    """Everything that can be refused is refused here, before a study is made."""
    subject = Subject(str(release.full_name), release.directory, release.manifest)
    recipe, profile = subject.recipe, Profile.load(release.directory)
    check_backbone(release, backbone.fingerprint)
    check_tasks(release.manifest, subject.name)
    domain, steering = task_named(recipe.domain), steering_of(profile)
    steers = steering is not None and "steering" in (settings.kinds or USUAL)
    parts = halves(settings, domain, (), (), False)
    steered = None
    if steering is not None and steers:
        steered = Steered.of(recipe, steering, engine, backbone, domain, parts.domain_items)
    space = searchable(settings, profile, engine, backbone, parts.domain_items, subject.name, steered)
    without = not_measurable(recipe, backbone, home / "cache")
    for family, why in without.items():
        note(f"{family} constrains no trial, since it is not measurable: {why}")
    parts = halves(settings, domain, recipe.protected, without, with_likelihood="steering" in space.kinds)
    identity = file_digest(release.directory / MANIFEST)
    digest = settings.digest(identity, backbone.fingerprint, *_plan_digests(parts.choosing), *_plan_digests(parts.confirming))
    return PolicyStudy(
        subject=subject.name,
        settings=settings,
        space=space,
        bench=Bench(engine, backbone, parts, home / "cache", recipe.evaluation.precision, identity),
        margins=recipe.evaluation.margins,
        directory=home / "decoding" / f"{subject.name}-{digest[:12]}",
        tracking=tracking,
        run_id=release.run_id,
        note=note,
    )


def next_version(tracking: Tracking, release: Release, study: PolicyStudy, found: Confirmed) -> Release:
    """The release's adapters under the better policy as a new version; the one that there is where it was published before."""
    directory = study.directory / "release"
    write_files(directory, release, study, found)
    same = published(tracking, release.name, directory)
    if same is not None:
        return same
    return publish(tracking, release.name, directory, found.trial.run_id, tags={PARENT_TAG: study.subject})


def write_files(directory: Path, release: Release, study: PolicyStudy, found: Confirmed) -> None:
    """Whole or not at all. Of the manifest only what is served changes, and of a steered release its bound and layer."""
    manifest, recipe, profile = release.manifest, dict(release.manifest.recipe), found.profile
    derived = manifest.derived
    if EPS in found.trial.values:
        profile, changed = _recorded(profile, study, found, Recipe.model_validate(recipe))
        if "eps" in derived:  # the bound of a vector that no recipe fits
            derived = {**derived, "eps": float(found.trial.values[EPS])}
        else:
            recipe = changed.model_dump(mode="json")
    items = study.bench.items
    read = [planned for planned in (*items.choosing, *items.confirming)]
    with whole_directory(directory) as part:
        profile.save(part)
        write_manifest(
            part,
            backbone=manifest.backbone,
            profile=ProfileDescription(
                adapters=manifest.profile.adapters,
                scale=manifest.profile.scale,
                decoding=profile.policy.model_dump(mode="json"),
            ),
            recipe=recipe,
            task=manifest.task,
            data_digests={**manifest.data_digests, "decoding": data_digest([e for planned in read for e in planned.examples])},
            lock_digest=installed_digest(),
            seeds={**manifest.seeds, "decoding": study.settings.seed},
            training=TrainingHashes.read(release.directory),
            derived=derived,
        )
        shutil.rmtree(directory, ignore_errors=True)


def _recorded(profile: Profile, study: PolicyStudy, found: Confirmed, recipe: Recipe) -> tuple[Profile, Recipe]:
    """The vector with what is measured of it at its new strength: the gate holds it to the bound that is written here."""
    steered, bench = study.space.steered, study.bench
    assert steered is not None
    layer, eps = int(found.trial.values[LAYER]), float(found.trial.values[EPS])
    steering, strength = steered.strengths.at(layer, eps)
    if (record := steered.strengths.released.record) is None:
        return profile, recipe
    domain = bench.items.confirming[0]
    method = recipe.method if isinstance(recipe.method, CompressionMethodSpec) else None
    bench.engine.load(READ, Profile((steering,)))
    try:
        asked = method.refusal_prompts if method is not None else None
        prompts = PROMPTS if asked is None else read_prompts(Path(asked))
        refusals = refusal_probe(bench.engine, bench.backbone, READ, prompts)
    finally:
        bench.engine.unload(READ)
    tokens = study.settings.max_new_tokens
    measured = {
        "eps": eps,
        "gamma": strength.gamma,
        "kl": strength.kl,
        "kl_curve": strength.curve,
        "kl_tokens": strength.tokens,
        "hidden_norm_median": strength.hidden_norm_median,
        "signs": signs(bench.engine, bench.backbone, steering, domain.task, domain.examples, tokens),
        "flipped": record.flipped,
        "refusals": refusals,
    }
    if layer != steered.layers[0]:
        measured["flipped"] = next(row.signs.shortens == "its negative" for row in record.layers if row.layer == layer)
    told = steering.recorded(SteeringRecord.model_validate({**dict(record), **measured}))
    adapters = tuple(told if isinstance(adapter, Steering) else adapter for adapter in profile.adapters)
    changed = recipe if method is None else recipe.with_values({"method.eps": eps, "method.layers": (layer,)})
    return Profile(adapters, profile.policy), changed


def _plan_digests(plan: tuple[Planned, ...]) -> list[str]:
    told = [f"{SPLIT}/{planned.task.name}/{planned.measure!r}/{data_digest(planned.examples)}" for planned in plan]
    return told
