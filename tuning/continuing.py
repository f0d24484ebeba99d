"""Going on from earlier adapters: a warm start, a LoRA kept apart from others, a start in the null space of what is protected.

None of it hangs on the method: what is fitted starts elsewhere, or pays a penalty in the loop that methods share (and under TRL's
trainers). The reference of every KL stays the backbone, and never the adapter that the fit started from.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adapters.adapter import Adapter
from adapters.backbone import Backbone
from adapters.files import kind_of, new_adapter
from adapters.lora import LoRA
from adapters.null_space import null_space_start
from adapters.orthogonal import Apart
from adapters.softcot import SoftCoT
from engine.profile import Profile
from evaluation.measures import OF_TEXT
from evaluation.retention import search_measure
from evaluation.task import Task, reasoning_prompt
from evaluation.tasks import task_named
from registry.errors import BackboneMismatch
from registry.manifest import MANIFEST, verify
from registry.names import resolve
from registry.release import load_release, release_of_files
from registry.tracking import Tracking
from tuning.errors import BadRecipe
from tuning.recipe import Recipe

MODELS = "models:/"
RETAINED = 32  # examples of each protected family whose inputs span what a null space leaves alone


def pinned(recipe: Recipe, tracking: Tracking) -> Recipe:
    """The recipe with each `models:/NAME@champion` as the directory of the version that this is now.

    The directory is the registry's read-only copy, named by the digest of its manifest: what a study began from stays that,
    whoever is promoted in the meantime.
    """
    adapter, changed = recipe.adapter, dict[str, object]()
    if adapter.warm_start is not None:
        changed["adapter.warm_start"] = _directory(adapter.warm_start, tracking)
    if adapter.orthogonal_to:
        changed["adapter.orthogonal_to"] = tuple(_directory(named, tracking) for named in adapter.orthogonal_to)
    return recipe.with_values(changed) if changed else recipe


def fetched(recipe: Recipe, tracking: Tracking) -> Recipe:
    """The recipe with each directory that is not here as the same release's files, where the registry has them.

    `pinned` left the directory's name as the digest of its manifest, wherever the fit was.
    """

    def here(named: str) -> str:
        release = None if Path(named).is_dir() else release_of_files(tracking, Path(named).name)
        return named if release is None else str(release.directory)

    adapter, changed = recipe.adapter, dict[str, object]()
    if adapter.warm_start is not None:
        changed["adapter.warm_start"] = here(adapter.warm_start)
    if adapter.orthogonal_to:
        changed["adapter.orthogonal_to"] = tuple(map(here, adapter.orthogonal_to))
    return recipe.with_values(changed) if changed else recipe


def check_start(recipe: Recipe, backbone: Backbone) -> None:
    """Raises for what no fit of the recipe could go on from: another backbone, another kind, another shape."""
    if recipe.adapter.warm_start is not None:
        kinds = recipe.adapter.kind.split("+")
        _warm(recipe.adapter.warm_start, backbone, [new_adapter(getattr(recipe.adapter, kind)) for kind in kinds])
    for named in recipe.adapter.orthogonal_to:
        _lora_of(named, backbone)


def started(recipe: Recipe, backbone: Backbone, adapters: Sequence[Adapter]) -> tuple[Adapter, ...]:
    """The recipe's new adapters as their fit begins."""
    if recipe.adapter.warm_start is not None:
        adapters = _warm(recipe.adapter.warm_start, backbone, adapters)
    found: list[Adapter] = []
    for adapter in adapters:
        if isinstance(adapter, LoRA) and adapter.spec.init == "null_space":
            adapter = null_space_start(backbone, adapter.spec, retention_texts(recipe, backbone))
        if isinstance(adapter, LoRA) and recipe.adapter.orthogonal_to:
            earlier = [_lora_of(named, backbone) for named in recipe.adapter.orthogonal_to]
            adapter.apart = Apart.of(recipe.adapter.orthogonal_weight, earlier)
        found.append(adapter)
    return tuple(found)


def retention_texts(recipe: Recipe, backbone: Backbone) -> list[tuple[int, ...]]:
    """What is read of the protected families where they are measured, of rows that nothing is measured on."""
    texts = [ids for name in recipe.protected for ids in _read(task_named(name), backbone)]
    return [ids[: backbone.context_length] for ids in texts]


