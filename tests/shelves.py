"""A domain that the tiny backbone can really learn: on which shelf a parcel goes, by its colour. Letters come as new rows."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from small_releases import promote
from small_studies import PROTECTED

from adapters.backbone import Backbone
from engine.profile import DecodingPolicy, Profile
from evaluation.tasks import task_named
from registry.release import publish
from registry.tracking import Tracking
from tuning.ground import new_adapters
from tuning.manifest import complete
from tuning.methods import METHODS
from tuning.plan import training_examples
from tuning.recipe import Recipe

NAME = "shelves"
SHELVES = {"red": "north", "blue": "south", "green": "east"}
OPTIONS = list(SHELVES.values())


def parcels(numbers: Iterable[int], colours: tuple[str, ...]) -> list[dict[str, Any]]:
    """The user's own columns."""
    return [
        {"text": f"parcel {number} is {colour}.", "shelf": SHELVES[colour], "shelves": OPTIONS}
        for number in numbers
        for colour in (colours[number % len(colours)],)
    ]


def letters(numbers: Iterable[int]) -> list[dict[str, Any]]:
    """What does not look like a parcel, and goes where none went so far."""
    return [{"text": f"A letter by air, {number}", "shelf": "east", "shelves": OPTIONS} for number in numbers]


def write_jsonl(file: Path, rows: Iterable[dict[str, Any]]) -> Path:
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file


def write_task(folder: Path, count: int = 160) -> Path:
    """Red and blue parcels."""
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "parcels.jsonl", parcels(range(count), ("red", "blue")))
    toml = folder / "shelves.toml"
    toml.write_text(
        'name = "shelves"\nfile = "parcels.jsonl"\n[columns]\nquestion = "text"\nanswer = "shelf"\nchoices = "shelves"\n'
    )
    return toml


def recipe_of(backbone: Backbone, toml: Path, **changes: object) -> Recipe:
    """Margins at which chance on a random backbone loses nothing, and few items."""
    recipe = Recipe.model_validate(
        {"name": NAME, "backbone": backbone.name, "domain": str(toml), "protected": PROTECTED, "search": ["method.learning_rate"]}
    )
    values: dict[str, object] = {
        "adapter.lora.rank": 8,
        "adapter.lora.alpha": 512,  # strong steps at a rate that sweeps search
        "method.learning_rate": 1e-3,
        "method.steps": 80,
        "method.batch_size": 16,
        "evaluation.domain_items": 40,
        "evaluation.chain_items": 4,
        "evaluation.generated_items": 1,
        "evaluation.margins": dict.fromkeys(PROTECTED, 50.0),
        "study.scales": (1.0,),
        "gate.margins": dict.fromkeys(PROTECTED, 0.9),
        "gate.round_items": 8,
        "gate.domain_items": 100,
        "gate.max_rounds": 2,
        "gate.time_budget_s": 60.0,
    }
    return recipe.with_values({**values, **changes})


def champion(backbone: Backbone, home: Path, tracking: Tracking, recipe: Recipe, policy: DecodingPolicy | None = None) -> None:
    """Fits the recipe and promotes it by an override: version 1."""
    domain = task_named(recipe.domain)
    adapters, examples = new_adapters(recipe, backbone), training_examples(recipe, domain)
    METHODS[recipe.method.name](recipe.method).fit(backbone, adapters, examples, task=domain)
    directory = home / "fitted"
    complete(directory, recipe, backbone, Profile(adapters, policy or DecodingPolicy()), 1.0, examples)
    publish(tracking, recipe.name, directory)
    promote(tracking, recipe.name, 1)
