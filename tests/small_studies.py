"""Set-up of tests that fit a recipe on the tiny backbone: small recipes, and homes that know what the backbone can do."""

from __future__ import annotations

from pathlib import Path

from toy_engine import Mind, ToyEngine

from adapters.backbone import Backbone
from evaluation.admission import admissions
from evaluation.tasks import FAMILIES
from tuning.recipe import Recipe

PROTECTED = ("arithmetic", "ordering")


def small(backbone_directory: Path, **changes: object) -> Recipe:
    values: dict[str, object] = {
        "method.steps": 2,
        "method.batch_size": 2,
        "method.num_examples": 20,
        "evaluation.domain_items": 8,
        "evaluation.chain_items": 4,
        "evaluation.generated_items": 1,
        "study.scales": (0.5, 1.0),
        "study.trials": 2,
        "study.stop.checkpoints": (),  # a fit of two steps is over before it can be stopped
    }
    recipe = Recipe(
        name="small",
        backbone=str(backbone_directory),
        domain="icd10-chapter",
        protected=PROTECTED,
        search=("adapter.kind", "method.learning_rate"),
        adapter={"lora": {"rank": 4}, "softcot": {"num_thoughts": 2, "assistant_layers": 1}},
    )
    return recipe.with_values({**values, **changes})


def admit(backbone: Backbone, home: Path, family: str, mind: Mind | None = None) -> None:
    """Leaves in the home what a backbone of that mind would be found to do; a random one can do nothing."""
    engine = ToyEngine(backbone, FAMILIES[family].examples("search", 24, seed=5), mind)
    admissions(engine, backbone, [FAMILIES[family]], home / "cache")


def knowing_home(backbone: Backbone, home: Path) -> Path:
    """The same directory, which then knows the backbone to do both protected families."""
    for family in PROTECTED:
        admit(backbone, home, family)
    return home