def _read(task: Task, backbone: Backbone) -> list[tuple[int, ...]]:
    """Prompts and gold chains, or plain text."""
    examples = task.examples("train", RETAINED)
    if search_measure(task).name in OF_TEXT:
        return [tuple(backbone.encode(f"{example.question.rstrip(' ')} {example.answer.lstrip(' ')}")) for example in examples]
    return [(*backbone.chat_ids(reasoning_prompt(example)), *backbone.encode(example.chain)) for example in examples]


def _directory(named: str, tracking: Tracking) -> str:
    if not named.startswith(MODELS):
        return str(Path(named).resolve())
    name, slash, version = named.removeprefix(MODELS).partition("/")
    found = resolve(tracking.existing(), f"{name}@{version}" if slash else name)
    return str(load_release(tracking, found.name, found.version).directory)


def _warm(named: str, backbone: Backbone, adapters: Sequence[Adapter]) -> tuple[Adapter, ...]:
    earlier = {kind_of(adapter): adapter for adapter in _earlier(named, backbone).adapters}
    kinds = [kind_of(adapter) for adapter in adapters]
    if sorted(kinds) != sorted(earlier):
        raise BadRecipe(
            f"A fit goes on from an adapter of its own kind, but adapter.kind is {'+'.join(kinds)!r} and {named} is "
            f"{'+'.join(sorted(earlier))!r}. Change adapter.kind, or leave out adapter.warm_start."
        )
    return tuple(_begun(adapter, earlier[kind], named, backbone) for kind, adapter in zip(kinds, adapters, strict=True))


def _begun(new: Adapter, start: Adapter, named: str, backbone: Backbone) -> Adapter:
    """The start's weights and strength under the new adapter's spec."""
    if isinstance(new, LoRA) and isinstance(start, LoRA):
        _same(named, "adapter.lora.rank", new.spec.rank, start.spec.rank)
        updated = LoRA(start.spec, tensors=start.tensors()).target_paths(backbone)
        if sorted(new.target_paths(backbone)) != updated:
            raise BadRecipe(
                f"A fit goes on in the modules of the adapter that it starts from, but {named} updates others ({len(updated)}) "
                "than adapter.lora.target_modules and adapter.lora.band name. Set them as they were."
            )
        strength = start.spec.alpha * start.scale / new.spec.alpha
        return LoRA(new.spec, strength, {key: tensor.clone() for key, tensor in start.tensors().items()})
    if isinstance(new, SoftCoT) and isinstance(start, SoftCoT):
        for field in ("num_thoughts", "num_chains", "assistant_layers", "assistant", "static"):
            _same(named, f"adapter.softcot.{field}", getattr(new.spec, field), getattr(start.spec, field))
        return SoftCoT(new.spec, start.scale, {key: tensor.clone() for key, tensor in start.tensors().items()})
    raise BadRecipe(f"A fit goes on from a LoRA or soft thoughts, but {named} holds a {kind_of(start)}. Leave it out.")


def _same(named: str, field: str, asked: object, found: object) -> None:
    if asked != found:
        raise BadRecipe(
            f"A fit has the shape of the adapter that it goes on from, but {field} is {asked!r} and {named} has {found!r}. "
            f"Set {field} = {found!r}, or leave out adapter.warm_start."
        )


def _lora_of(named: str, backbone: Backbone) -> LoRA:
    found = [adapter for adapter in _earlier(named, backbone).adapters if isinstance(adapter, LoRA)]
    if not found:
        raise BadRecipe(f"adapter.orthogonal_to names LoRA adapters, but {named} holds none. Take it out.")
    return found[0]


def _earlier(named: str, backbone: Backbone) -> Profile:
    if named.startswith(MODELS):
        raise BadRecipe(
            f"A release that a fit goes on from is looked up once, before the fit, but {named!r} was not. Start it by a command "
            "that knows the registry (graftline tune), or give a directory."
        )
    directory = Path(named)
    if not (directory / MANIFEST).is_file():
        raise BadRecipe(
            f"A fit goes on from an adapter with a {MANIFEST}, which says what backbone it was fitted on, but {named} has none. "
            "Check the path, or fit the adapter with `graftline tune`."
        )
    manifest = verify(directory)
    if manifest.backbone.fingerprint != backbone.fingerprint:
        raise BackboneMismatch(
            f"A fit goes on from an adapter of the same backbone, but {named} was fitted on "
            f"{manifest.backbone.fingerprint[:12]} and this is {backbone.fingerprint[:12]}. Leave it out."
        )
    return Profile.load(directory)
