"""`graftline steer`: fits a compression vector on a task, and `export-gguf` and `import-gguf`: to llama.cpp and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from service.pace import Pace

if TYPE_CHECKING:
    from pydantic import JsonValue

    from adapters.steering import Steering
    from adapters.steering_record import SteeringRecord
    from evaluation.pairs import Pairs
    from tuning.recipe import Recipe


IMPORTED_EPS = 0.03  # nats a token, as that of a vector that is made here


def steer(
    task_name: str,
    out: Path,
    name: str | None,
    backbone_name: str,
    method: dict[str, object],
    keep_pairs: Path | None,
    as_json: bool,
) -> None:
    """`method` are the fields of the method `compression` that were given. No adapter is written unless a vector is found."""
    from adapters.backbone import Backbone
    from adapters.whole_file import whole_directory
    from engine.profile import Profile
    from engine.torch_engine import TorchEngine
    from evaluation.tasks import task_named
    from tuning.manifest import complete
    from tuning.methods.compression import Compression, CompressionMethodSpec

    _refuse_existing(out)
    for place in (out, keep_pairs):
        if place is not None:
            place.absolute().parent.stat()  # a folder that is not there is told before anything is read
    task = task_named(task_name)
    recipe = compression_recipe(task_name, name or f"{Path(task.name).stem}-concise", backbone_name, method)
    assert isinstance(recipe.method, CompressionMethodSpec)
    compression, pace = Compression(recipe.method), Pace()
    backbone = Backbone.load(backbone_name)
    engine = TorchEngine(backbone, max_rows=64)
    examples = task.examples("train", recipe.method.num_examples, recipe.method.seed)
    with Console(stderr=True).status(f"writing chains of {task.name}"):
        pairs = compression.pairs(engine, backbone, task, examples)
    if keep_pairs is not None:
        from evaluation.pairs import write_pairs

        write_pairs(keep_pairs, pairs.pairs)
    steering = compression.compressed(engine, backbone, pairs, task, pace)
    assert steering.record is not None
    seen = [pair.as_example() for pair in pairs.pairs] if recipe.method.pairs is not None else examples
    with whole_directory(out) as part:
        complete(part, recipe, backbone, Profile((steering,)), 1.0, seen)
    if as_json:
        print(json.dumps(_told(out, recipe, steering, pairs)))
    else:
        _show(out, steering.record, pairs)


def compression_recipe(task_name: str, name: str, backbone_name: str, method: dict[str, object]) -> Recipe:
    """What `graftline tune` would be told to fit the same vector; the task is guarded by all families but itself."""
    from tuning.guarded import guarded

    values = {"name": "compression", **{key: value for key, value in method.items() if value is not None}}
    return guarded(name, backbone_name, task_name, adapter={"kind": "steering"}, method=values)


def export_gguf(directory: Path, file: Path, backbone_name: str | None, as_json: bool) -> None:
    from adapters.backbone import REASONER, Backbone
    from adapters.control_vector import export_control_vector
    from adapters.errors import RefusedAdapter
    from adapters.files import load_adapters
    from adapters.steering import Steering
    from registry.manifest import MANIFEST, verify

    manifest = verify(directory) if (directory / MANIFEST).is_file() else None
    adapters = load_adapters(directory)
    steering = [adapter for adapter in adapters if isinstance(adapter, Steering)]
    if len(steering) < len(adapters):
        raise RefusedAdapter(
            f"A control vector is a steering vector and nothing else, but {directory} also holds another adapter, which "
            "llama.cpp would run without. Export a directory of the vector alone."
        )
    backbone = Backbone.load(backbone_name or (manifest.backbone.name if manifest else REASONER))
    export_control_vector(file, steering, backbone)
    layers = [one.layer for one in steering]
    if as_json:
        print(json.dumps({"file": str(file), "backbone": backbone.name, "layers": layers}))
    else:
        print(f"wrote {file} (layer {layers[0]}); run it with: llama-cli -m MODEL.gguf --control-vector {file}")


def import_gguf(
    file: Path, out: Path, domain: str | None, name: str | None, eps: float | None, backbone_name: str, as_json: bool
) -> None:
    """With a domain, a directory that can be published for it; without one, adapter files alone."""
    from adapters.backbone import REASONER, Backbone
    from adapters.control_vector import import_control_vector
    from adapters.errors import RefusedAdapter
    from adapters.whole_file import whole_directory
    from engine.profile import Profile
    from evaluation.strength import check_bound
    from registry.manifest import file_digest
    from tuning.guarded import guarded
    from tuning.manifest import complete

    _refuse_existing(out)
    bound = IMPORTED_EPS if eps is None else eps
    check_bound(bound)
    if domain is None and (eps is not None or name is not None):
        raise RefusedAdapter(
            f"`--name` and `--eps` are of a vector that is published, but without `--domain` {out} is for evaluate alone. "
            "Give a domain, or leave them out."
        )
    recipe = None if domain is None else guarded(name or f"{Path(domain).stem}-vector", backbone_name, domain)
    backbone = Backbone.load(backbone_name)
    found = import_control_vector(file, backbone)
    if len(found) > 1:
        layers = ", ".join(str(one.layer) for one in found)
        raise RefusedAdapter(
            f"A profile has one steering vector, but {file} steers layers {layers}. Take a file with a single direction."
        )
    with whole_directory(out) as part:
        if recipe is None:
            Profile(found).save(part)
        else:
            made: dict[str, JsonValue] = {"how": "a control vector of llama.cpp", "eps": bound, "gguf_sha256": file_digest(file)}
            complete(part, recipe, backbone, Profile(found), 1.0, (), made)
    if as_json:
        told = {"directory": str(out), "backbone": backbone.name, "layer": found[0].layer}
        print(json.dumps(told | ({} if recipe is None else {"domain": recipe.domain, "eps": bound})))
    else:
        on = "" if recipe is not None or backbone_name == REASONER else f" --backbone {backbone_name}"
        print(f"wrote {out} (layer {found[0].layer} of {backbone.name}); next: graftline evaluate {out}{on}", end="")
        print("; to publish it, import it with --domain" if recipe is None else f", or graftline publish {out}")


def _refuse_existing(out: Path) -> None:
    from adapters.errors import RefusedAdapter

    if out.exists():
        raise RefusedAdapter(f"An adapter is written to a new directory, but {out} is there already. Name another.")


def _told(out: Path, recipe: Recipe, steering: Steering, pairs: Pairs) -> dict[str, object]:
    assert steering.record is not None
    return {
        "directory": str(out),
        "task": recipe.domain,
        "backbone": recipe.backbone,
        "layer": steering.layer,
        "left_out": dict(pairs.left_out),
        **steering.record.model_dump(mode="json"),
    }


def _show(out: Path, record: SteeringRecord, pairs: Pairs) -> None:
    table = Table(title=f"{record.pairs} pairs, KL at most {record.eps:g} nats a token", title_justify="left")
    for heading in ("layer", "gamma", "KL", "tokens under -, without, +", "right", "shortens"):
        table.add_column(heading, overflow="fold")
    for row in record.layers:
        tokens = " / ".join(f"{count:.1f}" for count in row.signs.tokens)
        right = " / ".join(f"{share:.2f}" for share in row.signs.accuracy)
        table.add_row(str(row.layer), f"{row.gamma:.3g}", f"{row.kl:.3g}", tokens, right, row.signs.shortens)
    Console(markup=False).print(table)
    for reason, number in pairs.left_out.items():
        print(f"{number} examples made no pair: {reason}")
    signs = record.signs
    turned = ", turned round" if record.flipped else ""
    print(
        f"kept gamma {record.gamma:.3g}{turned}: {signs.tokens[1]:.1f} tokens become {signs.tokens[2]:.1f}, "
        f"{signs.accuracy[1]:.2f} right becomes {signs.accuracy[2]:.2f} ({signs.num_items} items)"
    )
    if record.kl < 0.8 * record.eps:
        print(f"its KL is {record.kl:.3g}: a larger gamma would add more than the median state's length, or break the bound")
    print("whether that is more than a cut would give is for the gate to say: it compares with the cap curve")
    if (found := record.refusals) is not None:
        mean, low, high = found.margin_change
        print(
            f"of {found.refused} prompts that the backbone refuses it answers {found.answered}; its lean to a refusal changes by "
            f"{mean:+.3f} [{low:+.3f}, {high:+.3f}] nats a token ({found.num_prompts} prompts)"
        )
    print(f"wrote {out}; next: graftline evaluate {out}, or graftline publish {out}")
